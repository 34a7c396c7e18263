//! The closed label sets of the metrics.

/// The outcome of a request on the ingest port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200: durable.
    Accepted,
    /// 400, or what `ingest.malformed_status` says: not understood.
    Malformed,
    /// 401: a credential that is not valid.
    Unauthorized,
    /// 401: no credential at all, as many clients ask first.
    Challenged,
    /// 404: another path.
    NotFound,
    /// 405: another method.
    MethodNotAllowed,
    /// 408: header or body came too slowly.
    Timeout,
    /// 413: the body is over the limit.
    TooLarge,
    /// 415: another content type, or a content encoding.
    Unsupported,
    /// 431: the header is over the limit.
    HeaderTooLarge,
    /// 400: not HTTP.
    InvalidHttp,
    /// 503: too many connections or bytes in flight, a full spool, or a wait for the disk that was too long.
    Overloaded,
    /// 503: the spool can't be written.
    Failed,
    /// 503: the bridge is stopping.
    Draining,
    /// No answer: the client went away first.
    Disconnected,
}

impl Outcome {
    /// Every outcome, in the order of [`Outcome::index`].
    pub const ALL: [Outcome; 15] = [
        Outcome::Accepted,
        Outcome::Malformed,
        Outcome::Unauthorized,
        Outcome::Challenged,
        Outcome::NotFound,
        Outcome::MethodNotAllowed,
        Outcome::Timeout,
        Outcome::TooLarge,
        Outcome::Unsupported,
        Outcome::HeaderTooLarge,
        Outcome::InvalidHttp,
        Outcome::Overloaded,
        Outcome::Failed,
        Outcome::Draining,
        Outcome::Disconnected,
    ];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Malformed => "malformed",
            Outcome::Unauthorized => "unauthorized",
            Outcome::Challenged => "challenged",
            Outcome::NotFound => "not_found",
            Outcome::MethodNotAllowed => "method_not_allowed",
            Outcome::Timeout => "timeout",
            Outcome::TooLarge => "too_large",
            Outcome::Unsupported => "unsupported",
            Outcome::HeaderTooLarge => "header_too_large",
            Outcome::InvalidHttp => "invalid_http",
            Outcome::Overloaded => "overloaded",
            Outcome::Failed => "failed",
            Outcome::Draining => "draining",
            Outcome::Disconnected => "disconnected",
        }
    }

    /// A dense index, for arrays with one place for each outcome.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The shortage behind a 503 that the bridge gives while it is serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// `ingest.max_bytes_in_flight` is used up.
    Flight,
    /// `ingest.max_connections` is used up.
    Connections,
    /// The stream's log is full.
    Spool,
    /// A commit took longer than `ingest.append_timeout`.
    Disk,
    /// The stream's log is not open.
    Log,
}

impl Shortage {
    /// Every shortage, in the order of their declaration.
    pub const ALL: [Shortage; 5] = [
        Shortage::Flight,
        Shortage::Connections,
        Shortage::Spool,
        Shortage::Disk,
        Shortage::Log,
    ];

    /// The outcome of a request that it refuses.
    pub fn outcome(self) -> Outcome {
        match self {
            Shortage::Log => Outcome::Failed,
            Shortage::Flight | Shortage::Connections | Shortage::Spool | Shortage::Disk => {
                Outcome::Overloaded
            }
        }
    }

    /// The cause as log, status and runbook name it.
    pub fn cause(self) -> &'static str {
        match self {
            Shortage::Flight => "too many bytes in flight",
            Shortage::Connections => "too many connections",
            Shortage::Spool => "spool full",
            Shortage::Disk => "disk slow",
            Shortage::Log => "log not open",
        }
    }
}

/// Why a TLS handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client offers neither TLS 1.2 nor 1.3.
    NoCommonVersion,
    /// It offers no cipher suite, key exchange or signature that the port has.
    NoCommonSuite,
    /// The client asks by ALPN for a protocol other than HTTP/1.1.
    NoCommonProtocol,
    /// The bytes are not TLS; plain HTTP, for example.
    NotTls,
    /// The client broke it off, most often because it doesn't trust the certificate.
    RefusedByClient,
    /// It took too long.
    Timeout,
    /// Anything else; the log says what.
    Other,
}

impl HandshakeFailure {
    /// Every reason, in the order of their declaration.
    pub const ALL: [HandshakeFailure; 7] = [
        HandshakeFailure::NoCommonVersion,
        HandshakeFailure::NoCommonSuite,
        HandshakeFailure::NoCommonProtocol,
        HandshakeFailure::NotTls,
        HandshakeFailure::RefusedByClient,
        HandshakeFailure::Timeout,
        HandshakeFailure::Other,
    ];

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            HandshakeFailure::NoCommonVersion => "no_common_version",
            HandshakeFailure::NoCommonSuite => "no_common_suite",
            HandshakeFailure::NoCommonProtocol => "no_common_protocol",
            HandshakeFailure::NotTls => "not_tls",
            HandshakeFailure::RefusedByClient => "refused_by_client",
            HandshakeFailure::Timeout => "timeout",
            HandshakeFailure::Other => "other",
        }
    }
}

/// Why a lane does not deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockReason {
    /// No broker can be reached.
    Connect,
    /// The broker refuses the credentials.
    Authentication,
    /// An ACL is missing.
    Authorization,
    /// The topic does not exist.
    TopicMissing,
    /// The topic can't take the records (partitions, sizes, policy).
    TopicInvalid,
    /// A transaction failed; a new producer is being made.
    Transaction,
    /// Another producer took over.
    Fenced,
    /// The spool log has damage before the lane's next batch.
    Damage,
    /// The disk returns an error when the lane's next batch is read.
    DiskError,
    /// A refused record could not be put into the dead-letter topic either.
    DeadLetterRefused,
    /// Anything else; the log says what.
    Other,
}

impl BlockReason {
    /// Every reason, in the order of their declaration.
    pub const ALL: [BlockReason; 11] = [
        BlockReason::Connect,
        BlockReason::Authentication,
        BlockReason::Authorization,
        BlockReason::TopicMissing,
        BlockReason::TopicInvalid,
        BlockReason::Transaction,
        BlockReason::Fenced,
        BlockReason::Damage,
        BlockReason::DiskError,
        BlockReason::DeadLetterRefused,
        BlockReason::Other,
    ];

    /// Whether the lane's next batch can't be read from the spool. Batches read before it can still be delivered.
    pub fn is_of_the_spool(self) -> bool {
        matches!(self, BlockReason::Damage | BlockReason::DiskError)
    }

    /// The value of the label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            BlockReason::Connect => "connect",
            BlockReason::Authentication => "authentication",
            BlockReason::Authorization => "authorization",
            BlockReason::TopicMissing => "topic_missing",
            BlockReason::TopicInvalid => "topic_invalid",
            BlockReason::Transaction => "transaction",
            BlockReason::Fenced => "fenced",
            BlockReason::Damage => "damage",
            BlockReason::DiskError => "disk_error",
            BlockReason::DeadLetterRefused => "dead_letter_refused",
            BlockReason::Other => "other",
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionOutcome {
    Committed,
    /// The lane gave it up itself.
    Aborted,
    /// The broker did not confirm it; the committed position will tell.
    Failed,
}

impl TransactionOutcome {
    /// Every outcome, in the order of their declaration.
    pub const ALL: [TransactionOutcome; 3] = [
        TransactionOutcome::Committed,
        TransactionOutcome::Aborted,
        TransactionOutcome::Failed,
    ];

    /// The value of the label `outcome`.
    pub fn label(self) -> &'static str {
        match self {
            TransactionOutcome::Committed => "committed",
            TransactionOutcome::Aborted => "aborted",
            TransactionOutcome::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense_and_labels_differ() {
        let mut labels = std::collections::HashSet::new();
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index);
            assert!(labels.insert(outcome.label()));
        }
        for (index, reason) in BlockReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, outcome) in TransactionOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }
}
