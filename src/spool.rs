//! The spool: one append-only log per stream, durable before a webhook is answered.
//!
//! The spool stores batches of opaque bytes ([`crate::batch`]) in the order of acknowledgement, gives each a *sequence*
//! (0, 1, 2 …), and hands them to the stream's lane. It knows neither HTTP nor Kafka.
//!
//! # On disk
//!
//! ```text
//! <spool.dir>/lock                                flock: one process per spool              (lock.rs)
//! <spool.dir>/<stream>/manifest, manifest.copy    format, log id, group id                  (manifest.rs)
//! <spool.dir>/<stream>/checkpoint                 the lane's position: two slots, two copies (checkpoint.rs)
//! <spool.dir>/<stream>/<20 digits>.segment        header, its copy, records                 (segment.rs, record.rs)
//! <spool.dir>/<stream>/next.spare                 a prepared segment, not yet in use        (next_segment.rs)
//! <spool.dir>/<stream>/damage                     damage that no reader would meet, as text (recovery/settle.rs)
//! ```
//!
//! All numbers are little-endian; all checksums are CRC-32C.
//!
//! # Writing
//!
//! A *commit* is a group of records written by one `pwrite` and made durable by one `fdatasync`; one with a giant batch in pieces,
//! each synced before the next. A webhook's batch is one record, so it is durable as a whole or not at all. Recovery relies on these
//! rules:
//!
//! 1. Commit n+1 is written only after the last `fdatasync` of commit n has returned. A valid record of a *later* commit
//!    therefore proves that everything before it was once durable.
//! 2. A commit never spans segments. Before a segment's first record is written, its header is durable under the segment's
//!    name. The header states the exact end of the previous segment, whose last commit is durable by then.
//! 3. A segment is written by one process only. Opening a log begins a new segment under a new random
//!    *incarnation*.
//! 4. A record's checksum covers the log id and the segment id. Bytes of another log, another segment or a payload never
//!    pass for a record.
//! 5. When the log becomes idle, and at a clean stop, an empty commit follows: the *seal*. A later commit then follows the
//!    last one with data, so bit rot in that one can be told from a torn tail.
//! 6. After an error of `pwrite` or `fdatasync` nothing more is written. The log has failed and the process must end.
//!
//! # Opening
//!
//! Opening a log reads the segment headers from the checkpoint on, links them into a chain, and scans only the last segment's
//! records. An invalid record there is a *torn tail*, and is cut off, if no valid record of a later commit follows and
//! the checkpoint does not lie beyond it. Otherwise it is *damage*: it is reported, and it blocks the lane when the lane
//! gets there, while new batches go into the new segment.
//!
//! What was read may exist only in the page cache. So the position and the last valid commit are written again and synced
//! before anything is served.
//!
//! With `durability = "page-cache"` commits are not synced. The segment's header says so, and in such a segment the first
//! invalid record is the end.
//!
//! # Reading and trimming
//!
//! A reader never passes the durable end. Segments that lie wholly below the checkpoint are deleted, or reused under a new
//! id, once the checkpoint is durable.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`access`] | who may use a spool's files: their modes |
//! | [`appender`] | the queue between webhooks and writer |
//! | [`backlog`] | a lane's view of its log: what is not yet in Kafka |
//! | [`checkpoint`] | the lane's position on disk |
//! | [`damage`] | kinds of damage, and which batches they cost |
//! | [`error`] | why the spool can't go on |
//! | [`lock`] | one process per spool |
//! | [`log`] | an open log and its writer thread |
//! | [`manifest`] | which log a directory holds |
//! | [`next_segment`] | prepares the next segment in the background |
//! | [`numbers`] | little-endian numbers in files |
//! | [`position`] | numbers of batches, commits and segments; positions |
//! | [`reader`] | reads batches in order, up to the durable end |
//! | [`record`] | format and checksums of records |
//! | [`recovery`] | opening a log: its contents, its end, its damage |
//! | [`repair`] | rewrites a damaged log without the damage |
//! | [`salvage`] | reads around what the disk can't read |
//! | [`scan`] | scans a segment's records: torn tail or damage |
//! | [`segment`] | format of segment headers; history |
//! | [`shared_end`] | the durable end that writer and reader share; trimming |
//! | [`storage`] | the disk, as a trait |
//! | [`survey`] | inspects a log without changing it |
//! | [`writer`] | commits, seals and rolls, without threads |

mod access;
mod appender;
mod backlog;
mod checkpoint;
mod damage;
mod error;
mod lock;
mod log;
mod manifest;
mod next_segment;
mod numbers;
mod position;
mod reader;
mod record;
mod recovery;
pub mod repair;
mod salvage;
mod scan;
mod segment;
mod shared_end;
pub mod storage;
pub mod survey;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use access::denied;
pub use appender::{AppendError, Appender, LogState};
pub use backlog::Backlog;
pub use damage::{Damage, DamageKind};
pub use error::SpoolError;
pub use lock::SpoolLock;
pub use log::{Log, LogMetrics, LogOptions};
pub use manifest::Manifest;
pub use position::{CommitNo, Position, SegmentId, Seq};
pub use reader::{ReadError, StoredBatch};
pub use segment::{Durability, History, Incarnation, SegmentHeader};
