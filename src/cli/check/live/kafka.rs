//! Asks Kafka about brokers, topics and rights.

use std::{collections::BTreeMap, io::Write};

use super::report::{Level, LiveReport};
use crate::{
    cli::exit::Exit,
    config::{Config, Delivery, Kafka},
    human,
    kafka::probe::{Permission, Probe, TopicSettings, codecs},
    stream::Stream,
};

/// Asks Kafka for what the served streams need.
///
/// # Errors
/// The output can't be written, or there is no runtime.
pub fn look(config: &Config, served: &[Stream], report: &mut LiveReport<'_, impl Write>) -> Result<(), Exit> {
    let kafka = &config.kafka;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut first = true;
    let mut topics: BTreeMap<&str, Vec<Stream>> = BTreeMap::new();
    for stream in served {
        topics
            .entry(&config.stream(*stream).topic)
            .or_default()
            .push(*stream);
    }
    for stream in served.iter().copied() {
        let topic = config.stream(stream).topic.as_str();
        let probe = match Probe::connect(kafka, stream, topic, runtime.handle()) {
            Ok(probe) => probe,
            Err(error) => {
                // Every stream would fail in the same way.
                let text = format!("{error}. Topics and rights were not checked");
                return Ok(report.line(Level::Fail, "kafka", &text)?);
            }
        };
        if std::mem::take(&mut first) {
            brokers(kafka, &probe, report)?;
        }
        let streams = topics.remove(topic);
        let exists = match streams {
            Some(streams) => topic_line(kafka, &probe, topic, &streams, report)?,
            // Another stream shares the topic and has reported it.
            None => probe.topic(topic).is_ok_and(|found| !found.partitions.is_empty()),
        };
        // Without transactions the bridge uses no group or transactional id and reads no topic.
        if kafka.delivery == Delivery::ExactlyOnce {
            rights(kafka, &probe, stream, topic, exists, report)?;
        }
    }
    let unasked = match kafka.delivery {
        Delivery::ExactlyOnce => "WRITE on topics and READ on groups",
        Delivery::AtLeastOnce => "WRITE on topics",
    };
    let text = format!("{unasked} (only a write would tell); Kafka's version (brokers don't tell clients)");
    report.line(Level::Ok, "not asked", &text)?;
    Ok(())
}

fn brokers(kafka: &Kafka, probe: &Probe, report: &mut LiveReport<'_, impl Write>) -> std::io::Result<()> {
    let list: Vec<String> = probe
        .brokers
        .iter()
        .map(|(id, address)| format!("{id} at {address}"))
        .collect();
    let cluster = probe.cluster_id.as_deref().unwrap_or("unknown");
    let security = kafka
        .properties
        .iter()
        .find(|(name, _)| *name == "security.protocol")
        .map_or("plaintext".to_owned(), |(_, value)| {
            secrecy::ExposeSecret::expose_secret(value).to_lowercase()
        });
    let text = format!("cluster {cluster} by {security}, brokers {}", list.join(", "));
    report.line(Level::Ok, "kafka", &text)?;
    let Some(settings) = probe.broker_settings() else {
        return report.line(
            Level::Ok,
            "kafka",
            "broker settings are hidden from this user (no DESCRIBE_CONFIGS on the cluster; not needed)",
        );
    };
    if let Some(version) = settings.protocol_version {
        report.line(
            Level::Ok,
            "kafka",
            &format!("inter.broker.protocol.version {version}"),
        )?;
    }
    if let Some(most) = settings.transaction_max_timeout
        && kafka.delivery == Delivery::ExactlyOnce
    {
        let ours = kafka.transaction_timeout;
        let (level, advice) = match ours > most {
            true => (Level::Fail, ": lower kafka.transaction_timeout"),
            false => (Level::Ok, ""),
        };
        let text = format!(
            "transaction.max.timeout.ms is {}, kafka.transaction_timeout {}{advice}",
            most.as_millis(),
            human::exact_duration(ours)
        );
        report.line(level, "kafka", &text)?;
    }
    Ok(())
}

/// Prints the lines of one topic; returns whether it exists.
fn topic_line(
    kafka: &Kafka,
    probe: &Probe,
    topic: &str,
    streams: &[Stream],
    report: &mut LiveReport<'_, impl Write>,
) -> std::io::Result<bool> {
    let names: Vec<&str> = streams.iter().map(|stream| stream.name()).collect();
    let subject = format!("topic {topic} ({})", names.join(", "));
    let found = match probe.topic(topic) {
        Ok(found) => found,
        Err(error) => {
            report.line(Level::Fail, &subject, &error.to_string())?;
            return Ok(false);
        }
    };
    if found.partitions.is_empty() {
        let (level, text) = match kafka.create_topics {
            true => (
                Level::Warn,
                "does not exist; serve will create it (kafka.create_topics)",
            ),
            false => (
                Level::Fail,
                "does not exist, or this user has no DESCRIBE on it: create it, grant the right, or set kafka.create_topics = true",
            ),
        };
        report.line(level, &subject, text)?;
        return Ok(false);
    }
    if found.without_leader > 0 {
        let text = format!(
            "{} of {} partitions have no leader, so nothing can be written to them: check the brokers",
            found.without_leader,
            found.partitions.len()
        );
        report.line(Level::Fail, &subject, &text)?;
    }
    let text = format!(
        "partitions: {}, replicas: {}",
        found.partitions.len(),
        found.replicas
    );
    match found.replicas {
        0 | 1 if probe.brokers.len() > 1 => {
            let text = format!("{text}: losing one broker's disk loses events; use more replicas");
            report.line(Level::Warn, &subject, &text)?;
        }
        _ => report.line(Level::Ok, &subject, &text)?,
    }
    match probe.topic_settings(topic) {
        None => {
            let text = "max.message.bytes and cleanup.policy are hidden from this user (no DESCRIBE_CONFIGS on the topic; only this \
                        check needs it)";
            report.line(Level::Warn, &subject, text)?;
        }
        Some(settings) => {
            for (level, text) in judge_topic(&settings, kafka.max_record_bytes, streams, &codecs()) {
                report.line(level, &subject, &text)?;
            }
        }
    }
    Ok(true)
}

/// Judges a topic's settings. `codecs`: those that this build can read.
fn judge_topic(
    settings: &TopicSettings,
    max_record: usize,
    streams: &[Stream],
    codecs: &[&str],
) -> Vec<(Level, String)> {
    let mut found = Vec::new();
    if let Some(limit) = settings.max_message_bytes {
        let text = format!("max.message.bytes {limit}, kafka.max_record_bytes {max_record}");
        let dead_letters = streams.contains(&Stream::DeadLetters);
        found.push(if limit >= max_record {
            (Level::Ok, text)
        } else if dead_letters {
            let why = "a large dead letter would be refused, and its lane would stand still: raise the former or lower the latter, \
                       which applies to new letters only";
            (Level::Fail, format!("{text}: {why}"))
        } else {
            let why = "larger events would become dead letters: raise the former or lower the latter";
            (Level::Warn, format!("{text}: {why}"))
        });
    }
    if let Some(policy) = &settings.cleanup_policy {
        let what = if !policy.split(',').any(|word| word.trim() == "compact") {
            None
        } else if streams.contains(&Stream::DeadLetters) {
            Some("most dead letters have no key and would be refused, and their lane would stand still")
        } else {
            Some("only the last event of each message would be kept, and events without a key refused")
        };
        found.push(match what {
            None => (Level::Ok, format!("cleanup.policy {policy}")),
            Some(why) => (
                Level::Warn,
                format!("cleanup.policy {policy}: {why}; set it to delete"),
            ),
        });
    }
    if let Some(codec) = &settings.compression_type
        && !["producer", "uncompressed"].contains(&codec.as_str())
        && !codecs.contains(&codec.as_str())
    {
        let text = format!(
            "compression.type {codec}: this build can't read it (it reads {}). The bridge can still write, but tap and \
             dead-letters end with an error: set it to producer",
            codecs.join(", ")
        );
        found.push((Level::Warn, text));
    }
    found
}

fn rights(
    kafka: &Kafka,
    probe: &Probe,
    stream: Stream,
    topic: &str,
    exists: bool,
    report: &mut LiveReport<'_, impl Write>,
) -> std::io::Result<()> {
    let subject = format!("rights ({stream})");
    let mut granted = Vec::new();
    let mut answers = Vec::new();
    if exists {
        answers.push((format!("READ on topic {topic}"), probe.may_read(topic)));
    }
    let prefix = format!("{}.{stream}.*", kafka.id_prefix);
    answers.push((
        format!("DESCRIBE on group {prefix}"),
        probe.may_describe_group(topic),
    ));
    answers.push((
        format!("WRITE on transactional id {prefix}"),
        probe.may_begin_transactions(topic),
    ));
    for (right, answer) in answers {
        match answer {
            Permission::Granted => granted.push(right),
            Permission::Refused(error) => {
                report.line(Level::Fail, &subject, &format!("no {right}: {error}"))?;
            }
            Permission::Useless(error) => {
                let text = format!("{right}: granted, but {error}");
                report.line(Level::Warn, &subject, &text)?;
            }
            Permission::Unknown(error) => {
                let text = format!("could not check {right}: {error}");
                report.line(Level::Warn, &subject, &text)?;
            }
        }
    }
    if !granted.is_empty() {
        report.line(Level::Ok, &subject, &granted.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_judged_by_their_streams() {
        let cases = [
            (1_048_588, "delete", Stream::Bounces, [Level::Ok, Level::Ok]),
            (999_999, "delete", Stream::Bounces, [Level::Warn, Level::Ok]),
            (999_999, "delete", Stream::DeadLetters, [Level::Fail, Level::Ok]),
            (1_000_000, "compact", Stream::Deliveries, [Level::Ok, Level::Warn]),
            (
                1_000_000,
                "compact,delete",
                Stream::DeadLetters,
                [Level::Ok, Level::Warn],
            ),
        ];
        for (limit, policy, stream, levels) in cases {
            let settings = TopicSettings {
                max_message_bytes: Some(limit),
                cleanup_policy: Some(policy.to_owned()),
                compression_type: Some("lz4".to_owned()),
            };
            let found = judge_topic(&settings, 1_000_000, &[stream], &["lz4"]);
            let found: Vec<Level> = found.into_iter().map(|(level, _)| level).collect();
            assert_eq!(found, levels, "{limit} {policy} {stream}");
        }
        assert!(judge_topic(&TopicSettings::default(), 1, &[Stream::Blocks], &[]).is_empty());
    }

    #[test]
    fn an_unreadable_codec_is_reported() {
        let codecs = ["gzip", "lz4"];
        for (codec, lines) in [("producer", 0), ("uncompressed", 0), ("gzip", 0), ("zstd", 1)] {
            let settings = TopicSettings {
                compression_type: Some(codec.to_owned()),
                ..TopicSettings::default()
            };
            let found = judge_topic(&settings, 1, &[Stream::Blocks], &codecs);
            assert_eq!(found.len(), lines, "{codec}");
            let named = |(level, text): &(Level, String)| *level == Level::Warn && text.contains(codec);
            assert!(found.iter().all(named), "{found:?}");
        }
    }
}
