//! A broker with TLS, SASL, client certificates and ACLs. Tests share it; each has its own topics and users.
//!
//! Only the harness uses the plain listener, whose anonymous user is the super user.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::{
    jars::java,
    kafka::{Broker, Extra, java_options, key_file, new_dir},
    process::{Process, watched},
    token_server::{AUDIENCE, ISSUER, TokenServer},
};

/// Every user's password. Tests search all output of the bridge for it.
pub const PASSWORD: &str = "pw-Zq8 x=1;7#wU";

/// Users with a SCRAM-SHA-512 credential; they have only the rights that their test grants.
const USERS: &[&str] = &[
    "cmc-bridge",
    "no-write",
    "no-read",
    "no-describe",
    "no-dead-letters",
    "no-create",
    "no-group",
    "no-group-read",
    "no-transactional-id",
    "asks-why",
    "loses-write",
    "is-refused",
];

/// A user that authenticates with PLAIN.
pub const PLAIN_USER: &str = "cmc-bridge-plain";

/// The subject of the client certificate.
pub const CERTIFIED_USER: &str = "cmc-bridge-certified";

/// The running broker and the files that clients need to reach it.
pub struct Secured {
    broker: Broker,
    sasl_ssl: u16,
    ssl: u16,
    dir: PathBuf,
    pub tokens: TokenServer,
}

/// The broker that tests share.
pub fn secured() -> &'static Secured {
    static SECURED: OnceLock<Secured> = OnceLock::new();
    SECURED.get_or_init(Secured::start)
}

impl Secured {
    fn start() -> Self {
        let dir = new_dir("secured");
        write_certificates(&dir);
        fs::write(dir.join("password"), format!("{PASSWORD}\n")).unwrap();
        fs::write(dir.join("wrong-password"), "wrong").unwrap();
        let tokens = TokenServer::start(&dir.join("token-server.pem"));
        let (mut sasl_ssl, mut ssl) = (0, 0);
        let broker = Broker::start(None, |listeners, free_port| {
            (sasl_ssl, ssl) = (free_port(), free_port());
            let own = format!("SASL_SSL://127.0.0.1:{sasl_ssl},SSL://127.0.0.1:{ssl}");
            let plain = listeners.split(',').next().unwrap();
            Extra {
                properties: properties(&dir, listeners, plain, &own),
                format: USERS
                    .iter()
                    .flat_map(|user| {
                        let credential = format!("SCRAM-SHA-512=[name=\"{user}\",password=\"{PASSWORD}\"]");
                        ["--add-scram".to_owned(), credential]
                    })
                    .collect(),
            }
        });
        Secured {
            broker,
            sasl_ssl,
            ssl,
            dir,
            tokens,
        }
    }

    /// The plain listener, for the harness.
    pub fn bootstrap(&self) -> String {
        self.broker.bootstrap()
    }

    /// The listener for SCRAM-SHA-512, PLAIN and OAUTHBEARER.
    pub fn sasl_ssl(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_ssl)
    }

    /// The listener that requires a client certificate.
    pub fn ssl(&self) -> String {
        format!("127.0.0.1:{}", self.ssl)
    }

    /// The path of a file: `ca.pem`, `other-ca.pem`, `client.pem`, `client.key`, `password`, `wrong-password`.
    pub fn file(&self, name: &str) -> String {
        let path = self.dir.join(name);
        assert!(path.exists(), "{}", path.display());
        path.to_str().unwrap().to_owned()
    }

    /// Runs Kafka's ACL tool (`kafka-acls.sh`) as the super user, with all these commands in parallel.
    pub fn acls<S: AsRef<str>>(&self, commands: &[Vec<S>]) {
        let runs: Vec<(Process, PathBuf)> = commands
            .iter()
            .enumerate()
            .map(|(n, args)| {
                let mut all = java_options(self.broker.dir(), "128m");
                all.push("org.apache.kafka.tools.AclCommand".into());
                all.push("--bootstrap-server".into());
                all.push(self.bootstrap().into());
                all.extend(args.iter().map(|arg| OsString::from(arg.as_ref())));
                let log = new_dir("acls").join(format!("{n}.log"));
                let file = File::create(&log).unwrap();
                let mut command = watched(&java().program, &all);
                command.stdout(file.try_clone().unwrap()).stderr(file);
                (Process::spawn(&mut command).unwrap(), log)
            })
            .collect();
        for ((mut run, log), command) in runs.into_iter().zip(commands) {
            let status = run.wait(Duration::from_secs(180));
            let output = fs::read_to_string(log).unwrap();
            let command: Vec<&str> = command.iter().map(AsRef::as_ref).collect();
            assert!(
                status.is_some_and(|status| status.success()),
                "{command:?} ended with {status:?}:\n{output}"
            );
        }
    }
}

fn properties(dir: &Path, listeners: &str, plain: &str, own: &str) -> String {
    let module = "org.apache.kafka.common.security";
    format!(
        "listeners={listeners},{own}\n\
         advertised.listeners={plain},{own}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={server}\n\
         ssl.truststore.type=PEM\n\
         ssl.truststore.location={ca}\n\
         listener.name.ssl.ssl.client.auth=required\n\
         sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN,OAUTHBEARER\n\
         # A connection ends with its token.\n\
         listener.name.sasl_ssl.oauthbearer.connections.max.reauth.ms=3600000\n\
         {oauth}.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required;\n\
         {oauth}.sasl.server.callback.handler.class={module}.oauthbearer.OAuthBearerValidatorCallbackHandler\n\
         {oauth}.sasl.oauthbearer.jwks.endpoint.url=file://{keys}\n\
         {oauth}.sasl.oauthbearer.expected.issuer={ISSUER}\n\
         {oauth}.sasl.oauthbearer.expected.audience={AUDIENCE}\n\
         listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
         listener.name.sasl_ssl.plain.sasl.jaas.config={module}.plain.PlainLoginModule required \
         user_{PLAIN_USER}=\"{PASSWORD}\";\n\
         connection.failed.authentication.delay.ms=100\n\
         # Less than the bridge asks for with one record per request.\n\
         transaction.max.timeout.ms=20000\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS\n",
        oauth = "listener.name.sasl_ssl.oauthbearer",
        keys = key_file().display(),
        server = dir.join("server.pem").display(),
        ca = dir.join("ca.pem").display(),
    )
}

/// Writes a CA with certificates for the broker (for its address, not for `localhost`) and for a client, and an unrelated
/// CA with one for the token endpoint.
fn write_certificates(dir: &Path) {
    let write = |name: &str, text: String| fs::write(dir.join(name), text).unwrap();
    let ca = authority("cmc-bridge test CA");
    write("ca.pem", ca.pem());
    let other = authority("another CA");
    write("other-ca.pem", other.pem());
    let signed = |ca: &CertifiedIssuer<'static, KeyPair>, name: &str, addresses: &[&str]| {
        let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
        let mut params = CertificateParams::new(addresses).unwrap();
        params.distinguished_name = common_name(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, ca).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = signed(&ca, "broker", &["127.0.0.1"]);
    write("server.pem", key + &certificate);
    let (certificate, key) = signed(&other, "token endpoint", &["127.0.0.1"]);
    write("token-server.pem", key + &certificate);
    let (certificate, key) = signed(&ca, CERTIFIED_USER, &[]);
    write("client.pem", certificate);
    write("client.key", key);
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}
