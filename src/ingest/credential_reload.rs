//! Credentials that change while the server runs: their files are read again and again.
//!
//! Every [`LOOK`] the files are read and their contents compared: neither times nor names show whether a symlink was
//! changed (Kubernetes swaps one when a Secret changes). A file may be read while it is being written; so contents
//! that differ from those in use count only if a second reading, [`SETTLE`] later, finds the same.
//!
//! Each file is accepted or refused as a whole. The contents of all files are judged together, so two may exchange
//! their secrets. A file that can't be used (missing, empty, a secret that no request could present, a duplicate name
//! or secret) changes nothing: its previous credentials stay valid. Each look counts such a file; the log names it
//! when the cause changes and once an hour. So the server is never without credentials.
//!
//! A credential is masked in dead letters before it becomes valid, and even after it is no longer valid: the last
//! [`REPLACED_KEPT`] replaced ones are remembered until the process ends.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use secrecy::ExposeSecret;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{error, info};

use super::intake::Intake;
use crate::{
    cmc::Rules,
    config::{Auth, Credential, CredentialFile, MAX_CREDENTIALS, clash, secrets},
    metrics::Refused,
};

/// How often the files are read.
const LOOK: Duration = Duration::from_secs(3);
/// How long new contents must stay the same to count.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the same cause is logged again.
const SAME_CAUSE: Duration = Duration::from_secs(3600);
/// Maximum number of replaced credentials that are still masked in dead letters.
const REPLACED_KEPT: usize = MAX_CREDENTIALS;

/// The contents of a file, or why they can't be used.
type Contents = Result<Vec<Credential>, String>;

/// Looks for new credentials forever; ends at once if none come from files.
pub(super) async fn keep_fresh(intake: Arc<Intake>) {
    let Auth::Credentials(in_use) = &intake.auth else {
        return;
    };
    let mut rotation = CredentialFiles::new(in_use.clone(), &intake.credential_files);
    if rotation.files.is_empty() {
        return;
    }
    loop {
        sleep(LOOK).await;
        // A failed task has panicked, which has been reported; the next look may succeed.
        let Ok(mut readings) = spawn_blocking(rotation.reader()).await else {
            continue;
        };
        if !rotation.is_in_use(&readings) {
            sleep(SETTLE).await;
            let Ok(again) = spawn_blocking(rotation.reader()).await else {
                continue;
            };
            readings = settled(readings, again);
        }
        let (changed, failures) = rotation.take(readings);
        (0..failures).for_each(|_| intake.metrics.credential_reload_failed());
        rotation.report(intake.metrics.credential_files());
        if changed {
            let mut rules = Rules::clone(&intake.rules());
            rules.secrets = secrets(rotation.masked());
            *intake.rules.write() = Arc::new(rules);
            intake.guard.accept(&rotation.in_use, &intake.metrics);
        }
    }
}

/// The contents on which two readings agree, file by file; `None` for a file on which they disagree.
fn settled(first: Vec<Option<Contents>>, second: Vec<Option<Contents>>) -> Vec<Option<Contents>> {
    let both = first.into_iter().zip(second);
    both.map(|(first, second)| match (&first, &second) {
        (Some(Ok(a)), Some(Ok(b))) if are_same(a, b) => second,
        (Some(Err(a)), Some(Err(b))) if a == b => second,
        _ => None,
    })
    .collect()
}

fn are_same(left: &[Credential], right: &[Credential]) -> bool {
    let parts = |credential: &Credential| {
        let secret = credential.secret.expose_secret().to_owned();
        (credential.name.clone(), secret)
    };
    left.iter().map(parts).eq(right.iter().map(parts))
}

/// The files, and which of their credentials are in use.
struct CredentialFiles {
    files: Vec<WatchedFile>,
    /// All valid credentials, including those from elsewhere.
    in_use: Vec<Credential>,
    replaced: VecDeque<Credential>,
}

/// A watched file; its names are those of its credentials in use.
struct WatchedFile {
    file: CredentialFile,
    /// Why its contents are refused, and when that was last logged.
    refused: Option<(String, Instant)>,
}

impl CredentialFiles {
    fn new(in_use: Vec<Credential>, files: &[CredentialFile]) -> CredentialFiles {
        let watched = |file: &CredentialFile| WatchedFile {
            file: file.clone(),
            refused: None,
        };
        CredentialFiles {
            files: files.iter().map(watched).collect(),
            in_use,
            replaced: VecDeque::new(),
        }
    }

    /// A function that reads all files, for another thread.
    fn reader(&self) -> impl FnOnce() -> Vec<Option<Contents>> + Send + 'static {
        let files: Vec<_> = self.files.iter().map(|watched| watched.file.clone()).collect();
        move || files.iter().map(|file| Some(file.read())).collect()
    }

    fn in_use_of(&self, file: &CredentialFile) -> Vec<Credential> {
        let of_file = self.in_use.iter().filter(|one| file.names.contains(&one.name));
        of_file.cloned().collect()
    }

    /// Whether the files hold the credentials in use.
    fn is_in_use(&self, readings: &[Option<Contents>]) -> bool {
        self.files.iter().zip(readings).all(|(watched, reading)| {
            matches!(reading, Some(Ok(held)) if are_same(&self.in_use_of(&watched.file), held))
        })
    }

    /// Accepts the contents that can be used. Returns whether something changed, and how many files are refused.
    fn take(&mut self, readings: Vec<Option<Contents>>) -> (bool, usize) {
        let (mut news, mut refused) = (Vec::new(), Vec::new());
        for (at, reading) in readings.into_iter().enumerate() {
            let (Some(reading), Some(watched)) = (reading, self.files.get(at)) else {
                continue;
            };
            match reading {
                Ok(held) if are_same(&self.in_use_of(&watched.file), &held) => self.found_in_use(at),
                Ok(held) => news.push((at, held)),
                Err(cause) => refused.push((at, cause)),
            }
        }
        let all = self.settle(&mut news, &mut refused);
        let replaced = news.iter().filter_map(|(at, _)| self.files.get(*at));
        let replaced: Vec<_> = replaced
            .flat_map(|watched| self.in_use_of(&watched.file))
            .collect();
        self.in_use = all;
        self.remember(replaced);
        let (changed, failures) = (!news.is_empty(), refused.len());
        for (at, held) in news {
            self.accept(at, held);
        }
        for (at, cause) in refused {
            self.refuse(at, cause);
        }
        (changed, failures)
    }

    /// Reports which files are refused now.
    fn report(&self, files: &Refused) {
        for watched in &self.files {
            let name = watched.file.path().display().to_string();
            match &watched.refused {
                Some((cause, _)) => files.refuse(&name, cause),
                None => files.accept(&name),
            }
        }
    }

    fn found_in_use(&mut self, at: usize) {
        if let Some(watched) = self.files.get_mut(at)
            && watched.refused.take().is_some()
        {
            info!(file = %watched.file.path().display(), "the file holds the credentials in use again");
        }
    }

    fn accept(&mut self, at: usize, held: Vec<Credential>) {
        if let Some(watched) = self.files.get_mut(at) {
            watched.refused = None;
            watched.file.names = held.into_iter().map(|one| one.name).collect();
            info!(
                file = %watched.file.path().display(),
                credentials = watched.file.names.join(","),
                "new credentials are in use"
            );
        }
    }

    fn refuse(&mut self, at: usize, cause: String) {
        let Some(watched) = self.files.get_mut(at) else {
            return;
        };
        let is_known = watched
            .refused
            .as_ref()
            .is_some_and(|(known, at)| *known == cause && at.elapsed() < SAME_CAUSE);
        if !is_known {
            error!(cause, "new credentials are refused; the old ones stay valid");
            watched.refused = Some((cause, Instant::now()));
        }
    }

    /// All credentials, with the new ones in place of the old. They are judged together, because two files may have
    /// exchanged their secrets. A file whose new credentials can't be valid is refused, which may make others valid.
    fn settle(
        &self,
        news: &mut Vec<(usize, Vec<Credential>)>,
        refused: &mut Vec<(usize, String)>,
    ) -> Vec<Credential> {
        loop {
            let changed: Vec<&WatchedFile> = news.iter().filter_map(|(at, _)| self.files.get(*at)).collect();
            let is_kept = |one: &&Credential| {
                !changed
                    .iter()
                    .any(|watched| watched.file.names.contains(&one.name))
            };
            let kept = self.in_use.iter().filter(is_kept).map(|one| (None, one));
            let of_news = news
                .iter()
                .flat_map(|(at, held)| held.iter().map(|one| (Some(*at), one)));
            let all: Vec<(Option<usize>, &Credential)> = kept.chain(of_news).collect();
            let clash = clash(all.iter().map(|(_, one)| *one));
            // The kept ones were valid before, so the one at fault is new.
            let Some((Some(at), what)) = clash.map(|(index, what)| (all[index].0, what)) else {
                return all.into_iter().map(|(_, one)| one.clone()).collect();
            };
            let path = self
                .files
                .get(at)
                .map(|watched| watched.file.path().display().to_string());
            refused.push((at, format!("{}: {what}", path.unwrap_or_default())));
            news.retain(|(file, _)| *file != at);
        }
    }

    /// Remembers credentials that are no longer valid.
    fn remember(&mut self, before: Vec<Credential>) {
        let is = |left: &Credential, right: &Credential| {
            left.kind == right.kind && left.secret.expose_secret() == right.secret.expose_secret()
        };
        for old in before {
            if !self.in_use.iter().any(|one| is(one, &old)) {
                self.replaced.retain(|one| !is(one, &old));
                self.replaced.push_back(old);
            }
        }
        while self.replaced.len() > REPLACED_KEPT {
            self.replaced.pop_front();
        }
    }

    /// The values that dead letters must not hold.
    fn masked(&self) -> impl Iterator<Item = &Credential> {
        self.in_use.iter().chain(&self.replaced)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config;

    /// Two files, tokens and a named Basic credential, and a key that comes from elsewhere.
    struct Given {
        dir: tempfile::TempDir,
        rotation: CredentialFiles,
    }

    impl Given {
        fn new() -> Given {
            let dir = tempfile::tempdir().unwrap();
            let write = |name: &str, text: &str| {
                let path = dir.path().join(name);
                fs::write(&path, text).unwrap();
                path
            };
            let tokens = write("tokens", "t-old\n");
            let basic = write("basic", "cmc:old");
            let text = format!(
                "[ingest.auth]\nbearer_tokens_file = {tokens:?}\napi_keys = [\"k-1\"]\n[[ingest.auth.credentials]]\n\
                 name = \"console\"\nkind = \"basic\"\nvalue_file = {basic:?}\n"
            );
            let file = write("bridge.toml", &text);
            let ingest = config::load(&[file], std::iter::empty()).unwrap().config.ingest;
            let Auth::Credentials(in_use) = ingest.auth else {
                panic!("anonymous")
            };
            let rotation = CredentialFiles::new(in_use, &ingest.credential_files);
            Given { dir, rotation }
        }

        /// The result of a look at files with this contents: whether something changed, and how many files are
        /// refused.
        fn look(&mut self, tokens: &str, basic: &str) -> (bool, usize) {
            fs::write(self.dir.path().join("tokens"), tokens).unwrap();
            fs::write(self.dir.path().join("basic"), basic).unwrap();
            let readings = self.rotation.reader()();
            let is_in_use = self.rotation.is_in_use(&readings);
            let (changed, failures) = self.rotation.take(readings);
            assert_eq!(is_in_use, !changed && failures == 0);
            (changed, failures)
        }

        fn in_use(&self) -> String {
            shown(&self.rotation.in_use)
        }

        fn replaced(&self) -> String {
            shown(self.rotation.replaced.iter())
        }
    }

    fn shown<'c>(credentials: impl IntoIterator<Item = &'c Credential>) -> String {
        let shown = |one: &Credential| format!("{}={}", one.name, one.secret.expose_secret());
        let mut all: Vec<_> = credentials.into_iter().map(shown).collect();
        all.sort();
        all.join(" ")
    }

    #[test]
    fn a_rotation() {
        let mut given = Given::new();
        assert_eq!(given.look("t-old\n", "cmc:old"), (false, 0));
        assert_eq!(given.look("t-old\nt-new\n", "cmc:old"), (true, 0));
        assert_eq!(
            given.in_use(),
            "api-key-1=k-1 bearer-1=t-old bearer-2=t-new console=cmc:old"
        );
        assert_eq!(given.look("t-new\n", "cmc:new"), (true, 0));
        assert_eq!(given.in_use(), "api-key-1=k-1 bearer-1=t-new console=cmc:new");
        // A credential that only got another name was not replaced.
        assert_eq!(given.replaced(), "bearer-1=t-old console=cmc:old");
        let masked = shown(given.rotation.masked());
        assert_eq!(masked.split(' ').count(), 5, "{masked}");
        // One that comes back is remembered once when it is replaced again.
        given.look("t-old", "cmc:new");
        given.look("t-new", "cmc:new");
        assert_eq!(given.replaced(), "bearer-1=t-new bearer-1=t-old console=cmc:old");
    }

    #[test]
    fn what_can_not_be_used_changes_nothing_and_holds_up_no_other_file() {
        let mut given = Given::new();
        let old = "api-key-1=k-1 bearer-1=t-old console=cmc:old";
        for (tokens, basic, failures) in [
            ("", "cmc:old", 1),
            ("# t-old\n", "", 2),
            ("t-old\nt-old\n", "cmc:old", 1),
            ("t-new\nt new\n", "old", 2),
        ] {
            assert_eq!(given.look(tokens, basic), (false, failures));
            assert_eq!(given.in_use(), old);
        }
        assert_eq!(given.look("", "cmc:new"), (true, 1));
        assert_eq!(given.in_use(), "api-key-1=k-1 bearer-1=t-old console=cmc:new");
        fs::remove_file(given.dir.path().join("tokens")).unwrap();
        assert_eq!(given.rotation.take(given.rotation.reader()()), (false, 1));
        assert_eq!(given.look("t-old", "cmc:new"), (false, 0));
        assert!(
            given
                .rotation
                .files
                .iter()
                .all(|watched| watched.refused.is_none())
        );
    }

    /// Two named tokens, each in a file of its own, and the credentials in use after a look at files with these
    /// secrets.
    fn look_at_two(a: &str, b: &str) -> impl FnMut(&str, &str) -> ((bool, usize), String) + use<> {
        let dir = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for (name, secret) in [("a", a), ("b", b)] {
            let path = dir.path().join(name);
            fs::write(&path, secret).unwrap();
            let entry = format!("name = \"{name}\"\nkind = \"bearer\"\nvalue_file = {path:?}\n");
            text += &format!("[[ingest.auth.credentials]]\n{entry}");
        }
        let file = dir.path().join("bridge.toml");
        fs::write(&file, text).unwrap();
        let ingest = config::load(&[file], std::iter::empty()).unwrap().config.ingest;
        let Auth::Credentials(in_use) = ingest.auth else {
            panic!("anonymous")
        };
        let mut rotation = CredentialFiles::new(in_use, &ingest.credential_files);
        move |a, b| {
            fs::write(dir.path().join("a"), a).unwrap();
            fs::write(dir.path().join("b"), b).unwrap();
            (rotation.take(rotation.reader()()), shown(&rotation.in_use))
        }
    }

    #[test]
    fn two_files_may_exchange_their_secrets() {
        let mut look = look_at_two("one", "two");
        assert_eq!(look("two", "one"), ((true, 0), "a=two b=one".to_owned()));
        // One takes the secret that the other gives up, whichever comes first.
        assert_eq!(look("one", "three"), ((true, 0), "a=one b=three".to_owned()));
        assert_eq!(look("four", "one"), ((true, 0), "a=four b=one".to_owned()));
        // Half an exchange is none.
        assert_eq!(look("one", "one"), ((false, 1), "a=four b=one".to_owned()));
        // A secret that the other keeps, since its new one is refused, is not free.
        assert_eq!(look("one", "no token"), ((false, 2), "a=four b=one".to_owned()));
        assert_eq!(look("five", "five"), ((true, 1), "a=five b=one".to_owned()));
    }

    #[test]
    fn a_cause_is_logged_when_it_changes() {
        let mut given = Given::new();
        let mut logged = |tokens: &str| {
            given.look(tokens, "cmc:old");
            given.rotation.files[0].refused.clone().unwrap()
        };
        let first = logged("");
        assert_eq!(logged(""), first);
        let second = logged("t old");
        assert_ne!(second.0, first.0);
        assert!(!second.0.contains("t old"), "{second:?}");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_not_taken() {
        let mut given = Given::new();
        let first = given.rotation.reader()();
        fs::write(given.dir.path().join("tokens"), "t-ne").unwrap();
        let half = given.rotation.reader()();
        fs::write(given.dir.path().join("tokens"), "t-new").unwrap();
        let whole = given.rotation.reader()();
        let again = given.rotation.reader()();
        assert_eq!(given.rotation.take(settled(first, half)), (false, 0));
        assert_eq!(given.rotation.take(settled(whole, again)), (true, 0));
        assert_eq!(given.in_use(), "api-key-1=k-1 bearer-1=t-new console=cmc:old");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut given = Given::new();
        for round in 0..REPLACED_KEPT + 10 {
            assert_eq!(given.look(&format!("t-{round}"), "cmc:old"), (true, 0));
        }
        assert_eq!(given.rotation.replaced.len(), REPLACED_KEPT);
        assert!(!given.replaced().contains("t-old"));
    }
}
