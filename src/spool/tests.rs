//! Tests of the log as a whole, on a simulated disk.

pub(crate) mod harness;
mod log;
mod model;
mod recovery;
