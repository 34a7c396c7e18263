//! Posts one webhook, as the sender would.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, StatusCode,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Posts a body and gives the answer's status.
pub async fn post(
    address: SocketAddr,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> io::Result<StatusCode> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // The connection's own error reaches the request too.
    tokio::spawn(connection);
    let request = Request::post(path)
        .header(HOST, address.to_string())
        .header(CONTENT_TYPE, content_type)
        .body(Full::new(Bytes::copy_from_slice(body)))
        .map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    Ok(answer.status())
}
