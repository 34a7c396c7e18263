//! cmc-bridge takes the webhooks of Customers Mail Cloud and puts each mail's event into Apache Kafka, once.

pub mod accounts;
pub mod batch;
pub mod cli;
pub mod config;
pub mod exit;
pub mod logging;
pub mod stream;
