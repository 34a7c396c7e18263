//! Credentials that change while webhooks arrive, and requests without any.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup, Topics},
    cmc::delivery,
    http::{Client, JSON},
    kafka::{self, new_dir},
    topics::Reader,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);
const USES: &str = "cmc_bridge_credential_uses_total";
const LAST_USE: &str = "cmc_bridge_credential_last_use_timestamp_seconds";
const RELOAD_FAILURES: &str = "cmc_bridge_credential_reload_failures_total";

/// A file as Kubernetes mounts it: a symlink through `..data`, which is swapped atomically.
struct Secret {
    dir: PathBuf,
    writes: u32,
}

impl Secret {
    fn new(contents: impl AsRef<[u8]>) -> Secret {
        let mut secret = Secret {
            dir: new_dir("credentials"),
            writes: 0,
        };
        secret.write(contents);
        symlink("..data/secret", secret.path()).unwrap();
        secret
    }

    fn path(&self) -> PathBuf {
        self.dir.join("secret")
    }

    fn write(&mut self, contents: impl AsRef<[u8]>) {
        self.writes += 1;
        let version = format!("..{}", self.writes);
        fs::create_dir(self.dir.join(&version)).unwrap();
        fs::write(self.dir.join(&version).join("secret"), contents).unwrap();
        let next = self.dir.join("..data_tmp");
        symlink(&version, &next).unwrap();
        fs::rename(&next, self.dir.join("..data")).unwrap();
    }

    /// A bridge that reads its credentials from here.
    fn setup(&self, bootstrap: &str, key: &str) -> Setup {
        Setup::new(bootstrap)
            .unset("ingest.auth.allow_anonymous")
            .set(key, self.path().to_str().unwrap())
    }
}

fn status(client: &mut Client, authorization: &str) -> u16 {
    let headers = [JSON, ("authorization", authorization)];
    client.post_with(&headers, delivery("a")).status
}

fn wait_for_status(bridge: &Bridge, authorization: &str, wanted: u16) {
    let mut client = bridge.client();
    wait::until(LIMIT, &format!("{wanted} for {authorization}"), || {
        (status(&mut client, authorization) == wanted).then_some(())
    });
}

/// Posts without a pause until stopped; returns the count of each status.
fn sender(bridge: &Bridge, authorization: &'static str) -> (Arc<AtomicBool>, thread::JoinHandle<(u64, u64)>) {
    let stop = Arc::new(AtomicBool::new(false));
    let mut client = bridge.client();
    let sending = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let (mut accepted, mut refused) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                match status(&mut client, authorization) {
                    200 => accepted += 1,
                    _ => refused += 1,
                }
                // Limits the load, because the events stay in the spool.
                thread::sleep(Duration::from_millis(1));
            }
            (accepted, refused)
        }
    });
    (stop, sending)
}

#[test]
fn a_token_is_changed_without_a_gap() {
    let mut secret = Secret::new("old-token\n");
    let setup = secret.setup(NO_KAFKA, "ingest.auth.bearer_tokens_file");
    let bridge = setup.start();
    let uses = |name: &str| bridge.scrape().get(USES, &[("credential", name)]);
    let (stop_old, old) = sender(&bridge, "Bearer old-token");
    wait::until(LIMIT, "uses of the old token", || {
        (uses("bearer-1") > 5.0).then_some(())
    });
    assert_eq!(bridge.scrape().label_values(USES, "credential"), ["bearer-1"]);

    // Both are valid, and the new one has a series before it is used.
    secret.write("old-token\nnew-token\n");
    let scrape = bridge.wait_for(LIMIT, "the new token's series", |scrape| {
        scrape.label_values(USES, "credential").len() == 2
    });
    assert_eq!(scrape.get(USES, &[("credential", "bearer-2")]), 0.0);
    assert_eq!(scrape.get(LAST_USE, &[("credential", "bearer-2")]), 0.0);
    wait_for_status(&bridge, "Bearer new-token", 200);
    let (stop_new, new) = sender(&bridge, "Bearer new-token");
    wait::until(LIMIT, "uses of the new token", || {
        (uses("bearer-2") > 5.0).then_some(())
    });

    // The sender has changed over, and the metrics say so.
    stop_old.store(true, Ordering::Relaxed);
    let (accepted, refused) = old.join().unwrap();
    assert!(
        accepted > 5 && refused == 0,
        "{accepted} accepted, {refused} refused"
    );
    let out_of_use = bridge.scrape();
    let later = uses("bearer-2");
    wait::until(LIMIT, "more uses", || (uses("bearer-2") > later).then_some(()));
    let scrape = bridge.scrape();
    let old_token = [("credential", "bearer-1")];
    assert_eq!(scrape.get(USES, &old_token), out_of_use.get(USES, &old_token));
    assert_eq!(
        scrape.get(LAST_USE, &old_token),
        out_of_use.get(LAST_USE, &old_token)
    );
    assert!(scrape.get(LAST_USE, &[("credential", "bearer-2")]) >= scrape.get(LAST_USE, &old_token));
    assert!(scrape.get(LAST_USE, &old_token) > 1_600_000_000.0);

    secret.write("new-token\n");
    wait_for_status(&bridge, "Bearer old-token", 401);
    stop_new.store(true, Ordering::Relaxed);
    let (accepted, refused) = new.join().unwrap();
    assert!(
        accepted > 5 && refused == 0,
        "{accepted} accepted, {refused} refused"
    );
    // A replaced credential keeps its series.
    assert_eq!(bridge.scrape().label_values(USES, "credential").len(), 2);
    assert_eq!(bridge.scrape().get(RELOAD_FAILURES, &[]), 0.0);
    let taken = "\"credentials\":\"bearer-1,bearer-2\"";
    let log = wait::until(LIMIT, taken, || {
        Some(bridge.running.stderr()).filter(|log| log.contains(taken))
    });
    assert!(!log.contains("old-token") && !log.contains("new-token"));
}

#[test]
fn an_unusable_credential_is_refused_and_the_old_one_stays() {
    let mut secret = Secret::new("cmc:old-word\r\n");
    let bridge = secret.setup(NO_KAFKA, "ingest.auth.basic_file").start();
    const OLD: &str = "Basic Y21jOm9sZC13b3Jk";
    const NEW: &str = "Basic Y21jOm5ldy13b3Jk";
    let (stop, sending) = sender(&bridge, OLD);
    for (contents, cause) in [
        (&b""[..], "the file has no secret in it"),
        (b"cmc:new-word\n\xff\n", "is not UTF-8"),
        (b"cmc:new-word\nnew-word\n", "entry 2 has no colon"),
        (
            b"cmc:new-word\ncmc:new-word\n",
            "basic-2 is the same secret as basic-1",
        ),
    ] {
        let lines = || {
            let log = bridge.running.stderr();
            let told = log.lines().filter(|line| {
                line.contains("new credentials are refused")
                    && line.contains(cause)
                    && line.contains("\"ERROR\"")
            });
            told.count()
        };
        secret.write(contents);
        wait::until(LIMIT, cause, || (lines() > 0).then_some(()));
        // Each check is counted, and one line covers them all.
        let before = bridge.scrape().get(RELOAD_FAILURES, &[]);
        bridge.wait_for(LIMIT, "a further look", |scrape| {
            scrape.get(RELOAD_FAILURES, &[]) > before
        });
        assert_eq!(lines(), 1, "{}", bridge.running.stderr());
        assert_eq!(status(&mut bridge.client(), NEW), 401);
    }
    let before = bridge.scrape().get(RELOAD_FAILURES, &[]);
    fs::remove_file(secret.path()).unwrap();
    bridge.wait_for(LIMIT, "a look without the file", |scrape| {
        scrape.get(RELOAD_FAILURES, &[]) > before
    });
    stop.store(true, Ordering::Relaxed);
    let (accepted, refused) = sending.join().unwrap();
    assert!(
        accepted > 5 && refused == 0,
        "{accepted} accepted, {refused} refused"
    );

    // A good file ends the refusals. It has a byte order mark and blanks, as some editors leave behind.
    secret.write("\u{FEFF}\r\n cmc:new-word \r\n");
    symlink("..data/secret", secret.path()).unwrap();
    wait_for_status(&bridge, NEW, 200);
    assert_eq!(status(&mut bridge.client(), OLD), 401);
    let log = bridge.running.stderr();
    assert!(!log.contains("old-word") && !log.contains("new-word"), "{log}");
}

#[test]
fn dead_letters_contain_neither_the_new_nor_the_old_credential() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let mut secret = Secret::new("old-api-key\n");
    let setup = secret.setup(kafka, "ingest.auth.api_keys_file");
    let bridge = setup
        .topics(&topics)
        .set("ingest.auth.bearer_tokens", "token")
        .start();
    let api_key = |key: &str| {
        let body = delivery("a").replacen('{', &format!(r#"{{"api_key":"{key}","#), 1);
        bridge.client().post(body).status
    };
    assert_eq!(api_key("old-api-key"), 200);
    secret.write("new-api-key\n");
    wait::until(LIMIT, "the new key", || {
        (api_key("new-api-key") == 200).then_some(())
    });
    assert_eq!(api_key("old-api-key"), 401);

    let broken = "{ old-api-key new-api-key third-api-key";
    let headers = [JSON, ("authorization", "bearer token")];
    assert_eq!(bridge.client().post_with(&headers, broken).status, 400);
    let mut reader = Reader::new(kafka, &topics.dead_letters);
    let letter = &reader.read_count(1, LIMIT)[0];
    assert_eq!(letter.text(), "{ *********** *********** third-api-key");
}

#[test]
fn a_flood_of_wrong_credentials_logs_few_lines_and_no_secret() {
    let bridge = Setup::new(NO_KAFKA)
        .unset("ingest.auth.allow_anonymous")
        .set("ingest.auth.bearer_tokens", "right-token")
        .set("ingest.auth.basic", "cmc:ri:ght-鍵")
        .set("ingest.auth.api_keys", "right-key")
        .set("log.level", "trace")
        .start();
    let began = Instant::now();
    let mut client = bridge.client();
    for n in 0..300 {
        assert_eq!(status(&mut client, &format!("Bearer wrong-token-{n}")), 401);
    }
    for (headers, wanted) in [
        (&["bEARER   right-token  "][..], 200),
        (&["Basic Y21jOnJpOmdodC3pjbU="], 200),
        (&["basic Y21jOnJpOmdodC3pjbU"], 200),
        (&["Digest wrong-token", "Bearer right-token"], 200),
        (&["Basic cmlnaHQtdG9rZW4="], 401),
        (&["Bearer wrong-token", "Basic wrong-token"], 401),
        (&["Bearer right-token, Bearer right-token"], 401),
        (&["right-token"], 401),
    ] {
        let mut all = vec![JSON];
        all.extend(headers.iter().map(|value| ("authorization", *value)));
        assert_eq!(
            client.post_with(&all, delivery("a")).status,
            wanted,
            "{headers:?}"
        );
    }
    let key = delivery("a").replacen('{', r#"{"api_key":"right-key","#, 1);
    assert_eq!(client.post(key).status, 200);
    let wrong_key = delivery("a").replacen('{', r#"{"api_key":"wrong-key","#, 1);
    assert_eq!(client.post(wrong_key).status, 401);
    bridge.wait_for(LIMIT, "all refusals counted", |scrape| {
        scrape.get("cmc_bridge_webhooks_total", &[("outcome", "unauthorized")]) == 305.0
    });
    let seconds = began.elapsed().as_secs() as usize;
    let log = bridge.running.stderr();
    let lines = log
        .lines()
        .filter(|line| line.contains("a request was refused"))
        .count();
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s");
    for secret in [
        "right-token",
        "wrong-token",
        "right-key",
        "wrong-key",
        "ght-",
        "Y21jOnJp",
    ] {
        assert!(!log.contains(secret), "{secret} was logged");
    }
}
