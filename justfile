# The commands people type. Each also works when pasted into a shell. Needs https://just.systems to be run as `just <name>`.

# List these commands.
default:
    @just --list

# Try the bridge on this machine: embedded broker, temporary spool, sample webhooks. Ctrl-C ends it.
dev:
    cargo run --release -- dev --sample

# What to run before each commit: format, lints, unit tests and a short simulation.
quick:
    cargo fmt --all --check
    cargo clippy --locked --all-targets -- -D warnings
    CMC_BRIDGE_TEST_SCHEDULES=2000 cargo test --locked --lib

# Some tests without Kafka, such as `just unit spool::recovery`.
unit filter="":
    cargo test --locked --lib {{ filter }}

# Some tests against real Kafka, such as `just kafka outage::`. Needs Java 17 and Maven.
kafka filter="":
    cargo test --locked --test integration {{ filter }}

# Everything that must hold before a change lands: three quarters of an hour on two cores.
gate:
    .ci/run

# Try the chart in a Kubernetes of two nodes, made on this machine: `just cluster --all` tries everything. Needs root and Go.
cluster *options:
    .ci/cluster {{ options }}

# Repeat one run of the simulation, with its steps.
seed seed:
    CMC_BRIDGE_TEST_SEED={{ seed }} cargo test --locked --lib simulation::schedules -- --nocapture

# Run many schedules of the simulation, optimised, beginning at a seed.
schedules count="1000000" first="1000000":
    CMC_BRIDGE_TEST_SCHEDULES={{ count }} CMC_BRIDGE_TEST_FIRST={{ first }} CMC_BRIDGE_TEST_THREADS=2 cargo test --locked --lib --config profile.test.opt-level=2 simulation::schedules -- --nocapture

# Break the core on purpose and see that the simulation notices. All mutants, or those named.
mutants *names:
    tests/mutants {{ names }}

# Make the files of a release in target/release-files/out: archive, debug information, bill of materials, checksums.
release:
    .ci/release

# Refresh what is derived: the chart's copies, its table of values, the plain manifests. Needs helm.
sync:
    deploy/helm/sync

# Open the documentation of the code, private items included.
doc:
    cargo doc --no-deps --document-private-items --open
