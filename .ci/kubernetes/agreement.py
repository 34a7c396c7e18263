"""Checks facts that are written in two places.

    agreement.py RENDERED_WITH_EVERYTHING.yaml

- The keys that values.schema.json allows in `config` are those of config/default.toml, except those that the chart sets.
- The KafkaUser's rights are those of docs/kafka-security.md, plus DESCRIBE.
- The chart's appVersion, the Dockerfile's version and the crate's version are equal.
- rust-toolchain.toml selects the Dockerfile's Rust, which is not older than Cargo.toml's rust-version.
- The build stage has the same Debian as the image.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

CHART = Path("deploy/helm/cmc-bridge")
# The chart sets these itself, or they are secret.
OURS = {
    "ingest.listen", "admin.listen", "spool.dir", "ingest.tls.certificate", "ingest.tls.key",
    *(f"ingest.auth.{kind}{suffix}" for kind in ("bearer_tokens", "basic", "api_keys") for suffix in ("", "_file")),
    "ingest.auth.credentials",
    # `reconcile.user`, `reconcile.key` and `reconcile.ca`.
    *(f"sender_api.{key}" for key in ("user", "key", "key_file", "ca_file")),
}


def equal(what, left, right):
    if left != right:
        sys.exit(f"{what}:\n  {left}\n  {right}")


def leaves(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def schema_leaves(schema, prefix=""):
    for key, value in schema["properties"].items():
        if "properties" in value:
            yield from schema_leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


defaults = tomllib.loads(Path("config/default.toml").read_text())
schema = json.loads((CHART / "values.schema.json").read_text())
allowed = set(schema_leaves(schema["properties"]["config"]))
known = set(leaves(defaults))
equal("keys of config: only in config/default.toml, only in values.schema.json", known - OURS - allowed, allowed - known)

documents = list(filter(None, yaml.safe_load_all(open(sys.argv[1]))))
acls = next(d for d in documents if d["kind"] == "KafkaUser")["spec"]["authorization"]["acls"]
granted = {(acl["resource"]["type"].lower(), acl["resource"]["patternType"]): set(acl["operations"]) for acl in acls}
wanted = {}
for command in re.findall(r"^\$ kafka-acls\.sh .*--add .*", Path("docs/kafka-security.md").read_text(), re.M):
    resource = re.search(r"--(topic|transactional-id|group) ", command)[1].replace("-", "")
    pattern = "prefix" if "--resource-pattern-type prefixed" in command else "literal"
    wanted[resource, pattern] = set(re.findall(r"--operation (\w+)", command))
wanted["topic", "literal"] |= {"Describe", "Create"}  # kafka.create_topics is on in these values.
wanted["transactionalid", "prefix"] |= {"Describe"}
equal("rights of the KafkaUser, of docs/kafka-security.md", granted, wanted)

crate = tomllib.loads(Path("Cargo.toml").read_text())["package"]
dockerfile = Path("deploy/docker/Dockerfile").read_text()
app = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
equal("version of the chart's app, of the crate", app, crate["version"])
equal("version of the Dockerfile, of the crate", re.search(r"ARG VERSION=(.*)", dockerfile)[1], crate["version"])
rust = re.search(r"ARG RUST_VERSION=(.*)", dockerfile)[1]
channel = tomllib.loads(Path("rust-toolchain.toml").read_text())["toolchain"]["channel"]
equal("Rust of rust-toolchain.toml, of the Dockerfile", channel.rsplit(".", 1)[0], rust)
rust = [int(part) for part in rust.split(".")]
if rust < [int(part) for part in crate["rust-version"].split(".")]:
    sys.exit("the Dockerfile's Rust is older than Cargo.toml's rust-version")
debian = {"bookworm": "12", "trixie": "13"}
equal("Debian of the build stage, of the image", debian[re.search(r"FROM rust:.*-(\w+) AS build", dockerfile)[1]],
      re.search(r"FROM gcr\.io/distroless/cc-debian(\d+)", dockerfile)[1])
print("configuration keys, rights and versions agree")
