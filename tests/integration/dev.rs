//! `dev` with credentials: its samples and the printed curl command present them.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    bridge::{NO_KAFKA, Setup},
    kafka::new_dir,
    process::Process,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// Runs `dev --sample` with these settings until it prints `last`. Returns its output and the first line of the printed
/// command's answer, if there is curl.
fn dev(setup: &Setup, last: &str) -> (String, Option<String>) {
    let out = new_dir("dev").join("stdout");
    let mut command = setup.command(&[
        "dev",
        "--sample",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ]);
    command.stdout(File::create(&out).unwrap());
    let mut process = Process::spawn(&mut command).unwrap();
    let text = wait::until(LIMIT, &format!("the line {last:?}"), || {
        assert!(process.exited().is_none(), "dev ended");
        let text = fs::read_to_string(&out).unwrap();
        text.lines().any(|line| line.starts_with(last)).then_some(text)
    });
    let line = text.lines().find(|line| line.starts_with("curl ")).unwrap();
    let answer = has_curl().then(|| {
        let output = Command::new("sh")
            .args(["-c", &format!("{line} --noproxy '*'")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    });
    process.signal(Signal::INT);
    assert!(process.wait(LIMIT).is_some_and(|status| status.success()));
    // The file that the command reads is removed with the rest.
    if let Some((_, file)) = line.split_once("'@") {
        assert!(!Path::new(file.split('\'').next().unwrap()).exists(), "{line}");
    }
    (text, answer)
}

fn has_curl() -> bool {
    Command::new("curl").arg("--version").output().is_ok()
}

#[test]
fn samples_and_the_printed_command_present_the_credentials() {
    let setup = Setup::new(NO_KAFKA).unset("ingest.auth.allow_anonymous");
    for (key, value, last) in [
        (
            "ingest.auth.bearer_tokens",
            "s3cr3t-token",
            "posted a truncated body",
        ),
        ("ingest.auth.basic", "cmc:s3cr3t", "posted a truncated body"),
        ("ingest.auth.api_keys", "s3cr3t-key", "posted a received mail"),
    ] {
        let (text, answer) = dev(&setup.clone().set(key, value), last);
        let posted: Vec<&str> = text.lines().filter(|line| line.starts_with("posted ")).collect();
        assert!(posted.len() >= 3, "{text}");
        for line in posted {
            let wanted = if line.contains("truncated") {
                ": 400"
            } else {
                ": 200"
            };
            assert!(line.contains(wanted), "{line}");
        }
        if let Some(answer) = answer {
            assert_eq!(answer, "HTTP/1.1 200 OK", "{key}");
        }
        assert!(!text.contains("s3cr3t"), "{text}");
        assert!(text.contains("webhooks of received mail"), "{text}");
        assert!(
            text.contains("posted a received mail with an attachment (multipart): 200"),
            "{text}"
        );
    }
}
