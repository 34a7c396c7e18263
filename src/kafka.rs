//! Kafka, as the bridge sees it: everything that talks to a cluster, and nothing that knows the spool or the sender.
//!
//! | file | what it is |
//! |---|---|
//! | [`broker`] | the trait that lanes and replays deliver through, and the errors that they meet |
//! | [`producer`] | that trait on librdkafka |
//! | [`commit`] | commits of transactions, with a limit that holds |
//! | [`letters`] | the dead-letter topic as a source, and records with positions as a sink, for replays |
//! | [`tap`] | a consumer from outside, for `tap` |
//! | [`probe`] | questions that change nothing, for `check --live` |
//! | [`client`] | properties, logs and delivery reports of librdkafka's clients |
//! | [`explain`] | errors into a reason, the cause and the cure |
//! | [`reader_health`] | when a reader of topics gives up |
//! | [`topics`] | topics: whether they exist, their creation, what they take |
//! | `conformance` | tests only: scenes that the simulated broker, librdkafka's mock cluster and Kafka play alike |
//! | [`statistics`] | what librdkafka counts, as metrics |

pub mod broker;
pub(crate) mod client;
mod commit;
#[cfg(test)]
mod conformance;
mod explain;
pub mod letters;
pub mod probe;
pub mod producer;
mod reader_health;
pub(crate) mod statistics;
pub mod tap;
#[cfg(test)]
mod tests;
mod topics;
