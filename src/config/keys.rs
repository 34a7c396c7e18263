//! The one table of configuration keys and their built-in defaults.
//!
//! A key is in here or it does not exist: files, environment, `config show` and the test of `config/default.toml`
//! all go by this table. Keys of one TOML table stand together, so that `config show` can print them in order.

use ::config::ValueKind;

/// One key.
pub(super) struct Key {
    /// The full name, with dots.
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) default: Default,
}

/// What a key holds, as far as merging and showing need to know; its type is checked where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A single value, or a list that has no secrets.
    Plain,
    /// The name of a file with secrets in it; a secret may stand here by mistake.
    File,
    /// A list of secrets.
    Secrets,
    /// An array of tables, one for each named credential; files only.
    Credentials,
    /// A table with names of the user's choice.
    Members,
    /// A table with librdkafka's names, dots included, some of them secret.
    Properties,
}

/// A built-in default, written as a file would write it.
#[derive(Clone, Copy)]
pub(super) enum Default {
    Bool(bool),
    Int(i64),
    Text(&'static str),
    /// An empty list or table.
    Empty,
}

impl Key {
    /// The default as a value of the crate `config`.
    pub(super) fn default_kind(&self) -> ValueKind {
        match (self.default, self.shape) {
            (Default::Bool(value), _) => ValueKind::Boolean(value),
            (Default::Int(value), _) => ValueKind::I64(value),
            (Default::Text(value), _) => ValueKind::String(value.to_owned()),
            (Default::Empty, Shape::Members | Shape::Properties) => ValueKind::Table(::config::Map::new()),
            (Default::Empty, _) => ValueKind::Array(Vec::new()),
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

/// The known name that an unknown one most likely means: the nearest with up to a third of the letters different, else
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

/// Whether [`nearest`] may answer with a table's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WithTables {
    Yes,
    No,
}

/// The variable that sets this key.
pub(super) fn environment_name(name: &str) -> String {
    format!(
        "{}{}",
        super::source::PREFIX,
        name.to_ascii_uppercase().replace('.', "__")
    )
}

const fn plain(name: &'static str, default: Default) -> Key {
    Key {
        name,
        shape: Shape::Plain,
        default,
    }
}

const fn file(name: &'static str) -> Key {
    Key {
        name,
        shape: Shape::File,
        default: Text(""),
    }
}

const fn empty(name: &'static str, shape: Shape) -> Key {
    Key {
        name,
        shape,
        default: Default::Empty,
    }
}

use self::Default::{Bool, Int, Text};

/// All keys.
pub(super) const KEYS: &[Key] = &[
    plain("ingest.listen", Text("0.0.0.0:8080")),
    plain("ingest.path", Text("/webhooks/events")),
    plain("ingest.health_path", Text("/healthz")),
    plain("ingest.max_body_bytes", Text("8MiB")),
    plain("ingest.max_events", Int(10_000)),
    plain("ingest.max_connections", Int(4096)),
    plain("ingest.max_bytes_in_flight", Text("256MiB")),
    plain("ingest.header_timeout", Text("10s")),
    plain("ingest.body_timeout", Text("30s")),
    plain("ingest.idle_timeout", Text("75s")),
    plain("ingest.append_timeout", Text("10s")),
    plain("ingest.retry_after", Text("5s")),
    plain("ingest.malformed_status", Int(400)),
    plain("ingest.time_zone", Text("Asia/Tokyo")),
    empty("ingest.time_zones", Shape::Members),
    plain("ingest.auth.allow_anonymous", Bool(false)),
    empty("ingest.auth.bearer_tokens", Shape::Secrets),
    file("ingest.auth.bearer_tokens_file"),
    empty("ingest.auth.basic", Shape::Secrets),
    file("ingest.auth.basic_file"),
    empty("ingest.auth.api_keys", Shape::Secrets),
    file("ingest.auth.api_keys_file"),
    empty("ingest.auth.credentials", Shape::Credentials),
    file("ingest.tls.certificate"),
    file("ingest.tls.key"),
    plain("ingest.tls.reload", Text("30s")),
    plain("admin.listen", Text("0.0.0.0:9464")),
    plain("spool.dir", Text("/var/lib/cmc-bridge")),
    plain("spool.max_bytes", Text("4GiB")),
    plain("spool.segment_bytes", Text("16MiB")),
    plain("spool.durability", Text("fsync")),
    plain("kafka.bootstrap_servers", Text("localhost:9092")),
    plain("kafka.delivery", Text("exactly-once")),
    plain("kafka.create_topics", Bool(false)),
    plain("kafka.topic_partitions", Int(0)),
    plain("kafka.topic_replication", Int(0)),
    plain("kafka.id_prefix", Text("cmc-bridge")),
    plain("kafka.max_record_bytes", Int(1_000_000)),
    plain("kafka.transaction_events", Int(40_000)),
    plain("kafka.transaction_bytes", Text("32MiB")),
    plain("kafka.transaction_timeout", Text("15s")),
    empty("kafka.properties", Shape::Properties),
    plain("streams.deliveries.enabled", Bool(true)),
    plain("streams.deliveries.topic", Text("cmc.deliveries")),
    plain("streams.bounces.enabled", Bool(true)),
    plain("streams.bounces.topic", Text("cmc.bounces")),
    plain("streams.blocks.enabled", Bool(false)),
    plain("streams.blocks.topic", Text("cmc.blocks")),
    plain("streams.dead_letters.enabled", Bool(true)),
    plain("streams.dead_letters.topic", Text("cmc.dead-letters")),
    plain("shutdown.lame_duck", Text("5s")),
    plain("shutdown.grace", Text("25s")),
    plain("log.format", Text("text")),
    plain("log.level", Text("info")),
];
