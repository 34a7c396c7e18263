//! The spool: one append-only log for each stream, durable before a webhook is answered.
//!
//! The spool keeps batches of opaque bytes ([`crate::batch`]) in the order of acknowledgement, gives each a *sequence*
//! (0, 1, 2 …), and hands them to the stream's lane. It knows neither HTTP nor Kafka.
//!
//! # Files
//!
//! ```text
//! <spool.dir>/lock                                flock: one process for each spool
//! <spool.dir>/<stream>/manifest, manifest.copy    format, log id, group id               (manifest.rs)
//! <spool.dir>/<stream>/checkpoint                 the lane's position, two slots, twice  (checkpoint.rs)
//! <spool.dir>/<stream>/<20 digits>.segment        header, its copy, records              (segment.rs, record.rs)
//! <spool.dir>/<stream>/next.spare                 a prepared segment not yet in use       (prepare.rs)
//! <spool.dir>/<stream>/damage                     text: damage that no reader would meet  (recovery/settle.rs)
//! ```
//!
//! All numbers in these files are little-endian; all checksums are CRC-32C.
//!
//! # Writing
//!
//! A *commit* is a group of records that one `pwrite` wrote and one `fdatasync` made durable; a webhook's batch is one
//! record, so it is durable whole or not at all. The rules that recovery relies on:
//!
//! 1. Commit n+1 is written only after the `fdatasync` of commit n returned. So a valid record of a *later* commit
//!    proves that everything before it was durable once.
//! 2. A commit never spans segments. A segment's header is durable under the segment's name before its first record is
//!    written; it names the exact end of the segment before it, whose last commit is durable by then.
//! 3. A segment is written in one process life only. Every open begins a fresh one, under a new random *incarnation*.
//! 4. A record's checksum covers the log id and the segment id, so no bytes of another log, of another segment or of a
//!    payload pass for a record.
//! 5. When the log falls idle and at a clean stop an empty *seal* commit follows, so that the last commit with data has
//!    a later one behind it and bit rot in it can be told from a torn tail.
//! 6. After an error of `pwrite` or `fdatasync` nothing more is written: the log has failed, the process must end.
//!
//! # Opening
//!
//! Headers are read and chained from the checkpoint on; only the last segment's records are scanned. In it, an invalid
//! record with no valid record of a later commit behind it, and with the checkpoint at or before it, is a *torn tail*
//! and is cut; else it is *damage*, which is reported and blocks the lane when it gets there, while new batches go on
//! into the fresh segment. What was read may
//! stand in the page cache only, so the last valid commit is written again and synced before anything is served. With
//! `durability = "page-cache"` a segment says so in its header, and there the first invalid record is the end.
//!
//! # Reading and trimming
//!
//! A reader never passes the durable end. The checkpoint is durable before the segments wholly below it are unlinked, or
//! prepared to be used again under a new id.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`appender`] | the queue between webhooks and writer |
//! | [`backlog`] | the lane's side of a log |
//! | [`checkpoint`] | the lane's position on disk |
//! | [`damage`] | what is wrong, and what it costs |
//! | [`error`] | why the spool can't go on |
//! | [`lock`] | one process for each spool |
//! | [`log`] | an open log: the writer's thread |
//! | [`manifest`] | which log a directory holds |
//! | [`numbers`] | little-endian numbers in the files |
//! | [`position`] | numbers of batches, commits and segments; positions |
//! | [`prepare`] | the next segment, in the background |
//! | [`reader`] | batches in order, up to the durable end |
//! | [`record`] | records and their checksums |
//! | [`recovery`] | opening: what is there and where it ends |
//! | [`repair`] | a damaged log rewritten without the damage |
//! | [`salvage`] | reads around what the disk can't read |
//! | [`scan`] | a segment's records: torn tail or damage |
//! | [`segment`] | segment headers, history |
//! | [`shared_end`] | what writer and reader share: durable end, trimming |
//! | [`storage`] | the disk behind a trait |
//! | [`survey`] | a log looked at, nothing changed |
//! | [`writer`] | commits, seals, rolls; without threads |

mod appender;
mod backlog;
mod checkpoint;
mod damage;
mod error;
mod lock;
mod log;
mod manifest;
mod numbers;
mod position;
mod prepare;
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

pub use appender::{AppendError, Appender, LogState};
pub use backlog::Backlog;
pub use damage::{Damage, DamageKind};
pub use error::SpoolError;
pub use lock::SpoolLock;
pub use log::{Log, LogMetrics, LogOptions};
pub use manifest::Manifest;
pub use position::{CommitNo, Position, SegmentId, Seq};
pub use reader::{ReadError, StoredBatch};
pub use segment::{Durability, History, Incarnation};
