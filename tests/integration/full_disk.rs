//! A full disk: a small file system of its own (tmpfs), filled by the bridge and by others.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{message, webhook},
    kafka::new_dir,
    load::{Load, Outcome, Posted, Shape, Target},
    oracle,
    proxy::Proxy,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);
const DISK: u64 = 12 << 20;

/// A mounted tmpfs. Dropping it unmounts it.
struct Disk(PathBuf);

impl Disk {
    fn mount() -> Self {
        let dir = new_dir("small-disk");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK}"), "cmc-bridge-test"])
            .arg(&dir)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "this test mounts a tmpfs of {DISK} bytes, for which it must be root (CAP_SYS_ADMIN); without that, run the \
             others with `--skip full_disk::`: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Disk(dir)
    }

    /// Creates a file that takes all remaining space.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("not-ours");
        let file = fs::File::create(&path).unwrap();
        let mut bytes = vec![1; 1 << 20];
        let mut offset = 0;
        while !bytes.is_empty() {
            match std::os::unix::fs::FileExt::write_at(&file, &bytes, offset) {
                Ok(n) if n > 0 => offset += n as u64,
                _ => bytes.truncate(bytes.len() / 2),
            }
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because the bridge of a failed test may still have files open.
        let status = Command::new("umount").arg("-l").arg(&self.0).status();
        if !std::thread::panicking() {
            assert!(status.unwrap().success(), "umount {}", self.0.display());
        }
    }
}

/// The number of webhooks refused so far because they could not be made durable.
fn refused(bridge: &Bridge) -> f64 {
    let scrape = bridge.scrape();
    scrape.sum("cmc_bridge_webhooks_total", &[("outcome", "overloaded")])
}

/// Waits until webhooks of every stream are refused with 503.
fn wait_full(bridge: &Bridge) {
    wait::until(LIMIT, "/readyz 503", || {
        (bridge.probe("/readyz") == 503).then_some(())
    });
    assert_eq!(bridge.probe("/livez"), 200);
    // Larger than the space that may be left in the segments in use.
    let body = webhook("deliveries", "pro", &[&message("large", &"x".repeat(500_000))]);
    let response = bridge.client().post(body);
    assert_eq!(response.status, 503);
    assert_eq!(response.media_type(), "application/problem+json");
    let seconds: u64 = response
        .header("retry-after")
        .expect("Retry-After")
        .parse()
        .unwrap();
    assert!((1..600).contains(&seconds));
}

fn wait_ready(bridge: &Bridge, load: &Load) {
    wait::until(LIMIT, "/readyz 200", || {
        (bridge.probe("/readyz") == 200).then_some(())
    });
    load.wait_acknowledged(20, LIMIT);
}

/// Bytes that a process has written with `write` and similar calls.
fn written(bridge: &Bridge) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", bridge.id())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

#[test]
fn a_full_disk_refuses_webhooks_until_there_is_room_and_loses_none() {
    let disk = Disk::mount();
    let proxy = Proxy::start();
    let topics = Topics::create(&proxy.kafka);
    let setup = Setup::new(&proxy.bootstrap())
        .topics(&topics)
        .spool(&disk.0.join("spool"))
        .set("spool.segment_bytes", "1MiB");
    let bridge = setup.start();
    let target = Target::default();
    target.set(bridge.ingest);
    let shape = Shape {
        clients: 4,
        events: 100,
        pause: Duration::from_millis(50),
    };
    let load = Load::start(&target, shape);
    bridge.wait_for(LIMIT, "a first delivery", |scrape| {
        scrape.sum("cmc_bridge_delivered_events_total", &[]) > 0.0
    });
    proxy.set_down(true);

    // Other files take the space, then release it.
    let others = disk.fill();
    wait_full(&bridge);
    fs::remove_file(&others).unwrap();
    wait_ready(&bridge, &load);

    // The backlog takes the space.
    wait_full(&bridge);
    let posted = load.stop();
    assert!(refused(&bridge) > 10.0);
    let (before, second) = (written(&bridge), Duration::from_secs(1));
    thread::sleep(3 * second);
    let growth = written(&bridge) - before;
    println!("written in three seconds without space: {growth} bytes");
    assert!(
        growth < 128 << 10,
        "waiting for space writes {growth} bytes in 3 s"
    );

    // A restart neither helps nor harms.
    bridge.kill();
    let bridge = setup.start();
    target.set(bridge.ingest);
    let load = Load::start(&target, shape);
    wait_full(&bridge);
    // No byte is free when the bridge must store the position that lets it trim.
    let others = disk.fill();
    wait_full(&bridge);
    proxy.set_down(false);
    wait_ready(&bridge, &load);
    fs::remove_file(others).unwrap();
    load.wait_acknowledged(100, LIMIT);
    let posted: Vec<Posted> = posted.into_iter().chain(load.stop()).collect();
    let told = |posted: &&Posted| matches!(posted.outcome, Outcome::Acknowledged(_) | Outcome::Refused(503));
    let untold = posted.iter().filter(|posted| !told(posted)).count();
    assert_eq!(untold, 0, "webhooks answered neither 200 nor 503");
    bridge.wait_drained(LIMIT);
    oracle::check(&proxy.kafka, &topics, &posted);
    bridge.stop();
}
