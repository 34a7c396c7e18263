//! The operators' side, on a port of its own: metrics and probes.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200; touches nothing |
//! | `/readyz` | 200 when a webhook can be made durable, else 503 with the reason ([`health`]) |
//! | `/metrics` | Prometheus text format ([`metrics`], [`books`]) |
//!
//! Other paths are 404, methods other than GET and HEAD 405. It has no credentials: it shows counts and names, never
//! events, and belongs on a network that only operators reach. It serves until the process ends.

pub mod books;
pub mod health;
mod labels;
pub mod metrics;
mod server;

pub use server::Server;
