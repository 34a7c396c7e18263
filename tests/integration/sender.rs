//! The sender's Web API, from a list of events: filters by composition, date and hour, pages, 204, errors, and on demand the ways in
//! which a real one is unkind.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use parking_lot::{Condvar, Mutex};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

pub const USER: &str = "reader";
pub const KEY: &str = "k3y&=+ %\"秘密";

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
    /// Every so many calls one is answered 503, …
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
    /// This call gets no answer before [`Sender::release`].
    pub held_at: Option<u64>,
    /// These rows are added before this call is answered.
    pub added_at: Option<(u64, Vec<Listed>)>,
}

struct State {
    events: Mutex<Vec<Listed>>,
    unkind: Mutex<Unkind>,
    released: Condvar,
    calls: AtomicU64,
    over: AtomicBool,
}

/// A running server. Dropping it ends it.
pub struct Sender {
    address: SocketAddr,
    state: Arc<State>,
}

impl Sender {
    /// Starts a server that has these events.
    pub fn start(events: Vec<Listed>) -> Sender {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            events: Mutex::new(events),
            unkind: Mutex::default(),
            released: Condvar::new(),
            calls: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&shared, stream));
            }
        });
        Sender { address, state }
    }

    /// `sender_api.url`.
    pub fn url(&self) -> String {
        format!("http://{}/transaction/v2", self.address)
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
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        self.release();
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers the requests of one connection.
fn serve(state: &State, stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some((path, body)) = request(&mut reader) {
        let call = state.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let unkind = {
            let mut unkind = state.unkind.lock();
            while unkind.held_at == Some(call) {
                state.released.wait(&mut unkind);
            }
            unkind.clone()
        };
        let is_nth = |every: Option<u64>| every.is_some_and(|every| call.is_multiple_of(every));
        let (status, text) = match is_nth(unkind.busy) {
            true => (503, "busy".to_owned()),
            false => answer(state, &unkind, call, &path, &body),
        };
        let head = format!("HTTP/1.1 {status} S\r\ncontent-type: application/json\r\n");
        let head = match status {
            204 => head + "\r\n",
            _ => format!("{head}content-length: {}\r\n\r\n", text.len()),
        };
        let mut bytes = [head.as_bytes(), text.as_bytes()].concat();
        let cut = is_nth(unkind.cut);
        if cut {
            bytes.truncate(head.len() + text.len() / 2);
        }
        if stream.write_all(&bytes).is_err() || cut {
            return;
        }
    }
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
    let Some(list) = path
        .strip_prefix("/transaction/v2/")
        .and_then(|path| path.strip_suffix("/list.json"))
    else {
        return error(404, "00-001", "", "no such resource");
    };
    let rows: usize = field("r").parse().unwrap();
    if !(1..=100).contains(&rows) {
        return error(400, "13-006", "r", "at most 100");
    }
    if let Some((at, added)) = &unkind.added_at
        && *at == call
    {
        let mut events = state.events.lock();
        *events = added.iter().cloned().chain(events.drain(..)).collect();
    }
    let hour = field("hour").parse::<u8>().unwrap() + u8::from(unkind.shifted);
    let begin = match unkind.hourless {
        true => field("date"),
        false => format!("{} {hour:02}:", field("date")),
    };
    let mut found: Vec<String> = Vec::new();
    if unkind.growing {
        let row = json!({"created": format!("{begin}00:00"), "messageId": format!("<new-{call}@test>"), "status": "queued"});
        found.push(row.to_string());
    }
    for event in state.events.lock().iter() {
        let row: Value = serde_json::from_str(&event.row).unwrap();
        let created = row["created"].as_str().unwrap();
        if event.stream == list
            && event.composition == field("server_composition")
            && created.starts_with(&begin)
        {
            found.push(event.row.clone());
        }
    }
    if unkind.shuffled && field("p") == "0" {
        let first = found.len().min(rows);
        found[..first].reverse();
    }
    let page: usize = field("p").parse().unwrap();
    let page: Vec<String> = found.into_iter().skip(page * rows).take(rows).collect();
    match page.is_empty() {
        true => (204, String::new()),
        false => (200, format!("{{\"{list}\": [{}]}}", page.join(","))),
    }
}
