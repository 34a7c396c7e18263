//! The state that a log's writer and reader share: the segments, the durable end, and the reader's place; and trimming.

use std::{path::Path, sync::Arc, time::Duration};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{
    appender::Queue,
    error::SpoolError,
    next_segment::Trimmed,
    position::{Position, SegmentId, Seq},
    segment::{self, SegmentEnd, SegmentInfo},
    storage::Storage,
};

/// The end that readers follow.
pub(super) struct SharedEnd {
    state: Mutex<SharedEndState>,
    grown: Condvar,
}

pub(super) struct SharedEndState {
    /// The segments, from the one that holds the position on.
    pub segments: Vec<SegmentInfo>,
    /// The durable end's offset in the last segment.
    pub durable_offset: u64,
    /// The durable end.
    pub end: Position,
    /// The current or next wait must end at once.
    woken: bool,
    /// The segment that the reader opened most recently.
    pub reading: Option<SegmentId>,
}

/// A reader this many segments behind the writer won't catch up soon.
const FAR: u64 = 4;

impl SharedEnd {
    /// The shared end of a log with these segments and this durable end.
    pub fn new(segments: Vec<SegmentInfo>, end: Position) -> SharedEnd {
        SharedEnd {
            state: Mutex::new(SharedEndState {
                segments,
                durable_offset: 0,
                end,
                woken: false,
                reading: None,
            }),
            grown: Condvar::new(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, SharedEndState> {
        self.state.lock()
    }

    /// Waits until the durable end lies beyond `seq` or [`SharedEnd::wake`] was called since the last wait, for at most `limit`.
    pub fn wait_beyond(&self, seq: Seq, limit: Duration) {
        let mut state = self.lock();
        self.grown
            .wait_while_for(&mut state, |state| state.end.seq <= seq && !state.woken, limit);
        state.woken = false;
    }

    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        self.lock().woken = true;
        self.grown.notify_all();
    }

    /// The writer has begun a new segment and is at this offset in it.
    pub fn roll(&self, id: SegmentId, begin: Position, offset: u64) {
        let mut state = self.lock();
        let left_at = state.durable_offset;
        if let Some(last) = state.segments.last_mut()
            && last.end == SegmentEnd::Durable
        {
            last.end = SegmentEnd::At(left_at);
        }
        state.durable_offset = offset;
        state.segments.push(SegmentInfo {
            id,
            first_seq: begin.seq,
            events_before: begin.events,
            after_loss: false,
            end: SegmentEnd::Durable,
            bytes: offset,
        });
    }

    /// Publishes the new durable end to readers, and the log's size to the queue. `offset` is the end's offset in the last
    /// segment, if it lies there.
    pub fn publish(&self, end: Position, offset: Option<u64>, queue: &Queue) {
        let mut state = self.lock();
        if let Some(offset) = offset {
            state.durable_offset = offset;
            if let Some(last) = state.segments.last_mut() {
                last.bytes = offset;
            }
        }
        let grown = state.end.seq != end.seq;
        state.end = end;
        // This happens under the lock, like a trim. Otherwise a trim in between would be lost, and a full log would stay full.
        queue.set_used(state.used());
        drop(state);
        if grown {
            self.grown.notify_all();
        }
    }

    /// Whether it will take the reader some time to reach this segment, which the writer has just left.
    pub fn is_far_from(&self, left: SegmentId) -> bool {
        let state = self.lock();
        let first = state.segments.first().map(|first| first.id);
        let reading = state.reading.max(first);
        reading.is_some_and(|reading| reading.0 + FAR <= left.0)
    }
}

impl SharedEndState {
    /// Bytes of all segments.
    pub fn used(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

/// Removes segments that are done with.
pub(super) struct Trimmer {
    pub tail: Arc<SharedEnd>,
    pub queue: Arc<Queue>,
    pub trimmed: Arc<Trimmed>,
    /// Segments with fewer bytes are not worth reusing.
    pub reuse_from: u64,
}

impl Trimmer {
    /// Removes the segments kept for reuse.
    ///
    /// # Errors
    /// The disk failed.
    pub fn let_go_of_trimmed(&self, storage: &dyn Storage) -> Result<(), SpoolError> {
        while let Some(path) = self.trimmed.take() {
            storage.remove(&path).map_err(SpoolError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Removes the segments wholly before `position`, which the stored checkpoint must have reached, or keeps them for reuse.
    ///
    /// # Errors
    /// The disk failed.
    pub fn trim(&self, storage: &dyn Storage, dir: &Path, position: Position) -> Result<(), SpoolError> {
        let gone: Vec<SegmentInfo> = {
            let mut state = self.tail.lock();
            let keep_from = state
                .segments
                .iter()
                .rposition(|s| s.first_seq <= position.seq)
                .unwrap_or(0);
            let gone = state.segments.drain(..keep_from).collect();
            self.queue.set_used(state.used());
            gone
        };
        for info in gone {
            let path = dir.join(segment::file_name(info.id));
            let gone = match info.end {
                SegmentEnd::At(end) if end >= self.reuse_from => self.trimmed.keep(path),
                _ => Some(path),
            };
            if let Some(path) = gone {
                storage.remove(&path).map_err(SpoolError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_budget_changes_together_with_the_segments() {
        let tail = SharedEnd::new(Vec::new(), Position::default());
        let queue = Queue::new(1);
        tail.roll(SegmentId(1), Position::default(), 0);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for offset in 0..200_000 {
                    tail.publish(Position::default(), Some(offset), &queue);
                }
            });
            while !writer.is_finished() {
                let state = tail.lock();
                assert_eq!(queue.used(), state.used());
            }
        });
    }
}
