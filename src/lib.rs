//! cmc-bridge takes the webhooks of Customers Mail Cloud and puts each mail event into Apache Kafka, once.
//!
//! # The walk of a webhook
//!
//! 1. [`ingest::WebhookServer`] accepts its connection, checks path, method and credential, and reads the body within limits.
//! 2. [`cmc`] parses the body and splits it: one [`batch::Batch`] for each [`stream::Stream`], [dead letters](dead_letter)
//!    included.
//! 3. [`spool::Appender`] hands the batches to the writer thread of their stream's [`spool::Log`], dead letters first.
//! 4. The writer makes everything that waits durable, as one commit with one `fdatasync`. **Only then is the answer 200.**
//! 5. [`spool::Backlog`] gives the lane the durable batches, in order.
//! 6. [`lane::delivery::Lane`] sends them through [`kafka::broker::Broker`], which [`kafka::producer`] implements with
//!    librdkafka. One transaction commits the records and the new position.
//! 7. The checkpoint on disk follows, and the segments below it are freed.
//!
//! [`bridge::Bridge`] puts these parts together. [`books`] count them, [`metrics`] and [`admin`] show them, [`replay`] tries
//! dead letters again, [`reconcile`] adds what the sender has and the topics lack, [`config`] is all that the parts know about their environment, and [`cli`] is the way in.
//!
//! ARCHITECTURE.md describes the boundaries between the modules, the invariants and the glossary.

// These macros panic when the output is closed. Commands use `cli::output`, the bridge its log.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod admin;
pub mod batch;
pub mod books;
pub mod bridge;
pub mod cli;
mod clock;
pub mod cmc;
pub mod config;
pub mod dead_letter;
pub mod http_client;
mod human;
pub mod ingest;
pub mod kafka;
pub mod lane;
pub mod leftover;
pub mod logging;
pub mod metrics;
mod plain;
mod priority;
pub mod reconcile;
pub mod repeats;
pub mod replay;
pub mod sender_api;
pub mod spool;
pub mod stream;

#[cfg(test)]
mod simulation;
