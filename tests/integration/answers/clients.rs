//! Clients that close one side or disappear: complete webhooks are kept, whether or not anybody is there for the
//! answer.

use super::{LIMIT, bridge, events, expect_outcome};
use crate::{
    bridge::{Setup, Topics},
    cmc::{self, delivery, message, webhook},
    http::EVENTS,
    kafka,
    topics::Reader,
};

fn post(body: &str) -> String {
    format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_client_that_closes_its_side_after_the_request_gets_its_answer() {
    let mut bridge = bridge(&[]);
    let request = post(&delivery("a"));
    // Paused, so that the client's end arrives before the answer.
    bridge.pause();
    let mut at_once = bridge.wire();
    at_once.send(&request).end();
    let mut several = bridge.wire();
    several.send(request.repeat(3)).end();
    bridge.resume();
    let mut kept = bridge.wire();
    assert_eq!(kept.send(&request).answer().status, 200);
    kept.send(&request).end();
    for (wire, answers) in [(&mut at_once, 1), (&mut several, 3), (&mut kept, 1)] {
        for _ in 0..answers {
            let response = wire.answer();
            assert_eq!((response.status, response.text()), (200, "ok"));
        }
        wire.expect_closed();
    }
    assert_eq!(events(&bridge, "deliveries"), 6.0);
    expect_outcome(&bridge, "accepted", 6.0);
    expect_outcome(&bridge, "disconnected", 0.0);
}

#[test]
fn a_request_that_ends_early_is_only_counted() {
    let bridge = bridge(&[]);
    let request = post(&delivery("a"));
    let header = request.find("\r\n\r\n").unwrap();
    for (index, end) in [4, header, header + 3, header + 4, request.len() - 1]
        .into_iter()
        .enumerate()
    {
        let mut wire = bridge.wire();
        wire.send(&request[..end]).end().expect_closed();
        expect_outcome(&bridge, "disconnected", index as f64 + 1.0);
    }
    // A connection without a request is not counted.
    bridge.wire().end().expect_closed();
    bridge.wire().send("\r\n\r\n").end().expect_closed();
    assert_eq!(bridge.client().post(delivery("b")).status, 200);
    assert_eq!(
        bridge
            .scrape()
            .sum("cmc_bridge_webhooks_total", &[("outcome", "disconnected")]),
        5.0
    );
    assert_eq!(
        (events(&bridge, "deliveries"), events(&bridge, "dead_letters")),
        (1.0, 0.0)
    );
}

#[test]
fn the_events_of_a_client_that_went_away_are_kept_and_delivered() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let mut bridge = Setup::new(kafka).topics(&topics).start();
    let elements: Vec<String> = ["before", "reset", "closed"].map(|id| message(id, "s")).into();
    let requests: Vec<String> = elements
        .iter()
        .map(|element| post(&webhook("deliveries", "pro", &[element])))
        .collect();
    let mut reset = bridge.wire();
    // Its answer stays unread, which turns the end into a reset.
    reset.send(&requests[0]).leave_unread();
    bridge.pause();
    reset.send(&requests[1]);
    drop(reset);
    bridge.wire().send(&requests[2]);
    bridge.resume();
    expect_outcome(&bridge, "disconnected", 2.0);
    expect_outcome(&bridge, "accepted", 1.0);
    assert_eq!(events(&bridge, "deliveries"), 3.0);
    bridge.wait_drained(LIMIT);
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let mut records = reader.read_to_end(LIMIT).to_vec();
    assert_eq!(records.len(), 3);
    for element in &elements {
        let key = cmc::key_of(element).unwrap();
        let at = records
            .iter()
            .position(|record| record.key_text() == Some(&key))
            .unwrap();
        cmc::check(&records.remove(at), "deliveries", "pro", element);
    }
}

/// Curl's report on its connections and answers, one word each; `None` if curl is not installed.
fn curl(url: &str, arguments: &[&str]) -> Option<String> {
    let report = "%{num_connects} %{http_code}\\n";
    let output = std::process::Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            "--write-out",
            report,
            "--output",
            "/dev/null",
        ])
        .args(arguments)
        .args(["--noproxy", "*", url])
        .output();
    match output {
        Ok(output) => Some(format!(
            "{}{}",
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap()
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: curl is not installed");
            None
        }
        Err(error) => panic!("curl: {error}"),
    }
}

#[test]
fn a_client_that_sends_its_credential_when_challenged_keeps_its_connection() {
    let body = delivery("a");
    let large = webhook("deliveries", "pro", &[&message("a", &"s".repeat(200_000))]);
    let file = kafka::new_dir("curl").join("large");
    std::fs::write(&file, large).unwrap();
    let large = format!("@{}", file.display());
    for keys in ["", "some-key"] {
        let bridge = bridge(&[
            ("ingest.auth.allow_anonymous", "false"),
            ("ingest.auth.basic", "cmc:password"),
            ("ingest.auth.api_keys", keys),
        ]);
        let url = format!("http://{}{EVENTS}", bridge.ingest);
        let with = |arguments: &[&str]| {
            let mut all = vec![
                "--anyauth",
                "--user",
                "cmc:password",
                "--header",
                "content-type: application/json",
            ];
            all.extend(arguments);
            curl(&url, &all)
        };
        for arguments in [
            &["--data", &body][..],
            &["--data", &large],
            &["--data", &body, "--header", "expect: 100-continue"],
            &["--data", &body, "--header", "transfer-encoding: chunked"],
        ] {
            let Some(said) = with(arguments) else { return };
            assert_eq!(said, "1 200\n", "{:?}", arguments.get(2..));
        }
        expect_outcome(&bridge, "accepted", 4.0);
        expect_outcome(&bridge, "unauthorized", 0.0);
        let wrong = curl(&url, &["--anyauth", "--user", "cmc:wrong", "--data", "{}"]).unwrap();
        assert!(wrong.ends_with(" 401\n"), "{wrong}");
        expect_outcome(&bridge, "unauthorized", 1.0);
    }
}
