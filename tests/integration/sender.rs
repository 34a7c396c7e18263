//! The sender's Web API, from a list of events: filters by composition, date and hour, pages, 204, errors, and on demand the ways in
//! which a real one is unkind.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

pub const USER: &str = "reader";
pub const KEY: &str = "k3y&=+ %\"秘密";

/// A composition that the sender doesn't have.
pub const UNKNOWN: &str = "unknown & \"本番\"";

/// The wait that a busy sender asks for: longer than the client's own first one.
pub const BUSY: Duration = Duration::from_secs(2);

/// How an answer goes on after its head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    #[default]
    Whole,
    /// It doesn't, and the connection stays open.
    Hangs,
    /// A byte every few milliseconds, with no end.
    Trickles,
    /// As fast as it can, with no end.
    Floods,
}

/// An event that the sender has.
#[derive(Clone, Debug)]
pub struct Listed {
    pub stream: &'static str,
    pub composition: &'static str,
    /// A JSON object.
    pub row: String,
}

/// How the server misbehaves.
#[derive(Clone, Debug, Default)]
pub struct Unkind {
    /// Every so many calls one is answered 503, with a wait of [`BUSY`] that the client must keep, …
    pub busy: Option<u64>,
    /// … or its connection is cut in the answer.
    pub cut: Option<u64>,
    /// With every call, rows are in another order.
    pub shuffled: bool,
    /// A new row comes first with every call.
    pub growing: bool,
    /// Every hour has the rows of the whole day.
    pub hourless: bool,
    /// Every hour has the rows of the next one.
    pub shifted: bool,
    /// It ignores the status that is asked for.
    pub statusless: bool,
    /// Every page is the first one.
    pub pageless: bool,
    /// How an answer goes on after its head.
    pub body: Body,
    /// This call gets no answer before [`Sender::release`].
    pub held_at: Option<u64>,
    /// These rows are added before this call is answered.
    pub added_at: Option<(u64, Vec<Listed>)>,
}

/// An event with what is asked for, so that large lists are searched fast.
#[derive(Clone)]
struct Stored {
    event: Listed,
    created: String,
    status: String,
}

impl Stored {
    fn of(event: Listed) -> Stored {
        let row: Value = serde_json::from_str(&event.row).unwrap();
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        Stored {
            created: text("created"),
            status: text("status"),
            event,
        }
    }
}

struct State {
    events: Mutex<Vec<Stored>>,
    unkind: Mutex<Unkind>,
    released: Condvar,
    calls: AtomicU64,
    /// When the next call may come.
    next: Mutex<Instant>,
    /// Calls that came too early.
    early: AtomicU64,
    over: AtomicBool,
}

/// A running server. Dropping it ends it.
pub struct Sender {
    address: SocketAddr,
    is_tls: bool,
    state: Arc<State>,
}

impl Sender {
    /// Starts a server that has these events.
    pub fn start(events: Vec<Listed>) -> Sender {
        Sender::start_with(events, None)
    }

    /// The same with TLS, as the certificates and the key in PEM say.
    pub fn start_tls(events: Vec<Listed>, chain: &str, key: &str) -> Sender {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                chain.map(Result::unwrap).collect(),
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            );
        Sender::start_with(events, Some(Arc::new(config.unwrap())))
    }

    fn start_with(events: Vec<Listed>, tls: Option<Arc<ServerConfig>>) -> Sender {
        let is_tls = tls.is_some();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            events: Mutex::new(events.into_iter().map(Stored::of).collect()),
            unkind: Mutex::default(),
            released: Condvar::new(),
            calls: AtomicU64::new(0),
            next: Mutex::new(Instant::now()),
            early: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                let session = tls.clone().map(|tls| ServerConnection::new(tls).unwrap());
                thread::spawn(move || match session {
                    None => serve(&shared, stream),
                    Some(session) => serve(&shared, StreamOwned::new(session, stream)),
                });
            }
        });
        Sender {
            address,
            is_tls,
            state,
        }
    }

    /// `sender_api.url`.
    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}/transaction/v2", self.address)
    }

    /// How it misbehaves from now on.
    pub fn be(&self, unkind: Unkind) {
        self.state.calls.store(0, Ordering::Relaxed);
        *self.state.unkind.lock() = unkind;
    }

    /// Answers the call that is held.
    pub fn release(&self) {
        self.state.unkind.lock().held_at = None;
        self.state.released.notify_all();
    }

    /// How many calls it has got since.
    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::Relaxed)
    }

    /// How many calls came earlier than it asked for, so far.
    pub fn early_calls(&self) -> u64 {
        self.state.early.load(Ordering::Relaxed)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        self.release();
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers the requests of one connection.
fn serve(state: &State, stream: impl Read + Write) {
    let mut reader = BufReader::new(stream);
    while let Some((path, body)) = request(&mut reader) {
        let call = state.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let unkind = {
            let mut unkind = state.unkind.lock();
            while unkind.held_at == Some(call) {
                state.released.wait(&mut unkind);
            }
            unkind.clone()
        };
        if Instant::now() < *state.next.lock() {
            state.early.fetch_add(1, Ordering::Relaxed);
        }
        let is_nth = |every: Option<u64>| every.is_some_and(|every| call.is_multiple_of(every));
        let (status, text) = match is_nth(unkind.busy) {
            true => (503, "busy".to_owned()),
            false => answer(state, &unkind, call, &path, &body),
        };
        let mut head = format!("HTTP/1.1 {status} S\r\ncontent-type: application/json\r\n");
        if status == 503 {
            *state.next.lock() = Instant::now() + BUSY;
            head += &format!("retry-after: {}\r\n", BUSY.as_secs());
        }
        let head = match status {
            204 => head + "\r\n",
            _ => format!("{head}content-length: {}\r\n\r\n", text.len()),
        };
        let mut bytes = [head.as_bytes(), text.as_bytes()].concat();
        let cut = is_nth(unkind.cut);
        if cut {
            bytes.truncate(head.len() + text.len() / 2);
        }
        let stream = reader.get_mut();
        if unkind.body != Body::Whole {
            let _ = go_on(state, unkind.body, stream);
            return;
        }
        if stream.write_all(&bytes).and_then(|()| stream.flush()).is_err() || cut {
            return;
        }
    }
}

/// Answers 200 with a body that never ends, until the client has gone or the server is over.
fn go_on(state: &State, body: Body, stream: &mut impl Write) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 S\r\ncontent-type: application/json\r\n\r\n["
    )?;
    let flood = vec![b' '; 1 << 16];
    while !state.over.load(Ordering::Relaxed) {
        match body {
            Body::Whole | Body::Hangs => {}
            Body::Trickles => stream.write_all(b" ")?,
            Body::Floods => stream.write_all(&flood)?,
        }
        stream.flush()?;
        if body != Body::Floods {
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn request(reader: &mut impl BufRead) -> Option<(String, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, String::from_utf8(body).unwrap()))
}

fn answer(state: &State, unkind: &Unkind, call: u64, path: &str, body: &str) -> (u16, String) {
    let field = |name: &str| -> String {
        let mut fields = body.split('&').filter_map(|field| field.split_once('='));
        let value = fields.find(|(key, _)| *key == name).map(|(_, value)| value);
        percent_decode_str(value.unwrap_or_default())
            .decode_utf8()
            .unwrap()
            .into_owned()
    };
    let error = |status, code: &str, field: &str, message: &str| {
        let errors = json!({"errors": [{"code": code, "field": field, "message": message}]});
        (status, errors.to_string())
    };
    if field("api_user") != USER || field("api_key") != KEY {
        return error(
            401,
            "01-002",
            "api_key",
            &format!("wrong key {}, sent as {body}", field("api_key")),
        );
    }
    if field("server_composition") == UNKNOWN {
        return error(400, "13-006", "server_composition", "no such composition");
    }
    let Some(list) = path
        .strip_prefix("/transaction/v2/")
        .and_then(|path| path.strip_suffix("/list.json"))
    else {
        return error(404, "00-001", "", "no such resource");
    };
    if list == "statistics" {
        return statistics(state, &field);
    }
    let rows: usize = field("r").parse().unwrap();
    if !(1..=100).contains(&rows) {
        return error(400, "13-006", "r", "at most 100");
    }
    if let Some((at, added)) = &unkind.added_at
        && *at == call
    {
        let mut events = state.events.lock();
        let added = added.iter().cloned().map(Stored::of);
        *events = added.chain(events.drain(..)).collect();
    }
    let hour = field("hour").parse::<u8>().ok();
    let begin = match hour {
        Some(hour) if !unkind.hourless => {
            format!("{} {:02}:", field("date"), hour + u8::from(unkind.shifted))
        }
        _ => field("date"),
    };
    let status = field("status");
    let status = Some(&*status).filter(|status| !status.is_empty() && !unkind.statusless);
    let mut found: Vec<String> = Vec::new();
    if unkind.growing {
        let row = json!({"created": format!("{begin}00:00"), "messageId": format!("<new-{call}@test>"), "status": "queued"});
        found.push(row.to_string());
    }
    let composition = field("server_composition");
    for stored in state.events.lock().iter() {
        if stored.event.stream == list
            && stored.event.composition == composition
            && stored.created.starts_with(&begin)
            && status.is_none_or(|status| stored.status == status)
        {
            found.push(stored.event.row.clone());
        }
    }
    if unkind.shuffled && field("p") == "0" {
        let first = found.len().min(rows);
        found[..first].reverse();
    }
    let page: usize = match unkind.pageless {
        true => 0,
        false => field("p").parse().unwrap(),
    };
    let page: Vec<String> = found.into_iter().skip(page * rows).take(rows).collect();
    match page.is_empty() {
        true => (204, String::new()),
        false => (200, format!("{{\"{list}\": [{}]}}", page.join(","))),
    }
}

/// The numbers of a month's deliveries, by day.
fn statistics(state: &State, field: &impl Fn(&str) -> String) -> (u16, String) {
    let month = format!("{}-{:0>2}-", field("year"), field("month"));
    let mut days: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    let composition = field("server_composition");
    for stored in state.events.lock().iter() {
        let day = stored.created.split(' ').next().unwrap();
        if stored.event.stream == "deliveries"
            && stored.event.composition == composition
            && day.starts_with(&month)
        {
            let counts = days.entry(day.to_owned()).or_default();
            let status = ["queued", "succeeded", "failed"]
                .iter()
                .position(|status| stored.status == *status);
            if let Some(status) = status {
                counts[status] += 1;
            }
        }
    }
    let days: Vec<Value> = days
        .iter()
        .map(|(day, [queued, succeeded, failed])| {
            json!({"date": day, "queued": queued, "succeeded": succeeded, "failed": failed, "blocked": 0, "valid": queued})
        })
        .collect();
    (200, json!({"statistics": days}).to_string())
}
