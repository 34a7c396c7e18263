//! `check --live`: what only Kafka and the disk can tell, asked without leaving anything behind.

use std::{collections::BTreeMap, io::Write};

use crate::{
    config::{Config, Delivery, Kafka, human_duration},
    exit::Exit,
    kafka::probe::{Permission, Probe, TopicSettings, codecs},
    stream::Stream,
};

use super::spool;

/// What a line says of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// The lines, and how many of them are failures.
pub struct Lines<'a, W> {
    out: &'a mut W,
    warnings: usize,
    failures: usize,
}

impl<W: Write> Lines<'_, W> {
    pub fn line(&mut self, verdict: Verdict, subject: &str, text: &str) -> std::io::Result<()> {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => {
                self.warnings += 1;
                "warn"
            }
            Verdict::Fail => {
                self.failures += 1;
                "FAIL"
            }
        };
        writeln!(self.out, "{word:<5} {subject}: {text}")?;
        // Some questions take seconds: what is known shows at once.
        self.out.flush()
    }
}

/// Asks and prints, for the streams that `serve` would deliver.
///
/// # Errors
/// 69 when at least one line is a FAIL.
pub fn run(config: &Config, streams: &[Stream], out: &mut impl Write) -> Result<(), Exit> {
    let mut lines = Lines {
        out,
        warnings: 0,
        failures: 0,
    };
    spool::look(config, streams.len(), &mut lines)?;
    kafka(config, streams, &mut lines)?;
    let (warnings, failures) = (lines.warnings, lines.failures);
    match failures {
        0 => {
            writeln!(out, "ready to serve ({warnings} warnings)")?;
            Ok(out.flush()?)
        }
        _ => Err(Exit::Unavailable(format!(
            "{failures} FAIL, {warnings} warn: see above for what to do"
        ))),
    }
}

fn kafka(config: &Config, served: &[Stream], lines: &mut Lines<'_, impl Write>) -> Result<(), Exit> {
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
                // The next stream would meet the same.
                let text = format!("{error}. Topics and rights could not be asked for");
                return Ok(lines.line(Verdict::Fail, "kafka", &text)?);
            }
        };
        if std::mem::take(&mut first) {
            brokers(kafka, &probe, lines)?;
        }
        let streams = topics.remove(topic);
        let exists = match streams {
            Some(streams) => topic_line(kafka, &probe, topic, &streams, lines)?,
            // Another stream's, too, and told there.
            None => probe.topic(topic).is_ok_and(|found| !found.partitions.is_empty()),
        };
        // Without transactions neither group nor transactional id is used, and no topic is read.
        if kafka.delivery == Delivery::ExactlyOnce {
            rights(kafka, &probe, stream, topic, exists, lines)?;
        }
    }
    let unasked = match kafka.delivery {
        Delivery::ExactlyOnce => "WRITE on topics and READ on groups",
        Delivery::AtLeastOnce => "WRITE on topics",
    };
    let text = format!("{unasked} (only a write would tell); Kafka's version (clients aren't told)");
    lines.line(Verdict::Ok, "not asked", &text)?;
    Ok(())
}

fn brokers(kafka: &Kafka, probe: &Probe, lines: &mut Lines<'_, impl Write>) -> std::io::Result<()> {
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
    lines.line(Verdict::Ok, "kafka", &text)?;
    let Some(settings) = probe.broker_settings() else {
        return lines.line(
            Verdict::Ok,
            "kafka",
            "does not tell its settings to this user (DESCRIBE_CONFIGS on the cluster; not needed)",
        );
    };
    if let Some(version) = settings.protocol_version {
        lines.line(
            Verdict::Ok,
            "kafka",
            &format!("inter.broker.protocol.version {version}"),
        )?;
    }
    if let Some(most) = settings.transaction_max_timeout
        && kafka.delivery == Delivery::ExactlyOnce
    {
        let ours = kafka.transaction_timeout;
        let (verdict, advice) = match ours > most {
            true => (Verdict::Fail, ": lower kafka.transaction_timeout"),
            false => (Verdict::Ok, ""),
        };
        let text = format!(
            "transaction.max.timeout.ms is {}, kafka.transaction_timeout {}{advice}",
            most.as_millis(),
            human_duration(ours)
        );
        lines.line(verdict, "kafka", &text)?;
    }
    Ok(())
}

/// Whether the topic is there.
fn topic_line(
    kafka: &Kafka,
    probe: &Probe,
    topic: &str,
    streams: &[Stream],
    lines: &mut Lines<'_, impl Write>,
) -> std::io::Result<bool> {
    let names: Vec<&str> = streams.iter().map(|stream| stream.name()).collect();
    let subject = format!("topic {topic} ({})", names.join(", "));
    let found = match probe.topic(topic) {
        Ok(found) => found,
        Err(error) => {
            lines.line(Verdict::Fail, &subject, &error.message)?;
            return Ok(false);
        }
    };
    if found.partitions.is_empty() {
        let (verdict, text) = match kafka.create_topics {
            true => (
                Verdict::Warn,
                "is not there; serve will create it (kafka.create_topics)",
            ),
            false => (
                Verdict::Fail,
                "is not there, or this user has no DESCRIBE on it: create it, grant it, or set kafka.create_topics = true",
            ),
        };
        lines.line(verdict, &subject, text)?;
        return Ok(false);
    }
    if found.without_leader > 0 {
        let text = format!(
            "{} of {} partitions have no leader, so they can't be written now: look at the brokers",
            found.without_leader,
            found.partitions.len()
        );
        lines.line(Verdict::Fail, &subject, &text)?;
    }
    let text = format!(
        "partitions: {}, replicas: {}",
        found.partitions.len(),
        found.replicas
    );
    match found.replicas {
        0 | 1 if probe.brokers.len() > 1 => {
            let text = format!("{text}: events are gone with one broker's disk; use more replicas");
            lines.line(Verdict::Warn, &subject, &text)?;
        }
        _ => lines.line(Verdict::Ok, &subject, &text)?,
    }
    match probe.topic_settings(topic) {
        None => {
            let text = "max.message.bytes and cleanup.policy are not told to this user (DESCRIBE_CONFIGS on the topic; the bridge \
                        can do without, this check can't)";
            lines.line(Verdict::Warn, &subject, text)?;
        }
        Some(settings) => {
            for (verdict, text) in judge_topic(&settings, kafka.max_record_bytes, streams, &codecs()) {
                lines.line(verdict, &subject, &text)?;
            }
        }
    }
    Ok(true)
}

/// `codecs`: those that this build reads.
fn judge_topic(
    settings: &TopicSettings,
    max_record: usize,
    streams: &[Stream],
    codecs: &[&str],
) -> Vec<(Verdict, String)> {
    let mut found = Vec::new();
    if let Some(limit) = settings.max_message_bytes {
        let text = format!("max.message.bytes {limit}, kafka.max_record_bytes {max_record}");
        let dead_letters = streams.contains(&Stream::DeadLetters);
        found.push(if limit >= max_record {
            (Verdict::Ok, text)
        } else if dead_letters {
            let why = "a large dead letter would be refused, and its lane would stand still: raise the one, or lower the other, \
                       which holds for letters that come from then on";
            (Verdict::Fail, format!("{text}: {why}"))
        } else {
            let why = "larger events would become dead letters: raise the one or lower the other";
            (Verdict::Warn, format!("{text}: {why}"))
        });
    }
    if let Some(policy) = &settings.cleanup_policy {
        let what = if !policy.split(',').any(|word| word.trim() == "compact") {
            None
        } else if streams.contains(&Stream::DeadLetters) {
            Some("a dead letter mostly has no key, is refused without one, and then its lane stands still")
        } else {
            Some("only the last event of each mail is kept, and events without a key are refused")
        };
        found.push(match what {
            None => (Verdict::Ok, format!("cleanup.policy {policy}")),
            Some(why) => (
                Verdict::Warn,
                format!("cleanup.policy {policy}: {why}; set it to delete"),
            ),
        });
    }
    if let Some(codec) = &settings.compression_type
        && !["producer", "uncompressed"].contains(&codec.as_str())
        && !codecs.contains(&codec.as_str())
    {
        let text = format!(
            "compression.type {codec}: this build can't read that (it reads {}). The bridge itself writes all the same; tap and \
             dead-letters end with an error: set it to producer",
            codecs.join(", ")
        );
        found.push((Verdict::Warn, text));
    }
    found
}

fn rights(
    kafka: &Kafka,
    probe: &Probe,
    stream: Stream,
    topic: &str,
    exists: bool,
    lines: &mut Lines<'_, impl Write>,
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
                lines.line(Verdict::Fail, &subject, &format!("no {right}: {error}"))?;
            }
            Permission::Useless(error) => {
                let text = format!("{right}: granted, but {error}");
                lines.line(Verdict::Warn, &subject, &text)?;
            }
            Permission::Unknown(error) => {
                let text = format!("could not ask for {right}: {error}");
                lines.line(Verdict::Warn, &subject, &text)?;
            }
        }
    }
    if !granted.is_empty() {
        lines.line(Verdict::Ok, &subject, &granted.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_judged_by_their_streams() {
        let cases = [
            (1_048_588, "delete", Stream::Bounces, [Verdict::Ok, Verdict::Ok]),
            (999_999, "delete", Stream::Bounces, [Verdict::Warn, Verdict::Ok]),
            (
                999_999,
                "delete",
                Stream::DeadLetters,
                [Verdict::Fail, Verdict::Ok],
            ),
            (
                1_000_000,
                "compact",
                Stream::Deliveries,
                [Verdict::Ok, Verdict::Warn],
            ),
            (
                1_000_000,
                "compact,delete",
                Stream::DeadLetters,
                [Verdict::Ok, Verdict::Warn],
            ),
        ];
        for (limit, policy, stream, verdicts) in cases {
            let settings = TopicSettings {
                max_message_bytes: Some(limit),
                cleanup_policy: Some(policy.to_owned()),
                compression_type: Some("lz4".to_owned()),
            };
            let found = judge_topic(&settings, 1_000_000, &[stream], &["lz4"]);
            let found: Vec<Verdict> = found.into_iter().map(|(verdict, _)| verdict).collect();
            assert_eq!(found, verdicts, "{limit} {policy} {stream}");
        }
        assert!(judge_topic(&TopicSettings::default(), 1, &[Stream::Blocks], &[]).is_empty());
    }

    #[test]
    fn a_codec_that_this_build_can_not_read_is_told() {
        let codecs = ["gzip", "lz4"];
        for (codec, told) in [("producer", 0), ("uncompressed", 0), ("gzip", 0), ("zstd", 1)] {
            let settings = TopicSettings {
                compression_type: Some(codec.to_owned()),
                ..TopicSettings::default()
            };
            let found = judge_topic(&settings, 1, &[Stream::Blocks], &codecs);
            assert_eq!(found.len(), told, "{codec}");
            let named =
                |(verdict, text): &(Verdict, String)| *verdict == Verdict::Warn && text.contains(codec);
            assert!(found.iter().all(named), "{found:?}");
        }
    }
}
