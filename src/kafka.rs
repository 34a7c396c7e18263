//! Everything that talks to a Kafka cluster. Nothing here knows the spool's files or the sender.
//!
//! Lanes see Kafka through the trait in [`broker`]. [`producer`] implements it with librdkafka; the tests also have a simulated
//! broker, and both must play the scenes of `tests/conformance.rs` alike. Commands read topics with [`range_reader`] and [`tap`],
//! and `check --live` asks its questions with [`probe`].
//!
//! Three rules hold for all of them:
//!
//! - *No call waits without a limit.* Where librdkafka exceeds its own limit, a separate thread makes the call ([`commit`]).
//! - *Every error is explained.* It becomes a [`broker::BrokerError`], with the reason that the metrics show, the cause and the
//!   cure ([`explain`]). Errors that librdkafka reports on its own are kept until a call fails, because the call often says only
//!   that it timed out ([`callbacks`]).
//! - *Only producers write.* Readers join no group and commit nothing. Topics are created only with `kafka.create_topics`.
//!
//! # Files
//!
//! | file | what it is |
//! |---|---|
//! | [`broker`] | the trait that lanes deliver through, and its errors |
//! | [`producer`] | implements that trait with librdkafka |
//! | [`tool_producer`] | writes a command's records, and positions if it has any, in transactions |
//! | [`range_reader`] | reads a topic from given offsets to given ends, for commands |
//! | [`tap`] | reads topics as they grow, for `tap` |
//! | [`probe`] | questions that change nothing, for `check --live` |
//! | [`session`] | makes the clients of one lane or tool and explains their errors |
//! | [`properties`] | the librdkafka properties of each kind of client |
//! | [`callbacks`] | librdkafka's callbacks: logs, errors, statistics, delivery reports |
//! | [`deliveries`] | counts the delivery reports of a producer |
//! | [`polled`] | a producer with a thread that runs its callbacks |
//! | [`commit`] | commits transactions, with a limit that holds |
//! | [`explain`] | turns an error into its reason, cause and cure |
//! | [`topics`] | whether topics exist, their creation, which records they take |
//! | [`reader_health`] | when a reader of topics gives up |
//! | [`statistics`] | librdkafka's statistics as metrics |

pub mod broker;
mod callbacks;
mod commit;
mod deliveries;
mod explain;
mod polled;
pub mod probe;
pub mod producer;
pub(crate) mod properties;
pub mod range_reader;
mod reader_health;
pub(crate) mod session;
mod statistics;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod tool_producer;
mod topics;
