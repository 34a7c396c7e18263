//! The sender's Web API, which knows the events of the last 40 days: one call at a time, with a pause between two.
//!
//! `POST <url>/<list>/list.json`, the parameters as a form. The lists of a stream's events answer with up to `r` rows of one hour of one
//! composition, from page `p` on; 204 or an empty list when there are none. The list `statistics` has the numbers of mails by day. Calls
//! are repeated with growing waits when the connection breaks or the answer is late, 429 or 5xx; with longer ones if the sender asks
//! for them (`Retry-After`). Any other answer ends the work; the sender's own errors are shown with code, field and message. The key
//! appears in no text.
//!
//! Nothing here says in which order rows come, or that pages stay the same between two calls: see [`crate::reconcile`]. Each call is
//! bounded in time and memory, whatever the other side sends.

use std::{collections::BTreeMap, io, time::Duration};

use bytes::Bytes;
use hyper::StatusCode;
use jiff::civil::{Date, DateTime};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cmc::{Secrets, mask},
    config,
    http_client::{Client, Reply, Target, trust},
    human,
    plain::visible,
    stream::Stream,
};

/// Rows of a page: the most that the sender gives.
const ROWS: usize = 100;
/// Maximum length of an answer in bytes; a page of long rows has a few hundred thousand.
const ANSWER: usize = 16 << 20;
/// The waits before a call is repeated.
const WAITS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];
/// The longest wait that the sender may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How much of an answer that isn't understood is shown, in characters.
const SHOWN: usize = 200;

/// Why the API gives no rows.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The configuration names no account, or files that can't be used.
    #[error("{0}")]
    Configuration(String),
    /// It refuses the call. The same call will be refused again.
    #[error("the sender's Web API refuses {url}: {why}. {cure}")]
    Refused {
        url: String,
        why: String,
        cure: &'static str,
    },
    /// It answers something else than what is documented.
    #[error("the sender's Web API answers {url} with something that is not understood: {why}")]
    NotUnderstood { url: String, why: String },
    /// It is not available.
    #[error("the sender's Web API is not available ({url}, tries: {tries}): {why}. {cure}")]
    Unavailable {
        url: String,
        tries: usize,
        why: String,
        cure: &'static str,
    },
}

/// The rows to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    pub stream: Stream,
    pub composition: &'q str,
    /// A time in the console's zone.
    pub begin: DateTime,
    pub span: Span,
}

/// Which rows of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Those of the hour that begins then.
    Hour,
    /// Those with this status.
    DayWithStatus(&'static str),
}

/// The numbers of a composition's mails on a day, as the sender counts them: by status, in the order of [`COUNTED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DayCounts {
    pub day: Date,
    pub counts: [u64; COUNTED.len()],
}

/// The statuses of deliveries that the sender counts. It counts neither deferred deliveries nor bounces.
pub const COUNTED: [&str; 3] = ["queued", "succeeded", "failed"];

/// A client of the API.
pub struct SenderApi<'c> {
    config: &'c config::SenderApi,
    account: &'c config::ApiAccount,
    /// By the path of the resource.
    clients: BTreeMap<String, Client>,
    target: Target,
    trust: Option<tokio_rustls::TlsConnector>,
    /// The waits before a call is repeated.
    waits: &'static [Duration],
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
            waits: &WAITS,
            next: Instant::now(),
        })
    }

    /// The same client, which makes each call only once.
    pub fn without_repeats(mut self) -> SenderApi<'c> {
        self.waits = &[];
        self
    }

    /// The address of a list.
    pub fn url(&self, list: &str) -> String {
        self.list(list).url()
    }

    fn list(&self, list: &str) -> Target {
        let base = self.target.path.trim_end_matches('/');
        self.target.with_path(&format!("{base}/{list}/list.json"))
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
        let hour = question.begin.hour().to_string();
        let part = match question.span {
            Span::Hour => ("hour", hour.as_str()),
            Span::DayWithStatus(status) => ("status", status),
        };
        let (date, page, rows) = (
            question.begin.date().to_string(),
            page.to_string(),
            ROWS.to_string(),
        );
        let form = self.form(&[
            ("server_composition", question.composition),
            ("date", &date),
            part,
            ("p", &page),
            ("r", &rows),
        ]);
        self.ask(question.stream.name(), form).await
    }

    /// The counts of a composition's mails in the month of this day, in no order. A day may be missing or come more than once.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn counts(&mut self, composition: &str, month: Date) -> Result<Vec<DayCounts>, ApiError> {
        let (year, month) = (month.year().to_string(), month.month().to_string());
        let form = self.form(&[
            ("server_composition", composition),
            ("year", &year),
            ("month", &month),
        ]);
        let rows = self.ask("statistics", form).await?;
        let counts = rows.iter().map(|row| {
            let row: serde_json::Value = serde_json::from_str(row.get()).ok()?;
            let day = row["date"].as_str()?.parse().ok()?;
            let number = |name: &str| match &row[name] {
                serde_json::Value::String(text) => text.parse().ok(),
                other => other.as_u64(),
            };
            let [queued, succeeded, failed] = COUNTED.map(number);
            Some(DayCounts {
                day,
                counts: [queued?, succeeded?, failed?],
            })
        });
        // What isn't understood says nothing about its day.
        Ok(counts.flatten().collect())
    }

    /// The rows of a list.
    async fn ask(&mut self, list: &str, form: Bytes) -> Result<Vec<Box<RawValue>>, ApiError> {
        let target = self.list(list);
        let url = target.url();
        let mut waits = self.waits.iter();
        let unavailable = |why, cure, tries| ApiError::Unavailable {
            url: url.clone(),
            tries,
            why,
            cure,
        };
        loop {
            sleep_until(self.next).await;
            let answer = self.call(&target, form.clone()).await;
            self.next = Instant::now() + self.config.pause;
            let tries = self.waits.len() - waits.len() + 1;
            let mut asked = Duration::ZERO;
            let (why, cure) = match answer {
                Ok(reply) => match reply.status {
                    StatusCode::NO_CONTENT => return Ok(Vec::new()),
                    StatusCode::OK => return self.rows(url, list, &reply.text),
                    status if may_pass(status) => {
                        asked = reply.retry_after.unwrap_or_default().min(LONGEST_WAIT);
                        (
                            self.shown(status, &reply.text),
                            "Try again later, or ask the sender",
                        )
                    }
                    status => return Err(self.refused(url, status, &reply.text)),
                },
                // A certificate that isn't trusted, an endless answer, and the like.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    let cure = "Check that sender_api.url is the sender's, and sender_api.ca_file the authority that signed its certificate";
                    return Err(unavailable(error.to_string(), cure, tries));
                }
                Err(error) => {
                    let why = match error.kind() {
                        io::ErrorKind::TimedOut => {
                            let limit = human::exact_duration(self.config.timeout);
                            format!("no whole answer within {limit} (sender_api.timeout)")
                        }
                        _ => error.to_string(),
                    };
                    let cure = "Check sender_api.url, name resolution, and that firewalls and network policies let this machine reach it";
                    (why, cure)
                }
            };
            match waits.next() {
                Some(wait) => sleep(asked.max(*wait)).await,
                None => return Err(unavailable(why, cure, tries)),
            }
        }
    }

    /// A form with the account and these fields.
    fn form(&self, fields: &[(&str, &str)]) -> Bytes {
        let account = [
            ("api_user", self.account.user.as_str()),
            ("api_key", self.account.key.expose_secret()),
        ];
        let fields = account.iter().chain(fields);
        let fields = fields.map(|(name, value)| format!("{name}={}", encoded(value)));
        fields.collect::<Vec<_>>().join("&").into()
    }

    async fn call(&mut self, target: &Target, form: Bytes) -> io::Result<Reply> {
        let client = self.clients.entry(target.path.clone()).or_insert_with(|| {
            Client::new(target.clone(), None)
                .with_trust(self.trust.clone())
                .with_most(ANSWER)
        });
        client
            .post("application/x-www-form-urlencoded", form, self.config.timeout)
            .await
    }

    fn rows(&self, url: String, list: &str, text: &str) -> Result<Vec<Box<RawValue>>, ApiError> {
        let shown = || self.shown(StatusCode::OK, text);
        // An error may repeat a part of the answer.
        let not_understood = |why: String| ApiError::NotUnderstood {
            url: url.clone(),
            why: self.masked(&why),
        };
        let mut answer: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(text).map_err(|error| not_understood(format!("{error}; {}", shown())))?;
        if answer.contains_key("errors") {
            return Err(self.refused(url, StatusCode::OK, text));
        }
        let rows = answer
            .remove(list)
            .ok_or_else(|| not_understood(format!("it has no member {list}; {}", shown())))?;
        let rows: Vec<Box<RawValue>> = serde_json::from_str(rows.get())
            .map_err(|error| not_understood(format!("its member {list} is no list: {error}")))?;
        if rows.iter().any(|row| !row.get().starts_with('{')) {
            return Err(not_understood(format!("a row of {list} is no object")));
        }
        Ok(rows)
    }

    fn refused(&self, url: String, status: StatusCode, text: &str) -> ApiError {
        let errors = errors(text).unwrap_or_default();
        let names = |name: &str| errors.iter().any(|error| error.field == name);
        let cure = if names("server_composition") {
            "Check the name of the composition (sender_api.server_compositions, --server-composition), and that this API user may see it"
        } else if names("api_user") || names("api_key") || status == StatusCode::UNAUTHORIZED {
            "Check sender_api.user and sender_api.key against the sender's console"
        } else if status == StatusCode::NOT_FOUND || status.is_redirection() {
            "Check sender_api.url: it ends with the API's version, such as https://api.smtps.jp/transaction/v2"
        } else {
            "Check the composition's name, the API user, its key, and its right to refer to data in the sender's console"
        };
        let why = self.shown(status, text);
        ApiError::Refused { url, why, cure }
    }

    /// A text without the key in any spelling. A short key is only found as it is and as it was sent.
    fn masked(&self, text: &str) -> String {
        let key = self.account.key.expose_secret();
        let text = mask(text.as_bytes(), &Secrets::new([key]));
        let text = String::from_utf8_lossy(&text);
        text.replace(key, "***").replace(&encoded(key), "***")
    }

    /// An answer on one line: the sender's errors if it has any, otherwise its beginning. Without the key.
    fn shown(&self, status: StatusCode, text: &str) -> String {
        let said = match errors(text) {
            Some(errors) => {
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
            None => text.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        let said: String = visible(&self.masked(&said)).chars().take(SHOWN).collect();
        format!("{status}: {said}")
    }
}

/// The sender's errors in an answer.
fn errors(text: &str) -> Option<Vec<SenderError>> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<SenderError>,
    }
    let answer: Errors = serde_json::from_str(text).ok()?;
    Some(answer.errors)
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
