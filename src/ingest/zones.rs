//! Whether the names under `ingest.time_zones` match those in webhooks.
//!
//! A name that is not spelled like `server_composition` has no effect, and the times of its events are wrong by
//! hours. So the log reports it once in two cases: a webhook's composition differs only in case, `-` and `_`; or no
//! webhook has had the name for a day.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use tracing::warn;

/// How long webhooks have to show a name.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The names, and which of them webhooks have shown.
pub(super) struct ZoneNames {
    names: Vec<Name>,
    /// Whether any webhook was understood: otherwise none could have a name.
    any: AtomicBool,
}

struct Name {
    name: String,
    seen: AtomicBool,
    reported_alike: AtomicBool,
}

impl ZoneNames {
    pub(super) fn new<'n>(names: impl Iterator<Item = &'n String>) -> ZoneNames {
        let name = |name: &String| Name {
            name: name.clone(),
            seen: AtomicBool::new(false),
            reported_alike: AtomicBool::new(false),
        };
        ZoneNames {
            names: names.map(name).collect(),
            any: AtomicBool::new(false),
        }
    }

    /// Notes the composition of a webhook that was understood.
    pub(super) fn note(&self, composition: &str) {
        if self.names.is_empty() {
            return;
        }
        self.any.store(true, Ordering::Relaxed);
        if let Some(name) = self.names.iter().find(|name| name.name == composition) {
            name.seen.store(true, Ordering::Relaxed);
        } else if let Some(name) = self.alike(composition) {
            warn!(
                configured = name,
                webhook = composition,
                "ingest.time_zones has a name that no webhook has; the webhook's name is almost the same and gets \
                 ingest.time_zone: write it as the webhook does"
            );
        }
    }

    /// The name that is almost this composition, unless it was reported.
    fn alike(&self, composition: &str) -> Option<&str> {
        let letters = |text: &str| -> Vec<u8> {
            let kept = text.bytes().filter(|byte| !b"-_".contains(byte));
            kept.map(|byte| byte.to_ascii_lowercase()).collect()
        };
        let wanted = letters(composition);
        let name = self.names.iter().find(|name| letters(&name.name) == wanted)?;
        (!name.reported_alike.swap(true, Ordering::Relaxed)).then_some(&name.name)
    }

    /// Logs the names that no webhook had; ends after that, or at once if there are no names.
    pub(super) async fn report_unseen(self: Arc<Self>) {
        if self.names.is_empty() {
            return;
        }
        loop {
            sleep(DAY).await;
            if self.any.load(Ordering::Relaxed) {
                break;
            }
        }
        for name in self.unseen() {
            warn!(
                name,
                "ingest.time_zones has a name that no webhook had for a day: compare it with the webhooks' \
                 server_composition, in case and hyphens, too"
            );
        }
    }

    /// The names that no webhook had.
    fn unseen(&self) -> Vec<&str> {
        let names = self.names.iter().filter(|_| self.any.load(Ordering::Relaxed));
        names
            .filter(|name| !name.seen.load(Ordering::Relaxed))
            .map(|name| name.name.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_webhooks_do_not_have_are_known() {
        let names = ["transactional_email", "pro", "Sandbox"].map(str::to_owned);
        let zones = ZoneNames::new(names.iter());
        assert!(zones.unseen().is_empty(), "nothing has arrived yet");
        zones.note("pro");
        assert_eq!(zones.unseen(), ["transactional_email", "Sandbox"]);
        assert_eq!(zones.alike("transactional-email"), Some("transactional_email"));
        assert_eq!(zones.alike("transactional-email"), None, "reported once");
        assert_eq!(zones.alike("sandbox"), Some("Sandbox"));
        assert_eq!(zones.alike("other"), None);
        zones.note("Sandbox");
        assert_eq!(zones.unseen(), ["transactional_email"]);
    }
}
