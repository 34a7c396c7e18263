//! `cmc-bridge why` asks real processes, each with something else that is wrong.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Topics, run},
    cmc::{delivery, message, webhook},
    kafka::{new_dir, shared},
    process::Ended,
    secure::{grant, scram},
    secured_broker::secured,
    topics, wait,
};

const LIMIT: Duration = Duration::from_secs(180);

/// Asks the bridge at this address. Its configuration is not needed.
fn ask(address: SocketAddr) -> Ended {
    let url = format!("http://{address}");
    run(&Setup::new(NO_KAFKA), &["why", "--url", &url, "--timeout", "60"])
}

/// Asks until the exit code and all texts are there. Every answer has the five lines, and one for each other problem.
fn wait_for(bridge: &Bridge, code: i32, texts: &[&str]) -> String {
    wait::until(LIMIT, &format!("{code} with {texts:?}"), || {
        let ended = ask(bridge.admin);
        let lines: Vec<_> = ended.stdout.lines().collect();
        for (line, name) in lines[1..5]
            .iter()
            .zip(["since   ", "costs   ", "do      ", "see     "])
        {
            assert!(
                line.len() > name.len() && line.starts_with(name),
                "{}",
                ended.stdout
            );
        }
        assert!(
            lines[5..].iter().all(|line| line.starts_with("also    ")),
            "{}",
            ended.stdout
        );
        assert_eq!(ended.stderr, "");
        (ended.code == code && texts.iter().all(|text| ended.stdout.contains(text))).then_some(ended.stdout)
    })
}

#[test]
fn a_bridge_that_is_well_is_said_to_be_well() {
    let kafka = shared();
    let bridge = Setup::new(kafka).topics(&Topics::create(kafka)).start();
    assert_eq!(bridge.client().post(delivery("well@test")).status, 200);
    bridge.wait_drained(LIMIT);
    let text = wait_for(
        &bridge,
        0,
        &[
            "ok: Webhooks are taken. All events are in Kafka.",
            "costs   nothing",
        ],
    );
    assert_eq!(text.lines().count(), 5);

    // A dead letter has time.
    assert_eq!(bridge.client().post("{").status, 400);
    wait_for(
        &bridge,
        0,
        &[
            "info: ",
            "1 dead letter was written",
            "dead-letters ls",
            "#cmcbridgedeadletters",
        ],
    );
    bridge.stop();
}

#[test]
fn kafka_is_away_and_then_the_spool_is_full() {
    let setup = Setup::new(NO_KAFKA)
        .set("ingest.max_body_bytes", "64KiB")
        .set("spool.segment_bytes", "128KiB")
        .set("spool.max_bytes", "2MiB");
    let mut bridge = setup.start();
    let mut client = bridge.client();
    assert_eq!(client.post(delivery("waits@test")).status, 200);
    let away = [
        "warning: Deliveries",
        "are not being delivered: connect: ",
        "costs   1 event waits on disk; webhooks are taken",
        &format!("do      Check that the brokers at {NO_KAFKA} run"),
        "docs/operations.md#cmcbridgelaneblocked",
    ];
    wait_for(&bridge, 1, &away);

    let large = message("large@test", &"x".repeat(40_000));
    let refused =
        |client: &mut crate::http::Client| client.post(webhook("deliveries", "pro", &[&large])).status == 503;
    while !refused(&mut client) {}
    wait_for(
        &bridge,
        2,
        &[
            "critical: The spool of deliveries is full: spool.max_bytes is used up.",
            "do      Raise spool.max_bytes",
            "#cmcbridgespoolnearlyfull",
            "also    warning: Deliveries",
        ],
    );
    bridge.terminate();
    wait_for_end(bridge);
}

/// A second signal ends it at once.
fn wait_for_end(mut bridge: Bridge) {
    bridge.terminate();
    bridge.running.wait_exit(Duration::from_secs(60));
}

#[test]
fn a_topic_is_missing() {
    let kafka = shared();
    let topics = Topics {
        bounces: wait::unique("never-created"),
        ..Topics::create(kafka)
    };
    let bridge = Setup::new(kafka).topics(&topics).start();
    let create = format!("do      Create topic {}", topics.bounces);
    wait_for(
        &bridge,
        1,
        &[
            "warning: Bounces are not being delivered: topic_missing: ",
            &create,
        ],
    );
    bridge.stop();
}

#[test]
fn a_right_is_missing() {
    let broker = secured();
    let user = "asks-why";
    let topic = |what| topics::create(&broker.bootstrap(), what, 1, &[]);
    let all = Topics {
        deliveries: topic("why-deliveries"),
        bounces: topic("not-granted"),
        blocks: "not-used".to_owned(),
        dead_letters: topic("why-dead-letters"),
    };
    let prefixed = |kind, name| [kind, name, "--resource-pattern-type", "prefixed"];
    broker.acls(&[
        grant(&[user], &["Write", "Read"], &prefixed("--topic", "why-")),
        grant(&[user], &["Read"], &prefixed("--group", user)),
        grant(&[user], &["Write"], &prefixed("--transactional-id", user)),
    ]);
    let bridge = scram(broker, user)
        .topics(&all)
        .set("kafka.id_prefix", user)
        .start();
    let cure = format!(
        "do      Grant the bridge's user WRITE and READ on topic {}",
        all.bounces
    );
    wait_for(
        &bridge,
        1,
        &["warning: Bounces are not being delivered: authorization: ", &cure],
    );
    bridge.stop();
}

/// A library that delays each sync of the process while a file exists.
const SLOW_SYNCS: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int file) {
    const char *when = getenv("SLOW_WHILE");
    if (when && access(when, F_OK) == 0) usleep(400000);
    return syscall(SYS_fdatasync, file);
}
"#;

#[test]
fn the_disk_is_slow() {
    let dir = new_dir("slow");
    let (source, library, when) = (dir.join("slow.c"), dir.join("slow.so"), dir.join("now"));
    fs::write(&source, SLOW_SYNCS).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source]);
    assert!(compiler.status().unwrap().success());
    let preload = format!("LD_PRELOAD={}", library.display());
    let while_exists = format!("SLOW_WHILE={}", when.display());
    let bridge = Setup::new(NO_KAFKA)
        .through(&["env", &preload, &while_exists])
        .start();
    fs::write(&when, "").unwrap();
    let mut client = bridge.client();
    for number in 0..5 {
        assert_eq!(client.post(delivery(&format!("slow-{number}@test"))).status, 200);
    }
    fs::remove_file(&when).unwrap();
    wait_for(
        &bridge,
        1,
        &["The disk of spool.dir is slow: of the syncs in the last minute, these took more than 250 ms: "],
    );
    bridge.kill();
}

#[test]
fn a_file_of_credentials_is_refused() {
    let file = new_dir("tokens").join("tokens");
    fs::write(&file, "first-token").unwrap();
    let setup = Setup::new(NO_KAFKA)
        .unset("ingest.auth.allow_anonymous")
        .set("ingest.auth.bearer_tokens_file", file.to_str().unwrap());
    let bridge = setup.start();
    fs::write(&file, "").unwrap();
    let refused = format!("New credentials are refused: {}", file.display());
    wait_for(&bridge, 1, &[&refused, "#cmcbridge"]);

    // Its own configuration would be refused now, and still names the port.
    let setup = setup.set("admin.listen", &bridge.admin.to_string());
    assert_eq!(run(&setup, &["check"]).code, 78);
    let ended = run(&setup, &["why"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stdout.contains(&refused), "{}", ended.stdout);

    fs::write(&file, "second-token").unwrap();
    wait::until(LIMIT, "new credentials in use", || {
        (!ask(bridge.admin).stdout.contains("New credentials are refused")).then_some(())
    });
    bridge.kill();
}

#[test]
fn it_is_starting() {
    let setup = Setup::new(NO_KAFKA);
    let log = setup.spool_dir().join("deliveries");
    fs::create_dir_all(&log).unwrap();
    // Whoever reads it waits, as on a disk that hangs.
    assert!(
        Command::new("mkfifo")
            .arg(log.join("manifest"))
            .status()
            .unwrap()
            .success()
    );
    let bridge = setup.start();
    wait_for(
        &bridge,
        1,
        &[
            "warning: The log of deliveries is being opened.",
            "do      Wait: ",
            "answered 503",
        ],
    );
    bridge.kill();
}

#[test]
fn it_is_draining() {
    let mut bridge = Setup::new(NO_KAFKA).set("shutdown.lame_duck", "60s").start();
    assert_eq!(bridge.client().post(delivery("left@test")).status, 200);
    bridge.terminate();
    wait_for(
        &bridge,
        1,
        &[
            "warning: The bridge is stopping.",
            "costs   1 event is not in Kafka yet;",
        ],
    );
    wait_for_end(bridge);
}

#[test]
fn no_answer_is_an_answer() {
    // Nobody can take the port meanwhile.
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = held.local_addr().unwrap();
    let url = format!("http://{silent}");
    let ended = run(&Setup::new(NO_KAFKA), &["why", "--url", &url, "--timeout", "1"]);
    assert_eq!(
        (ended.code, ended.stdout.lines().count(), ended.stderr.as_str()),
        (69, 5, "")
    );
    let what = format!("critical: The bridge at {url} can't be asked: no answer within 1 s.");
    assert!(ended.stdout.starts_with(&what), "{}", ended.stdout);
    drop(held);

    // Nothing listens there.
    let ended = run(&Setup::new(NO_KAFKA).set("admin.listen", NO_KAFKA), &["why"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (69, 5));
    assert!(
        ended.stdout.contains("can't be asked: Connection refused"),
        "{}",
        ended.stdout
    );

    // The port of webhooks is no admin port.
    let bridge = Setup::new(NO_KAFKA).start();
    let ended = ask(bridge.ingest);
    assert_eq!(ended.code, 69);
    assert!(
        ended.stdout.starts_with("unknown: No bridge was asked"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("is answered 404"), "{}", ended.stdout);
    let ended = run(
        &Setup::new(NO_KAFKA),
        &["why", "--url", &format!("https://{}", bridge.admin)],
    );
    assert_eq!(ended.code, 69);
    assert!(
        ended.stdout.starts_with("unknown: No bridge was asked"),
        "{}",
        ended.stdout
    );
    bridge.kill();

    for args in [
        &["why", "--url", "127.0.0.1:9464"][..],
        &["why"],
        &["why", "--timeout", "0"],
    ] {
        let ended = run(&Setup::new(NO_KAFKA), args);
        assert_eq!((ended.code, ended.stdout.as_str()), (64, ""), "{}", ended.stderr);
    }
}
