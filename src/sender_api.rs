//! The sender's Web API, which knows the events of the last 40 days: one call at a time, with a pause between two.
//!
//! `POST <url>/<stream>/list.json`, the parameters as a form. The answer has up to `r` rows of one hour of one composition, from page
//! `p` on; 204 or an empty list when there are none. Calls are repeated with growing waits when the connection breaks or the answer
//! is late, 429 or 5xx. Any other answer ends the work; the sender's own errors are shown with code, field and message. The key
//! appears in no text.
//!
//! Nothing here says in which order rows come, or that pages stay the same between two calls: see [`crate::reconcile`].

use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use hyper::StatusCode;
use jiff::civil::DateTime;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    config,
    http_client::{Client, Target, trust},
    stream::Stream,
};

/// Rows of a page: the most that the sender gives.
const ROWS: usize = 100;
/// Maximum length of an answer in bytes.
const ANSWER: usize = 64 << 20;
/// The waits before a call is repeated.
const WAITS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];
/// How much of an answer that isn't understood is shown, in characters.
const SHOWN: usize = 200;

/// Why the API gives no rows.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The configuration names no account, or files that can't be used.
    #[error("{0}")]
    Configuration(String),
    /// It refuses the call. The same call will be refused again.
    #[error("the sender's Web API refuses {path}: {why}")]
    Refused { path: String, why: String },
    /// It answers something else than what is documented.
    #[error("the sender's Web API answers {path} with something that is not understood: {why}")]
    NotUnderstood { path: String, why: String },
    /// It is not available, after several tries.
    #[error("the sender's Web API is not available ({path}, {} tries): {why}", WAITS.len() + 1)]
    Unavailable { path: String, why: String },
}

/// The rows to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    pub stream: Stream,
    pub composition: &'q str,
    /// The date and the hour, in the console's time zone.
    pub hour: DateTime,
}

/// A client of the API.
pub struct SenderApi<'c> {
    config: &'c config::SenderApi,
    account: &'c config::ApiAccount,
    /// By the path of the resource.
    clients: BTreeMap<String, Client>,
    target: Target,
    trust: Option<tokio_rustls::TlsConnector>,
    /// When the next call may begin.
    next: Instant,
}

/// The sender's error.
#[derive(Deserialize)]
struct SenderError {
    #[serde(default)]
    code: serde_json::Value,
    #[serde(default)]
    field: serde_json::Value,
    #[serde(default)]
    message: serde_json::Value,
}

impl<'c> SenderApi<'c> {
    /// A client. It calls nothing yet.
    ///
    /// # Errors
    /// The configuration has no account, or its authorities can't be read.
    pub fn new(config: &'c config::SenderApi) -> Result<SenderApi<'c>, ApiError> {
        let account = config.account.as_ref().ok_or_else(|| {
            let text = "sender_api.user and sender_api.key are not set; give an API user of the sender's console and its key";
            ApiError::Configuration(text.to_owned())
        })?;
        let target = Target::parse(&config.url, "/", "https://host/path").map_err(ApiError::Configuration)?;
        let trust = target.is_https().then(|| trust(config.ca_file.as_deref()));
        let trust = trust
            .transpose()
            .map_err(|error| ApiError::Configuration(format!("sender_api.ca_file: {error}")))?;
        Ok(SenderApi {
            config,
            account,
            clients: BTreeMap::new(),
            target,
            trust,
            next: Instant::now(),
        })
    }

    /// One page of rows, from 0; none after the last page. Each row is a JSON object.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn page(
        &mut self,
        question: Question<'_>,
        page: usize,
    ) -> Result<Vec<Box<RawValue>>, ApiError> {
        let list = question.stream.name();
        let path = format!("{}/{list}/list.json", self.target.path.trim_end_matches('/'));
        let form = self.form(question, page);
        let mut waits = WAITS.into_iter();
        loop {
            sleep_until(self.next).await;
            let answer = self.call(&path, form.clone()).await;
            self.next = Instant::now() + self.config.pause;
            let why = match answer {
                Ok((StatusCode::NO_CONTENT, _)) => return Ok(Vec::new()),
                Ok((StatusCode::OK, text)) => return self.rows(&path, list, &text),
                Ok((status, text)) if may_pass(status) => self.shown(status, &text),
                Ok((status, text)) => {
                    let why = self.shown(status, &text);
                    return Err(ApiError::Refused { path, why });
                }
                // A certificate that isn't trusted, and the like.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    let why = error.to_string();
                    return Err(ApiError::Unavailable { path, why });
                }
                Err(error) => error.to_string(),
            };
            match waits.next() {
                Some(wait) => sleep(wait).await,
                None => return Err(ApiError::Unavailable { path, why }),
            }
        }
    }

    fn form(&self, question: Question<'_>, page: usize) -> Bytes {
        let (date, hour) = (question.hour.date().to_string(), question.hour.hour().to_string());
        let (page, rows) = (page.to_string(), ROWS.to_string());
        let fields = [
            ("api_user", self.account.user.as_str()),
            ("api_key", self.account.key.expose_secret()),
            ("server_composition", question.composition),
            ("date", &date),
            ("hour", &hour),
            ("p", &page),
            ("r", &rows),
        ];
        let fields = fields.map(|(name, value)| format!("{name}={}", encoded(value)));
        fields.join("&").into()
    }

    async fn call(&mut self, path: &str, form: Bytes) -> io::Result<(StatusCode, String)> {
        let client = self.clients.entry(path.to_owned()).or_insert_with(|| {
            Client::new(self.target.with_path(path), None)
                .with_trust(self.trust.clone())
                .with_most(ANSWER)
        });
        let reply = client
            .post("application/x-www-form-urlencoded", form, self.config.timeout)
            .await?;
        Ok((reply.status, reply.text))
    }

    fn rows(&self, path: &str, list: &str, text: &str) -> Result<Vec<Box<RawValue>>, ApiError> {
        let not_understood = |why: String| ApiError::NotUnderstood {
            path: path.to_owned(),
            why,
        };
        let shown = self.shown(StatusCode::OK, text);
        let mut answer: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(text).map_err(|error| not_understood(format!("{error}; {shown}")))?;
        if answer.contains_key("errors") {
            let (path, why) = (path.to_owned(), shown);
            return Err(ApiError::Refused { path, why });
        }
        let rows = answer
            .remove(list)
            .ok_or_else(|| not_understood(format!("it has no member {list}; {shown}")))?;
        let rows: Vec<Box<RawValue>> = serde_json::from_str(rows.get())
            .map_err(|error| not_understood(format!("its member {list} is no list: {error}")))?;
        if rows.iter().any(|row| !row.get().starts_with('{')) {
            return Err(not_understood(format!("a row of {list} is no object")));
        }
        Ok(rows)
    }

    /// An answer on one line: the sender's errors if it has any, otherwise its beginning. Without the key.
    fn shown(&self, status: StatusCode, text: &str) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<SenderError>,
        }
        let said = match serde_json::from_str::<Errors>(text) {
            Ok(Errors { errors }) => {
                let errors = errors.iter().map(|error| {
                    let said = [
                        ("code", &error.code),
                        ("field", &error.field),
                        ("message", &error.message),
                    ];
                    let said = said.iter().filter_map(|(name, value)| match value {
                        serde_json::Value::Null => None,
                        serde_json::Value::String(text) => Some(format!("{name} {text}")),
                        other => Some(format!("{name} {other}")),
                    });
                    said.collect::<Vec<_>>().join(", ")
                });
                errors.collect::<Vec<_>>().join("; ")
            }
            Err(_) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let key = self.account.key.expose_secret();
        // As it is, and as it was sent.
        let said = said.replace(key, "***").replace(&encoded(key), "***");
        let said: String = said.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
        format!("{status}: {said}")
    }
}

/// A value in a form.
fn encoded(value: &str) -> String {
    utf8_percent_encode(value, NON_ALPHANUMERIC).to_string()
}

/// Whether the same call may be answered later.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
        )
}
