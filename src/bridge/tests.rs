//! A whole bridge whose lanes have no Kafka: starts, failures, stops.

use std::path::Path;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{streams::LOOK, *};
use crate::spool::LogState;

const HEAD: &[u8] =
    b"POST /webhooks/events HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";

fn failure() -> SpoolError {
    SpoolError::Io {
        action: "sync",
        path: "x".into(),
        source: io::Error::other("broken"),
    }
}

#[tokio::test]
async fn a_failure_at_the_very_end_of_a_stop_is_reported() {
    let (failed, failures) = mpsc::unbounded_channel();
    let (_words, stop) = mpsc::channel(1);
    let stopping = async move { failed.send(failure()).unwrap() };
    let ended = finish_stop(stopping, stop, failures).await;
    assert!(matches!(ended, Err(BridgeError::Spool(_))), "{ended:?}");
}

#[tokio::test]
async fn a_failure_is_reported_when_a_second_signal_cuts_a_stop_short() {
    struct Log(mpsc::UnboundedSender<SpoolError>);
    impl Drop for Log {
        fn drop(&mut self) {
            self.0.send(failure()).unwrap();
        }
    }
    let (failed, failures) = mpsc::unbounded_channel();
    let (words, stop) = mpsc::channel(1);
    words.send(()).await.unwrap();
    let log = Log(failed);
    let stopping = async move {
        let _log = log;
        std::future::pending().await
    };
    let ended = finish_stop(stopping, stop, failures).await;
    assert!(matches!(ended, Err(BridgeError::Spool(_))), "{ended:?}");
}

/// A bridge whose lanes are blocked from the start and delay nothing.
async fn start(dir: &Path) -> Bridge {
    try_start(dir).await.unwrap()
}

async fn try_start(dir: &Path) -> Result<Bridge, BridgeError> {
    try_start_with(dir, |_| {}).await
}

async fn try_start_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Result<Bridge, BridgeError> {
    let variable = (
        "CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS".to_owned(),
        "true".to_owned(),
    );
    let mut config = crate::config::load(&[], std::iter::once(variable))
        .unwrap()
        .config;
    change(&mut config);
    config.spool.dir = dir.to_path_buf();
    config.ingest.listen = "127.0.0.1:0".parse().unwrap();
    config.admin.listen = config.ingest.listen;
    config.shutdown.lame_duck = Duration::ZERO;
    config.shutdown.grace = Duration::from_secs(5);
    config
        .kafka
        .properties
        .insert("no.such.property".into(), "x".into());
    Bridge::start(config).await
}

#[tokio::test]
async fn a_dead_server_ends_the_process() {
    let ends: [fn(&mut Bridge); 2] = [|bridge| bridge.ingest.abort(), |bridge| bridge.admin.break_off()];
    for end in ends {
        let dir = tempfile::tempdir().unwrap();
        let mut bridge = start(dir.path()).await;
        end(&mut bridge);
        let (_words, stop) = mpsc::channel(1);
        assert!(matches!(bridge.run(stop).await, Err(BridgeError::PortLost(_))));
    }
}

/// The bridge's threads may still write and deliver, however it ended.
#[tokio::test]
async fn the_spool_stays_locked_after_the_end() {
    type End = fn(&mut Bridge, &mpsc::Sender<()>);
    let ends: [(&str, End); 4] = [
        ("a failure", |bridge, _| {
            let (failed, failures) = mpsc::unbounded_channel();
            bridge.failures = failures;
            failed.send(failure()).unwrap();
        }),
        ("a panic of a port's task", |bridge, _| bridge.ingest.abort()),
        ("a stop", |_, words| words.try_send(()).unwrap()),
        ("a second word", |bridge, words| {
            bridge.config.shutdown.lame_duck = Duration::from_secs(3600);
            (0..2).for_each(|_| words.try_send(()).unwrap());
        }),
    ];
    for (what, end) in ends {
        let dir = tempfile::tempdir().unwrap();
        let mut bridge = start(dir.path()).await;
        let (words, stop) = mpsc::channel(2);
        end(&mut bridge, &words);
        let _ = bridge.run(stop).await;
        let second = SpoolLock::acquire(dir.path());
        assert!(matches!(second, Err(SpoolError::Locked { .. })), "{what}");
    }
}

async fn post(bridge: &Bridge, stream: &str) -> String {
    let body = format!(
        r#"{{"event_type":"{stream}","server_composition":"pro","event":{{"{stream}":[{{"messageId":"a"}}]}}}}"#
    );
    let head = format!(
        "POST /webhooks/events HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut client = TcpStream::connect(bridge.ingest_address()).await.unwrap();
    client.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

fn away(file: &Path) -> std::path::PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".away");
    name.into()
}

type FileChange = fn(&Path);

/// Breaks and mends a file: damages its contents.
const DAMAGED: (FileChange, FileChange) = (
    |file| {
        std::fs::rename(file, away(file)).unwrap();
        std::fs::write(file, "?").unwrap();
    },
    |file| std::fs::rename(away(file), file).unwrap(),
);

/// Breaks and mends a file: replaces it with a FIFO, so that opening it hangs until the other end is opened.
const HANGS: (FileChange, FileChange) = (
    |file| {
        std::fs::rename(file, away(file)).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    },
    |file| {
        let mut both = std::fs::OpenOptions::new();
        let other_end = both.read(true).write(true).open(file).unwrap();
        std::fs::rename(away(file), file).unwrap();
        drop(other_end);
    },
);

/// Stops a bridge and breaks the files that it needs to open a log.
async fn broken_log(dir: &Path, stream: Stream, break_it: FileChange) -> [std::path::PathBuf; 2] {
    let bridge = try_start_with(dir, |config| config.streams[stream.index()].enabled = true).await;
    bridge.unwrap().stop().await;
    // As if the process had ended.
    std::fs::remove_file(dir.join("lock")).unwrap();
    let files = ["manifest.copy", "manifest"].map(|name| dir.join(stream.name()).join(name));
    files.iter().for_each(|file| break_it(file));
    files
}

/// A disabled stream's log is like any other: its trouble delays nothing else, is shown, and ends without a restart.
#[tokio::test]
async fn an_unopened_log_of_a_disabled_stream_does_not_prevent_the_start() {
    for (break_it, mend) in [DAMAGED, HANGS] {
        let dir = tempfile::tempdir().unwrap();
        let files = broken_log(dir.path(), Stream::Blocks, break_it).await;
        let disable = |config: &mut Config| config.streams[Stream::Blocks.index()].enabled = false;
        let bridge = try_start_with(dir.path(), disable).await.unwrap();
        assert!(bridge.health.readiness().is_ready());
        assert!(post(&bridge, "deliveries").await.starts_with("HTTP/1.1 200"));
        let blocks = bridge
            .streams
            .iter()
            .find(|pipeline| pipeline.stream == Stream::Blocks);
        let blocks = blocks.unwrap();
        assert_eq!(blocks.appender.state(), LogState::NotOpen);
        files.iter().for_each(|file| mend(file));
        let begun = Instant::now();
        while !blocks.look(|open| open.lane.is_finished()).unwrap_or(false) {
            assert!(begun.elapsed() < Duration::from_secs(100));
            sleep(LOOK).await;
        }
        bridge.stop().await;
    }
}

/// If opening a log fails or hangs, the others start, and it recovers without a restart.
#[tokio::test]
async fn an_unopened_log_affects_only_its_own_webhooks() {
    for (break_it, mend) in [DAMAGED, HANGS] {
        let dir = tempfile::tempdir().unwrap();
        let files = broken_log(dir.path(), Stream::Bounces, break_it).await;
        let bridge = try_start(dir.path()).await.unwrap();
        assert!(bridge.health.readiness().is_ready());
        let refused = post(&bridge, "bounces").await;
        assert!(
            refused.starts_with("HTTP/1.1 503") && refused.contains("can't be opened"),
            "{refused}"
        );
        assert!(refused.to_ascii_lowercase().contains("retry-after"), "{refused}");
        assert!(post(&bridge, "deliveries").await.starts_with("HTTP/1.1 200"));
        files.iter().for_each(|file| mend(file));
        let begun = Instant::now();
        while !post(&bridge, "bounces").await.starts_with("HTTP/1.1 200") {
            assert!(begun.elapsed() < Duration::from_secs(100));
            sleep(LOOK).await;
        }
        bridge.stop().await;
    }
}

#[tokio::test]
async fn without_any_log_for_events_the_start_fails() {
    let dir = tempfile::tempdir().unwrap();
    for stream in ["deliveries", "bounces"] {
        std::fs::create_dir(dir.path().join(stream)).unwrap();
        std::fs::write(dir.path().join(stream).join("manifest"), "?").unwrap();
    }
    let refused = try_start(dir.path()).await.map(drop).unwrap_err();
    assert!(
        matches!(&refused, BridgeError::Spool(why) if why.to_string().contains("manifest")),
        "{refused}"
    );
}

#[tokio::test]
async fn waiting_clients_get_answers_despite_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let mut bridge = start(dir.path()).await;
    let mut client = TcpStream::connect(bridge.ingest_address()).await.unwrap();
    client.write_all(HEAD).await.unwrap();
    client.readable().await.unwrap();
    let (failed, failures) = mpsc::unbounded_channel();
    bridge.failures = failures;
    failed.send(failure()).unwrap();
    let (_words, stop) = mpsc::channel(1);
    let ingest = bridge.ingest.abort_handle();
    let ending = tokio::spawn(bridge.run(stop));
    client.write_all(b"something").await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("HTTP/1.1 400"), "{answer}");
    assert!(matches!(ending.await.unwrap(), Err(BridgeError::Spool(_))));
    assert!(ingest.is_finished());
}

#[tokio::test]
async fn a_slow_client_leaves_logs_and_lanes_their_time() {
    // A stalled machine may use up their second now and then; a faulty stop does so every time.
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let mut bridge = start(dir.path()).await;
        let mut client = TcpStream::connect(bridge.ingest_address()).await.unwrap();
        client.write_all(HEAD).await.unwrap();
        // The 100 Continue shows that the body is being read.
        client.readable().await.unwrap();
        let mut failures = std::mem::replace(&mut bridge.failures, mpsc::unbounded_channel().1);
        bridge.stop().await;
        // Everything that could fail has ended.
        if matches!(failures.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)) {
            return;
        }
    }
    panic!("logs and lanes had no time left");
}
