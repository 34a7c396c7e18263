//! A webhook whose body has been read: understood, made durable, answered.
//!
//! This is the only place where ingest meets the sender's formats ([`cmc`]) and the spool. The body is gone before the
//! wait for the disk begins; its share of the bytes in flight then covers the batches.
//!
//! To understand a body takes time in proportion to it. A small one is understood at once; one of more than [`SMALL`] bytes
//! away from the threads that serve connections, so many at once as there are processors, so that neither other webhooks
//! wait for it nor the memory of that work is without a limit.
//!
//! Dead letters are durable before the events are appended, so that nothing of an acknowledged webhook is missing and
//! nothing is dead-lettered in silence. A client that goes away meanwhile changes nothing: a batch that was handed over
//! is written, and a webhook with dead letters is seen through by a task of its own.

use std::{borrow::Cow, sync::Arc, time::Instant};

use bytes::Bytes;
use hyper::header::HeaderValue;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{error, warn};

use super::{
    Intake,
    auth::Verdict,
    connection::Connection,
    limits::{Exhausted, Share},
    problem::{Answer, Shortage},
};
use crate::{
    batch::Batch,
    clock,
    cmc::{self, Envelope, Media, Split},
    dead_letter::Failure,
    metrics::Outcome,
    spool::{AppendError, Appender, LogState},
    stream::{Stream, Tally},
};

/// Most bytes of a body that is understood by the thread that serves its connection: some hundred microseconds.
const SMALL: usize = 64 * 1024;

/// A request that has not been answered yet.
pub(super) struct Webhook {
    pub(super) verdict: Verdict,
    /// Whether it has a header `Authorization`, of whatever worth.
    pub(super) authorization: bool,
    pub(super) media: Media,
    /// Whether the path ended with one.
    pub(super) trailing_slash: bool,
    pub(super) content_type: Option<HeaderValue>,
    pub(super) body: Bytes,
    /// Covers the body.
    pub(super) share: Share,
}

/// What a webhook comes to.
enum Outlook {
    Answer(Answer),
    /// To be stored, and the answer for when it is.
    Store(Box<Split>, Option<Stream>, Answer, Share),
}

impl Webhook {
    /// Takes the webhook to its answer.
    pub(super) async fn take(self, connection: &Arc<Connection>) -> Answer {
        if self.body.len() <= SMALL {
            let outlook = self.understand(connection);
            return connection.intake.see_through(outlook).await;
        }
        let intake = Arc::clone(&connection.intake);
        let connection = Arc::clone(connection);
        // In a task of its own: a client that goes away meanwhile changes nothing.
        let taken = tokio::spawn(async move {
            let place = connection.intake.understanding.acquire().await;
            let by = Arc::clone(&connection);
            let outlook = spawn_blocking(move || self.understand(&by)).await;
            drop(place);
            Ok(connection.intake.see_through(outlook?).await)
        });
        match taken.await.unwrap_or_else(Err::<Answer, JoinError>) {
            Ok(answer) => answer,
            Err(error) => {
                error!(%error, "the task of a webhook failed");
                Answer::unavailable(Outcome::Failed, "The bridge failed.", &intake.retry_after)
            }
        }
    }

    /// Ends the life of the body.
    fn understand(mut self, connection: &Connection) -> Outlook {
        let intake = &connection.intake;
        let content_type = self
            .content_type
            .as_ref()
            .map(|value| String::from_utf8_lossy(value.as_bytes()));
        let path = match self.trailing_slash {
            false => Cow::Borrowed(intake.path.as_str()),
            true => Cow::Owned(format!("{}/", intake.path)),
        };
        let request = cmc::Request {
            received_at_micros: clock::unix_micros(),
            path: &path,
            content_type: content_type.as_deref(),
            body: &self.body,
        };
        let rules = intake.rules();
        let opened = cmc::open(request.body, self.media, &rules);
        let api_key = opened.api_key.as_deref();
        if self.verdict != Verdict::Admitted && !intake.guard.admits_api_key(api_key) {
            let answer = match self.authorization || api_key.is_some() {
                true => Answer::unauthorized,
                false => Answer::challenged,
            };
            return Outlook::Answer(answer(intake.guard.challenge()));
        }
        if !connection.admit() {
            // Nobody is there to read it.
            let detail = "There are too many connections.";
            return Outlook::Answer(Answer::unavailable(
                Outcome::Overloaded,
                detail,
                &intake.retry_after,
            ));
        }
        self.share.admit();
        // Those of now: what was admitted may be a credential that came meanwhile, and must be masked.
        let rules = intake.rules();
        let stream = opened.content.as_ref().ok().and_then(Envelope::stream);
        if let (Some(_), Some(composition)) = (stream, opened.server_composition.as_deref()) {
            intake.zones.note(composition);
        }
        let understood = cmc::understand(opened, &request, &rules);
        let answer = match understood.malformed {
            None => Answer::accepted(),
            Some(_) if understood.encoding.is_none() => Answer::unsupported(),
            Some(malformed) => Answer::malformed(intake.malformed_status, malformed),
        };
        Outlook::Store(Box::new(understood.split), stream, answer, self.share)
    }
}

/// Why a webhook could not be made durable.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Budget,
    Spool(Stream, AppendError),
}

impl From<Exhausted> for Refusal {
    fn from(_: Exhausted) -> Refusal {
        Refusal::Budget
    }
}

impl Refusal {
    fn answer(self, intake: &Intake) -> Answer {
        let short =
            |shortage, stream, detail| Answer::short_of(shortage, stream, detail, &intake.retry_after);
        match self {
            Refusal::Budget => short(Shortage::Flight, None, "Too many webhooks are waiting."),
            Refusal::Spool(stream, AppendError::Full) => {
                let detail = "The store of waiting events is full.";
                short(Shortage::Spool, Some(stream), detail)
            }
            Refusal::Spool(stream, AppendError::TooSlow) => {
                short(Shortage::Disk, Some(stream), "The disk is too slow.")
            }
            Refusal::Spool(stream, AppendError::NotOpen) => {
                let detail = "The store of this event type can't be opened now.";
                short(Shortage::Log, Some(stream), detail)
            }
            Refusal::Spool(_, AppendError::Failed) => {
                let detail = "The disk can't be written.";
                Answer::unavailable(Outcome::Failed, detail, &intake.retry_after)
            }
            Refusal::Spool(_, AppendError::Closed) => Answer::stopping(&intake.retry_after),
        }
    }
}

impl Intake {
    /// Stores what there is to be stored; its answer. Failures are counted once they are durable, and by a task of its own:
    /// a client that goes away meanwhile changes neither.
    async fn see_through(self: &Arc<Self>, outlook: Outlook) -> Answer {
        let (split, stream, answer, share) = match outlook {
            Outlook::Answer(answer) => return answer,
            Outlook::Store(split, stream, answer, share) => (split, stream, answer, share),
        };
        let Split {
            events,
            dead_letters,
            failures,
        } = *split;
        let stored = if failures.is_empty() {
            self.store(events, dead_letters, share).await
        } else {
            let intake = Arc::clone(self);
            let is_accepted = answer.outcome == Outcome::Accepted;
            let task = tokio::spawn(async move {
                intake.store(events, dead_letters, share).await?;
                intake.metrics.parse_failures(stream, &failures);
                if is_accepted {
                    intake.note_dead_letters(&failures);
                }
                Ok(())
            });
            let failed = Refusal::Spool(Stream::DeadLetters, AppendError::Failed);
            task.await.unwrap_or(Err(failed))
        };
        match stored {
            Ok(()) => answer,
            Err(refusal) => refusal.answer(self),
        }
    }

    /// Makes all of a webhook durable, dead letters first.
    async fn store(
        &self,
        events: Option<(Stream, Batch, Tally)>,
        dead_letters: Option<(Batch, Tally)>,
        mut share: Share,
    ) -> Result<(), Refusal> {
        let dead_letters = dead_letters.filter(|_| self.keeps_dead_letters());
        let letters_size = dead_letters.as_ref().map_or(0, |(batch, _)| batch.allocated());
        let events_size = events.as_ref().map_or(0, |(_, batch, _)| batch.allocated());
        self.budget.grow(&mut share, letters_size + events_size)?;
        match (dead_letters, events) {
            (None, None) => Ok(()),
            (None, Some((stream, batch, tally))) => self.append(stream, batch, tally, share)?.await,
            (Some((batch, tally)), None) => self.append(Stream::DeadLetters, batch, tally, share)?.await,
            (Some((letters, letters_tally)), Some((stream, batch, tally))) => {
                // A webhook whose events are refused will come again, and its dead letters with it.
                let refused = match self.logs[stream.index()].as_ref().map(Appender::state) {
                    Some(LogState::Full) => Some(AppendError::Full),
                    Some(LogState::NotOpen) => Some(AppendError::NotOpen),
                    _ => None,
                };
                if let Some(error) = refused {
                    return Err(Refusal::Spool(stream, error));
                }
                let letters_share = share.split(letters_size).ok_or(Refusal::Budget)?;
                let first = self.append(Stream::DeadLetters, letters, letters_tally, letters_share)?;
                let second = self.append(stream, batch, tally, share)?;
                first.await?;
                second.await
            }
        }
    }

    /// Takes a JSON body to its answer, as the handler does with one that it has read.
    #[cfg(test)]
    pub(crate) async fn take_json(self: &Arc<Self>, body: Bytes) -> Outcome {
        let Ok(share) = self.budget.reserve(body.len(), super::limits::Whose::Known) else {
            return Outcome::Overloaded;
        };
        let webhook = Webhook {
            verdict: Verdict::Admitted,
            authorization: false,
            media: Media::Known(cmc::BodyEncoding::Json),
            trailing_slash: false,
            content_type: None,
            body,
            share,
        };
        let connection = Arc::new(Connection::new(Arc::clone(self), 0));
        webhook.take(&connection).await.outcome
    }

    /// The append to a stream's log, to be awaited. A stream without a log is closed.
    fn append(
        &self,
        stream: Stream,
        batch: Batch,
        tally: Tally,
        share: Share,
    ) -> Result<impl Future<Output = Result<(), Refusal>> + Send + use<>, Refusal> {
        let refused = move |error| Refusal::Spool(stream, error);
        let log = self.logs[stream.index()]
            .clone()
            .ok_or(refused(AppendError::Closed))?;
        // Of a webhook with two appends, both share the time.
        let deadline = Instant::now() + self.append_timeout;
        Ok(async move {
            let limit = deadline.saturating_duration_since(Instant::now());
            log.append(batch, tally, share.into_permit(), limit)
                .await
                .map_err(refused)
        })
    }

    /// Whether there is a log for dead letters. Without one they are counted, logged and gone, as configured.
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
