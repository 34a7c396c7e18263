//! Streams by name on the command line.

use clap::{ValueEnum, builder::PossibleValue};

use crate::stream::Stream;

impl ValueEnum for Stream {
    fn value_variants<'a>() -> &'a [Stream] {
        &Stream::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            // With hyphens as on the command line, and with underscores as in the configuration.
            Stream::DeadLetters => PossibleValue::new("dead-letters").alias(self.name()),
            stream => PossibleValue::new(stream.name()),
        })
    }
}
