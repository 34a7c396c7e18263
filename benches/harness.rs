//! The tests' harness, for the benchmarks with Kafka.

#[path = "../tests/integration/jars.rs"]
pub mod jars;
#[path = "../tests/integration/kafka.rs"]
pub mod kafka;
#[path = "../tests/integration/process.rs"]
pub mod process;
#[path = "../tests/integration/topics.rs"]
pub mod topics;
#[path = "../tests/integration/wait.rs"]
pub mod wait;
