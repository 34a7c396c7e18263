//! A small blocking HTTP/1.1 client that tells "was not sent" from "got no answer".

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

/// The default path of the webhook endpoint.
pub const EVENTS: &str = "/webhooks/events";
pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// An answer.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The media type, without parameters.
    pub fn media_type(&self) -> &str {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap().trim()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// There was no connection: the server can't know of the request.
    NotSent,
    /// The request may or may not have been received.
    NoAnswer(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::NotSent => f.write_str("no connection"),
            Failure::NoAnswer(error) => write!(f, "no answer: {error}"),
        }
    }
}

/// A client of one server, with one connection that is kept alive and made again when it broke.
pub struct Client {
    address: SocketAddr,
    timeout: Duration,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Client {
            address,
            timeout: Duration::from_secs(60),
            stream: None,
        }
    }

    /// Connects, if there is no connection.
    pub fn connect(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            self.stream = Some(BufReader::new(stream));
        }
        Ok(self.stream.as_mut().unwrap())
    }

    /// A request with `Content-Length`, and its answer.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Failure> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address).into_bytes();
        for (name, value) in headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        self.raw(&bytes)
    }

    /// Sends these bytes and reads one answer; what the server answers early counts although it may stop reading.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<Response, Failure> {
        let stream = self.connect().map_err(|_| Failure::NotSent)?;
        let written = stream.get_mut().write_all(bytes);
        match (read_response(stream), written) {
            (Ok(response), _) => {
                if response.header("connection") == Some("close") {
                    self.stream = None;
                }
                Ok(response)
            }
            (Err(error), _) => {
                self.stream = None;
                Err(Failure::NoAnswer(error))
            }
        }
    }

    /// Posts a webhook as JSON; panics without an answer.
    pub fn post(&mut self, body: impl AsRef<[u8]>) -> Response {
        self.post_with(&[JSON], body)
    }

    /// Posts a webhook with these headers; panics without an answer.
    pub fn post_with(&mut self, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        self.request("POST", EVENTS, headers, body.as_ref())
            .unwrap_or_else(|failure| panic!("posting to {}: {failure}", self.address))
    }

    /// A GET; panics without an answer.
    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
            .unwrap_or_else(|failure| panic!("GET {path} at {}: {failure}", self.address))
    }
}

/// Reads one answer; interim ones (1xx) are skipped.
pub fn read_response(stream: &mut impl BufRead) -> io::Result<Response> {
    loop {
        let response = read_one(stream)?;
        if response.status >= 200 {
            return Ok(response);
        }
    }
}

/// Reads one answer, or an interim one.
fn read_one(stream: &mut impl BufRead) -> io::Result<Response> {
    let status_line = line(stream)?;
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| status_line.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no status line: {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let text = line(stream)?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| io::Error::other(format!("no header: {text:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response {
        status,
        headers,
        body: Vec::new(),
    };
    response.body = if response.header("transfer-encoding") == Some("chunked") {
        chunks(stream)?
    } else if let Some(length) = response.header("content-length") {
        exactly(stream, length.parse().map_err(io::Error::other)?)?
    } else if status < 200 || status == 204 || status == 304 {
        Vec::new()
    } else {
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        body
    };
    Ok(response)
}

/// A connection on which the test decides about every byte.
pub struct Wire(BufReader<TcpStream>);

impl Wire {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(180))).unwrap();
        Wire(BufReader::new(stream))
    }

    /// Sends these bytes; a server that has closed its side doesn't matter.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let _ = self.0.get_mut().write_all(bytes.as_ref());
        self
    }

    /// Closes this side: no more will be sent.
    pub fn end(&mut self) -> &mut Self {
        self.0.get_mut().shutdown(Shutdown::Write).unwrap();
        self
    }

    /// The next answer, 100 Continue included.
    pub fn answer(&mut self) -> Response {
        read_one(&mut self.0).unwrap()
    }

    /// The server closes, without another byte.
    pub fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// Waits for an answer and leaves it unread, so that the end of this connection will be a reset.
    pub fn leave_unread(&mut self) -> &mut Self {
        assert_ne!(self.0.get_mut().peek(&mut [0]).unwrap(), 0);
        self
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if stream.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

fn exactly(stream: &mut impl BufRead, length: usize) -> io::Result<Vec<u8>> {
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = usize::from_str_radix(&line(stream)?, 16).map_err(io::Error::other)?;
        body.extend(exactly(stream, size)?);
        line(stream)?;
        if size == 0 {
            return Ok(body);
        }
    }
}
