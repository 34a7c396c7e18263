//! Who may post webhooks.
//!
//! One valid credential is enough, wherever it is. The `Authorization` header (Basic, Bearer) is checked first,
//! before a byte of the body is read; the `api_key` of the body counts only if that header decided nothing.
//!
//! Timing reveals nothing about a secret. `subtle` compares what was presented with every configured credential of
//! its kind, and with every byte of each, with no early exit: the time depends on the number and lengths of the
//! configured secrets and on nothing that was presented. (Lengths are compared too, but only after the bytes.) Basic
//! credentials are compared in base64 without padding, so that nothing needs to be decoded; the base64 encodes UTF-8,
//! as the challenge says (RFC 7617, 2.1).
//!
//! The valid credentials may change while requests are being judged ([`Guard::accept`], called by
//! [`super::credential_reload`]). Each request is judged either by all of the old ones or by all of the new ones.
//!
//! A 401 for an invalid credential is a refusal. A 401 for a request without one is a challenge, since many clients
//! first ask without (`curl --anyauth`, Apache HttpClient): it is counted separately, and the connection stays open
//! for the next request.
//!
//! A 401 names the accepted schemes in `WWW-Authenticate`. HTTP has no scheme for a key inside the body, but a 401
//! must have a challenge: if there are only API keys it says `ApiKey`, which no client mistakes for something that it
//! could send in a header.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderValue},
};
use parking_lot::{RwLock, RwLockReadGuard};
use secrecy::{ExposeSecret, SecretString};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::{
    config::{Auth, Credential, CredentialKind},
    metrics::{CredentialUses, Metrics},
};

/// Decides whether a request comes from an admitted sender.
pub(super) struct Guard {
    anonymous: bool,
    valid: RwLock<Valid>,
    /// Never changes: a reload keeps the kinds, since a file has one kind and is never empty.
    challenge: HeaderValue,
}

/// The credentials that are valid now.
#[derive(Default)]
struct Valid {
    bearer: Vec<ConfiguredCredential>,
    basic: Vec<ConfiguredCredential>,
    api_keys: Vec<ConfiguredCredential>,
}

/// A configured credential in the form in which clients present it.
struct ConfiguredCredential {
    presented_as: SecretString,
    uses: CredentialUses,
}

impl Valid {
    fn new(credentials: &[Credential], metrics: &Metrics) -> Valid {
        let mut valid = Valid::default();
        for credential in credentials {
            let secret = credential.secret.expose_secret();
            let (list, presented_as) = match credential.kind {
                CredentialKind::Bearer => (&mut valid.bearer, secret.to_owned()),
                CredentialKind::Basic => (&mut valid.basic, STANDARD_NO_PAD.encode(secret)),
                CredentialKind::ApiKey => (&mut valid.api_keys, secret.to_owned()),
            };
            list.push(ConfiguredCredential {
                presented_as: presented_as.into(),
                uses: metrics.credential(&credential.name),
            });
        }
        valid
    }

    fn admits_header(&self, value: &[u8]) -> bool {
        let Some(space) = value.iter().position(|byte| *byte == b' ') else {
            return false;
        };
        let (scheme, rest) = value.split_at(space);
        let token = rest.trim_ascii();
        if scheme.eq_ignore_ascii_case(b"bearer") {
            admit(&self.bearer, token)
        } else if scheme.eq_ignore_ascii_case(b"basic") {
            let padding = token.iter().rev().take_while(|byte| **byte == b'=').count();
            admit(&self.basic, &token[..token.len() - padding])
        } else {
            false
        }
    }
}

/// What a request's header says about its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It has a valid credential, or none is required.
    Admitted,
    /// Its credential is invalid.
    Refused,
    /// It has no credential, and only a header could carry one.
    Missing,
    /// Its header has no credential; the body may hold an API key.
    AskBody,
}

impl Guard {
    pub(super) fn new(auth: &Auth, metrics: &Metrics) -> Guard {
        let (anonymous, valid) = match auth {
            Auth::Anonymous => (true, Valid::default()),
            Auth::Credentials(credentials) => (false, Valid::new(credentials, metrics)),
        };
        let challenge = match (valid.basic.is_empty(), valid.bearer.is_empty()) {
            (false, false) => "Basic realm=\"cmc-bridge\", charset=\"UTF-8\", Bearer",
            (false, true) => "Basic realm=\"cmc-bridge\", charset=\"UTF-8\"",
            (true, false) => "Bearer",
            (true, true) => "ApiKey realm=\"cmc-bridge\"",
        };
        Guard {
            anonymous,
            valid: RwLock::new(valid),
            challenge: HeaderValue::from_static(challenge),
        }
    }

    /// Makes these the valid credentials, and no others. They must be of the same kinds as before.
    pub(super) fn accept(&self, credentials: &[Credential], metrics: &Metrics) {
        let valid = Valid::new(credentials, metrics);
        *self.valid.write() = valid;
    }

    fn valid(&self) -> RwLockReadGuard<'_, Valid> {
        self.valid.read()
    }

    /// The value of `WWW-Authenticate`.
    pub(super) fn challenge(&self) -> HeaderValue {
        self.challenge.clone()
    }

    /// Judges a request by its header alone. The `Authorization` header is ignored if no credential is of a kind that
    /// it carries: a proxy may have added it for its own use.
    pub(super) fn judge(&self, headers: &HeaderMap) -> Admission {
        if self.anonymous {
            return Admission::Admitted;
        }
        let valid = self.valid();
        if !valid.basic.is_empty() || !valid.bearer.is_empty() {
            let mut presented = headers.get_all(AUTHORIZATION).iter().peekable();
            if presented.peek().is_some() {
                return if presented.any(|value| valid.admits_header(value.as_bytes())) {
                    Admission::Admitted
                } else {
                    Admission::Refused
                };
            }
        }
        if valid.api_keys.is_empty() {
            Admission::Missing
        } else {
            Admission::AskBody
        }
    }

    /// Whether the body's API key is valid.
    pub(super) fn admits_api_key(&self, api_key: Option<&str>) -> bool {
        api_key.is_some_and(|key| admit(&self.valid().api_keys, key.as_bytes()))
    }
}

/// Compares with every credential in the list, and counts the use of the one that matches.
fn admit(list: &[ConfiguredCredential], presented: &[u8]) -> bool {
    let mut admitted = Choice::from(0);
    let mut which = 0u64;
    for (index, known) in list.iter().enumerate() {
        let same = same(known.presented_as.expose_secret().as_bytes(), presented);
        which.conditional_assign(&(index as u64), same);
        admitted |= same;
    }
    let admitted = bool::from(admitted);
    if admitted && let Some(known) = list.get(which as usize) {
        known.uses.admitted();
    }
    admitted
}

/// Constant-time equality of byte strings of any length: the time depends on the length of the secret alone.
fn same(secret: &[u8], presented: &[u8]) -> Choice {
    let mut same = Choice::from(1);
    for (index, byte) in secret.iter().enumerate() {
        same &= byte.ct_eq(presented.get(index).unwrap_or(&0));
    }
    same & (secret.len() as u64).ct_eq(&(presented.len() as u64))
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn credentials(credentials: &[(CredentialKind, &str)]) -> Vec<Credential> {
        credentials
            .iter()
            .enumerate()
            .map(|(index, (kind, secret))| Credential {
                name: format!("c{index}"),
                kind: *kind,
                secret: (*secret).into(),
            })
            .collect()
    }

    fn metrics() -> Metrics {
        Metrics::new(&Registry::new(), &[], []).unwrap()
    }

    fn guard(list: &[(CredentialKind, &str)]) -> Guard {
        Guard::new(&Auth::Credentials(credentials(list)), &metrics())
    }

    fn headers(authorization: &[&str]) -> HeaderMap {
        authorization
            .iter()
            .map(|value| (AUTHORIZATION, value.parse().unwrap()))
            .collect()
    }

    const ALL: &[(CredentialKind, &str)] = &[
        (CredentialKind::Bearer, "token-1"),
        (CredentialKind::Bearer, "token-two"),
        (CredentialKind::Basic, "user:pass"),
        (CredentialKind::ApiKey, "key"),
    ];

    #[test]
    fn header_table() {
        use Admission::{Admitted, AskBody, Refused};
        let table: &[(&[&str], Admission)] = &[
            (&["Bearer token-1"], Admitted),
            (&["bearer  token-two "], Admitted),
            (&["Basic dXNlcjpwYXNz"], Admitted),
            (&["BASIC dXNlcjpwYXNz=="], Admitted),
            (&["Digest x", "Bearer token-1"], Admitted),
            (&["Bearer token-"], Refused),
            (&["Bearer token-11"], Refused),
            (&["Bearer token-1\t1"], Refused),
            (&["Bearer"], Refused),
            (&["Bearer "], Refused),
            (&[""], Refused),
            (&["Basic dXNlcjpwYXNy"], Refused),
            (&["Basic user:pass"], Refused),
            (&["Basic token-1"], Refused),
            (&["Bearer key"], Refused),
            (&[], AskBody),
        ];
        let guard = guard(ALL);
        for (authorization, expected) in table {
            assert_eq!(
                guard.judge(&headers(authorization)),
                *expected,
                "{authorization:?}"
            );
        }
    }

    #[test]
    fn basic_in_every_spelling() {
        use Admission::{Admitted, Refused};
        let guard = guard(&[
            (CredentialKind::Basic, "user:pass:word"),
            (CredentialKind::Basic, "cmc:鍵"),
            (CredentialKind::Basic, "u:1"),
        ]);
        for (value, expected) in [
            ("Basic dXNlcjpwYXNzOndvcmQ=", Admitted),
            ("Basic dXNlcjpwYXNzOndvcmQ", Admitted),
            ("basic   dXNlcjpwYXNzOndvcmQ=  ", Admitted),
            ("Basic Y21jOumNtQ==", Admitted),
            ("Basic dTox", Admitted),
            // user:pass unencoded, nonzero bits after the text, another alphabet, padding in between.
            ("Basic dXNlcjpwYXNz", Refused),
            ("Basic Y21jOumNtR==", Refused),
            ("Basic Y21jOum-tQ==", Refused),
            ("Basic dXNlcjpwYXNzOndvcmQ= =", Refused),
            ("Basic dTo=x", Refused),
            ("Basic ====", Refused),
            ("Basic", Refused),
            ("Basic\tdTox", Refused),
        ] {
            assert_eq!(guard.judge(&headers(&[value])), expected, "{value}");
        }
    }

    #[test]
    fn others_are_accepted_from_one_moment_on() {
        let metrics = metrics();
        let guard = Guard::new(&Auth::Credentials(credentials(&ALL[..1])), &metrics);
        let both = credentials(&ALL[..2]);
        guard.accept(&both, &metrics);
        for token in ["Bearer token-1", "Bearer token-two"] {
            assert_eq!(guard.judge(&headers(&[token])), Admission::Admitted);
        }
        guard.accept(&both[1..], &metrics);
        assert_eq!(guard.judge(&headers(&["Bearer token-1"])), Admission::Refused);
        assert_eq!(guard.judge(&headers(&["Bearer token-two"])), Admission::Admitted);
        // Counts continue by name, even for a credential that is gone.
        assert_eq!(metrics.credential("c0").count(), 1);
        assert_eq!(metrics.credential("c1").count(), 2);
    }

    #[test]
    fn without_api_keys_a_missing_header_is_refused() {
        assert_eq!(guard(&ALL[..3]).judge(&headers(&[])), Admission::Missing);
    }

    #[test]
    fn with_api_keys_alone_a_foreign_header_is_ignored() {
        assert_eq!(
            guard(&ALL[3..]).judge(&headers(&["Basic eDp5"])),
            Admission::AskBody
        );
    }

    #[test]
    fn api_keys() {
        let guard = guard(ALL);
        assert!(guard.admits_api_key(Some("key")));
        for wrong in [None, Some(""), Some("ke"), Some("keys"), Some("token-1")] {
            assert!(!guard.admits_api_key(wrong), "{wrong:?}");
        }
        assert_eq!(guard.valid().api_keys[0].uses.count(), 1);
    }

    #[test]
    fn each_use_is_counted_for_its_credential() {
        let guard = guard(ALL);
        guard.judge(&headers(&["Bearer token-two"]));
        guard.judge(&headers(&["Bearer wrong"]));
        let uses: Vec<_> = guard
            .valid()
            .bearer
            .iter()
            .map(|known| known.uses.count())
            .collect();
        assert_eq!(uses, [0, 1]);
    }

    #[test]
    fn challenges_name_what_is_configured() {
        for (credentials, challenge) in [
            (ALL, "Basic realm=\"cmc-bridge\", charset=\"UTF-8\", Bearer"),
            (&ALL[..2], "Bearer"),
            (&ALL[2..], "Basic realm=\"cmc-bridge\", charset=\"UTF-8\""),
            (&ALL[3..], "ApiKey realm=\"cmc-bridge\""),
        ] {
            assert_eq!(guard(credentials).challenge(), challenge);
        }
    }

    #[test]
    fn anonymous_admits_everybody() {
        let guard = Guard::new(&Auth::Anonymous, &metrics());
        assert_eq!(guard.judge(&headers(&["Bearer wrong"])), Admission::Admitted);
    }
}
