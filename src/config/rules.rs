//! The configuration in the form that [`crate::cmc`] needs, because that module knows no configuration.

use std::iter::once;

use secrecy::ExposeSecret;

use super::{
    credentials::{Auth, Credential, CredentialKind},
    types::Config,
};
use crate::{
    cmc::{InboundRules, Rules, Secrets},
    stream::Stream,
};

impl Config {
    /// The rules by which bodies become records.
    pub fn rules(&self) -> Rules {
        Rules {
            enabled: Stream::ALL.map(|stream| self.stream(stream).enabled),
            max_events: self.ingest.max_events,
            max_record_bytes: self.kafka.max_record_bytes,
            time_zone: self.ingest.time_zone.clone(),
            time_zones: self.ingest.time_zones.clone(),
            secrets: secrets(self.ingest.auth.credentials()),
            inbound: self.stream(Stream::Inbound).enabled.then(|| InboundRules {
                path: self.ingest.inbound_path.clone(),
                content: self.mail_content,
            }),
            repeats: None,
        }
    }
}

impl Auth {
    /// The credentials; none if anybody may post.
    pub fn credentials(&self) -> &[Credential] {
        match self {
            Auth::Credentials(credentials) => credentials,
            Auth::Anonymous => &[],
        }
    }
}

/// The texts that dead letters must not hold: each secret, and the password of a Basic credential on its own.
pub fn secrets<'c>(credentials: impl IntoIterator<Item = &'c Credential>) -> Secrets {
    let values = credentials.into_iter().flat_map(|credential| {
        let secret = credential.secret.expose_secret();
        let password = secret
            .split_once(':')
            .filter(|_| credential.kind == CredentialKind::Basic)
            .map(|(_, password)| password);
        once(secret).chain(password)
    });
    Secrets::new(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmc::mask;

    #[test]
    fn the_password_of_a_basic_credential_counts_by_itself() {
        for (kind, masked) in [
            (CredentialKind::Basic, "user pass:word".len() - "user ".len()),
            (CredentialKind::ApiKey, 0),
        ] {
            let credential = Credential {
                name: "one".to_owned(),
                kind,
                secret: "user:pass:word".into(),
            };
            let secrets = secrets([&credential]);
            let count = |text: &[u8]| mask(text, &secrets).iter().filter(|byte| **byte == b'*').count();
            assert_eq!(count(b"user:pass:word"), "user:pass:word".len());
            assert_eq!(count(b"user pass:word"), masked, "{kind:?}");
        }
    }
}
