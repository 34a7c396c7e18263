//! Events that are known to be durable, so that one that the sender posts again is not stored again (`ingest.repeats = "drop"`).
//!
//! An event is known by its `ce_id`, which is equal for equal bytes. It becomes known when the webhook that brought it has been made
//! durable, never before. So whoever drops a known event loses nothing, and may answer 200. A webhook never makes its own events
//! known to itself: what it holds twice is stored twice.
//!
//! What is known is bounded: by age, counted from when the webhook arrived, and to [`MOST`] events a stream. After a start it is what the
//! log still holds, which is less: a log lets go of what Kafka has.
//!
//! A repeat is stored again, like before, if this process doesn't know the event: another replica took it; it is not durable yet; it was
//! given up by the webhook's time limit and became durable later; it came too long ago; or it came before the last start, and the
//! log has let go of it. Two different events with the same bytes can't be told from a repeat.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    time::Duration,
};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::{batch::BatchView, stream::Stream};

/// Known events of a stream, at most. They take about 40 MB.
const MOST: usize = 1 << 19;

/// The events of all streams that are known to be durable.
pub struct Repeats {
    window_micros: i64,
    /// At [`Stream::index`].
    streams: [Mutex<Known>; Stream::ALL.len()],
}

#[derive(Default)]
struct Known {
    ids: HashSet<Uuid>,
    /// Ids with the time at which their webhooks arrived, in the order in which they became known.
    order: VecDeque<(Uuid, i64)>,
}

impl Repeats {
    /// Nothing is known yet, and everything will be for so long.
    pub fn new(window: Duration) -> Repeats {
        Repeats {
            window_micros: window.as_micros().try_into().unwrap_or(i64::MAX),
            streams: Default::default(),
        }
    }

    /// Whether an event is known at this time (microseconds since the Unix epoch).
    pub fn is_known(&self, stream: Stream, id: &Uuid, now_micros: i64) -> bool {
        let mut known = self.streams[stream.index()].lock();
        known.forget_before(now_micros.saturating_sub(self.window_micros));
        known.ids.contains(id)
    }

    /// Events have become durable. Their webhook arrived at this time (microseconds since the Unix epoch).
    pub fn note(&self, stream: Stream, ids: impl IntoIterator<Item = Uuid>, received_at_micros: i64) {
        let mut known = self.streams[stream.index()].lock();
        for id in ids {
            if known.ids.insert(id) {
                known.order.push_back((id, received_at_micros));
            }
            if known.order.len() > MOST {
                known.forget_one();
            }
        }
    }

    /// Notes the events of an encoded batch that is durable.
    pub fn note_batch(&self, stream: Stream, encoded: &[u8]) {
        // A batch of an unknown layout is reported when it is delivered.
        let Ok(batch) = BatchView::decode(encoded) else {
            return;
        };
        let id = |record| {
            let mut headers = batch.headers(record);
            let (_, id) = headers.find(|(name, _)| *name == "ce_id")?;
            Uuid::try_parse_ascii(id).ok()
        };
        self.note(
            stream,
            batch.records.iter().filter_map(id),
            batch.received_at_micros,
        );
    }
}

impl Known {
    fn forget_before(&mut self, micros: i64) {
        while self.order.front().is_some_and(|(_, at)| *at < micros) {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        if let Some((id, _)) = self.order.pop_front() {
            self.ids.remove(&id);
        }
    }
}

impl fmt::Debug for Repeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<usize> = self.streams.iter().map(|known| known.lock().ids.len()).collect();
        write!(f, "Repeats({known:?} known)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchBuilder;

    const SECOND: i64 = 1_000_000;

    fn id(n: usize) -> Uuid {
        Uuid::from_u128(n as u128)
    }

    #[test]
    fn events_are_known_for_a_while_by_stream() {
        let repeats = Repeats::new(Duration::from_secs(10));
        repeats.note(Stream::Bounces, [id(1)], 0);
        repeats.note(Stream::Bounces, [id(2), id(1)], 5 * SECOND);
        assert!(repeats.is_known(Stream::Bounces, &id(1), 10 * SECOND));
        assert!(!repeats.is_known(Stream::Deliveries, &id(1), 10 * SECOND));
        assert!(!repeats.is_known(Stream::Bounces, &id(1), 11 * SECOND));
        assert!(repeats.is_known(Stream::Bounces, &id(2), 15 * SECOND));
        assert!(!repeats.is_known(Stream::Bounces, &id(2), 16 * SECOND));
    }

    #[test]
    fn memory_is_bounded() {
        let repeats = Repeats::new(Duration::from_secs(10));
        repeats.note(Stream::Blocks, (0..MOST + 7).map(id), 0);
        let known = repeats.streams[Stream::Blocks.index()].lock();
        assert_eq!((known.ids.len(), known.order.len()), (MOST, MOST));
        drop(known);
        assert!(!repeats.is_known(Stream::Blocks, &id(6), 0));
        assert!(repeats.is_known(Stream::Blocks, &id(7), 0));
    }

    #[test]
    fn a_batch_is_noted_by_its_ids() {
        let repeats = Repeats::new(Duration::from_secs(10));
        let mut builder = BatchBuilder::new(SECOND, &[("ce_specversion", b"1.0")], b"", 0);
        builder.push(None, &[("ce_id", id(1).to_string().as_bytes())], &[b"{}"]);
        builder.push(None, &[("ce_subject", b"x")], &[b"{}"]);
        builder.push(None, &[("ce_id", id(2).to_string().as_bytes())], &[b"{}"]);
        repeats.note_batch(Stream::Deliveries, builder.finish().bytes());
        repeats.note_batch(Stream::Deliveries, b"no batch");
        assert!(
            [1, 2]
                .iter()
                .all(|n| repeats.is_known(Stream::Deliveries, &id(*n), 11 * SECOND))
        );
        assert!(!repeats.is_known(Stream::Deliveries, &id(2), 12 * SECOND));
    }
}
