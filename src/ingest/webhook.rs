//! A webhook whose body has been read: it is understood, made durable and answered.
//!
//! This is the only place where the sender's formats ([`cmc`]) meet the spool. The body is dropped before the wait
//! for the disk begins; its share of the bytes in flight then covers the batches.
//!
//! Understanding a body takes time in proportion to its size. A small body is understood at once. One of more than
//! [`SMALL`] bytes is understood away from the threads that serve connections, and no more of them at once than there
//! are processors (received mails: half as many, with a lower priority), so that other webhooks don't wait for it and
//! the memory of that work is bounded.
//!
//! Dead letters are durable before the events are appended, so that nothing of an acknowledged webhook is missing and
//! nothing is dead-lettered in silence. A client that disappears meanwhile changes nothing: a batch that was handed
//! over is written, and a webhook with dead letters is completed by a task of its own.

use std::{borrow::Cow, io, sync::Arc, thread, time::Instant};

use bytes::Bytes;
use hyper::header::HeaderValue;
use tokio::{
    sync::oneshot,
    task::{JoinError, spawn_blocking},
};
use tracing::{error, warn};

use super::{
    answer::Answer,
    auth::Admission,
    connection::Connection,
    intake::Intake,
    limits::{Exhausted, Share},
};
use crate::{
    batch::Batch,
    clock,
    cmc::{self, Content, Endpoint, Media, Split},
    dead_letter::Failure,
    metrics::{Outcome, Shortage},
    priority,
    spool::{AppendError, Appender, LogState},
    stream::{Stream, Tally},
};

/// Largest body, in bytes, that the thread of its connection understands: this takes a few hundred microseconds.
const SMALL: usize = 64 * 1024;

/// A request that has not been answered yet.
pub(super) struct Webhook {
    pub(super) endpoint: Endpoint,
    pub(super) admission: Admission,
    /// Whether it has an `Authorization` header, valid or not.
    pub(super) authorization: bool,
    pub(super) media: Media,
    /// Whether the path ended with a slash.
    pub(super) trailing_slash: bool,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Bytes,
    /// Covers the body.
    pub(super) share: Share,
}

/// The decision about a webhook.
enum Decision {
    Answer(Answer),
    /// Store it, then give this answer.
    Store(Box<Split>, Option<Stream>, Answer, Share),
}

impl Webhook {
    /// Takes the webhook to its answer.
    pub(super) async fn take(self, connection: &Arc<Connection>) -> Answer {
        if self.body.len() <= SMALL {
            let decision = self.understand(connection);
            return connection.intake.see_through(decision).await;
        }
        let intake = Arc::clone(&connection.intake);
        let connection = Arc::clone(connection);
        // A task of its own: a client that disappears meanwhile changes nothing.
        let taken = tokio::spawn(async move {
            let places = match self.endpoint {
                Endpoint::Events => &connection.intake.understanding,
                Endpoint::Inbound => &connection.intake.understanding_mail,
            };
            let place = places.acquire().await;
            let decision = self.understand_aside(Arc::clone(&connection)).await;
            drop(place);
            Ok(connection.intake.see_through(decision?).await)
        });
        let failed = |error: JoinError| Err(io::Error::from(error));
        match taken.await.unwrap_or_else(failed) {
            Ok(answer) => answer,
            Err(error) => {
                error!(%error, "the task of a webhook failed");
                Answer::unavailable(Outcome::Failed, "The bridge failed.", &intake.retry_after)
            }
        }
    }

    /// [`Webhook::understand`] on another thread: for a mail, one with a lower priority.
    async fn understand_aside(self, connection: Arc<Connection>) -> io::Result<Decision> {
        if self.endpoint == Endpoint::Events {
            return Ok(spawn_blocking(move || self.understand(&connection)).await?);
        }
        let (done, decision) = oneshot::channel();
        thread::Builder::new().name("mail".into()).spawn(move || {
            priority::lower();
            // Somebody waits for it.
            let _ = done.send(self.understand(&connection));
        })?;
        decision.await.map_err(|_| io::Error::other("it panicked"))
    }

    /// Decides what to do with the webhook, and drops its body.
    fn understand(mut self, connection: &Connection) -> Decision {
        let intake = &connection.intake;
        let content_type = self
            .content_type
            .as_ref()
            .map(|value| String::from_utf8_lossy(value.as_bytes()));
        let path = match self.trailing_slash {
            false => Cow::Borrowed(intake.path_of(self.endpoint)),
            true => Cow::Owned(format!("{}/", intake.path_of(self.endpoint))),
        };
        let request = cmc::Request {
            received_at_micros: clock::unix_micros(),
            path: &path,
            content_type: content_type.as_deref(),
            body: &self.body,
        };
        let rules = intake.rules();
        let opened = cmc::open_request(&request, self.media, &rules);
        let api_key = opened.api_key.as_deref();
        if self.admission != Admission::Admitted && !intake.guard.admits_api_key(api_key) {
            let answer = match self.authorization || api_key.is_some() {
                true => Answer::unauthorized,
                false => Answer::challenged,
            };
            return Decision::Answer(answer(intake.guard.challenge()));
        }
        if !connection.admit() {
            // Nobody will read this answer.
            let detail = "There are too many connections.";
            return Decision::Answer(Answer::unavailable(
                Outcome::Overloaded,
                detail,
                &intake.retry_after,
            ));
        }
        self.share.admit();
        // The current rules: the admitted credential may be a new one that must be masked.
        let rules = intake.rules();
        let stream = opened.content.as_ref().ok().and_then(Content::stream);
        if let (Some(_), Endpoint::Events, Some(composition)) =
            (stream, self.endpoint, opened.server_composition.as_deref())
        {
            intake.zones.note(composition);
        }
        let understood = cmc::understand(opened, &request, &rules);
        let answer = match understood.malformed {
            None => Answer::accepted(),
            Some(_) if understood.encoding.is_none() => Answer::unsupported(self.endpoint),
            Some(malformed) => Answer::malformed(intake.malformed_status, malformed),
        };
        Decision::Store(Box::new(understood.split), stream, answer, self.share)
    }
}

/// Why a webhook could not be made durable.
#[derive(Debug, PartialEq, Eq)]
enum StoreError {
    Budget,
    Spool(Stream, AppendError),
}

impl From<Exhausted> for StoreError {
    fn from(_: Exhausted) -> StoreError {
        StoreError::Budget
    }
}

impl StoreError {
    fn answer(self, intake: &Intake) -> Answer {
        let short =
            |shortage, stream, detail| Answer::short_of(shortage, stream, detail, &intake.retry_after);
        match self {
            StoreError::Budget => short(Shortage::Flight, None, "Too many webhooks are waiting."),
            StoreError::Spool(stream, AppendError::Full) => {
                let detail = "The store of waiting events is full.";
                short(Shortage::Spool, Some(stream), detail)
            }
            StoreError::Spool(stream, AppendError::TooSlow) => {
                short(Shortage::Disk, Some(stream), "The disk is too slow.")
            }
            StoreError::Spool(stream, AppendError::NotOpen) => {
                let detail = "The store of this event type can't be opened now.";
                short(Shortage::Log, Some(stream), detail)
            }
            StoreError::Spool(_, AppendError::Failed) => {
                let detail = "The disk can't be written.";
                Answer::unavailable(Outcome::Failed, detail, &intake.retry_after)
            }
            StoreError::Spool(_, AppendError::Closed) => Answer::stopping(&intake.retry_after),
        }
    }
}

impl Intake {
    /// Stores what must be stored, and returns the answer. Failures are counted, and events become known, once they are durable, by a
    /// task of its own: a client that disappears meanwhile changes neither.
    async fn see_through(self: &Arc<Self>, decision: Decision) -> Answer {
        let (split, stream, answer, share) = match decision {
            Decision::Answer(answer) => return answer,
            Decision::Store(split, stream, answer, share) => (split, stream, answer, share),
        };
        let Split {
            events,
            dead_letters,
            failures,
            ids,
            repeated,
        } = *split;
        let stored = if failures.is_empty() && ids.is_empty() {
            self.store(events, dead_letters, share).await
        } else {
            let intake = Arc::clone(self);
            let is_accepted = answer.outcome == Outcome::Accepted;
            let received_at = events.as_ref().map(|(_, batch, _)| batch.received_at_micros());
            let task = tokio::spawn(async move {
                intake.store(events, dead_letters, share).await?;
                if let (Some(repeats), Some(stream), Some(received_at)) =
                    (&intake.rules().repeats, stream, received_at)
                {
                    repeats.note(stream, ids, received_at);
                }
                if !failures.is_empty() {
                    intake.metrics.parse_failures(stream, &failures);
                    if is_accepted {
                        intake.note_dead_letters(&failures);
                    }
                }
                Ok(())
            });
            let failed = StoreError::Spool(Stream::DeadLetters, AppendError::Failed);
            task.await.unwrap_or(Err(failed))
        };
        match stored {
            Ok(()) => {
                if let (Some(stream), 1..) = (stream, repeated) {
                    self.metrics.repeated_events(stream, repeated);
                }
                answer
            }
            Err(refusal) => refusal.answer(self),
        }
    }

    /// Makes everything in a webhook durable, dead letters first.
    async fn store(
        &self,
        events: Option<(Stream, Batch, Tally)>,
        dead_letters: Option<(Batch, Tally)>,
        mut share: Share,
    ) -> Result<(), StoreError> {
        let dead_letters = dead_letters.filter(|_| self.keeps_dead_letters());
        let letters_size = dead_letters.as_ref().map_or(0, |(batch, _)| batch.allocated());
        let events_size = events.as_ref().map_or(0, |(_, batch, _)| batch.allocated());
        self.budget.grow(&mut share, letters_size + events_size)?;
        match (dead_letters, events) {
            (None, None) => Ok(()),
            (None, Some((stream, batch, tally))) => self.append(stream, batch, tally, share)?.await,
            (Some((batch, tally)), None) => self.append(Stream::DeadLetters, batch, tally, share)?.await,
            (Some((letters, letters_tally)), Some((stream, batch, tally))) => {
                // A webhook whose events are refused will be sent again, and its dead letters with it.
                let refused = match self.logs[stream.index()].as_ref().map(Appender::state) {
                    Some(LogState::Full) => Some(AppendError::Full),
                    Some(LogState::NotOpen) => Some(AppendError::NotOpen),
                    _ => None,
                };
                if let Some(error) = refused {
                    return Err(StoreError::Spool(stream, error));
                }
                let letters_share = share.split(letters_size).ok_or(StoreError::Budget)?;
                let first = self.append(Stream::DeadLetters, letters, letters_tally, letters_share)?;
                let second = self.append(stream, batch, tally, share)?;
                first.await?;
                second.await
            }
        }
    }

    /// Takes a body to its answer, like the handler with a body that it has read.
    #[cfg(test)]
    pub(crate) async fn take_body(
        self: &Arc<Self>,
        endpoint: Endpoint,
        content_type: &'static str,
        body: Bytes,
    ) -> Outcome {
        let Ok(share) = self.budget.reserve(body.len(), super::limits::Whose::Known) else {
            return Outcome::Overloaded;
        };
        let webhook = Webhook {
            endpoint,
            admission: Admission::Admitted,
            authorization: false,
            media: Media::of(endpoint, [content_type.as_bytes()]),
            trailing_slash: false,
            content_type: Some(HeaderValue::from_static(content_type)),
            body,
            share,
        };
        let connection = Arc::new(Connection::new(Arc::clone(self), 0));
        webhook.take(&connection).await.outcome
    }

    /// The append to a stream's log, to be awaited. A stream without a log counts as closed.
    fn append(
        &self,
        stream: Stream,
        batch: Batch,
        tally: Tally,
        share: Share,
    ) -> Result<impl Future<Output = Result<(), StoreError>> + Send + use<>, StoreError> {
        let refused = move |error| StoreError::Spool(stream, error);
        let log = self.logs[stream.index()]
            .clone()
            .ok_or(refused(AppendError::Closed))?;
        // The two appends of a webhook share the time.
        let deadline = Instant::now() + self.append_timeout;
        Ok(async move {
            log.append(batch, tally, share.into_permit(), deadline)
                .await
                .map_err(refused)
        })
    }

    /// Whether there is a log for dead letters. Only tests run without one: the configuration refuses it.
    fn keeps_dead_letters(&self) -> bool {
        self.logs[Stream::DeadLetters.index()].is_some()
    }

    fn note_dead_letters(&self, failures: &[Failure]) {
        if let Some(first) = failures.first()
            && let Some(suppressed) = self.dead_letter_lines.pass()
        {
            warn!(
                count = failures.len(),
                first = first.reason.name(),
                suppressed,
                "parts of a webhook could not be understood"
            );
        }
    }
}
