//! The librdkafka properties of each kind of client: the operator's, overridden by those that the bridge sets.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use secrecy::ExposeSecret;

use super::{broker::Mode, session::Session};
use crate::config::{self, Delivery};

/// Room in `message.max.bytes` beyond `kafka.max_record_bytes`, which counts a whole batch. librdkafka counts less.
const SLACK: usize = 64 << 10;
/// The codec of producers: docs/benchmarks.md compares it with the others.
const CODEC: &str = "lz4";

/// The properties of every client.
pub fn base(session: &Session) -> ClientConfig {
    let kafka = &session.kafka;
    let mut client = ClientConfig::new();
    for (name, value) in &kafka.properties {
        client.set(name, value.expose_secret());
        // The vendored OpenSSL knows no distribution's CA directory. With `probe` librdkafka looks for it.
        if name == "security.protocol"
            && value.expose_secret().to_ascii_lowercase().contains("ssl")
            && !kafka.properties.contains_key("ssl.ca.location")
            && !kafka.properties.contains_key("ssl.ca.pem")
        {
            client.set("ssl.ca.location", "probe");
        }
        if name == "sasl.oauthbearer.token.endpoint.url"
            && !kafka.properties.contains_key("https.ca.location")
            && !kafka.properties.contains_key("https.ca.pem")
        {
            client.set("https.ca.location", "probe");
        }
    }
    client
        .set("bootstrap.servers", &kafka.bootstrap_servers)
        .set("allow.auto.create.topics", "false")
        .set("log.connection.close", "false")
        .set_log_level(RDKafkaLogLevel::Info);
    set_default(&mut client, session, "client.id", &session.client_id);
    client
}

/// Sets a property that the operator has not set.
fn set_default(client: &mut ClientConfig, session: &Session, name: &str, value: &str) {
    if !session.kafka.properties.contains_key(name) {
        client.set(name, value);
    }
}

/// The operator's codec.
fn codec(kafka: &config::Kafka) -> Option<&str> {
    kafka
        .properties
        .get("compression.type")
        .map(ExposeSecret::expose_secret)
}

/// Whether producers compress what they send.
pub fn compresses(kafka: &config::Kafka) -> bool {
    codec(kafka).is_none_or(|codec| !codec.eq_ignore_ascii_case("none"))
}

/// The properties of a producer. `timeout` is that of its transactions, `batch_limit` the smallest `max.message.bytes` of
/// the topics.
pub fn producer(
    session: &Session,
    mode: Mode,
    timeout: Duration,
    batch_limit: Option<usize>,
) -> ClientConfig {
    let kafka = &session.kafka;
    let mut client = base(session);
    match kafka.delivery {
        Delivery::ExactlyOnce => {
            client
                .set("transactional.id", &session.group)
                .set("transaction.timeout.ms", timeout.as_millis().to_string());
        }
        Delivery::AtLeastOnce => {
            client
                // The spool is the retry buffer: nothing expires.
                .set("message.timeout.ms", "0")
                // With several in flight, the broker may accept a request after a refused one, and the events of a key
                // would change places.
                .set("max.in.flight.requests.per.connection", "1");
            if mode == Mode::Batched {
                // A refusal ends the producer. Otherwise librdkafka would go on with the queued records, and events would
                // change places as well. With one record per request, every refusal is wanted.
                client.set("enable.gapless.guarantee", "true");
            }
        }
    }
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", (kafka.max_record_bytes + SLACK).to_string());
    // The broker is busy for some milliseconds after the end of a transaction. The default of 100 would slow down each one.
    set_default(&mut client, session, "retry.backoff.ms", "10");
    set_default(&mut client, session, "linger.ms", "1");
    if codec(kafka).is_none() {
        client.set("compression.type", CODEC);
    }
    set_default(&mut client, session, "topic.metadata.propagation.max.ms", "5000");
    set_default(&mut client, session, "statistics.interval.ms", "5000");
    // Room for everything that may be in flight: while a broker is away, the lane waits for deliveries and not for room.
    let queue = (kafka.transaction_events * 2).clamp(100_000, 10_000_000);
    set_default(
        &mut client,
        session,
        "queue.buffering.max.messages",
        &queue.to_string(),
    );
    match mode {
        Mode::Batched => {
            // The broker refuses a batch as a whole, so no batch may be larger than the topic allows.
            let wanted = kafka.properties.get("batch.size");
            let wanted = wanted.and_then(|size| size.expose_secret().parse().ok());
            let most = wanted.unwrap_or(1_000_000);
            let most = batch_limit.map_or(most, |limit| (limit * 9 / 10).clamp(1, most.max(1)));
            client.set("batch.size", most.to_string());
        }
        // With transactions, several requests are in flight, as in the other mode: each answer names its record, and a large
        // webhook gets through within one transaction's time.
        Mode::OneByOne => {
            client.set("batch.num.messages", "1");
        }
    }
    client
}

/// The properties of a consumer that reads the committed position and no records.
pub fn consumer(session: &Session) -> ClientConfig {
    let mut client = base(session);
    client
        .set("group.id", &session.group)
        .set("enable.auto.commit", "false")
        // It looks up topics first: `Callbacks::log` says what this line is for.
        .set("log.connection.close", "true")
        // The broker answers only once no transaction of a former producer is open.
        .set("isolation.level", "read_committed");
    client
}

/// The properties of a consumer that reads records, for tools.
pub fn reader(session: &Session) -> ClientConfig {
    let mut client = consumer(session);
    client
        .set("enable.auto.offset.store", "false")
        // When retention has passed a position, reading goes on with the oldest record that is left.
        .set("auto.offset.reset", "earliest");
    // A damaged batch is an error and never a wrong record.
    set_default(&mut client, session, "check.crcs", "true");
    client
}

#[cfg(test)]
mod tests {
    use rdkafka::producer::BaseProducer;

    use super::*;
    use crate::{
        kafka::{broker::BrokerError, callbacks::Callbacks},
        stream::Stream,
    };

    #[test]
    fn librdkafka_takes_the_properties_of_both_modes() {
        for (mode, properties, limit, batch) in [
            (Mode::Batched, &[][..], None, Some("1000000")),
            (Mode::Batched, &[], Some(20_000), Some("18000")),
            (
                Mode::Batched,
                &[("batch.size", "5000")],
                Some(20_000),
                Some("5000"),
            ),
            (Mode::OneByOne, &[], Some(20_000), None),
        ] {
            for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
                let mut kafka = config::Kafka {
                    delivery,
                    ..config::Kafka::for_tests()
                };
                for (name, value) in properties {
                    kafka.properties.insert((*name).into(), (*value).into());
                }
                let session = Session::of_tool(&kafka, Stream::Bounces, "client", "group".to_owned());
                let config = producer(&session, mode, Duration::from_secs(15), limit);
                assert_eq!(config.get("batch.size"), batch);
                let made: Result<BaseProducer<Callbacks>, BrokerError> = session.client(&config);
                assert!(made.is_ok(), "{:?}", made.err());
            }
        }
    }

    #[test]
    fn the_operator_chooses_the_codec_or_none() {
        for (properties, codec, compressed) in [
            (&[][..], "lz4", true),
            (&[("compression.type", "zstd")], "zstd", true),
            (&[("compression.type", "None")], "None", false),
        ] {
            let mut kafka = config::Kafka::for_tests();
            for (name, value) in properties {
                kafka.properties.insert((*name).into(), (*value).into());
            }
            assert_eq!(compresses(&kafka), compressed, "{properties:?}");
            let session = Session::of_tool(&kafka, Stream::Bounces, "client", "group".to_owned());
            let config = producer(&session, Mode::Batched, Duration::from_secs(15), None);
            // What librdkafka makes of them.
            let producer: BaseProducer<Callbacks> = session.client(&config).unwrap();
            drop(producer);
            let native = config.create_native_config().unwrap();
            let taken = native.get("compression.codec").unwrap();
            assert_eq!(taken, codec.to_ascii_lowercase(), "{properties:?}");
        }
    }
}
