//! An OAuth token endpoint (client credentials over https) for a broker that takes its tokens, signed with ES256.
//!
//! `/expired` and `/audience` give bad tokens, `/busy` and `/silent` none. All other paths give good ones, which are short-lived: a
//! client soon renews them. Whatever is wrong with a client, the answer repeats its secret, and so does the URL if it has one.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use serde_json::{Value, json};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{kafka::key_file, secured_broker::PASSWORD};

/// The client that gets tokens, with [`PASSWORD`] as its secret. It is the Kafka user, too.
pub const CLIENT: &str = "cmc-bridge";
/// The scope that a client must ask for.
pub const SCOPE: &str = "kafka";
/// A part of a URL that only the endpoint may see.
pub const URL_SECRET: &str = "key-7Hj2kLm9";
pub const ISSUER: &str = "https://issuer.test";
pub const AUDIENCE: &str = "kafka.test";

/// In seconds. librdkafka renews a token after four fifths.
const LIFETIME: i64 = 20;
const LIMIT: Duration = Duration::from_secs(60);

/// A running token endpoint; it runs as long as the process.
pub struct TokenServer {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    tls: Arc<ServerConfig>,
    key: KeyPair,
    /// The paths that have given tokens.
    given: Mutex<Vec<String>>,
    /// Whether `/leaving` breaks off.
    away: AtomicBool,
}

impl TokenServer {
    /// Writes the public key for the broker, and serves with the certificate and key in this PEM file.
    pub fn start(certificate: &Path) -> TokenServer {
        let key = KeyPair::generate().unwrap();
        fs::write(key_file(), public(&key).to_string()).unwrap();
        let chain = CertificateDer::pem_file_iter(certificate).unwrap();
        let private = PrivateKeyDer::from_pem_file(certificate).unwrap();
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain.map(Result::unwrap).collect(), private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = TokenServer {
            address: listener.local_addr().unwrap(),
            state: Arc::new(State {
                tls: Arc::new(tls),
                key,
                given: Mutex::default(),
                away: AtomicBool::new(false),
            }),
        };
        let state = Arc::clone(&server.state);
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                // A client that trusts another authority breaks the connection off.
                thread::spawn(move || answer(connection, &state).ok());
            }
        });
        server
    }

    /// An endpoint's URL.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}/{path}", self.address)
    }

    /// How many tokens this path has given.
    pub fn given(&self, path: &str) -> usize {
        let given = self.state.given.lock().unwrap();
        given.iter().filter(|other| other[1..] == *path).count()
    }

    /// Lets `/leaving` break off each request from now on, or answer again.
    pub fn leave(&self, away: bool) {
        self.state.away.store(away, Ordering::Relaxed);
    }
}

fn answer(connection: TcpStream, state: &State) -> io::Result<()> {
    connection.set_read_timeout(Some(LIMIT))?;
    let tls = ServerConnection::new(Arc::clone(&state.tls)).map_err(io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(tls, connection));
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let mut headers = head.iter().filter_map(|line| line.split_once(": "));
        let found = headers.find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    };
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let path = head[0].split([' ', '?']).nth(1).unwrap_or_default();
    match path {
        "/leaving" if state.away.load(Ordering::Relaxed) => return Ok(()),
        // Until the client is gone.
        "/silent" => return reader.read_to_end(&mut Vec::new()).map(drop),
        _ => {}
    }
    let (status, answer) = decide(
        path,
        header("authorization"),
        &String::from_utf8_lossy(&body),
        &state.key,
    );
    if status == "200 OK" {
        state.given.lock().unwrap().push(path.to_owned());
    }
    let answer = answer.to_string();
    let stream = reader.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
        answer.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

fn decide(path: &str, authorization: &str, body: &str, key: &KeyPair) -> (&'static str, Value) {
    let credential = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{PASSWORD}")));
    let has = |field: &str| body.split('&').any(|other| other == field);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let (audience, expires) = match path {
        "/expired" => (AUDIENCE, now - 3600),
        "/audience" => ("another cluster", now + LIFETIME),
        _ => (AUDIENCE, now + LIFETIME),
    };
    if path == "/busy" {
        (
            "503 Service Unavailable",
            json!({"error": "temporarily_unavailable"}),
        )
    } else if authorization != credential {
        let shown = authorization.strip_prefix("Basic ");
        let shown = shown.and_then(|encoded| STANDARD.decode(encoded).ok());
        let shown = String::from_utf8(shown.unwrap_or_default()).unwrap_or_default();
        let description = format!("not a known client: {shown}");
        (
            "401 Unauthorized",
            json!({"error": "invalid_client", "error_description": description}),
        )
    } else if !has("grant_type=client_credentials") {
        ("400 Bad Request", json!({"error": "unsupported_grant_type"}))
    } else if !has(&format!("scope={SCOPE}")) {
        ("400 Bad Request", json!({"error": "invalid_scope"}))
    } else {
        let claims = json!({
            "iss": ISSUER, "aud": audience, "sub": CLIENT, "scope": SCOPE, "iat": expires - LIFETIME, "exp": expires,
        });
        (
            "200 OK",
            json!({"access_token": token(&claims, key), "token_type": "Bearer", "expires_in": LIFETIME}),
        )
    }
}

fn token(claims: &Value, key: &KeyPair) -> String {
    let header = json!({"alg": "ES256", "typ": "JWT", "kid": "test"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(claims));
    let signature = fixed(&key.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The two numbers of an ECDSA signature, 32 bytes each, from their DER encoding.
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut numbers = Vec::new();
    while let [2, len, more @ ..] = rest {
        let (number, others) = more.split_at(usize::from(*len));
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(vec![0; 32 - number.len()]);
        numbers.extend(number);
        rest = others;
    }
    numbers
}

fn public(key: &KeyPair) -> Value {
    // An uncompressed point: 4, x, y.
    let (x, y) = key.der_bytes()[1..].split_at(32);
    let encode = |number: &[u8]| URL_SAFE_NO_PAD.encode(number);
    json!({"keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "test", "x": encode(x), "y": encode(y),
    }]})
}
