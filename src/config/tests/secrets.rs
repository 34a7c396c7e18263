//! Credentials and other secrets: their sources, those that are refused, and that none is ever shown.

use secrecy::ExposeSecret;

use super::{Given, SECRET, file, one, setting, variable};
use crate::config::{Auth, CredentialKind, Loaded, to_toml};

fn credentials(loaded: &Loaded) -> Vec<(&str, CredentialKind, &str)> {
    let Auth::Credentials(credentials) = &loaded.config.ingest.auth else {
        panic!("anonymous")
    };
    credentials
        .iter()
        .map(|credential| {
            (
                credential.name.as_str(),
                credential.kind,
                credential.secret.expose_secret(),
            )
        })
        .collect()
}

#[test]
fn credentials_from_every_source() {
    let mut given = Given::default();
    let keys = given.write("keys", "# old\n\n  hunter2-a  \r\nhunter2-b");
    let named = given.write("named", "cmc:hunter2 with space\n");
    let text = format!(
        "[ingest.auth]\nbearer_tokens = [\"hunter2-1\", \"hunter2-2\"]\nbasic = \"u:hunter2-3\"\n\
         api_keys_file = {keys:?}\n\
         [[ingest.auth.credentials]]\nname = \"console\"\nkind = \"basic\"\nvalue_file = {named:?}\n\
         [[ingest.auth.credentials]]\nname = \"script\"\nkind = \"api_key\"\nvalue = \"hunter2, 4\"\n"
    );
    let loaded = given.config_file("bridge.toml", &text).loaded();
    assert_eq!(
        credentials(&loaded),
        [
            ("bearer-1", CredentialKind::Bearer, "hunter2-1"),
            ("bearer-2", CredentialKind::Bearer, "hunter2-2"),
            ("basic-1", CredentialKind::Basic, "u:hunter2-3"),
            ("api-key-1", CredentialKind::ApiKey, "hunter2-a"),
            ("api-key-2", CredentialKind::ApiKey, "hunter2-b"),
            ("console", CredentialKind::Basic, "cmc:hunter2 with space"),
            ("script", CredentialKind::ApiKey, "hunter2, 4"),
        ]
    );
    loaded.require_credentials().unwrap();
}

#[test]
fn serve_without_a_credential_says_what_to_set() {
    let error = Given::default()
        .loaded()
        .require_credentials()
        .unwrap_err()
        .to_string();
    for part in [
        "ingest.auth.bearer_tokens (CMC_BRIDGE__INGEST__AUTH__BEARER_TOKENS)",
        "ingest.auth.basic (CMC_BRIDGE__INGEST__AUTH__BASIC)",
        "ingest.auth.api_keys (CMC_BRIDGE__INGEST__AUTH__API_KEYS)",
        "[[ingest.auth.credentials]]",
        "ingest.auth.allow_anonymous (CMC_BRIDGE__INGEST__AUTH__ALLOW_ANONYMOUS) = true",
    ] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let anonymous = variable("INGEST__AUTH__ALLOW_ANONYMOUS", "true").loaded();
    assert!(matches!(anonymous.config.ingest.auth, Auth::Anonymous));
    anonymous.require_credentials().unwrap();
    let empty = variable("INGEST__AUTH__BASIC", " , ").loaded();
    empty.require_credentials().unwrap_err();
}

#[test]
fn refused_lists_of_credentials() {
    let cases = [
        (
            r#"basic = ["u:hunter2", "hunter2"]"#,
            "entry 2 has no colon",
            "user:password",
        ),
        (r#"basic = ["hunter2:"]"#, "empty password", "user:password"),
        (
            r#"bearer_tokens = [""]"#,
            "entry 1 is an empty secret",
            "take the entry out",
        ),
        (
            r#"bearer_tokens = ["hunter2 x"]"#,
            "can't stand in a header",
            "white space",
        ),
        (r#"api_keys = ["hunter2\n"]"#, "control character", "line ends"),
        (
            r#"basic = ["u:hunter2 "]"#,
            "entry 1 begins or ends with white space",
            "take it out",
        ),
        (
            r#"api_keys = ["hunter2", "a", "hunter2"]"#,
            "api-key-3 is the same secret as api-key-1",
            "of its own",
        ),
        (r#"api_keys = [22]"#, "is not a list of texts", "one,two"),
        (
            r#"api_keys = { a = "hunter2" }"#,
            "is a single key, not a table",
            "give it a value",
        ),
        (
            r#"credentials = "hunter2""#,
            "is not a list of tables",
            "[[ingest.auth.credentials]]",
        ),
        (r#"credentials = ["hunter2"]"#, "credentials[0]", "is not a table"),
        (
            "allow_anonymous = true\nbasic = [\"u:hunter2\"]",
            "allows everybody",
            "set it to false",
        ),
    ];
    for (text, what, fix) in cases {
        one(&file(&format!("[ingest.auth]\n{text}")), &[what, fix]);
    }
}

#[test]
fn refused_named_credentials() {
    let name = "name = \"a\"\n";
    let kind = "kind = \"bearer\"\n";
    let value = "value = \"hunter2\"\n";
    let cases = [
        (["", kind, value], "credentials[0].name", "is missing"),
        (
            ["name = \"a b\"\n", kind, value],
            "is not a name for metrics",
            "64",
        ),
        (
            ["name = \"bearer-1\"\n", kind, value],
            "the name bearer-1 is there twice",
            "a name and a secret of its own",
        ),
        (
            [name, "", value],
            "credentials[0].kind",
            "bearer, basic or api_key",
        ),
        (
            [name, "kind = \"oauth\"\n", value],
            "credentials[0].kind",
            "bearer, basic or api_key",
        ),
        (
            [name, kind, ""],
            "credentials[0].value",
            "give value or value_file",
        ),
        ([name, kind, "value = 2222"], "is not text", "quotes"),
        (
            [name, "kind = \"basic\"\n", value],
            "credentials[0].value",
            "has no colon",
        ),
        (
            [name, kind, "value = \"hunter2-0\""],
            "a is the same secret as bearer-1",
            "a secret of its own",
        ),
        (
            ["name = \"a\\\"}\"\n", kind, value],
            "is not a name for metrics",
            "A-Z, a-z, 0-9",
        ),
        (
            [name, kind, "value = \"hunter2\"\nvalue_file = \"/x\""],
            "value is given too",
            "keep",
        ),
        (
            [name, kind, "value_file = \"/no/such\""],
            "the file \"/<not there>\" can't be read",
            "path",
        ),
        (
            [name, kind, "value_file = \"hunter2\""],
            "the file \"<not there>\" can't be read",
            "not the secret",
        ),
        (
            [name, kind, "value = \"hunter2\"\nvalu = \"hunter2\""],
            "[0].valu ",
            "did you mean value?",
        ),
        (
            [name, kind, "value = \"hunter2\"\nowner = \"hunter2\""],
            "[0].owner ",
            "name, kind, value, value_file",
        ),
    ];
    for (entry, what, fix) in cases {
        let text = format!(
            "[ingest.auth]\nbearer_tokens = [\"hunter2-0\"]\n[[ingest.auth.credentials]]\n{}",
            entry.concat()
        );
        one(&file(&text), &[what, fix]);
    }
}

#[test]
fn refused_secret_files() {
    let mut given = Given::default();
    let empty = given.write("empty", "\n# nothing\n");
    let blank = given.write("blank", "\n");
    let good = given.write("good", "hunter2\n");
    let cases = [
        (
            format!("[ingest.auth]\nbasic_file = {empty:?}"),
            "has no secret in it",
            "one a line",
        ),
        (
            format!("[ingest.auth]\nbasic_file = {good:?}"),
            "ingest.auth.basic_file",
            "entry 1 has no colon",
        ),
        (
            format!("[ingest.auth]\napi_keys_file = {good:?}\napi_keys = [\"hunter2\"]"),
            "ingest.auth.api_keys is given too (file ",
            "keep the values or the file",
        ),
        (
            "[ingest.auth]\nbearer_tokens_file = \"hunter2\"".to_owned(),
            "the file \"<not there>\" can't be read",
            "not the secret itself",
        ),
        (
            format!("[kafka.properties]\n\"sasl.password_file\" = {good:?}\n\"sasl.password\" = \"hunter2\""),
            "sasl.password is given as a value too (file ",
            "keep the value or the file",
        ),
        (
            format!("[kafka.properties]\n\"ssl.key.pem_file\" = {blank:?}"),
            "the file is empty",
            "write the secret",
        ),
        (
            "[kafka.properties]\n\"sasl.password\" = \"\"".to_owned(),
            "is an empty secret",
            "leave the key out",
        ),
        (
            "[kafka.properties]\n\"sasl.password\" = 123".to_owned(),
            "is not text",
            "quotes",
        ),
        (
            "[kafka.properties]\n\"sasl.password\" = \"hunter2\\u0000\"".to_owned(),
            "NUL",
            "without NUL",
        ),
        (
            format!("[kafka.properties]\n\"client.id_file\" = {good:?}"),
            "can't be given as a file",
            "sasl.password",
        ),
    ];
    for (text, what, fix) in cases {
        one(&file(&text), &[what, fix]);
    }
    let both = file(&format!("[kafka.properties]\n\"sasl.password_file\" = {good:?}"))
        .variable("KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2");
    one(
        &both,
        &["is given as a value too (environment variable CMC_BRIDGE__KAFKA__PROPERTIES__SASL_PASSWORD)"],
    );
}

#[test]
fn up_to_64_credentials_are_accepted() {
    let tokens = |count: usize| (0..count).map(|n| format!("hunter2-{n}")).collect::<Vec<_>>();
    let loaded = variable("INGEST__AUTH__BEARER_TOKENS", &tokens(64).join(",")).loaded();
    assert_eq!(credentials(&loaded).len(), 64);
    one(
        &variable("INGEST__AUTH__BEARER_TOKENS", &tokens(65).join(",")),
        &["more than 64 credentials"],
    );
}

#[test]
fn credential_files_are_reloaded() {
    let mut given = Given::default();
    let list = given.write("list", "\u{FEFF}hunter2-a\r\n");
    let named = given.write("named", "\u{FEFF}cmc:hunter2:鍵\r\n");
    let text = format!(
        "[ingest.auth]\nbearer_tokens_file = {list:?}\n[[ingest.auth.credentials]]\nname = \"console\"\n\
         kind = \"basic\"\nvalue_file = {named:?}\n"
    );
    let given = given.config_file("bridge.toml", &text);
    let loaded = given.loaded();
    let expected = [
        ("bearer-1", CredentialKind::Bearer, "hunter2-a"),
        ("console", CredentialKind::Basic, "cmc:hunter2:鍵"),
    ];
    assert_eq!(credentials(&loaded), expected);
    let files = &loaded.config.ingest.credential_files;
    let names: Vec<_> = files.iter().map(|file| file.names.as_slice()).collect();
    assert_eq!(names, [["bearer-1"], ["console"]]);

    std::fs::write(&list, "hunter2-a\n\nhunter2-b").unwrap();
    let read: Vec<_> = files[0].read().unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(read, ["bearer-1", "bearer-2"]);
    assert_eq!(
        files[1].read().unwrap()[0].secret.expose_secret(),
        "cmc:hunter2:鍵"
    );
    for (file, text, cause) in [
        (0, &b""[..], "the file has no secret in it"),
        (0, b" \r\n\n# hunter2\n", "the file has no secret in it"),
        (0, b"hunter2\n\xff", "is not UTF-8"),
        (0, b"hunter2\nhunter2 x", "entry 2 can't stand in a header"),
        (
            0,
            "hunter2\n\u{FEFF}hunter2".as_bytes(),
            "entry 2 can't stand in a header",
        ),
        (1, b"", "the file is empty"),
        (1, b"\n", "the file is empty"),
        (1, b"cmc:hunter2 \n", "begins or ends with white space"),
        (1, b"cmc:hunter2\ncmc:hunter2-b\n", "contains a control character"),
        (1, b"hunter2", "has no colon"),
    ] {
        std::fs::write([&list, &named][file], text).unwrap();
        let error = files[file].read().map(|_| ()).unwrap_err();
        assert!(error.contains(cause) && !error.contains(SECRET), "{error}");
        assert!(error.contains([&list, &named][file].to_str().unwrap()), "{error}");
    }
    std::fs::remove_file(&list).unwrap();
    let error = files[0].read().map(|_| ()).unwrap_err();
    assert!(error.contains("can't be read: No such file"), "{error}");
}

#[test]
fn kafka_secrets_from_files() {
    let mut given = Given::default();
    let password = given.write("password", "00123 \r\n");
    let pem = given.write("pem", "-----BEGIN-----\nhunter2\n-----END-----\n\n");
    let loaded = given
        .config_file(
            "bridge.toml",
            &format!("[kafka.properties]\n\"ssl.key.pem_file\" = {pem:?}"),
        )
        .variable(
            "KAFKA__PROPERTIES__SASL_PASSWORD_FILE",
            password.to_str().unwrap(),
        )
        .loaded();
    let properties = &loaded.config.kafka.properties;
    assert_eq!(properties["sasl.password"].expose_secret(), "00123 ");
    assert_eq!(
        properties["ssl.key.pem"].expose_secret(),
        "-----BEGIN-----\nhunter2\n-----END-----\n"
    );
    assert_eq!(properties.len(), 2);
    assert!(
        setting(&loaded, "kafka.properties.sasl.password_file")
            .value
            .contains("password")
    );
}

#[test]
fn secrets_are_never_shown() {
    let loaded = file(
        "[ingest.auth]\nbearer_tokens = [\"hunter2-1\", \"hunter2-2\"]\nbasic = \"u:hunter2\"\napi_keys = [\"hunter2\"]\n\
         [[ingest.auth.credentials]]\nname = \"console\"\nkind = \"bearer\"\nvalue = \"hunter2\"\n\
         [kafka.properties]\n\"ssl.key.password\" = \"hunter2\"\n\"sasl.oauthbearer.config\" = \"secret=hunter2\"\n\
         \"client.id\" = \"open\"\n",
    )
    .variable("KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2")
    .variable("INGEST__AUTH__API_KEYS", "hunter2,hunter2-2")
    .loaded();
    let shown = to_toml(&loaded.settings);
    for text in [
        shown.as_str(),
        &format!("{loaded:?}"),
        &format!("{:#?}", loaded.config),
    ] {
        assert!(!text.contains(SECRET), "{text}");
    }
    for line in [
        "bearer_tokens = [\"<redacted>\", \"<redacted>\"]  # file ",
        "basic = [\"<redacted>\"]  # file ",
        "api_keys = [\"<redacted>\", \"<redacted>\"]  # environment variable CMC_BRIDGE__INGEST__AUTH__API_KEYS",
        "credentials = [{ name = \"console\", kind = \"bearer\", value = \"<redacted>\" }]",
        "\"sasl.password\" = \"<redacted>\"  # environment variable CMC_BRIDGE__KAFKA__PROPERTIES__SASL_PASSWORD",
        "\"client.id\" = \"open\"",
    ] {
        assert!(shown.contains(line), "no {line:?} in\n{shown}");
    }
}

/// A secret where a file name belongs, and under names that may hold secrets.
#[test]
fn misplaced_secrets_are_never_shown() {
    const FILES: [&str; 5] = [
        "ingest.auth.bearer_tokens_file",
        "ingest.auth.basic_file",
        "ingest.auth.api_keys_file",
        "ingest.tls.certificate",
        "ingest.tls.key",
    ];
    const PROPERTIES: [&str; 12] = [
        "sasl.password_file",
        "ssl.key.pem_file",
        "sasl.jaas.config",
        "ssl.key.location",
        "ssl.ca.location",
        "ssl.keystore.location",
        "sasl.kerberos.keytab",
        "sasl.kerberos.kinit.cmd",
        "ssl.certificate.pem",
        "linger.ms",
        "no.such.name",
        "SASL.PASSWORD",
    ];
    let secrets = [
        "hunter2",
        "user:hunter2",
        "/hunter2",
        "./hunter2",
        "/tmp/hunter2/hunter2",
        "/aGVsbG8/hunter2==",
        "-----BEGIN PRIVATE KEY-----\\nhunter2\\n-----END PRIVATE KEY-----",
        &"hunter2-".repeat(200),
    ];
    for secret in secrets {
        let files = FILES.map(|key| {
            let (table, name) = key.rsplit_once('.').unwrap();
            format!("[{table}]\n{name} = \"{secret}\"\n")
        });
        let properties = PROPERTIES.map(|name| format!("[kafka.properties]\n\"{name}\" = \"{secret}\"\n"));
        let entry = "[[ingest.auth.credentials]]\nname = \"a\"\nkind = \"bearer\"\n";
        let number = "[ingest.auth]\nbasic_file = 2222222\n".to_owned();
        let entries = [format!("{entry}value_file = \"{secret}\"\n"), number];
        for text in files.into_iter().chain(properties).chain(entries) {
            let given = file(&text);
            let (settings, verdict) = crate::config::settings(&given.files, std::iter::empty()).unwrap();
            let shown = to_toml(&settings);
            let mut told = format!("{shown}{settings:?}{verdict:?}");
            match (given.load(), verdict) {
                (Ok(loaded), Ok(())) => told += &format!("{loaded:?}"),
                (Err(error), Err(same)) => told += &format!("{error}{error:?}{same}"),
                _ => panic!("{text}"),
            }
            assert!(
                !told.contains(SECRET) && !told.contains("2222222"),
                "{text}{told}"
            );
        }
    }
}

/// A path that `config show` shortens can't be used, so it is printed as a comment.
#[test]
fn shortened_paths_are_comments() {
    let mut given = Given::default();
    let there = given.write("tokens", "hunter2");
    let gone = there.with_file_name("gone");
    let given = given.config_file(
        "bridge.toml",
        &format!("[ingest.tls]\ncertificate = {there:?}\nkey = {gone:?}\n"),
    );
    let shown = to_toml(&given.loaded().settings);
    assert!(
        shown.contains(&format!("\ncertificate = {there:?}  # file")),
        "{shown}"
    );
    let shortened = there.with_file_name("<not there>");
    assert!(
        shown.contains(&format!("\n# key = {shortened:?}  # file")),
        "{shown}"
    );
}

#[test]
fn a_broken_file_is_not_quoted() {
    let broken = [
        "\"sasl.password\" = \"hunter2",
        "\"sasl.password\" = hunter2",
        "\"sasl.password\" = \"hunter2\" hunter2",
        "\"sasl.password\" = 'hunter2\n",
        "a = \"hunter2\\q\"",
        "a = 99999999999999999999999 # hunter2",
        "a = \"\"\"hunter2\nhunter2",
        "hunter2",
        "a = [hunter2",
        "a = { b = hunter2",
    ];
    for text in broken {
        let given = file(&format!("[kafka.properties]\n{text}\n"));
        for line in given.refused() {
            assert!(!line.contains(SECRET), "{line}");
        }
    }
}
