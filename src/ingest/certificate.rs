//! The certificate and key of the webhooks' port: from two PEM files to a rustls configuration.
//!
//! A pair is accepted or refused as a whole. Every certificate of the chain must parse, the private key must have no
//! passphrase, and the *first* certificate must belong to that key. An expired certificate is accepted, since a
//! client that checks it reports it and one that does not goes on; whoever loads it warns ([`Pair::warning`]).
//!
//! The two files are replaced one after the other, or both at once by a symlink (Kubernetes). So the first file is
//! read again after the second, and if it has changed in between, both are read again.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use sha1::{Digest, Sha1};
use thiserror::Error;
use tokio_rustls::rustls::{
    self, InconsistentKeys, ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use x509_cert::{
    certificate::{CertificateInner, Raw},
    der::Decode,
};

use crate::{config, human};

/// A larger file is no certificate.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Attempts to read files that keep changing.
const MAX_READINGS: usize = 5;
const CERTIFICATE: &str = "ingest.tls.certificate";
const KEY: &str = "ingest.tls.key";

/// A certificate with its key, ready to serve.
pub struct Pair {
    pub(super) server: Arc<ServerConfig>,
    fingerprint: Fingerprint,
    starts: i64,
    expires: i64,
}

/// Shows whether the files have changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 20]);

/// Why a pair is refused: the configuration key, its file, the cause and the cure.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key}: {file}: {what}; {fix}")]
pub struct PairError {
    key: &'static str,
    /// In a form that may be shown.
    file: String,
    what: String,
    fix: &'static str,
}

impl Pair {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// A file can't be read or holds something else, or the two don't belong together.
    pub fn load(tls: &config::TlsConfig) -> Result<Pair, PairError> {
        let files = Files::read(tls)?;
        Pair::new(tls, &files)
    }

    /// Like [`Pair::load`]; `None` if the files have this fingerprint.
    pub(super) fn load_other(tls: &config::TlsConfig, than: Fingerprint) -> Result<Option<Pair>, PairError> {
        let files = Files::read(tls)?;
        if files.fingerprint() == than {
            return Ok(None);
        }
        Pair::new(tls, &files).map(Some)
    }

    fn new(tls: &config::TlsConfig, files: &Files) -> Result<Pair, PairError> {
        Pair::of(tls, files).map_err(|error| {
            // Not every error names the file at fault.
            let both = [(&tls.certificate, &files.certificate), (&tls.key, &files.key)];
            let mut faults = both
                .iter()
                .filter_map(|(path, bytes)| Some((path, config::text_fault(bytes)?)));
            match faults.next() {
                None => error,
                Some((path, fault)) => PairError {
                    what: format!("{} ({}: {fault})", error.what, path.display()),
                    ..error
                },
            }
        })
    }

    fn of(tls: &config::TlsConfig, files: &Files) -> Result<Pair, PairError> {
        let of_certificate = |what, fix| PairError::new(CERTIFICATE, &tls.certificate, what, fix);
        let of_key = |what, fix| PairError::new(KEY, &tls.key, what, fix);
        let unreadable = |error: &dyn std::fmt::Display| {
            of_certificate(format!("can't be parsed: {error}"), "give certificates as PEM")
        };

        let chain = CertificateDer::pem_slice_iter(&files.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unreadable(&error))?;
        let mut validities = Vec::with_capacity(chain.len());
        for certificate in &chain {
            validities.push(validity(certificate).map_err(|error| unreadable(&error))?);
        }
        let Some(&(starts, expires)) = validities.first() else {
            let fix = "give the server's certificate as PEM, followed by the intermediate ones";
            return Err(of_certificate("holds no certificate".to_owned(), fix));
        };

        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| match error {
            pem::Error::NoItemsFound => of_key(
                "holds no private key that can be read".to_owned(),
                "give the key as PEM, without a passphrase",
            ),
            error => of_key(format!("can't be parsed: {error}"), "give the key as PEM"),
        })?;
        let provider = Arc::new(ring::default_provider());
        let key = provider.key_provider.load_private_key(key).map_err(|error| {
            let fix = "give an RSA key of 2048 to 8192 bits, an ECDSA key (P-256, P-384) or an Ed25519 key";
            of_key(format!("can't be used: {error}"), fix)
        })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let what = format!(
                    "is not the key of the first certificate in {}",
                    tls.certificate.display()
                );
                return Err(of_key(what, "give certificate and key of one issue"));
            }
            Err(error) => return Err(unreadable(&error)),
        }

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| unreadable(&error))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Pair {
            server: Arc::new(server),
            fingerprint: files.fingerprint(),
            starts,
            expires,
        })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// When the server's certificate expires, in seconds since the Unix epoch.
    pub fn expires(&self) -> i64 {
        self.expires
    }

    /// [`Pair::expires`] for people.
    pub fn expires_at(&self) -> String {
        human::time(self.expires * 1_000_000)
    }

    /// Why clients will refuse the certificate now, as far as its own dates go.
    pub fn warning(&self) -> Option<String> {
        self.warning_at(Timestamp::now().as_second())
    }

    fn warning_at(&self, now: i64) -> Option<String> {
        if now >= self.expires {
            Some(format!("expired at {}", human::time(self.expires * 1_000_000)))
        } else if now < self.starts {
            Some(format!(
                "is not valid before {}",
                human::time(self.starts * 1_000_000)
            ))
        } else {
            None
        }
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl PairError {
    fn new(key: &'static str, file: &Path, what: String, fix: &'static str) -> PairError {
        PairError {
            key,
            file: config::shown_path(file),
            what,
            fix,
        }
    }
}

/// The contents of both files.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(tls: &config::TlsConfig) -> Result<Files, PairError> {
        let certificate = || read(CERTIFICATE, &tls.certificate);
        let mut files = Files {
            certificate: certificate()?,
            key: read(KEY, &tls.key)?,
        };
        for _ in 1..MAX_READINGS {
            let again = certificate()?;
            if again == files.certificate {
                break;
            }
            files.certificate = again;
            files.key = read(KEY, &tls.key)?;
        }
        Ok(files)
    }

    fn fingerprint(&self) -> Fingerprint {
        let digest = Sha1::new()
            .chain_update(self.certificate.len().to_be_bytes())
            .chain_update(&self.certificate)
            .chain_update(&self.key);
        Fingerprint(digest.finalize().into())
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, PairError> {
    let refused = |what| {
        let fix = "give a PEM file that this user may read";
        PairError::new(key, path, what, fix)
    };
    let mut bytes = Vec::new();
    let read: io::Result<usize> =
        File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| refused(format!("can't be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(refused("is larger than 1 MiB".to_owned()));
    }
    Ok(bytes)
}

/// Start and end, in seconds since the Unix epoch.
fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), x509_cert::der::Error> {
    // `Raw` accepts what the rules forbid but the world uses, such as long serial numbers.
    let certificate = CertificateInner::<Raw>::from_der(certificate)?;
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs() as i64;
    Ok((seconds(validity.not_before), seconds(validity.not_after)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    struct Made {
        _dir: tempfile::TempDir,
        tls: config::TlsConfig,
    }

    /// Files with these contents.
    fn made(certificate: &str, key: &str) -> Made {
        let dir = tempfile::tempdir().unwrap();
        let tls = config::TlsConfig {
            certificate: dir.path().join("tls.crt"),
            key: dir.path().join("tls.key"),
            reload: Duration::from_secs(1),
        };
        std::fs::write(&tls.certificate, certificate).unwrap();
        std::fs::write(&tls.key, key).unwrap();
        Made { _dir: dir, tls }
    }

    /// A certificate that is valid from 2020 until `expires`, and its key.
    fn issue(expires: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["bridge.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(expires, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_good_pair() {
        let (certificate, key) = issue(2100);
        // Text around the blocks does not matter, and one file may hold both.
        let both = format!("# from the issuer\n{key}{certificate}");
        for made in [made(&certificate, &key), made(&both, &both)] {
            let pair = Pair::load(&made.tls).unwrap();
            assert_eq!(pair.expires(), 4_102_444_800);
            assert_eq!(pair.expires_at(), "2100-01-01T00:00:00Z");
            assert_eq!(pair.warning_at(1_800_000_000), None);
            assert_eq!(pair.server.alpn_protocols, [b"http/1.1".to_vec()]);
        }
    }

    #[test]
    fn dates_are_a_warning() {
        let (certificate, key) = issue(2021);
        let pair = Pair::load(&made(&certificate, &key).tls).unwrap();
        let warning = |now| pair.warning_at(now).unwrap();
        assert_eq!(warning(1_609_459_200), "expired at 2021-01-01T00:00:00Z");
        assert_eq!(pair.warning_at(1_609_459_199), None);
        assert_eq!(warning(1_500_000_000), "is not valid before 2020-01-01T00:00:00Z");
    }

    #[test]
    fn refusals_name_file_and_cause() {
        let (certificate, key) = issue(2100);
        let (other, _) = issue(2100);
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let cut = &certificate[..certificate.len() / 2];
        let bad_link = format!("{certificate}{garbage}");
        let cases: [(&str, &str, &str, &str); 10] = [
            ("", &key, "tls.crt", "holds no certificate"),
            (&key, &key, "tls.crt", "holds no certificate"),
            (cut, &key, "tls.crt", "can't be parsed"),
            (garbage, &key, "tls.crt", "can't be parsed"),
            (&bad_link, &key, "tls.crt", "can't be parsed"),
            (&certificate, "", "tls.key", "holds no private key"),
            (&certificate, &certificate, "tls.key", "holds no private key"),
            (&certificate, encrypted, "tls.key", "without a passphrase"),
            (&certificate, no_key, "tls.key", "can't be used"),
            (
                &other,
                &key,
                "tls.key",
                "is not the key of the first certificate in",
            ),
        ];
        for (certificate, key, file, cause) in cases {
            let made = made(certificate, key);
            let error = Pair::load(&made.tls).unwrap_err().to_string();
            let path = made.tls.certificate.with_file_name(file);
            for part in ["ingest.tls.", &path.display().to_string(), cause] {
                assert!(error.contains(part), "no {part:?} in {error}");
            }
        }
        let marked = |text: &str| format!("\u{FEFF}{text}");
        let two = format!("{certificate}{other}");
        for (certificate, key, file) in [
            (marked(&certificate), key.clone(), "tls.crt"),
            (certificate.clone(), marked(&key), "tls.key"),
            // Its second certificate is read, to which the key does not belong.
            (marked(&two), key.clone(), "tls.crt"),
        ] {
            let made = made(&certificate, &key);
            let error = Pair::load(&made.tls).unwrap_err().to_string();
            let fault = format!("{file}: it begins with a byte order mark");
            assert!(error.contains(&fault), "no {fault:?} in {error}");
        }
        let made = made(&certificate, &key);
        std::fs::remove_file(&made.tls.key).unwrap();
        let error = Pair::load(&made.tls).unwrap_err().to_string();
        assert!(
            error.starts_with("ingest.tls.key: ") && error.contains("can't be read"),
            "{error}"
        );
    }

    #[test]
    fn only_other_contents_are_loaded_again() {
        let (certificate, key) = issue(2100);
        let made = made(&certificate, &key);
        let pair = Pair::load(&made.tls).unwrap();
        std::fs::write(&made.tls.certificate, &certificate).unwrap();
        let other = || Pair::load_other(&made.tls, pair.fingerprint());
        assert!(other().unwrap().is_none());
        let (certificate, key) = issue(2101);
        std::fs::write(&made.tls.certificate, &certificate).unwrap();
        assert!(other().is_err());
        std::fs::write(&made.tls.key, &key).unwrap();
        assert_eq!(other().unwrap().unwrap().expires_at(), "2101-01-01T00:00:00Z");
    }
}
