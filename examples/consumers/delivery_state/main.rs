//! Keeps a table of the state of each mail, from `cmc.deliveries`.
//!
//! One row for each mail and recipient. A row shows the greatest event seen, by stage (queued < deferred < final), then
//! `created`, then `ce_id`. So the order of events does not matter: events that arrive late, twice, or from another replica of
//! the bridge do no harm, and no list of seen ids is needed.
//!
//! One SQLite transaction writes rows and offsets, so a crash at any instant loses nothing and repeats nothing.

use std::{collections::HashMap, error::Error, path::PathBuf, time::Duration};

use clap::Parser;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::value::RawValue;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long the brokers may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum records in one SQLite transaction.
const BATCH: usize = 500;

#[derive(Parser)]
pub struct Args {
    /// Kafka's bootstrap servers
    #[arg(long, default_value = "localhost:9092")]
    pub brokers: String,
    #[arg(long, default_value = "cmc.deliveries")]
    pub topic: String,
    /// The SQLite file; created if it doesn't exist
    #[arg(long, default_value = "delivery-state.db")]
    pub db: PathBuf,
    /// Stop at the end of the topic
    #[arg(long)]
    pub once: bool,
}

/// How far along a status is. An earlier stage never overwrites a later one.
fn stage(status: &str) -> Option<u8> {
    match status {
        "queued" => Some(0),
        "deferred" => Some(1),
        "succeeded" | "failed" => Some(2),
        // The sender may add statuses; a human must decide where they belong.
        _ => None,
    }
}

fn main() -> Result<()> {
    let (applied, skipped) = run(&Args::parse())?;
    println!("{applied} events read, {skipped} skipped");
    Ok(())
}

/// Reads to the end (`--once`) or forever. Returns how many events it read and skipped.
pub fn run(args: &Args) -> Result<(u64, u64)> {
    let mut db = open(args)?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        // Otherwise a consumer also sees events of aborted transactions, which the bridge writes again.
        .set("isolation.level", "read_committed")
        // librdkafka requires a name. The table keeps the offsets, so the group is unused.
        .set("group.id", "delivery-state")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()?;
    let mut open_partitions = assign(&consumer, &db, &args.topic)?;
    let (mut applied, mut skipped) = (0, 0);
    while !(args.once && open_partitions.is_empty()) {
        // Waits for the first record, then takes all that are available.
        let mut wait = Duration::from_millis(200);
        let tx = db.transaction()?;
        for _ in 0..BATCH {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(record)) => {
                    match apply(&tx, &record)? {
                        true => applied += 1,
                        false => skipped += 1,
                    }
                    tx.execute(
                        "INSERT INTO position VALUES (?1, ?2, ?3)
                         ON CONFLICT (topic, partition) DO UPDATE SET next = excluded.next",
                        params![record.topic(), record.partition(), record.offset() + 1],
                    )?;
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open_partitions.retain(|open| *open != partition);
                }
                // librdkafka retries by itself until the broker is back.
                Some(Err(error)) => eprintln!("{error}"),
            }
            wait = Duration::ZERO;
        }
        tx.commit()?;
    }
    Ok((applied, skipped))
}

fn open(args: &Args) -> Result<Connection> {
    let db = Connection::open(&args.db)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         CREATE TABLE IF NOT EXISTS mail (
             message_id TEXT, recipient TEXT,
             stage INTEGER, created TEXT, ce_id TEXT,
             status TEXT, reason TEXT,
             PRIMARY KEY (message_id, recipient)
         );
         CREATE TABLE IF NOT EXISTS position (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));",
    )?;
    Ok(db)
}

/// Starts each partition where the table ends, and returns the partitions. Assigns instead of subscribing, because one table
/// has one reader.
fn assign(consumer: &BaseConsumer, db: &Connection, topic: &str) -> Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|p| p.id()).collect();
    if partitions.is_empty() {
        return Err(format!("there is no topic {topic}").into());
    }
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        let next = db
            .query_row(
                "SELECT next FROM position WHERE topic = ?1 AND partition = ?2",
                params![topic, partition],
                |row| row.get(0),
            )
            .optional()?;
        list.add_partition_offset(topic, *partition, next.map_or(Offset::Beginning, Offset::Offset))?;
    }
    consumer.assign(&list)?;
    Ok(partitions)
}

/// Merges one record into the table; returns false if it says nothing about a mail.
fn apply(db: &Connection, record: &impl Message) -> Result<bool> {
    let header = |name: &str| {
        let value = record
            .headers()?
            .iter()
            .find(|header| header.key == name)?
            .value?;
        std::str::from_utf8(value).ok()
    };
    // Streams may share a topic with dead letters, and refused records have an event's headers, too.
    let ours =
        header("ce_type") == Some("jp.smtps.cmc.deliveries") && header("cmc-dead-letter-reason").is_none();
    let (true, Some(id), Some(value)) = (ours, header("ce_id"), record.payload()) else {
        return Ok(false);
    };
    // Decodes only the members of interest, so other members that parsers refuse (half a surrogate pair) do no harm. If a
    // member occurs twice, the last one counts.
    let Ok(members) = serde_json::from_slice::<HashMap<String, &RawValue>>(value) else {
        return Ok(false);
    };
    let member = |name: &str| {
        members
            .get(name)
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
    };
    let text = |name| member(name).filter(|text| !text.is_empty());
    let (Some(message_id), Some(status)) = (text("messageId"), text("status")) else {
        return Ok(false);
    };
    // Payload version 2 and version 1.
    let recipient = text("to").or(text("envelopeTo")).unwrap_or_default();
    let (created, reason) = (
        text("created").unwrap_or_default(),
        text("reason").unwrap_or_default(),
    );
    let Some(stage) = stage(&status) else {
        return Ok(false);
    };
    db.execute(
        "INSERT INTO mail VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (message_id, recipient) DO UPDATE SET
             stage = excluded.stage, created = excluded.created, ce_id = excluded.ce_id,
             status = excluded.status, reason = excluded.reason
         WHERE (excluded.stage, excluded.created, excluded.ce_id) > (stage, created, ce_id)",
        params![message_id, recipient, stage, created, id, status, reason],
    )?;
    Ok(true)
}
