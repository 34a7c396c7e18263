//! The one table of configuration keys: for each its kind, with the range or form of its values, and its built-in default.
//!
//! A key that is not in this table does not exist: files, environment, validation, `config show` and the test of `config/default.toml`
//! all follow this table. Keys of one TOML table stand together, so that `config show` can print them in order.

use std::time::Duration;

use ::config::ValueKind;

use super::{
    forms,
    kinds::Kind::{
        self, Address, Boolean, Choice, Credentials, File, List, Number, OptionalText, Properties, Seconds,
        Secret, Secrets, Size, Status, Text, TimeZone, TimeZones,
    },
};

/// One key.
pub(super) struct Key {
    /// The full name, with dots.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    default: Default,
}

/// A built-in default, written as a file would write it.
enum Default {
    Flag(bool),
    Int(i64),
    Str(&'static str),
    /// An empty list or table.
    Empty,
}

use self::Default::{Empty, Flag, Int, Str};

impl Key {
    /// The default as a value of the crate `config`.
    pub(super) fn default(&self) -> ValueKind {
        match self.default {
            Flag(value) => ValueKind::Boolean(value),
            Int(value) => ValueKind::I64(value),
            Str(value) => ValueKind::String(value.to_owned()),
            Empty => self.kind.empty(),
        }
    }
}

/// The key of this full name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether keys live below this name.
pub(super) fn is_table(name: &str) -> bool {
    tables().any(|table| table == name)
}

/// Every name that has keys below it.
fn tables() -> impl Iterator<Item = &'static str> {
    KEYS.iter()
        .flat_map(|key| key.name.match_indices('.').map(|(dot, _)| &key.name[..dot]))
}

/// The known name that an unknown one most likely means: the nearest one in which up to a third of the letters differ, otherwise
/// the nearest of those with the same last part (`max_events` for `ingest.max_events`).
pub(super) fn nearest(unknown: &str, with_tables: WithTables) -> Option<&'static str> {
    let limit = (unknown.chars().count() / 3).max(2);
    let tables = tables().filter(|_| with_tables == WithTables::Yes);
    KEYS.iter()
        .map(|key| key.name)
        .chain(tables)
        .map(|name| (strsim::damerau_levenshtein(unknown, name), name))
        .map(|(distance, name)| (distance > limit, distance, name))
        .filter(|(far, _, name)| !far || last_part(unknown) == last_part(name))
        .min()
        .map(|(_, _, name)| name)
}

fn last_part(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last)
}

/// Whether [`nearest`] may give a table's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WithTables {
    Yes,
    No,
}

/// What every variable of the bridge begins with. A single underscore after the product's name is somebody else's: Kubernetes
/// adds such ones (`CMC_BRIDGE_PORT`) for a service called `cmc-bridge`.
pub(super) const PREFIX: &str = "CMC_BRIDGE__";

/// The variable that sets this key.
pub(super) fn environment_name(name: &str) -> String {
    format!("{PREFIX}{}", name.to_ascii_uppercase().replace('.', "__"))
}

/// A key's name with the name of an entry of its table.
pub(super) fn entry_name(key: &str, entry: &str) -> String {
    format!("{key}.{entry}")
}

const fn key(name: &'static str, kind: Kind, default: Default) -> Key {
    Key { name, kind, default }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR: Duration = Duration::from_secs(3600);
const fn millis(least: u64, most: Duration) -> Kind {
    Kind::Duration(Duration::from_millis(least)..=most)
}

/// The time that a client or the disk may take.
const WAIT: Kind = millis(100, HOUR);

/// All keys.
pub(super) static KEYS: &[Key] = &[
    key("ingest.listen", Address, Str("0.0.0.0:8080")),
    key("ingest.path", Text(forms::webhook_path), Str("/webhooks/events")),
    key(
        "ingest.health_path",
        OptionalText(forms::health_path),
        Str("/healthz"),
    ),
    key("ingest.max_body_bytes", Size(KIB..=GIB), Str("8MiB")),
    key(
        "ingest.inbound_path",
        Text(forms::webhook_path),
        Str("/webhooks/inbound"),
    ),
    key("ingest.inbound_max_body_bytes", Size(KIB..=GIB), Str("32MiB")),
    key("ingest.max_events", Number(1..=1_000_000), Int(10_000)),
    key("ingest.max_connections", Number(1..=1_000_000), Int(4096)),
    key("ingest.max_bytes_in_flight", Size(MIB..=TIB), Str("256MiB")),
    key("ingest.header_timeout", WAIT, Str("10s")),
    key("ingest.body_timeout", WAIT, Str("30s")),
    key("ingest.idle_timeout", WAIT, Str("75s")),
    key("ingest.append_timeout", WAIT, Str("10s")),
    key(
        "ingest.retry_after",
        Seconds(Duration::from_secs(1)..=HOUR),
        Str("5s"),
    ),
    key("ingest.malformed_status", Status, Int(400)),
    key("ingest.repeats", Choice(&["keep", "drop"]), Str("keep")),
    key(
        "ingest.repeat_window",
        millis(1000, Duration::from_secs(24 * 3600)),
        Str("1h"),
    ),
    key("ingest.time_zone", TimeZone, Str("Asia/Tokyo")),
    key("ingest.time_zones", TimeZones, Empty),
    key("ingest.auth.allow_anonymous", Boolean, Flag(false)),
    key("ingest.auth.bearer_tokens", Secrets, Empty),
    key("ingest.auth.bearer_tokens_file", File, Str("")),
    key("ingest.auth.basic", Secrets, Empty),
    key("ingest.auth.basic_file", File, Str("")),
    key("ingest.auth.api_keys", Secrets, Empty),
    key("ingest.auth.api_keys_file", File, Str("")),
    key("ingest.auth.credentials", Credentials, Empty),
    key("ingest.tls.certificate", File, Str("")),
    key("ingest.tls.key", File, Str("")),
    key(
        "ingest.tls.reload",
        millis(100, Duration::from_secs(24 * 3600)),
        Str("30s"),
    ),
    key("admin.listen", Address, Str("0.0.0.0:9464")),
    key("spool.dir", Text(forms::any), Str("/var/lib/cmc-bridge")),
    key("spool.max_bytes", Size(256 * KIB..=1024 * TIB), Str("4GiB")),
    key("spool.segment_bytes", Size(64 * KIB..=GIB), Str("16MiB")),
    key("spool.durability", Choice(&["fsync", "page-cache"]), Str("fsync")),
    key(
        "kafka.bootstrap_servers",
        List(forms::broker),
        Str("localhost:9092"),
    ),
    key(
        "kafka.delivery",
        Choice(&["exactly-once", "at-least-once"]),
        Str("exactly-once"),
    ),
    key("kafka.create_topics", Boolean, Flag(false)),
    key("kafka.topic_partitions", Number(0..=1_000_000), Int(0)),
    key("kafka.topic_replication", Number(0..=1000), Int(0)),
    key("kafka.id_prefix", Text(forms::id_prefix), Str("cmc-bridge")),
    key(
        "kafka.max_record_bytes",
        Size(KIB..=1_000_000_000),
        Int(1_000_000),
    ),
    key("kafka.transaction_events", Number(1..=1_000_000), Int(40_000)),
    key("kafka.transaction_bytes", Size(64 * KIB..=GIB), Str("32MiB")),
    key(
        "kafka.transaction_timeout",
        millis(1000, Duration::from_secs(900)),
        Str("15s"),
    ),
    key(
        "kafka.commit_interval",
        millis(0, Duration::from_secs(1)),
        Str("100ms"),
    ),
    key("kafka.properties", Properties, Empty),
    key("streams.deliveries.enabled", Boolean, Flag(true)),
    key(
        "streams.deliveries.topic",
        Text(forms::topic),
        Str("cmc.deliveries"),
    ),
    key("streams.bounces.enabled", Boolean, Flag(true)),
    key("streams.bounces.topic", Text(forms::topic), Str("cmc.bounces")),
    key("streams.blocks.enabled", Boolean, Flag(false)),
    key("streams.blocks.topic", Text(forms::topic), Str("cmc.blocks")),
    key("streams.inbound.enabled", Boolean, Flag(false)),
    key("streams.inbound.topic", Text(forms::topic), Str("cmc.inbound")),
    key(
        "streams.inbound.content",
        Choice(&["all", "no-attachments", "envelope"]),
        Str("all"),
    ),
    key("streams.dead_letters.enabled", Boolean, Flag(true)),
    key(
        "streams.dead_letters.topic",
        Text(forms::topic),
        Str("cmc.dead-letters"),
    ),
    key(
        "sender_api.url",
        Text(forms::api_url),
        Str("https://api.smtps.jp/transaction/v2"),
    ),
    key("sender_api.user", OptionalText(forms::any), Str("")),
    key("sender_api.key", Secret, Str("")),
    key("sender_api.key_file", File, Str("")),
    key("sender_api.ca_file", File, Str("")),
    key("sender_api.server_compositions", List(forms::composition), Empty),
    key(
        "sender_api.pause",
        millis(0, Duration::from_secs(60)),
        Str("250ms"),
    ),
    key("sender_api.timeout", WAIT, Str("30s")),
    key("shutdown.lame_duck", millis(0, HOUR), Str("5s")),
    key("shutdown.grace", millis(0, HOUR), Str("25s")),
    key("log.format", Choice(&["text", "json"]), Str("text")),
    key("log.level", Text(forms::log_filter), Str("info")),
];
