//! Integration tests against the real binary and a real Apache Kafka.
// Everything in this crate is a test or a test's helper: a panic is how it reports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod jars;
mod kafka;
mod process;
mod topics;
mod wait;

mod harness;
