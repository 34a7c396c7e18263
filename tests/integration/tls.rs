//! TLS on the webhook port: handshakes, limits, and certificates that change while it serves. These tests need no Kafka.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};

use crate::{
    bridge::{Bridge, NO_KAFKA, Setup},
    cmc::{delivery, message, webhook},
    http::{EVENTS, Response, read_response},
    kafka::new_dir,
    wait,
};

const LIMIT: Duration = Duration::from_secs(180);
const EXPIRY: &str = "cmc_bridge_tls_certificate_expiry_timestamp_seconds";
const RELOAD_FAILURES: &str = "cmc_bridge_tls_reload_failures_total";
const HANDSHAKE_FAILURES: &str = "cmc_bridge_tls_handshake_failures_total";

/// Midnight on 1 January 2100 and 2101, in Unix time.
const YEAR_2100: f64 = 4_102_444_800.0;
const YEAR_2101: f64 = 4_133_980_800.0;

/// A root that clients trust, and an intermediate authority that issues certificates.
pub struct Authority {
    root: CertificateDer<'static>,
    /// The root in PEM.
    pub root_pem: String,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A server certificate as the bridge gets it.
pub struct Issued {
    /// The certificate, then the intermediate one.
    pub chain: String,
    pub key: String,
    leaf: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Authority {
        let params = || {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params(), key()).unwrap();
        let intermediate = CertifiedIssuer::signed_by(params(), key(), &root).unwrap();
        Authority {
            root: root.der().clone(),
            root_pem: root.pem(),
            intermediate,
        }
    }

    /// A certificate for the loopback address that is valid until the beginning of this year.
    pub fn issue(&self, until: i32) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        let leaf = params.signed_by(&key, &self.intermediate).unwrap();
        Issued {
            chain: leaf.pem() + &self.intermediate.pem(),
            key: key.serialize_pem(),
            leaf: leaf.der().clone(),
        }
    }

    fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }

    /// Opens a connection over TLS and completes its handshake.
    fn connect(&self, address: SocketAddr) -> io::Result<Client> {
        connect(address, self.client_config(&[&TLS13, &TLS12]))
    }
}

/// A connection over TLS.
struct Client(BufReader<StreamOwned<ClientConnection, TcpStream>>);

fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<Client> {
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).unwrap(), tcp(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Client(BufReader::new(stream)))
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

impl Client {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)?;
        self.0.get_mut().flush()
    }

    fn answer(&mut self) -> io::Result<Response> {
        read_response(&mut self.0)
    }

    fn post(&mut self, body: &str) -> io::Result<Response> {
        let length = body.len();
        let request = format!(
            "POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.send(request.as_bytes())?;
        self.answer()
    }

    fn is_accepted(&mut self) -> bool {
        self.post(&delivery("a")).unwrap().status == 200
    }

    fn leaf(&self) -> &CertificateDer<'_> {
        &self.0.get_ref().conn.peer_certificates().unwrap()[0]
    }

    fn version(&self) -> ProtocolVersion {
        self.0.get_ref().conn.protocol_version().unwrap()
    }

    /// Reads to the end of the connection, which must be orderly, with no further byte.
    fn expect_end(&mut self) {
        assert_eq!(self.0.read(&mut [0; 16]).unwrap(), 0);
    }
}

/// The two files as the kubelet lays out a secret: links into a directory that is itself reached by a link.
struct Secret {
    dir: PathBuf,
    writes: u32,
}

impl Secret {
    fn new(issued: &Issued) -> Secret {
        let mut secret = Secret {
            dir: new_dir("tls"),
            writes: 0,
        };
        secret.write(&issued.chain, &issued.key);
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), secret.dir.join(name)).unwrap();
        }
        secret
    }

    /// Changes both files at once.
    fn write(&mut self, certificate: &str, key: &str) {
        self.writes += 1;
        let version = format!("..{}", self.writes);
        let dir = self.dir.join(&version);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("tls.crt"), certificate).unwrap();
        fs::write(dir.join("tls.key"), key).unwrap();
        let next = self.dir.join("..data_tmp");
        symlink(&version, &next).unwrap();
        fs::rename(&next, self.dir.join("..data")).unwrap();
    }

    fn setup(&self) -> Setup {
        let path = |name| self.dir.join(name).to_str().unwrap().to_owned();
        Setup::new(NO_KAFKA)
            .set("ingest.tls.certificate", &path("tls.crt"))
            .set("ingest.tls.key", &path("tls.key"))
            .set("ingest.tls.reload", "100ms")
    }
}

/// An authority, the files, the certificate in them, and a bridge that serves with it.
fn served(adapt: impl FnOnce(Setup) -> Setup) -> (Authority, Secret, Issued, Bridge) {
    let authority = Authority::new();
    let issued = authority.issue(2100);
    let secret = Secret::new(&issued);
    let bridge = adapt(secret.setup()).start();
    (authority, secret, issued, bridge)
}

/// Sends bytes and reads everything that comes back; a reset also counts as the end.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = tcp(address);
    stream.write_all(bytes).unwrap();
    let mut back = Vec::new();
    match stream.read_to_end(&mut back) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection was not ended: {error}"),
    }
    back
}

/// Whether these bytes are a fatal TLS alert with this number.
fn is_alert(bytes: &[u8], description: u8) -> bool {
    matches!(bytes, [0x15, 3, _, 0, 2, 2, last] if *last == description)
}

#[test]
fn understood_over_tls_1_2_and_1_3() {
    let (authority, _secret, issued, bridge) = served(|setup| setup);
    for (version, number) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let mut config = (*authority.client_config(&[version])).clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut client = connect(bridge.ingest, Arc::new(config)).unwrap();
        assert_eq!((client.version(), client.leaf()), (number, &issued.leaf));
        assert_eq!(
            client.0.get_ref().conn.alpn_protocol(),
            Some(b"http/1.1".as_slice())
        );
        for _ in 0..3 {
            assert!(client.is_accepted());
        }
        // Larger than a TLS record, a frame of the body and all buffers.
        let large = webhook("deliveries", "pro", &[&message("a", &"x".repeat(500_000))]);
        assert_eq!(client.post(&large).unwrap().status, 200);
    }
    let scrape = bridge.scrape();
    assert_eq!(scrape.stream("cmc_bridge_events_total", "deliveries"), 8.0);
    assert_eq!(scrape.get(EXPIRY, &[]), YEAR_2100);
    assert_eq!(scrape.get(RELOAD_FAILURES, &[]), 0.0);
    assert_eq!(scrape.sum(HANDSHAKE_FAILURES, &[]), 0.0);
}

#[test]
fn without_tls_no_expiry_is_exported() {
    let scrape = Setup::new(NO_KAFKA).start().scrape();
    assert_eq!(scrape.label_values(EXPIRY, "x"), [""; 0]);
    assert_eq!(scrape.sum(EXPIRY, &[]), 0.0);
}

#[test]
fn older_versions_and_plain_http_are_refused() {
    let (authority, _secret, _issued, bridge) = served(|setup| setup);
    // A ClientHello with one version, one cipher suite and the extension signature_algorithms.
    let hello = |version: u8, suite: [u8; 2]| {
        let mut hello = vec![3, version];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, suite[0], suite[1], 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
        let length = hello.len() as u8;
        let mut record = vec![0x16, 3, 1, 0, length + 4, 1, 0, 0, length];
        record.extend(hello);
        record
    };
    // TLS 1.1 and 1.0, acceptable except for the version. Several clients cause only one line.
    for version in [2, 1, 2] {
        let back = exchange(bridge.ingest, &hello(version, [0xc0, 0x2b]));
        assert!(is_alert(&back, 70), "no protocol_version in {back:?}");
    }
    // TLS 1.2 with only TLS_RSA_WITH_AES_128_CBC_SHA.
    let back = exchange(bridge.ingest, &hello(3, [0, 0x2f]));
    assert!(is_alert(&back, 40), "no handshake_failure in {back:?}");

    let plain = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}");
    let back = exchange(bridge.ingest, plain.as_bytes());
    assert!(!back.starts_with(b"HTTP"), "{back:?}");

    let mut h2 = (*authority.client_config(&[&TLS13])).clone();
    h2.alpn_protocols = vec![b"h2".to_vec()];
    assert!(connect(bridge.ingest, Arc::new(h2)).is_err());

    for (reason, count) in [
        ("no_common_version", 3.0),
        ("no_common_suite", 1.0),
        ("no_common_protocol", 1.0),
        ("not_tls", 1.0),
    ] {
        bridge.wait_for(LIMIT, reason, |scrape| {
            scrape.get(HANDSHAKE_FAILURES, &[("reason", reason)]) == count
        });
    }
    assert_eq!(bridge.scrape().sum(HANDSHAKE_FAILURES, &[]), 6.0);
    let log = bridge.running.stderr();
    assert_eq!(log.matches("end TLS in a proxy").count(), 1, "{log}");
    assert!(authority.connect(bridge.ingest).unwrap().is_accepted());
}

#[test]
fn other_protocols_on_the_tls_port_are_named() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\xc3\x50\0\x50";
    let plain = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\n\r\n");
    for (bytes, hint) in [
        (
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n"[..],
            "PROXY protocol",
        ),
        (v2, "PROXY protocol"),
        (plain.as_bytes(), "plain HTTP"),
    ] {
        // Each gets its own bridge, because the log has at most one such line per second.
        let (_authority, _secret, _issued, bridge) = served(|setup| setup);
        exchange(bridge.ingest, bytes);
        crate::wait::until(LIMIT, hint, || {
            let log = bridge.running.stderr();
            let mut lines = log.lines().filter(|line| line.contains("a TLS handshake failed"));
            lines.any(|line| line.contains(hint)).then_some(())
        });
    }
}

#[test]
fn new_connections_get_the_new_certificate() {
    let (authority, mut secret, first, bridge) = served(|setup| setup);
    let mut kept = authority.connect(bridge.ingest).unwrap();
    assert!(kept.is_accepted());
    let second = authority.issue(2101);
    secret.write(&second.chain, &second.key);
    bridge.wait_for(LIMIT, "the second certificate", |scrape| {
        scrape.get(EXPIRY, &[]) == YEAR_2101
    });
    let mut new = wait::until(LIMIT, "a connection with it", || {
        let client = authority.connect(bridge.ingest).unwrap();
        (*client.leaf() == second.leaf).then_some(client)
    });
    assert!(new.is_accepted());
    assert!(kept.is_accepted());
    assert_eq!(*kept.leaf(), first.leaf);
    assert_eq!(bridge.scrape().get(RELOAD_FAILURES, &[]), 0.0);
}

#[test]
fn a_bad_new_pair_is_refused_and_the_old_one_kept() {
    let (authority, mut secret, first, bridge) = served(|setup| setup);
    let second = authority.issue(2101);
    let cut = &second.chain[..second.chain.len() / 3];
    let refusal = "the new TLS certificate is refused";
    let lines = |cause: &str| {
        let log = bridge.running.stderr();
        log.lines()
            .filter(|line| line.contains(refusal) && line.contains(cause))
            .count()
    };
    for (certificate, key, cause) in [
        ("", second.key.as_str(), "tls.crt: holds no certificate"),
        (cut, &second.key, "tls.crt: can't be parsed"),
        (&second.chain, "", "tls.key: holds no private key"),
        (
            &second.chain,
            &first.key,
            "tls.key: is not the key of the first certificate in",
        ),
    ] {
        let before = bridge.scrape().get(RELOAD_FAILURES, &[]);
        secret.write(certificate, key);
        // Each check is counted.
        let scrape = bridge.wait_for(LIMIT, cause, |scrape| {
            scrape.get(RELOAD_FAILURES, &[]) >= before + 3.0
        });
        assert_eq!(scrape.get(EXPIRY, &[]), YEAR_2100);
        // All checks share one line.
        wait::until(LIMIT, cause, || (lines(cause) == 1).then_some(()));
        let mut client = authority.connect(bridge.ingest).unwrap();
        assert!(client.is_accepted());
        assert_eq!(*client.leaf(), first.leaf);
    }
    // A missing file doesn't stop the bridge either.
    let before = bridge.scrape().get(RELOAD_FAILURES, &[]);
    fs::remove_file(secret.dir.join("tls.key")).unwrap();
    bridge.wait_for(LIMIT, "a look without the file", |scrape| {
        scrape.get(RELOAD_FAILURES, &[]) > before
    });
    assert!(authority.connect(bridge.ingest).unwrap().is_accepted());
    symlink("..data/tls.key", secret.dir.join("tls.key")).unwrap();
    // A good pair ends the refusals.
    secret.write(&second.chain, &second.key);
    bridge.wait_for(LIMIT, "the second certificate", |scrape| {
        scrape.get(EXPIRY, &[]) == YEAR_2101
    });
    let client = wait::until(LIMIT, "a connection with it", || {
        let client = authority.connect(bridge.ingest).unwrap();
        (*client.leaf() == second.leaf).then_some(client)
    });
    drop(client);
}

#[test]
fn an_expired_certificate_causes_a_warning() {
    let authority = Authority::new();
    let issued = authority.issue(2021);
    let bridge = Secret::new(&issued).setup().start();
    assert_eq!(bridge.scrape().get(EXPIRY, &[]), 1_609_459_200.0);
    let log = bridge.running.stderr();
    assert!(
        log.contains("the TLS certificate expired at 2021-01-01T00:00:00Z"),
        "{log}"
    );
    // This client does check, and reports it.
    assert!(authority.connect(bridge.ingest).is_err());
    bridge.wait_for(LIMIT, "a failed handshake", |scrape| {
        scrape.get(HANDSHAKE_FAILURES, &[("reason", "refused_by_client")]) == 1.0
    });
}

#[test]
fn a_bad_pair_at_the_start_is_a_configuration_error() {
    let authority = Authority::new();
    let (first, second) = (authority.issue(2100), authority.issue(2100));
    let mut secret = Secret::new(&first);
    let mut refused = |certificate: &str, key: &str| {
        secret.write(certificate, key);
        let setup = secret.setup();
        let mut running = setup.spawn();
        assert_eq!(running.wait_exit(LIMIT), 78);
        let left: Vec<_> = fs::read_dir(setup.spool_dir()).unwrap().collect();
        assert!(left.is_empty(), "the spool was touched: {left:?}");
        running.stderr()
    };
    let log = refused(&second.chain, &first.key);
    for part in [
        "ingest.tls.key: ",
        "/tls.key: is not the key of the first certificate in ",
        "/tls.crt;",
    ] {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    let log = refused("nothing", &first.key);
    assert!(log.contains("/tls.crt: holds no certificate"), "{log}");
}

#[test]
fn a_slow_handshake_is_cut() {
    let (authority, _secret, _issued, bridge) = served(|setup| {
        setup
            .set("ingest.header_timeout", "8s")
            .set("ingest.max_connections", "2")
    });
    let began = Instant::now();
    let mut slow = tcp(bridge.ingest);
    // The start of a 256-byte record.
    slow.write_all(&[0x16, 3, 1, 1, 0]).unwrap();
    let mut silent = tcp(bridge.ingest);
    for stream in [&mut slow, &mut silent] {
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back, b"");
    }
    assert!(began.elapsed() >= Duration::from_secs(8));
    bridge.wait_for(LIMIT, "two failed handshakes", |scrape| {
        scrape.get(HANDSHAKE_FAILURES, &[("reason", "timeout")]) >= 2.0
    });
    assert!(authority.connect(bridge.ingest).unwrap().is_accepted());
}

#[test]
fn unfinished_handshakes_keep_nobody_out() {
    let (authority, _secret, _issued, bridge) = served(|setup| {
        setup
            .set("ingest.header_timeout", "600s")
            .set("ingest.max_connections", "2")
    });
    let mut known = authority.connect(bridge.ingest).unwrap();
    assert!(known.is_accepted());
    let mut slow: Vec<_> = (0..20)
        .map(|_| {
            let mut slow = tcp(bridge.ingest);
            slow.write_all(&[0x16, 3, 1, 1, 0]).unwrap();
            slow
        })
        .collect();
    assert!(authority.connect(bridge.ingest).unwrap().is_accepted());
    for slow in &mut slow {
        let mut back = Vec::new();
        // A reset also counts as the end.
        let _ = slow.read_to_end(&mut back);
        assert_eq!(back, b"");
    }
    assert!(known.is_accepted());
}

#[test]
fn slow_requests_get_408() {
    let (authority, _secret, _issued, bridge) = served(|setup| {
        setup
            .set("ingest.header_timeout", "10s")
            .set("ingest.body_timeout", "10s")
    });
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    let begun = format!("{head}content-length: 1000\r\n\r\n{{");
    let mut slow: Vec<_> = [head, begun]
        .map(|request| {
            let mut client = authority.connect(bridge.ingest).unwrap();
            client.send(request.as_bytes()).unwrap();
            client
        })
        .into();
    // A request after another one on the same connection.
    let mut client = authority.connect(bridge.ingest).unwrap();
    assert!(client.is_accepted());
    client.send(b"POST").unwrap();
    slow.push(client);
    // A silent connection is closed silently.
    let mut silent = authority.connect(bridge.ingest).unwrap();
    for mut client in slow {
        let answer = client.answer().unwrap();
        assert_eq!(
            (answer.status, answer.media_type()),
            (408, "application/problem+json")
        );
        client.expect_end();
    }
    silent.expect_end();
    assert_eq!(
        bridge
            .scrape()
            .sum("cmc_bridge_webhooks_total", &[("outcome", "timeout")]),
        3.0
    );
}

#[test]
fn it_stops_cleanly() {
    let (authority, _secret, _issued, mut bridge) = served(|setup| {
        setup
            .set("shutdown.lame_duck", "15s")
            .set("shutdown.grace", "10s")
            .set("ingest.header_timeout", "60s")
    });
    let mut active = authority.connect(bridge.ingest).unwrap();
    let mut idle = authority.connect(bridge.ingest).unwrap();
    assert!(active.is_accepted() && idle.is_accepted());
    // Neither a stuck handshake nor an idle connection delays the stop.
    let mut stuck = tcp(bridge.ingest);
    stuck.write_all(&[0x16, 3, 1]).unwrap();
    bridge.terminate();
    wait::until(LIMIT, "/readyz 503", || {
        (bridge.probe("/readyz") == 503).then_some(())
    });
    let answer = active.post(&delivery("b")).unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    active.expect_end();
    idle.expect_end();
    let mut back = Vec::new();
    stuck.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"");
    assert_eq!(bridge.running.wait_exit(LIMIT), 0);
    assert!(!bridge.running.stderr().contains("still open"));
}
