//! The metrics of TLS on the webhooks' port.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge, Registry};

use super::{labels::HandshakeFailure, recent::Refused, register::Register};

/// There is one pair, so its name tells nothing.
const PAIR: &str = "ingest.tls";

/// TLS on the webhooks' port. The series exist only where TLS is configured: an expiry at zero would alarm everybody else.
pub struct TlsMetrics {
    expiry: IntGauge,
    reload_failures: IntCounter,
    handshake_failures: [IntCounter; HandshakeFailure::ALL.len()],
    refused: Arc<Refused>,
}

/// The state of the certificate.
#[derive(Clone)]
pub struct CertificateState {
    expiry: IntGauge,
    refused: Arc<Refused>,
}

impl CertificateState {
    /// When the certificate in use expires, in seconds since the Unix epoch; 0 before it is loaded.
    pub fn expires(&self) -> i64 {
        self.expiry.get()
    }

    /// The pair that is refused, if there is one.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }
}

impl TlsMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// The registry holds one of the names already.
    pub fn new(registry: &Registry) -> prometheus::Result<TlsMetrics> {
        let register = Register(registry);
        let handshake_failures = register.counters(
            "cmc_bridge_tls_handshake_failures_total",
            "TLS handshakes that failed or took too long, by the reason",
            &["reason"],
        )?;
        Ok(TlsMetrics {
            expiry: register.gauge(
                "cmc_bridge_tls_certificate_expiry_timestamp_seconds",
                "When the certificate in use expires, in seconds since the Unix epoch",
            )?,
            reload_failures: register.counter(
                "cmc_bridge_tls_reload_failures_total",
                "Looks at the files of certificate and key that found a pair that can't be used",
            )?,
            handshake_failures: HandshakeFailure::ALL
                .map(|reason| handshake_failures.with_label_values(&[reason.label()])),
            refused: Arc::default(),
        })
    }

    /// The expiry of the certificate in use, in seconds since the Unix epoch.
    pub fn certificate_expires(&self, at: i64) {
        self.expiry.set(at);
    }

    /// What the status shows of it.
    pub fn certificate(&self) -> CertificateState {
        CertificateState {
            expiry: self.expiry.clone(),
            refused: Arc::clone(&self.refused),
        }
    }

    /// The pair in the files is refused.
    pub fn pair_refused(&self, cause: &str) {
        self.refused.refuse(PAIR, cause);
    }

    /// The pair in the files is in use.
    pub fn pair_accepted(&self) {
        self.refused.accept(PAIR);
    }

    /// Counts a check that found an unusable pair.
    pub fn reload_failed(&self) {
        self.reload_failures.inc();
    }

    /// Counts a failed handshake.
    pub fn handshake_failed(&self, reason: HandshakeFailure) {
        self.handshake_failures[reason as usize].inc();
    }
}
