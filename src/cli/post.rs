//! Posts webhooks, as the sender would: HTTP/1.1 on a connection that is kept.

use std::{io, net::SocketAddr, str::FromStr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// The path that is meant when a URL has none: the bridge's default.
const PATH: &str = "/webhooks/events";

/// No webhook's answer is longer.
const ANSWER: usize = 64 << 10;

/// Where webhooks go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port, as they are connected to.
    pub address: String,
    /// The same as the URL has it.
    authority: String,
    /// With the query.
    pub path: String,
}

impl Target {
    pub fn new(address: SocketAddr, path: &str) -> Target {
        Target {
            address: address.to_string(),
            authority: address.to_string(),
            path: path.to_owned(),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        let example = "give it as http://127.0.0.1:8080/webhooks/events";
        let uri: Uri = url.parse().map_err(|error| format!("{error}; {example}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "https is not spoken here: post to the bridge's own port with http, or use curl"
                        .to_owned(),
                );
            }
            _ => return Err(format!("the URL does not begin with http://; {example}")),
        }
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(format!("the URL names no host; {example}"));
        };
        if authority.as_str().contains('@') {
            return Err(
                "credentials don't belong into the URL: see --bearer, --basic and --api-key".to_owned(),
            );
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Target {
            address: format!("{host}:{}", uri.port_u16().unwrap_or(80)),
            authority: authority.to_string(),
            path: if path == "/" {
                PATH.to_owned()
            } else {
                path.to_owned()
            },
        })
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// Its body, as text.
    pub text: String,
}

/// One connection's worth of client.
pub struct Poster {
    target: Target,
    authorization: Option<HeaderValue>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Poster {
    pub fn new(target: Target, authorization: Option<HeaderValue>) -> Poster {
        Poster {
            target,
            authorization,
            sender: None,
        }
    }

    /// Posts a body and gives the answer.
    ///
    /// # Errors
    /// There was no answer within the limit: the webhook may have been taken or not.
    pub async fn post(&mut self, content_type: &str, body: Bytes, limit: Duration) -> io::Result<Answer> {
        let answer = timeout(limit, self.exchange(content_type, body)).await;
        let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if answer.is_err() {
            self.sender = None;
        }
        answer
    }

    async fn exchange(&mut self, content_type: &str, body: Bytes) -> io::Result<Answer> {
        loop {
            let kept = self.sender.is_some();
            let request = self.request(content_type, body.clone())?;
            let answer = match self.sender().await?.send_request(request).await {
                Ok(answer) => answer,
                // The other side had closed the kept connection, and nothing was sent.
                Err(error) if kept && error.is_canceled() => {
                    self.sender = None;
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
            };
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER);
            let body = body.collect().await.map_err(io::Error::other)?;
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            return Ok(Answer { status, text });
        }
    }

    fn request(&self, content_type: &str, body: Bytes) -> io::Result<Request<Full<Bytes>>> {
        let mut request = Request::post(&self.target.path)
            .header(HOST, &self.target.authority)
            .header(CONTENT_TYPE, content_type);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.body(Full::new(body)).map_err(io::Error::other)
    }

    /// The connection, made anew when there is none or the other side has closed it.
    async fn sender(&mut self) -> io::Result<&mut SendRequest<Full<Bytes>>> {
        let open = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !open {
            let stream = TcpStream::connect(&self.target.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            // The connection's own error reaches the request too.
            tokio::spawn(connection);
            self.sender = Some(sender);
        }
        self.sender
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let cases = [
            ("http://127.0.0.1:8080/a?b=c", "127.0.0.1:8080", "/a?b=c"),
            ("http://bridge/", "bridge:80", PATH),
            ("http://bridge:81", "bridge:81", PATH),
            ("http://[::1]:8080/x", "[::1]:8080", "/x"),
        ];
        for (url, address, path) in cases {
            let target: Target = url.parse().unwrap();
            assert_eq!((target.address.as_str(), target.path.as_str()), (address, path));
        }
        let refused = [
            ("https://bridge/", "curl"),
            ("bridge:8080", "http://"),
            ("/webhooks/events", "http://"),
            ("", "http://"),
            ("http://a:b@bridge/", "--basic"),
        ];
        for (url, hint) in refused {
            let error = url.parse::<Target>().unwrap_err();
            assert!(error.contains(hint), "{url}: {error}");
        }
    }
}
