//! cmc-bridge takes the webhooks of Customers Mail Cloud and puts each mail's event into Apache Kafka, once.

// They panic when nobody can be written to. Commands have `cli::output`, the bridge its log.
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
mod human;
pub mod ingest;
pub mod kafka;
pub mod lane;
pub mod leftover;
pub mod logging;
pub mod metrics;
mod plain;
pub mod replay;
pub mod spool;
pub mod stream;

#[cfg(test)]
mod simulation;
