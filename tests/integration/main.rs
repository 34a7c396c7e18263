//! Integration tests against the real binary and a real Apache Kafka.
