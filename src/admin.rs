//! The operators' port: metrics, probes, and a status page.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200; touches nothing |
//! | `/readyz` | 200 when a webhook can be made durable, else 503 with the reason ([`health`]) |
//! | `/metrics` | Prometheus text format ([`crate::metrics`], [`books`]) |
//! | `/status`, to which `/` redirects | a page for people ([`status`]); `?refresh=off` stops its reloading |
//! | `/status.json` | the same for scripts |
//!
//! Other paths are answered 404, methods other than GET and HEAD 405. The port asks for no credentials: it shows counts, names and
//! the texts of errors, never events, and belongs on a network that only operators reach. It serves until the process ends.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`answers`] | what each path answers |
//! | [`books`] | the books as metrics, one snapshot a scrape |
//! | [`health`] | readiness |
//! | [`rates`] | rates of the last minutes |
//! | [`server`] | its HTTP server, on a thread and runtime of its own |
//! | [`status`] | what the status page shows, as data and JSON |

mod answers;
pub mod books;
pub mod health;
mod rates;
mod server;
pub mod status;

pub use self::{
    answers::Sources,
    server::{AdminServer, RunningAdminServer},
};

#[cfg(test)]
pub mod tests {
    //! What tests elsewhere need.

    pub use super::answers::tests::sources;
    use super::{Sources, status::Status};

    /// The status of these sources.
    pub fn status(sources: Sources) -> Status {
        Status::new(sources.metrics, sources.health, sources.books, sources.spool_dir)
    }
}
