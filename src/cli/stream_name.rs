//! Streams by name on the command line.

use clap::{ValueEnum, builder::PossibleValue};

use crate::stream::Stream;

impl ValueEnum for Stream {
    fn value_variants<'a>() -> &'a [Stream] {
        &Stream::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            // As an option is written, and as the configuration has it.
            Stream::DeadLetters => PossibleValue::new("dead-letters").alias(self.name()),
            stream => PossibleValue::new(stream.name()),
        })
    }
}
