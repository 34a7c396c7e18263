//! The socket under hyper, watched: the connection learns when bytes arrived and when an answer was sent.
//!
//! hyper itself answers input that is not HTTP, without a body. It writes nothing else while no request is being
//! handled. That answer is discarded here, and the connection sends its own once hyper has ended.
//!
//! It takes no vectored writes, so hyper puts head and body of an answer into one buffer: both are short.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::{connection::Connection, phase::Phase};

/// The stream on which a client is served.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The TCP connection itself.
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// A watched socket.
pub(super) struct WatchedSocket<S> {
    pub(super) stream: S,
    connection: Arc<Connection>,
    /// hyper has written an answer of its own, so nothing that it does to the socket counts any more.
    muted: bool,
}

impl<S> WatchedSocket<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> WatchedSocket<S> {
        WatchedSocket {
            stream,
            connection,
            muted: false,
        }
    }

    /// Whether to discard what is about to be written.
    fn mutes(&mut self) -> bool {
        self.muted |= matches!(
            self.connection.phase.current(),
            Phase::Fresh | Phase::Idle | Phase::Quiet | Phase::Head
        );
        self.muted
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.connection.phase.received();
        }
        result
    }
}

impl<S: Socket> AsyncWrite for WatchedSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.mutes() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let WatchedSocket {
            stream, connection, ..
        } = &*self;
        connection.flushed(|| has_ended(stream.tcp(), cx));
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.muted {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whether the client will send no more. As long as it hasn't sent anything, this costs no system call.
fn has_ended(tcp: &TcpStream, cx: &mut Context<'_>) -> bool {
    let mut byte = [0];
    matches!(
        tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)),
        Poll::Ready(Ok(0) | Err(_))
    )
}
