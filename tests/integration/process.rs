//! Child processes that never outlive the tests, however those end.
//!
//! A child starts as `sh`, which forks a watcher and then becomes the program (`exec`), so that the child's id is the
//! program's. The watcher reads from a pipe whose other end only the test process holds. At the end of file the tests are
//! gone, and it kills the program. A line on the pipe means that the program has been reaped.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

const WATCHED: &str = r#"exec 3<&0
(read -r _ <&3 || kill -9 $$) >/dev/null 2>&1 &
exec "$@" 3<&- </dev/null"#;

/// A program, running or ended. Dropping it kills it.
pub struct Process {
    child: Child,
    alive: Option<ChildStdin>,
}

/// The exit code and output of a program that ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts that it ended with this code and that its output contains all the parts.
    #[track_caller]
    pub fn has(&self, code: i32, parts: &[&str]) {
        let all = format!("{}\n--\n{}", self.stdout, self.stderr);
        assert_eq!(self.code, code, "{all}");
        for part in parts {
            assert!(all.contains(part), "no {part:?} in\n{all}");
        }
    }
}

/// A command for [`Process::spawn`]; set its environment and output as usual.
pub fn watched<S: AsRef<OsStr>>(program: S, args: &[OsString]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHED, "sh"]).arg(program).args(args);
    command
}

impl Process {
    /// Starts a command made by [`watched`].
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        // Taken out, because `Child::wait` would close it.
        let alive = child.stdin.take();
        Ok(Process { child, alive })
    }

    /// The standard error, if it was piped and not yet taken.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// The standard output, if it was piped and not yet taken.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// The program's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, unless the program has ended and been reaped.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let pid = Pid::from_raw(self.child.id() as i32).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    /// SIGKILL; waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
        self.release();
    }

    /// The exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        // Once reaped, `Child` remembers the status and never uses the id again.
        let status = self.child.try_wait().unwrap();
        if status.is_some() {
            self.release();
        }
        status
    }

    /// Waits for the end, at most for `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn release(&mut self) {
        if let Some(mut alive) = self.alive.take() {
            // The watcher may be gone; then there is nobody to tell.
            let _ = alive.write_all(b"reaped\n");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
