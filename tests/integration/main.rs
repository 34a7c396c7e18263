//! Integration tests against the real binary and a real Apache Kafka.
// Everything in this crate is a test or a test's helper: a panic is how it reports.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// The harness.
mod balancer;
mod bridge;
mod cluster;
mod cmc;
mod http;
mod jars;
mod kafka;
mod load;
mod metrics;
mod oracle;
mod process;
mod proxy;
mod secured_broker;
mod sender;
mod token_server;
mod topics;
mod wait;

// The tests, a module for each theme.
mod answers;
mod at_least_once;
mod books;
mod commands;
mod conformance;
mod contract;
mod copies;
mod crash;
mod credentials;
mod dead_letters;
mod dev;
mod disabled;
mod documents;
mod explain;
mod full_disk;
mod harness_tests;
mod history;
mod html;
mod inbound;
mod isolation;
mod network;
mod observability;
mod outage;
mod pace;
mod pauses;
mod readers;
mod reconcile;
mod refusals;
mod refused_backlog;
mod release;
mod repeats;
mod replay;
mod replicas;
mod resources;
mod rolling;
mod rot;
mod samples;
mod secure;
mod spool_tools;
mod stall;
mod status;
mod timestamps;
mod tls;
mod top;
mod topics_gone;
mod upgrade;
mod why;
