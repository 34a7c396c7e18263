//! A small HTTP/1.1 client on a connection that is kept open: posts webhooks as the sender does, calls the sender's Web API and
//! asks bridges for their status.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use jiff::{Timestamp, fmt::rfc2822};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::{config::text_fault, human};

/// How long to wait for one connection, and how long between two tries.
const CONNECT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);

/// Maximum length of an answer in bytes, unless the caller sets another; the bridge's are shorter.
const ANSWER: usize = 1 << 20;

/// What a URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port to connect to.
    pub address: String,
    /// Host and port as the URL has them.
    authority: String,
    /// Includes the query.
    pub path: String,
    /// For `https`: the name that the certificate must have.
    tls: Option<ServerName<'static>>,
}

impl Target {
    /// An `http` endpoint.
    pub fn new(address: SocketAddr, path: &str) -> Target {
        Target {
            address: address.to_string(),
            authority: address.to_string(),
            path: path.to_owned(),
            tls: None,
        }
    }

    /// Whether it speaks TLS.
    pub fn is_https(&self) -> bool {
        self.tls.is_some()
    }

    /// Waits, at most for `patience`, until a connection can be made. In a new pod, name servers and network policies may not know
    /// it yet. Nothing is sent, so nothing can come twice.
    pub async fn reachable_within(&self, patience: Duration) {
        let tried = async {
            // A name may fail to resolve at first, and a packet may get no answer at all.
            while !matches!(
                timeout(CONNECT, TcpStream::connect(&self.address)).await,
                Ok(Ok(_))
            ) {
                sleep(RETRY).await;
            }
        };
        // If nothing answers, the webhook itself reports the error.
        let _ = timeout(patience, tried).await;
    }

    /// The same host with another path.
    pub fn with_path(&self, path: &str) -> Target {
        Target {
            path: path.to_owned(),
            ..self.clone()
        }
    }

    /// The same target at each address that its host has now. A headless service of Kubernetes has one for each pod.
    ///
    /// # Errors
    /// The name can't be looked up.
    pub async fn everywhere(&self) -> io::Result<Vec<Target>> {
        let addresses = lookup_host(&self.address).await?;
        let at = |address: SocketAddr| Target {
            address: address.to_string(),
            ..self.clone()
        };
        Ok(addresses.map(at).collect())
    }

    /// It as a URL.
    pub fn url(&self) -> String {
        let scheme = if self.is_https() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority, self.path)
    }

    /// Parses a URL; one without a path gets this one.
    ///
    /// # Errors
    /// What is wrong with it, with the example.
    pub fn parse(url: &str, default_path: &str, example: &str) -> Result<Target, String> {
        let example = format!("give it as {example}");
        let uri: Uri = url.parse().map_err(|error| format!("{error}; {example}"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => {
                return Err(format!(
                    "the URL doesn't begin with http:// or https://; {example}"
                ));
            }
        };
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(format!("the URL names no host; {example}"));
        };
        if authority.as_str().contains('@') {
            return Err("credentials don't belong in the URL".to_owned());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let name = host.trim_matches(['[', ']']).to_owned();
        let tls = https.then(|| ServerName::try_from(name)).transpose();
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Target {
            address: format!("{host}:{port}"),
            tls: tls.map_err(|error| format!("no certificate can have the name {host}: {error}"))?,
            authority: authority.to_string(),
            path: match path {
                "/" => default_path.to_owned(),
                path => path.to_owned(),
            },
        })
    }
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    /// The body as text.
    pub text: String,
    /// How long to wait before the next request, if the server says so (`Retry-After`, RFC 9110).
    pub retry_after: Option<Duration>,
}

/// A client with one connection.
pub struct Client {
    target: Target,
    authorization: Option<HeaderValue>,
    /// Verifies the server; needed for https only.
    trust: Option<TlsConnector>,
    sender: Option<SendRequest<Full<Bytes>>>,
    most: usize,
}

impl Client {
    /// A client that presents this value of the header Authorization, if any.
    pub fn new(target: Target, authorization: Option<HeaderValue>) -> Client {
        Client {
            target,
            authorization,
            trust: None,
            sender: None,
            most: ANSWER,
        }
    }

    /// Sets the authorities to trust for https.
    pub fn with_trust(mut self, trust: Option<TlsConnector>) -> Client {
        self.trust = trust;
        self
    }

    /// Sets the maximum length of an answer, in bytes.
    pub fn with_most(mut self, most: usize) -> Client {
        self.most = most;
        self
    }

    /// Posts a body and returns the answer.
    ///
    /// # Errors
    /// No answer within the limit: the body may or may not have been taken.
    pub async fn post(&mut self, content_type: &str, body: Bytes, limit: Duration) -> io::Result<Reply> {
        let request = self.request(Method::POST, body)?;
        let content_type = HeaderValue::from_str(content_type).map_err(io::Error::other)?;
        self.send(with(request, CONTENT_TYPE, content_type), limit).await
    }

    /// Asks for the target and returns the answer.
    ///
    /// # Errors
    /// No answer within the limit.
    pub async fn get(&mut self, limit: Duration) -> io::Result<Reply> {
        let request = self.request(Method::GET, Bytes::new())?;
        self.send(request, limit).await
    }

    async fn send(&mut self, request: Request<Full<Bytes>>, limit: Duration) -> io::Result<Reply> {
        let answer = timeout(limit, self.exchange(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> io::Result<Reply> {
        loop {
            let kept = self.sender.is_some();
            let answer = match self.sender().await?.send_request(request.clone()).await {
                Ok(answer) => answer,
                // The server had closed the kept connection, and nothing was sent.
                Err(error) if kept && error.is_canceled() => {
                    self.sender = None;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
            };
            let status = answer.status();
            let retry_after = wait(answer.headers().get(RETRY_AFTER), Timestamp::now());
            let body = Limited::new(answer.into_body(), self.most);
            let body = body
                .collect()
                .await
                .map_err(|error| match error.is::<LengthLimitError>() {
                    true => {
                        let limit = human::exact_size(self.most as u64);
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("the answer is longer than {limit}"),
                        )
                    }
                    false => io::Error::other(error),
                })?;
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            return Ok(Reply {
                status,
                text,
                retry_after,
            });
        }
    }

    fn request(&self, method: Method, body: Bytes) -> io::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(&self.target.path)
            .header(HOST, &self.target.authority);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Full::new(body)).map_err(io::Error::other)
    }

    /// The connection, opened again if there is none or the server has closed it.
    async fn sender(&mut self) -> io::Result<&mut SendRequest<Full<Bytes>>> {
        let open = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !open {
            let stream = TcpStream::connect(&self.target.address).await?;
            stream.set_nodelay(true)?;
            self.sender = Some(match (&self.target.tls, &self.trust) {
                (None, _) => speak(stream).await?,
                (Some(name), Some(trust)) => speak(trust.connect(name.clone(), stream).await?).await?,
                (Some(_), None) => return Err(io::Error::other("https needs authorities to trust")),
            });
        }
        self.sender
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

fn with(mut request: Request<Full<Bytes>>, name: HeaderName, value: HeaderValue) -> Request<Full<Bytes>> {
    request.headers_mut().insert(name, value);
    request
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> io::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // An error of the connection also reaches the request.
    tokio::spawn(connection);
    Ok(sender)
}

/// Where systems keep their trusted authorities.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Trusts the authorities in a PEM file, or those of the system.
///
/// # Errors
/// The file, and why it can't be used.
pub fn trust(file: Option<&Path>) -> Result<TlsConnector, String> {
    let found = || SYSTEM.iter().map(Path::new).find(|file| file.exists());
    let file = file
        .or_else(found)
        .ok_or("this system's trusted authorities were not found: give --ca-file")?;
    let refused = |error: String| format!("{}: {error}; it must hold certificates as PEM", file.display());
    let bytes = std::fs::read(file).map_err(|error| refused(error.to_string()))?;
    if let Some(fault) = text_fault(&bytes) {
        return Err(refused(fault.to_owned()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| refused(error.to_string()))?;
        // Old authorities that rustls can't read are skipped.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(refused("holds no certificate".to_owned()));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The wait that `Retry-After` asks for, as a number of seconds or as a date; `None` if it is neither, or the date has passed.
fn wait(retry_after: Option<&HeaderValue>, now: Timestamp) -> Option<Duration> {
    let text = retry_after?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(date.duration_since(now)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_opens_later_is_waited_for() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let target = Target::new(socket.local_addr().unwrap(), "/");
        // Bound but not listening: connections are refused.
        let begun = std::time::Instant::now();
        target.reachable_within(RETRY).await;
        assert!(begun.elapsed() >= RETRY);
        let open = async {
            sleep(2 * RETRY).await;
            socket.listen(8).unwrap()
        };
        let patience = Duration::from_secs(300);
        let begun = std::time::Instant::now();
        let (_listener, ()) = tokio::join!(open, target.reachable_within(patience));
        assert!((2 * RETRY..patience).contains(&begun.elapsed()));
    }

    #[test]
    fn the_wait_is_in_seconds_or_until_a_date() {
        let now = "2026-11-30T02:00:00Z".parse().unwrap();
        let of = |text: &str| wait(Some(&HeaderValue::from_str(text).unwrap()), now);
        let seconds = |number| Some(Duration::from_secs(number));
        for (text, expected) in [
            ("0", seconds(0)),
            (" 120 ", seconds(120)),
            ("99999999999", seconds(99_999_999_999)),
            ("Mon, 30 Nov 2026 02:01:30 GMT", seconds(90)),
            ("Mon, 30 Nov 2026 01:59:59 GMT", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        assert_eq!(wait(None, now), None);
    }

    #[test]
    fn urls() {
        let cases = [
            ("http://127.0.0.1:8080/a?b=c", "127.0.0.1:8080", "/a?b=c"),
            ("http://bridge/", "bridge:80", "/default"),
            ("http://bridge:81", "bridge:81", "/default"),
            ("http://[::1]:8080/x", "[::1]:8080", "/x"),
            ("https://bridge/x", "bridge:443", "/x"),
            ("https://[::1]:8443", "[::1]:8443", "/default"),
        ];
        for (url, address, path) in cases {
            let target = Target::parse(url, "/default", "http://host").unwrap();
            assert_eq!(target.is_https(), url.starts_with("https"));
            assert_eq!((target.address.as_str(), target.path.as_str()), (address, path));
        }
        let refused = [
            ("ftp://bridge/", "https://"),
            ("bridge:8080", "http://"),
            ("/webhooks/events", "http://"),
            ("", "http://"),
            ("http://a:b@bridge/", "credentials"),
        ];
        for (url, hint) in refused {
            let error = Target::parse(url, "/", "http://host or https://host").unwrap_err();
            assert!(error.contains(hint), "{url}: {error}");
        }
    }
}
