//! The operators' side, on a port of its own: metrics, probes and a page to look at.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200; touches nothing |
//! | `/readyz` | 200 when a webhook can be made durable, else 503 with the reason ([`health`]) |
//! | `/metrics` | Prometheus text format ([`metrics`], [`books`]) |
//! | `/status`, and `/` leads there | a page for people ([`status`]); `?refresh=off` keeps it still |
//! | `/status.json` | the same for scripts |
//!
//! Other paths are 404, methods other than GET and HEAD 405. It has no credentials: it shows counts, names and the texts of errors, never
//! events, and belongs on a network that only operators reach. It serves until the process ends.

pub mod books;
pub mod health;
mod history;
mod labels;
pub mod metrics;
mod notes;
mod server;
mod status;

pub use server::{Server, Serving, Sources};
