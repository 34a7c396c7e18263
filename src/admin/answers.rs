//! The answers of the admin port. None of them waits for a disk or for Kafka.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Response, StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION,
        REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    },
};
use prometheus::{Encoder, Registry, TextEncoder};
use tracing::error;

use super::{
    books::StreamBooks,
    health::Health,
    status::{
        Status,
        page::{self, Refresh},
    },
};
use crate::metrics::{CertificateState, Metrics};

/// The sources of the answers.
pub struct Sources {
    /// The registry of `metrics`.
    pub registry: Registry,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    /// Every stream that is served.
    pub books: Arc<[StreamBooks]>,
    pub spool_dir: PathBuf,
    /// Directories in the spool with events of streams that this version doesn't know.
    pub unknown_logs: Vec<String>,
    /// The certificate of the webhooks' port, if it has one.
    pub certificate: Option<CertificateState>,
}

/// Answers requests.
pub(super) struct Desk {
    registry: Registry,
    pub(super) status: Status,
}

impl Desk {
    pub(super) fn new(sources: Sources) -> Desk {
        Desk {
            registry: sources.registry,
            status: Status::new(sources.metrics, sources.health, sources.books, sources.spool_dir)
                .with_unknown_logs(sources.unknown_logs)
                .with_certificate(sources.certificate),
        }
    }

    pub(super) fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        let answer: fn(&Desk) -> Response<Full<Bytes>> = match path {
            "/livez" => |_| text(StatusCode::OK, "alive\n"),
            "/readyz" => Desk::readyz,
            "/metrics" => Desk::metrics,
            "/status" if query == Some("refresh=off") => |desk| desk.page(Refresh::Off),
            "/status" => |desk| desk.page(Refresh::On),
            "/status.json" => Desk::json,
            "/" => |_| to_status(),
            _ => return text(StatusCode::NOT_FOUND, "not found\n"),
        };
        if method == Method::GET || method == Method::HEAD {
            return answer(self);
        }
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        let readiness = self.status.health.readiness();
        let status = if readiness.is_ready() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        text(status, readiness.text())
    }

    fn page(&self, refresh: Refresh) -> Response<Full<Bytes>> {
        let page = page::html(&self.status.report(), refresh);
        let mut response = momentary(page, "text/html; charset=utf-8");
        let policy = HeaderValue::from_static(page::content_security_policy());
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        response
    }

    fn json(&self) -> Response<Full<Bytes>> {
        match serde_json::to_string_pretty(&self.status.report()) {
            Ok(body) => momentary(body + "\n", "application/json"),
            Err(error) => {
                error!(%error, "the status could not be encoded");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the status could not be encoded\n",
                )
            }
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        self.status
            .metrics
            .set_ready(self.status.health.readiness().is_ready());
        let encoder = TextEncoder::new();
        let mut body = Vec::with_capacity(64 * 1024);
        if let Err(error) = encoder.encode(&self.registry.gather(), &mut body) {
            error!(%error, "the metrics could not be encoded");
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the metrics could not be encoded\n",
            );
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        response
    }
}

/// Relative, so that it also works behind a proxy that serves the port under a path.
fn to_status() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::FOUND, "see status\n");
    response
        .headers_mut()
        .insert(LOCATION, HeaderValue::from_static("status"));
    response
}

/// An answer that nobody may cache or interpret as another type.
fn momentary(body: String, content_type: &'static str) -> Response<Full<Bytes>> {
    const HEADERS: [(HeaderName, &str); 3] = [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
pub(super) mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::{
        admin::books::BooksCollector, books::Books, leftover::Service, spool::LogState, stream::Stream,
    };

    /// Of a bridge with two streams.
    pub fn sources() -> Sources {
        let registry = Registry::new();
        let streams = [Stream::Deliveries, Stream::DeadLetters];
        let metrics = Metrics::new(&registry, &streams, ["bearer-1"]).unwrap();
        let books = streams.map(|stream| StreamBooks {
            stream,
            topic: "t".into(),
            service: Service::Enabled,
            books: Arc::new(Books::default()),
            log_state: Box::new(|| LogState::Accepting),
            spool_bytes: Box::new(|| 0),
            spool_limit_bytes: 1,
        });
        let books: Arc<[_]> = books.into();
        registry
            .register(Box::new(BooksCollector::new(Arc::clone(&books)).unwrap()))
            .unwrap();
        Sources {
            registry,
            metrics: Arc::new(metrics),
            health: Arc::new(Health::new(Vec::new())),
            books,
            spool_dir: "/".into(),
            unknown_logs: Vec::new(),
            certificate: None,
        }
    }

    #[tokio::test]
    async fn every_name_stands_in_the_first_scrape() {
        let body = Desk::new(sources())
            .metrics()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        let text = String::from_utf8(body.into()).unwrap();
        for start in [
            "cmc_bridge_webhooks_total{outcome=\"accepted\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"malformed\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"unauthorized\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"challenged\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"too_large\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"unsupported\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"overloaded\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"timeout\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"disconnected\"} 0",
            "cmc_bridge_webhooks_total{outcome=\"not_found\"} 0",
            "cmc_bridge_parse_failures_total{reason=",
            "cmc_bridge_events_total{status=\"queued\",stream=\"deliveries\"} 0",
            "cmc_bridge_events_total{status=\"other\",stream=\"dead_letters\"} 0",
            "cmc_bridge_acknowledgement_seconds_bucket{le=\"0.0001\"} 0",
            "cmc_bridge_acknowledgement_seconds_bucket{le=\"10\"} 0",
            "cmc_bridge_spool_sync_seconds_count{stream=\"deliveries\"} 0",
            "cmc_bridge_spool_commit_webhooks_count{stream=\"deliveries\"} 0",
            "cmc_bridge_spool_bytes{stream=\"deliveries\"} 0",
            "cmc_bridge_spool_limit_bytes{stream=\"deliveries\"} 1",
            "cmc_bridge_oldest_event_timestamp_seconds{stream=\"deliveries\"} 0",
            "cmc_bridge_recovered_events{stream=\"deliveries\"} 0",
            "cmc_bridge_backlog_events{stream=\"deliveries\"} 0",
            "cmc_bridge_delivered_events_total{stream=\"deliveries\"} 0",
            "cmc_bridge_diverted_events_total{stream=\"deliveries\"} 0",
            "cmc_bridge_delivery_seconds_count{stream=\"deliveries\"} 0",
            "cmc_bridge_lane_blocked{reason=\"topic_missing\",stream=\"deliveries\"} 0",
            "cmc_bridge_transactions_total{outcome=\"committed\",stream=\"deliveries\"} 0",
            "cmc_bridge_transaction_seconds_count{outcome=\"aborted\",stream=\"deliveries\"} 0",
            "cmc_bridge_kafka_requests_total{stream=\"deliveries\"} 0",
            "cmc_bridge_kafka_bytes_total{stream=\"deliveries\"} 0",
            "cmc_bridge_kafka_request_errors_total{stream=\"deliveries\"} 0",
            "cmc_bridge_ready 0",
            "cmc_bridge_build_info{version=\"",
            "cmc_bridge_credential_uses_total{credential=\"bearer-1\"} 0",
            "process_resident_memory_bytes ",
        ] {
            assert!(
                text.lines().any(|l| l.starts_with(start)),
                "{start} is missing in\n{text}"
            );
        }
    }

    #[test]
    fn paths_and_methods() {
        let desk = Desk::new(sources());
        for (method, path, status) in [
            (Method::GET, "/livez", 200),
            (Method::HEAD, "/livez", 200),
            (Method::POST, "/livez", 405),
            (Method::GET, "/metrics", 200),
            (Method::DELETE, "/metrics", 405),
            (Method::GET, "/readyz", 503),
            (Method::GET, "/", 302),
            (Method::GET, "/status", 200),
            (Method::HEAD, "/status", 200),
            (Method::POST, "/status", 405),
            (Method::GET, "/status.json", 200),
            (Method::GET, "/status/", 404),
            (Method::POST, "/webhooks/events", 404),
        ] {
            assert_eq!(
                desk.answer(&method, path, None).status(),
                status,
                "{method} {path}"
            );
        }
    }
}
