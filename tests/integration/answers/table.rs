//! The contract in one table, against one bridge: the answer to each request, and what is in Kafka afterwards.

use base64::Engine;

use super::LIMIT;
use crate::{
    bridge::{Bridge, Setup, Topics},
    cmc::{message, sample, webhook},
    http::{Client, EVENTS, FORM, JSON},
    kafka,
    topics::{Reader, Record},
};

const TOKEN: &str = "table-token-0123456789";
const PASSWORD: &str = "table-password-0123456789";
const KEY: &str = "table-api-key-0123456789";
const UNKNOWN: &str = "table-unknown-0123456789";

type Field = (&'static str, String);

/// A request and its expected result.
struct Row {
    method: &'static str,
    path: &'static str,
    fields: Vec<Field>,
    body: Vec<u8>,
    status: u16,
    /// The problem's title; `None` for `ok`.
    title: Option<&'static str>,
    /// A required header of the answer, and the start of its value.
    header: Option<(&'static str, &'static str)>,
    outcome: &'static str,
    events: usize,
    /// The values of the request's dead letters.
    letters: Vec<Vec<u8>>,
}

/// An authenticated POST of well-formed JSON.
fn post(body: impl Into<Vec<u8>>) -> Row {
    Row {
        method: "POST",
        path: EVENTS,
        fields: vec![field(JSON), bearer(TOKEN)],
        body: body.into(),
        status: 200,
        title: None,
        header: None,
        outcome: "accepted",
        events: 0,
        letters: Vec::new(),
    }
}

fn field((name, value): (&'static str, &str)) -> Field {
    (name, value.to_owned())
}

fn bearer(token: &str) -> Field {
    ("authorization", format!("Bearer {token}"))
}

fn basic(user: &str) -> Field {
    let encoded = base64::engine::general_purpose::STANDARD.encode(user);
    ("authorization", format!("Basic {encoded}"))
}

impl Row {
    fn fields<const N: usize>(mut self, fields: [Field; N]) -> Row {
        self.fields = fields.into();
        self
    }

    fn events(mut self, events: usize) -> Row {
        self.events = events;
        self
    }

    fn letters<const N: usize>(mut self, letters: [&str; N]) -> Row {
        self.letters = letters.map(|letter| letter.as_bytes().to_vec()).into();
        self
    }

    /// The request's body becomes one dead letter.
    fn kept(mut self) -> Row {
        self.letters = vec![self.body.clone()];
        self
    }

    fn refused(self, status: u16, title: &'static str, outcome: &'static str) -> Row {
        Row {
            status,
            title: Some(title),
            outcome,
            ..self
        }
    }

    fn header(mut self, name: &'static str, begin: &'static str) -> Row {
        self.header = Some((name, begin));
        self
    }

    fn malformed(self) -> Row {
        self.refused(400, "Invalid request", "malformed")
    }

    fn unauthorized(self) -> Row {
        self.refused(401, "Unauthorized", "unauthorized")
            .header("www-authenticate", "B")
    }

    fn challenged(self) -> Row {
        self.refused(401, "Unauthorized", "challenged")
            .header("www-authenticate", "B")
    }

    fn unsupported(self) -> Row {
        self.refused(415, "Unsupported media type", "unsupported")
            .header("accept-post", "application/json, ")
    }

    fn at(self, method: &'static str, path: &'static str) -> Row {
        Row { method, path, ..self }
    }
}

fn understood() -> Vec<Row> {
    let one = webhook("deliveries", "pro", &[&message("one", "s")]);
    let good = || post(one.clone()).events(1);
    // Two events.
    let form = sample("deliveries-form.txt");
    let form_again = form.clone();
    let japanese = webhook("deliveries", "pro", &[&message("one", "件名")]);
    let with_key = one.replacen('{', &format!("{{\"api_key\":\"{KEY}\","), 1);
    let json = || field(JSON);
    let other_list = one.replacen("\"event\":{", "\"event\":{\"bounces\":[{\"a\":1}],", 1);
    let several = webhook(
        "deliveries",
        "pro",
        &[
            "7",
            &message("two", "s"),
            "null",
            r#"{"event_type":"x"}"#,
            r#"{"server_composition":"x"}"#,
        ],
    );
    vec![
        good(),
        good().fields([json(), basic(&format!("cmc:{PASSWORD}"))]),
        post(with_key.clone()).fields([json()]).events(1),
        post(form.replace("0123456789abcdef0123456789abcdef", KEY))
            .fields([field(FORM)])
            .events(2),
        post(form.clone()).fields([field(FORM), bearer(TOKEN)]).events(2),
        good().fields([bearer(TOKEN)]),
        post(form).fields([bearer(TOKEN)]).events(2),
        good().fields([
            ("content-type", "application/json; charset=UTF-8".to_owned()),
            bearer(TOKEN),
        ]),
        typed("application/json; charset=us-ascii", good()),
        typed("application/json; charset='utf-8'", good()),
        typed("application/json; charset=ISO-8859-1; charset=", good()),
        typed("application/json;; charset=\"Shift_JIS", post(japanese).events(1)),
        typed(
            "application/x-www-form-urlencoded; charset=ISO-8859-1",
            post(form_again).events(2),
        ),
        good().fields([json(), bearer(TOKEN), ("content-encoding", "identity".to_owned())]),
        good().at("POST", "/webhooks/events/"),
        good().at("POST", "/webhooks/events?source=cmc"),
        post(webhook("deliveries", "pro", &[])),
        post(sample("blocks.json")).kept(),
        post(webhook("clicks", "pro", &["{\"a\":1}"])).kept(),
        post(r#"{"event_type":"clicks","server_composition":"pro","event":"none"}"#).kept(),
        post(r#"{"event_type":"clicks","server_composition":"pro"}"#).kept(),
        post(other_list).events(1).letters(["{\"a\":1}"]),
        post(several).events(1).letters([
            "7",
            "null",
            r#"{"event_type":"x"}"#,
            r#"{"server_composition":"x"}"#,
        ]),
    ]
}

fn malformed() -> Vec<Row> {
    let element = message("never", "s");
    let six = webhook("deliveries", "pro", &[element.as_str(); 6]);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(2000), "]".repeat(2000));
    let mut not_text = webhook("deliveries", "pro", &[&element]).into_bytes();
    let last = not_text.len() - 10;
    not_text[last] = 0xff;
    let shift_jis = not_text.clone();
    let utf16: Vec<u8> = webhook("deliveries", "pro", &[&element])
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let secret = format!("{{\"api_key\":\"{KEY}\",\"event\":broken {KEY} {TOKEN}}}");
    let masked = secret
        .replace(KEY, &"*".repeat(KEY.len()))
        .replace(TOKEN, &"*".repeat(TOKEN.len()));
    let form = |body: &str| post(body).fields([field(FORM), bearer(TOKEN)]);
    let mut rows = [
        "not json",
        "{",
        "[]",
        "7",
        "{}",
        r#"{"server_composition":"pro","event":{"deliveries":[]}}"#,
        r#"{"event_type":5,"server_composition":"pro","event":{"deliveries":[]}}"#,
        r#"{"event_type":"deliveries","event":{"deliveries":[]}}"#,
        r#"{"event_type":"deliveries","server_composition":"pro"}"#,
        r#"{"event_type":"deliveries","server_composition":"pro","event":[]}"#,
        r#"{"event_type":"deliveries","server_composition":"pro","event":{"bounces":[]}}"#,
        r#"{"event_type":"deliveries","server_composition":"pro","event":{"deliveries":{}}}"#,
        r#"{"event_type":"deliveries","event_type":"bounces","server_composition":"pro","event":{"deliveries":[]}}"#,
    ]
    .map(|body| post(body).malformed().kept())
    .into_iter()
    .collect::<Vec<_>>();
    rows.extend([
        post(six).malformed().kept(),
        post(webhook("deliveries", "pro", &[&deep])).malformed().kept(),
        post(not_text).malformed().kept(),
        form("event_type=deliveries&event=%7B").malformed().kept(),
        form("event_type=%F&event=%7B%7D").malformed().kept(),
        post(secret).malformed().letters([&masked]),
        typed(
            "application/json; charset=Shift_JIS",
            post(shift_jis).malformed().kept(),
        ),
        typed("application/json; charset=utf-16", post(utf16).malformed().kept()),
        typed(
            "application/x-www-form-urlencoded; charset=Shift_JIS",
            post("event_type=deliveries&server_composition=%8C%8F&event=%7B%7D")
                .malformed()
                .kept(),
        ),
    ]);
    rows
}

/// A request with this content type.
fn typed(content_type: &str, row: Row) -> Row {
    row.fields([("content-type", content_type.to_owned()), bearer(TOKEN)])
}

fn refused() -> Vec<Row> {
    let one = webhook("deliveries", "pro", &[&message("never", "s")]);
    let json = || field(JSON);
    let text = || ("content-type", "text/plain".to_owned());
    let wrong_key = one.replacen('{', &format!("{{\"api_key\":\"{UNKNOWN}\","), 1);
    let large = "x".repeat(50_001);
    vec![
        post(one.clone()).fields([json()]).challenged(),
        post("not json").fields([json()]).challenged(),
        post(wrong_key).fields([json()]).unauthorized(),
        post(one.clone()).fields([json(), bearer(UNKNOWN)]).unauthorized(),
        post(one.clone()).fields([json(), bearer("")]).unauthorized(),
        post(one.clone())
            .fields([json(), basic(&format!("cmc:{UNKNOWN}"))])
            .unauthorized(),
        post(one.clone())
            .fields([json(), ("authorization", "Digest x".to_owned())])
            .unauthorized(),
        post(one.clone()).fields([text()]).unsupported(),
        post(one.clone())
            .fields([text(), bearer(TOKEN)])
            .unsupported()
            .kept(),
        post(one.clone())
            .fields([json(), bearer(TOKEN), ("content-encoding", "gzip".to_owned())])
            .unsupported()
            .kept(),
        post(large).refused(413, "Content too large", "too_large"),
        post(one.clone())
            .at("POST", "/")
            .refused(404, "Not found", "not_found"),
        post(one.clone())
            .at("POST", "/webhooks/inbound")
            .refused(404, "Not found", "not_found"),
        post("")
            .at("GET", EVENTS)
            .refused(405, "Method not allowed", "method_not_allowed")
            .header("allow", "POST"),
        post(one)
            .at("PUT", EVENTS)
            .refused(405, "Method not allowed", "method_not_allowed")
            .header("allow", "POST"),
    ]
}

fn outcomes(bridge: &Bridge, outcome: &str) -> f64 {
    bridge
        .scrape()
        .sum("cmc_bridge_webhooks_total", &[("outcome", outcome)])
}

fn check_answer(bridge: &Bridge, client: &mut Client, row: &Row) {
    let shown = String::from_utf8_lossy(&row.body[..row.body.len().min(120)]).into_owned();
    let shown = format!("{} {} {:?} {shown}", row.method, row.path, row.fields);
    let counted = outcomes(bridge, row.outcome);
    let fields: Vec<(&str, &str)> = row
        .fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let response = client.request(row.method, row.path, &fields, &row.body).unwrap();
    assert_eq!(response.status, row.status, "{shown}\n{response:?}");
    if let Some(title) = row.title {
        assert_eq!(response.media_type(), "application/problem+json", "{shown}");
        let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(problem["status"], row.status, "{shown}");
        assert_eq!(problem["title"], title, "{shown}");
        assert_eq!(problem["type"], format!("urn:cmc-bridge:problem:{}", row.outcome));
        assert!(problem["detail"].is_string());
    } else {
        assert_eq!(
            (response.media_type(), response.text()),
            ("text/plain", "ok"),
            "{shown}"
        );
    }
    if let Some((name, begin)) = row.header {
        let value = response.header(name).unwrap_or_default();
        assert!(value.starts_with(begin), "{shown}\n{response:?}");
    }
    crate::wait::until(LIMIT, &format!("{} of {shown}", row.outcome), || {
        (outcomes(bridge, row.outcome) == counted + 1.0).then_some(())
    });
}

/// All bytes of a record, to be searched.
fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = record.value.clone();
    bytes.extend(record.key.iter().flatten());
    for (name, value) in &record.headers {
        bytes.extend(name.as_bytes());
        bytes.extend(format!("{value:?}").into_bytes());
    }
    bytes
}

#[test]
fn the_table() {
    let kafka = kafka::shared();
    let topics = Topics::create(kafka);
    let bridge = Setup::new(kafka)
        .topics(&topics)
        .unset("ingest.auth.allow_anonymous")
        .set("ingest.auth.bearer_tokens", TOKEN)
        .set("ingest.auth.basic", &format!("cmc:{PASSWORD}"))
        .set("ingest.auth.api_keys", KEY)
        .set("ingest.max_events", "5")
        .set("ingest.max_body_bytes", "50000")
        .set("log.level", "debug,cmc_bridge=trace")
        .start();
    let rows: Vec<Row> = [understood(), malformed(), refused()]
        .into_iter()
        .flatten()
        .collect();
    println!("{} rows", rows.len());
    let mut client = bridge.client();
    for row in &rows {
        check_answer(&bridge, &mut client, row);
    }

    let scrape = bridge.wait_drained(LIMIT);
    let events: usize = rows.iter().map(|row| row.events).sum();
    let mut letters: Vec<Vec<u8>> = rows.iter().flat_map(|row| row.letters.clone()).collect();
    assert_eq!(
        scrape.stream("cmc_bridge_events_total", "deliveries"),
        events as f64
    );
    assert_eq!(
        scrape.stream("cmc_bridge_events_total", "dead_letters"),
        letters.len() as f64
    );
    assert_eq!(scrape.sum("cmc_bridge_webhooks_total", &[]), rows.len() as f64);
    let mut reader = Reader::new(kafka, &topics.dead_letters);
    let stored = reader.read_to_end(LIMIT).to_vec();
    let mut values: Vec<Vec<u8>> = stored.iter().map(|record| record.value.clone()).collect();
    values.sort();
    letters.sort();
    let text = |values: &[Vec<u8>]| {
        values
            .iter()
            .map(|v| String::from_utf8_lossy(v).into_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(text(&values), text(&letters));
    assert_eq!(values, letters);
    let mut reader = Reader::new(kafka, &topics.deliveries);
    let delivered = reader.read_to_end(LIMIT).to_vec();
    assert_eq!(delivered.len(), events);

    let metrics = Client::new(bridge.admin).get("/metrics");
    let mut places: Vec<(String, Vec<u8>)> = stored
        .iter()
        .chain(&delivered)
        .map(|record| (format!("{record:?}"), bytes_of(record)))
        .collect();
    places.push(("the log".to_owned(), bridge.running.stderr().into_bytes()));
    places.push(("the metrics".to_owned(), metrics.body));
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("cmc:{PASSWORD}"));
    for (place, bytes) in &places {
        for secret in [TOKEN, PASSWORD, KEY, UNKNOWN, &encoded] {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} in {place}");
        }
    }
    assert_eq!((bridge.probe("/livez"), bridge.probe("/readyz")), (200, 200));
    bridge.stop();
}
