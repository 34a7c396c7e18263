//! cmc-bridge takes the webhooks of Customers Mail Cloud and puts each mail's event into Apache Kafka, once.

pub mod accounts;
pub mod admin;
pub mod batch;
pub mod bridge;
pub mod cli;
mod clock;
pub mod cmc;
pub mod config;
pub mod dead_letter;
pub mod exit;
pub mod ingest;
pub mod lane;
pub mod logging;
pub mod spool;
pub mod stream;

#[cfg(test)]
mod simulation;
