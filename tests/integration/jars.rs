//! Finds Apache Kafka: in `KAFKA_HOME`, else from Maven Central, cached under `target/`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

const KAFKA: &str = "4.3.1";
const LOG4J: &str = "2.25.4";
const DEPENDENCY_PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1";

/// How to run Kafka's classes: the Java program and the class path.
pub struct Java {
    pub program: PathBuf,
    pub class_path: String,
}

/// Java and Kafka's jars. Panics with what to install, in each test that needs them.
pub fn java() -> &'static Java {
    static JAVA: OnceLock<Result<Java, String>> = OnceLock::new();
    match JAVA.get_or_init(find) {
        Ok(java) => java,
        Err(why) => panic!(
            "\nThe integration tests need a real Apache Kafka: {why}\n\
             Install a Java runtime of version 17 or later and Maven (Debian: apt-get install openjdk-17-jre-headless maven),\n\
             or set KAFKA_HOME to an unpacked Kafka (with Java), or CMC_BRIDGE_TEST_BROKERS to a running cluster\n\
             (the tests that kill a broker need Java all the same). `cargo test --lib` runs everything that needs Rust alone.\n"
        ),
    }
}

/// The directory under `target/` for all test files.
pub fn work_dir() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn find() -> Result<Java, String> {
    let program = match std::env::var_os("JAVA_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home).join("bin/java"),
        None => PathBuf::from("java"),
    };
    check_java(&program)?;
    let libs = match std::env::var_os("KAFKA_HOME").filter(|home| !home.is_empty()) {
        Some(home) => PathBuf::from(home).join("libs"),
        None => from_maven()?,
    };
    if !libs.is_dir() {
        return Err(format!("there is no directory {}.", libs.display()));
    }
    Ok(Java {
        program,
        class_path: format!("{}/*", libs.display()),
    })
}

fn check_java(program: &Path) -> Result<(), String> {
    let output = Command::new(program)
        .arg("-version")
        .output()
        .map_err(|error| format!("`{} -version` did not run: {error}.", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // openjdk version "17.0.15" 2025-04-15; before 9 it was "1.8.0".
    let major: Option<u32> = text
        .split('"')
        .nth(1)
        .and_then(|version| version.split(['.', '-', '+']).next())
        .and_then(|major| major.parse().ok());
    match major {
        Some(17..) => Ok(()),
        _ => Err(format!(
            "`{} -version` does not show version 17 or later, but: {text}",
            program.display()
        )),
    }
}

/// Fetches the jars once. Safe with other test processes: one of them fetches under a lock and renames at the end.
fn from_maven() -> Result<PathBuf, String> {
    let base = work_dir();
    fs::create_dir_all(base).map_err(|error| format!("{}: {error}", base.display()))?;
    let cache = base.join(format!("kafka-{KAFKA}"));
    let lock = fs::File::create(base.join("kafka.lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    let libs = cache.join("libs");
    if libs.is_dir() {
        return Ok(libs);
    }
    let partial = base.join(format!("kafka-{KAFKA}.partial"));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).map_err(|error| error.to_string())?;
    let pom = partial.join("pom.xml");
    fs::write(&pom, pom_text()).map_err(|error| error.to_string())?;
    println!(
        "getting Apache Kafka {KAFKA} from Maven Central into {}",
        cache.display()
    );
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "--file"])
        .arg(&pom)
        .arg(format!("{DEPENDENCY_PLUGIN}:copy-dependencies"))
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", partial.join("libs").display()))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("there are no Kafka jars yet, and `mvn` did not run: {error}."))?;
    if !output.status.success() {
        return Err(format!(
            "`mvn` could not get the Kafka jars ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    let _ = fs::remove_dir_all(&cache);
    fs::rename(&partial, &cache).map_err(|error| error.to_string())?;
    Ok(libs)
}

fn pom_text() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>\n"
        )
    };
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>local</groupId><artifactId>kafka-libs</artifactId><version>1</version><packaging>pom</packaging>\n  \
         <dependencies>\n{}{}{}  </dependencies>\n</project>\n",
        dependency("org.apache.kafka", "kafka_2.13", KAFKA),
        dependency("org.apache.kafka", "kafka-tools", KAFKA),
        // Kafka logs through slf4j; without this its last messages before an exit are lost.
        dependency("org.apache.logging.log4j", "log4j-slf4j-impl", LOG4J),
    )
}
