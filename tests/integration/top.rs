//! `cmc-bridge top` in a terminal: it shows real bridges, notices when one goes away, and leaves the terminal as it was.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

use crate::{
    bridge::{NO_KAFKA, Setup, run},
    cmc::delivery,
    process::Process,
    wait,
};

const LIMIT: Duration = Duration::from_secs(120);
const ENTERS: &str = "\x1b[?1049h";
const LEAVES: &str = "\x1b[?1049l";

/// A terminal, and everything that was written to it.
struct Terminal {
    keyboard: File,
    line: OwnedFd,
    name: String,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn new() -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let line = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let keyboard = File::from(master);
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let (mut reader, copy) = (keyboard.try_clone().unwrap(), Arc::clone(&written));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                copy.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        let terminal = Terminal {
            keyboard,
            line,
            name: name.into_string().unwrap(),
            written,
        };
        terminal.resize(200);
        terminal
    }

    fn start(&self, args: &[&str]) -> Process {
        // Standard input of a process is the harness's own.
        let in_terminal = ["sh", "-c", r#"exec "$0" "$@" <"$TERMINAL" >"$TERMINAL" 2>&1"#];
        let mut command = Setup::new(NO_KAFKA).through(&in_terminal).command(args);
        command
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .env("TERMINAL", &self.name);
        Process::spawn(&mut command).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits until this was written.
    fn has(&self, text: &str) {
        wait::until(LIMIT, &format!("{text:?} in the terminal"), || {
            self.text().contains(text).then_some(())
        });
    }

    /// Waits until the screen shows a word. Only what changes is written, so the screen must be written anew: it is when its size
    /// changes. Even then, spaces are not.
    fn shows(&self, word: &str) {
        let mut widths = [199, 200].into_iter().cycle();
        wait::until(LIMIT, &format!("{word:?} on the screen"), || {
            let from = self.text().len();
            self.resize(widths.next()?);
            thread::sleep(Duration::from_millis(500));
            self.text().get(from..)?.contains(word).then_some(())
        });
    }

    fn resize(&self, width: u16) {
        let size = Winsize {
            ws_col: width,
            ws_row: 50,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.line, size).unwrap();
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(self.line.as_fd()).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    fn is_restored(&self) {
        let modes = tcgetattr(self.line.as_fd()).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        self.has(LEAVES);
        let text = self.text();
        assert!(text.rfind(LEAVES) > text.rfind(ENTERS), "{text:?}");
    }
}

#[test]
fn top_shows_bridges_and_leaves_the_terminal_as_it_was() {
    use std::io::Write;

    let [first, second] = [(); 2].map(|()| Setup::new(NO_KAFKA).start());
    assert_eq!(first.client().post(delivery("waits@test")).status, 200);
    let urls = [&first, &second].map(|bridge| format!("http://{}", bridge.admin));
    let args = ["top", "--every", "1", "--url", &urls[0], "--url", &urls[1]];

    let terminal = Terminal::new();
    let mut top = terminal.start(&args);
    terminal.has(ENTERS);
    terminal.shows("choose");
    terminal.shows("brokers");
    assert!(terminal.is_raw());
    second.kill();
    terminal.shows("GONE");
    (&terminal.keyboard).write_all(b"q").unwrap();
    assert_eq!(top.wait(LIMIT).unwrap().code(), Some(0));
    terminal.is_restored();

    // Ctrl-C is a key in a raw terminal; SIGTERM and SIGINT come from elsewhere.
    let ends: [fn(&Terminal, &mut Process); 3] = [
        |terminal, _| (&terminal.keyboard).write_all(&[3]).unwrap(),
        |_, top| top.signal(Signal::TERM),
        |_, top| top.signal(Signal::INT),
    ];
    for end in ends {
        let terminal = Terminal::new();
        let mut top = terminal.start(&args);
        terminal.shows("choose");
        end(&terminal, &mut top);
        assert_eq!(top.wait(LIMIT).unwrap().code(), Some(0));
        terminal.is_restored();
    }

    // All addresses of a name.
    let service = format!("localhost:{}", first.admin.port());
    let terminal = Terminal::new();
    let mut top = terminal.start(&["top", "--service", &service]);
    terminal.shows("brokers");
    top.signal(Signal::TERM);
    top.wait(LIMIT).unwrap();
    terminal.is_restored();
}

#[test]
fn without_a_terminal_top_says_so() {
    let ended = run(&Setup::new(NO_KAFKA), &["top", "--url", "http://127.0.0.1:1"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (64, ""));
    assert!(ended.stderr.contains("top needs a terminal") && ended.stderr.contains("cmc-bridge why"));
    for (args, what) in [
        (["--url", "nonsense"], "http://127.0.0.1:9464"),
        (["--service", "nonsense"], "cmc-bridge-headless:9464"),
    ] {
        let ended = run(&Setup::new(NO_KAFKA), &["top", args[0], args[1]]);
        assert!(
            ended.code == 64 && ended.stderr.contains(what),
            "{}",
            ended.stderr
        );
    }
}
