//! TLS on the webhooks' port: the pair in use, handshakes, and a new pair without a restart.
//!
//! A connection takes the pair in use when it begins and keeps it. Every `ingest.tls.reload` the files are read and
//! their contents compared: neither times nor names show whether a symlink was changed. A new pair applies to new
//! connections (and ends the resumption of older sessions). A refused pair changes nothing; it is counted at each
//! look, and logged when its cause changes and once an hour.
//!
//! TLS 1.2 and 1.3, HTTP/1.1 alone by ALPN, no client certificates: the credentials are those of [`super::auth`]. The
//! cipher suites are those of rustls with ring; docs/operations.md lists them. A sender too old for them needs a
//! proxy that ends TLS in front of the bridge, and the log says so.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tokio::time::sleep;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, PeerIncompatible},
};
use tracing::{debug, error, info, warn};

use super::{
    certificate::{Pair, PairError},
    limits::LogLimiter,
};
use crate::{
    config,
    metrics::{HandshakeFailure, TlsMetrics},
};

/// How often the same cause is logged again.
const SAME_CAUSE: Duration = Duration::from_secs(3600);

/// The state that all connections of a TLS port share.
pub struct TlsContext {
    files: config::TlsConfig,
    in_use: RwLock<Arc<Pair>>,
    metrics: TlsMetrics,
    failures: LogLimiter,
    /// Limits the log lines about clients that are too old.
    incompatible: LogLimiter,
}

impl TlsContext {
    /// Loads the pair.
    ///
    /// # Errors
    /// The pair is refused.
    pub fn open(files: config::TlsConfig, metrics: TlsMetrics) -> Result<TlsContext, PairError> {
        let pair = Pair::load(&files)?;
        announce(&files, &pair, &metrics);
        Ok(TlsContext {
            files,
            in_use: RwLock::new(Arc::new(pair)),
            metrics,
            failures: LogLimiter::new(),
            incompatible: LogLimiter::every(SAME_CAUSE.as_secs()),
        })
    }

    /// Makes handshakes with the pair in use.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.pair().server))
    }

    /// Counts and logs a failed handshake; `hint` says what arrived instead of TLS, if known. A client that merely
    /// connects and leaves does not count: probes do that.
    pub(super) fn handshake_failed(&self, error: &io::Error, hint: Option<&str>) {
        if matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ) {
            debug!(%error, "a client went away before the TLS handshake was done");
            return;
        }
        let reason = reason_of(error);
        self.metrics.handshake_failed(reason);
        let (lines, message) = match reason {
            HandshakeFailure::NoCommonVersion | HandshakeFailure::NoCommonSuite => (
                &self.incompatible,
                "a client has no TLS version or cipher suite in common with this port (docs/operations.md lists its own); \
                 update the client, or end TLS in a proxy or load balancer in front that still has what it offers",
            ),
            _ => (&self.failures, "a TLS handshake failed"),
        };
        if let Some(suppressed) = lines.pass() {
            warn!(%error, reason = reason.label(), hint, suppressed, "{message}");
        }
    }

    /// Looks for a new pair forever.
    pub(super) async fn keep_fresh(self: Arc<TlsContext>) {
        let mut logged: Option<(PairError, Instant)> = None;
        loop {
            sleep(self.files.reload).await;
            let in_use = self.pair().fingerprint();
            let files = self.files.clone();
            // A failed task has panicked, which has been reported; the next look may succeed.
            let looked = tokio::task::spawn_blocking(move || Pair::load_other(&files, in_use)).await;
            match looked {
                Ok(Ok(None)) => {
                    self.metrics.pair_accepted();
                    if logged.take().is_some() {
                        info!("the TLS files hold the certificate in use again");
                    }
                }
                Ok(Ok(Some(pair))) => {
                    self.metrics.pair_accepted();
                    logged = None;
                    announce(&self.files, &pair, &self.metrics);
                    *self.in_use.write() = Arc::new(pair);
                }
                Ok(Err(cause)) => {
                    self.metrics.reload_failed();
                    self.metrics.pair_refused(&cause.to_string());
                    let is_known = logged
                        .as_ref()
                        .is_some_and(|(known, at)| *known == cause && at.elapsed() < SAME_CAUSE);
                    if !is_known {
                        error!(%cause, "the new TLS certificate is refused; the old one stays in use");
                        logged = Some((cause, Instant::now()));
                    }
                }
                Err(failed) => {
                    self.metrics.reload_failed();
                    error!(%failed, "looking for a new TLS certificate failed");
                }
            }
        }
    }

    fn pair(&self) -> Arc<Pair> {
        Arc::clone(&self.in_use.read())
    }
}

fn reason_of(error: &io::Error) -> HandshakeFailure {
    if error.kind() == io::ErrorKind::TimedOut {
        return HandshakeFailure::Timeout;
    }
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(rustls::Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        )) => HandshakeFailure::NoCommonVersion,
        Some(rustls::Error::PeerIncompatible(_)) => HandshakeFailure::NoCommonSuite,
        Some(rustls::Error::NoApplicationProtocol) => HandshakeFailure::NoCommonProtocol,
        Some(rustls::Error::InvalidMessage(_)) => HandshakeFailure::NotTls,
        Some(rustls::Error::AlertReceived(_)) => HandshakeFailure::RefusedByClient,
        _ => HandshakeFailure::Other,
    }
}

/// Logs which pair is used from now on.
fn announce(files: &config::TlsConfig, pair: &Pair, metrics: &TlsMetrics) {
    metrics.certificate_expires(pair.expires());
    let file = files.certificate.display();
    info!(%file, expires = pair.expires_at(), "the TLS certificate is loaded");
    if let Some(warning) = pair.warning() {
        warn!(%file, "the TLS certificate {warning}");
    }
}
