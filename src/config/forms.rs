//! The forms of texts: paths, URLs, topics, prefixes of ids, brokers' addresses, log filters.

use hyper::Uri;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::{
    parse::quoted,
    problem::{Fault, fault},
};
use crate::cmc::MAX_COMPOSITION;

/// Any text.
pub(super) fn any(_: &str) -> Option<Fault> {
    None
}

/// Paths that probes request on some port. Such a request must not count as a webhook.
const PROBED: [&str; 6] = [
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/status",
    "/status.json",
];

/// The path of the webhooks.
pub(super) fn webhook_path(text: &str) -> Option<Fault> {
    let taken = || {
        let path = text.trim_end_matches('/');
        let is_taken = PROBED.contains(&path);
        is_taken.then(|| fault("it is one of those of probes and metrics", "give another one"))
    };
    path_for(
        "webhooks",
        "/webhooks/events",
        text,
        path_fault(text).or_else(taken),
    )
}

/// The path of health checks.
pub(super) fn health_path(text: &str) -> Option<Fault> {
    path_for("health checks", "/healthz", text, path_fault(text))
}

fn path_for(purpose: &str, example: &str, text: &str, fault: Option<Fault>) -> Option<Fault> {
    fault.map(|(what, fix)| {
        let what = format!("{} is not a path for {purpose}: {what}", quoted(text));
        (what, format!("{fix}, such as {example}"))
    })
}

/// Why no request can have this path, and what to do. Requests are compared with it byte by byte, so it must be what every
/// client sends for it: no other spelling of the same path (RFC 3986, 6.2), and nothing that a client or a proxy takes out or
/// changes. Slashes at its end don't count.
fn path_fault(text: &str) -> Option<Fault> {
    let path = text.trim_end_matches('/');
    let fault = |what: &str, fix: &str| Some(fault(what, fix));
    if !path.starts_with('/') {
        let fix = "give a path other than /, without query";
        return fault("it must begin with / and go on", fix);
    }
    if path.contains(['?', '#']) {
        let fix = "give a path other than /, without query or fragment";
        return fault(
            "it has a query or a fragment, and requests with any query are taken",
            fix,
        );
    }
    if path.len() > MAX_PATH {
        return fault("it is too long", &format!("give up to {MAX_PATH} bytes"));
    }
    if let Some(c) = path.chars().find(|c| !is_of_paths(*c)) {
        let fix = "take it out or percent-encode it";
        return fault(&format!("no path has {c:?} in it"), fix);
    }
    for (at, _) in path.match_indices('%') {
        let code = path.get(at..at + 3).unwrap_or_default();
        let digits = code
            .get(1..)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return fault("it has a % without two hexadecimal digits", "write %25 for a %");
        };
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            let c = char::from(byte);
            let what = format!("{code:?} stands for {c:?}, which clients write as it is");
            return fault(&what, &format!("write {c:?}"));
        }
        if code != code.to_ascii_uppercase() {
            let what = format!("clients write {code:?} in upper case");
            return fault(&what, "write it in upper case");
        }
    }
    let mut segments = path[1..].split('/');
    if segments.clone().any(str::is_empty) {
        return fault(
            "it has an empty segment, which proxies take out",
            "write one / between segments",
        );
    }
    if segments.any(|segment| [".", ".."].contains(&segment)) {
        return fault("it has a segment of dots, which clients resolve", "take it out");
    }
    None
}

/// Longer paths come near the limit of a request's header.
const MAX_PATH: usize = 1000;

/// The characters of a path (RFC 3986, 3.3). Others are sent encoded, or refused.
fn is_of_paths(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@%/".contains(c)
}

/// The URL of the sender's Web API. A key must not cross a network in the clear.
pub(super) fn api_url(url: &str) -> Option<Fault> {
    let is_loopback = |host: &str| host == "localhost" || host.starts_with("127.") || host == "[::1]";
    let fits = url.parse::<Uri>().is_ok_and(|uri| {
        let host = uri.host().unwrap_or_default();
        let credentials = uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'));
        let scheme = match uri.scheme_str() {
            Some("https") => !host.is_empty(),
            Some("http") => is_loopback(host),
            _ => false,
        };
        scheme && !credentials && uri.query().is_none()
    });
    // It may hold credentials, so it is not repeated.
    (!fits).then(|| {
        fault(
            "is not the URL of a Web API",
            "give https://host/path without credentials or query (http only for this machine)",
        )
    })
}

/// A name of a `server_composition`.
pub(super) fn composition(name: &str) -> Option<Fault> {
    (name.len() > MAX_COMPOSITION).then(|| {
        let what = format!("{} is too long for a server_composition", quoted(name));
        fault(what, format!("give up to {MAX_COMPOSITION} bytes"))
    })
}

/// Whether the name has up to `limit` characters, and only those that Kafka accepts in names of topics, ids and groups.
fn is_kafka_name(name: &str, limit: usize) -> bool {
    name.len() <= limit
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The name of a topic.
pub(super) fn topic(name: &str) -> Option<Fault> {
    (!is_kafka_name(name, 249) || [".", ".."].contains(&name)).then(|| {
        let what = format!("{} is not a topic's name", quoted(name));
        fault(what, "Kafka takes up to 249 of A-Z, a-z, 0-9, '.', '_', '-'")
    })
}

/// A prefix of transactional ids and groups.
pub(super) fn id_prefix(prefix: &str) -> Option<Fault> {
    (!is_kafka_name(prefix, 100)).then(|| {
        let what = format!("{} is not a prefix for ids", quoted(prefix));
        fault(what, "give up to 100 of A-Z, a-z, 0-9, '.', '_', '-'")
    })
}

/// A broker's address: `host:port` or `[v6]:port`, without white space.
pub(super) fn broker(server: &str) -> Option<Fault> {
    let is_server = server.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    (!is_server).then(|| {
        let what = format!("{} is not a broker's address", quoted(server));
        fault(what, "give host:port, several with commas")
    })
}

/// A log filter. A lone word must be a level: `tracing` would take a mistyped one for a target, and silence everything else.
pub(super) fn log_filter(filter: &str) -> Option<Fault> {
    let is_part = |part: &str| part.contains(['=', '[', ':']) || part.parse::<LevelFilter>().is_ok();
    let is_filter =
        filter.split(',').all(|part| is_part(part.trim())) && EnvFilter::builder().parse(filter).is_ok();
    (!is_filter).then(|| {
        let what = format!("{} is not a log filter", quoted(filter));
        let fix = "give off, error, warn, info, debug or trace, parts with target=level: info,cmc_bridge::lane=debug,cmc_bridge::kafka=debug";
        fault(what, fix)
    })
}
