"""The main part of .ci/consumers: checks the documents alone, then starts Kafka and the bridge, posts samples, and checks the
records and the example consumers. Arguments: java, the directory of Kafka's jars, AsyncAPI's schema. Always ends what it started,
by process id."""

import contextlib
import email
import email.policy
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
import uuid

import yaml
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient
from jsonschema import Draft7Validator, Draft202012Validator

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONSUMERS = ROOT / "examples/consumers"
LIMIT = 90


def wait(what, condition):
    """The condition's value, once it has one."""
    deadline = time.monotonic() + LIMIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {LIMIT} s for {what}"
        time.sleep(0.1)
    return value


def expanded(node, folder):
    """A document with the files that it refers to in their places."""
    if isinstance(node, dict):
        target = node.get("$ref", "#")
        if not target.startswith("#"):
            file = folder / target
            return expanded(yaml.safe_load(file.read_text()), file.parent)
        return {key: expanded(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [expanded(item, folder) for item in node]
    return node


def pointed_at(document, node):
    """What a reference within the document stands for."""
    while "$ref" in node:
        target = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = target
    return node


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for item in node:
            yield from references(item)


def check_documents(asyncapi_schema):
    """The AsyncAPI document, whole; then the ids."""
    for file in sorted((ROOT / "docs/schemas").iterdir()):
        schema = json.loads(file.read_text())
        # AsyncAPI reads a schema as draft-07: it must be one in both.
        Draft202012Validator.check_schema(schema)
        Draft7Validator.check_schema(schema)
    document = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text())
    validator = Draft7Validator(json.loads(asyncapi_schema.read_text()))
    whole = expanded(document, ROOT / "docs")
    for form in (document, whole):
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message:.300}" for e in validator.iter_errors(form)]
        assert not errors, errors
    for reference in references(whole):
        pointed_at(whole, reference)
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    assert whole["info"]["version"] == version, "the document's version is not the product's"
    streams = tomllib.loads((ROOT / "config/default.toml").read_text())["streams"]
    addresses = sorted(channel["address"] for channel in whole["channels"].values())
    assert addresses == sorted(stream["topic"] for stream in streams.values()), addresses
    print(f"docs/asyncapi.yaml: valid, {len(addresses)} channels, each reference leads somewhere")

    text = (ROOT / "docs/events.md").read_text()
    namespace = uuid.UUID(re.search(r"^    ([0-9a-f-]{36})$", text, re.M)[1])
    vectors = re.findall(r"^\| `(\w+)` \| `(.+?)` \| `(\{.*\})` \| `([0-9a-f-]{36})` \|$", text, re.M)
    assert len(vectors) == 8, vectors
    for event_type, composition, event, wanted in vectors:
        got = uuid.uuid5(namespace, f"{event_type}\0{composition}\0{event}")
        assert str(got) == wanted, (event, got, wanted)
    print(f"ce_id: {len(vectors)} test vectors hold")
    return whole


def free_port():
    """Below the ephemeral range, so that no outgoing connection takes it before Kafka does."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def spawn(stack, command, log, **options):
    """Starts a process that is killed, at the latest, when the stack ends."""
    output = stack.enter_context(open(log, "w"))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
    stack.callback(lambda: (process.kill(), process.wait()))
    return process


def start_kafka(stack, java, libs, folder):
    port, controller = free_port(), free_port()
    properties = folder / "kafka.properties"
    properties.write_text(
        f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/kafka
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
num.partitions=3
auto.create.topics.enable=false
"""
    )
    run = [java, "-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{libs}/*"]
    format_ = ["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", str(properties)]
    subprocess.run(run + format_, check=True, capture_output=True, timeout=LIMIT)
    broker = spawn(stack, run + ["kafka.Kafka", str(properties)], folder / "kafka.log")
    brokers = f"127.0.0.1:{port}"

    def ready():
        assert broker.poll() is None, (folder / "kafka.log").read_text()[-4000:]
        with contextlib.suppress(Exception):
            admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
            return admin.list_topics(timeout=2).brokers

    wait("Kafka", ready)
    return brokers


def start_bridge(stack, brokers, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CMC_BRIDGE")}
    for key, value in {
        "KAFKA__BOOTSTRAP_SERVERS": brokers,
        "KAFKA__CREATE_TOPICS": "true",
        "STREAMS__BLOCKS__ENABLED": "true",
        "STREAMS__INBOUND__ENABLED": "true",
        "INGEST__LISTEN": "127.0.0.1:0",
        "ADMIN__LISTEN": "127.0.0.1:0",
        "INGEST__AUTH__ALLOW_ANONYMOUS": "true",
        "SPOOL__DIR": str(folder / "spool"),
        "SHUTDOWN__LAME_DUCK": "0s",
        "LOG__FORMAT": "json",
    }.items():
        environment[f"CMC_BRIDGE__{key}"] = value
    log = folder / "bridge.log"
    bridge = spawn(stack, [ROOT / "target/debug/cmc-bridge", "serve"], log, env=environment)

    def address(message):
        def look():
            assert bridge.poll() is None, log.read_text()
            lines = [json.loads(line) for line in log.read_text().splitlines(True) if line.endswith("\n")]
            return next((line["address"] for line in lines if line.get("message") == message), None)

        return wait(message, look)

    return bridge, f"http://{address('webhooks are served')}", f"http://{address('metrics and probes are served')}"


def post(url, body, kind="application/json", path="/webhooks/events"):
    request = urllib.request.Request(url + path, body, {"Content-Type": kind})
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def bounce(to, status, **more):
    event = {"messageId": f"<{to}>", "created": "2026-10-01 09:15:06", "to": to, "status": status, **more}
    return {key: value for key, value in event.items() if value is not None}


def webhook(*bounces):
    return json.dumps({"event_type": "bounces", "server_composition": "pro", "event": {"bounces": bounces}}).encode()


def drained(admin):
    with urllib.request.urlopen(admin + "/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    backlogs = [line for line in lines if line.startswith("cmc_bridge_backlog_events{")]
    return len(backlogs) == 5 and all(line.endswith(" 0") for line in backlogs)


def records_of(brokers, topic):
    """Everything that a read_committed consumer finds on a topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"check-{uuid.uuid4()}",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    unread = None

    def assigned(_, partitions):
        nonlocal unread
        unread = {partition.partition for partition in partitions}

    consumer.subscribe([topic], on_assign=assigned)
    records = []

    def read():
        for record in consumer.consume(500, timeout=0.2):
            if record.error() is None:
                records.append(record)
            elif record.error().code() == KafkaError._PARTITION_EOF:
                unread.discard(record.partition())
        return unread is not None and not unread

    wait(f"the end of {topic}", read)
    consumer.close()
    return records


def check_records(document, brokers):
    """Each record on each channel is a message that the document describes. Gives their counts by topic."""
    counts = {}
    for channel in document["channels"].values():
        messages = [pointed_at(document, message) for message in channel["messages"].values()]
        records = records_of(brokers, channel["address"])
        assert records, f"nothing on {channel['address']}"
        for record in records:
            names = [name for name, _ in record.headers()]
            assert len(names) == len(set(names)), names
            headers = {name: value.decode() for name, value in record.headers()}
            of_type = [message for message in messages if message["name"] == headers.get("ce_type")]
            (message,) = of_type if len(messages) > 1 else messages
            Draft7Validator(message["headers"]).validate(headers)
            Draft7Validator(pointed_at(document, message["bindings"]["kafka"]["key"])).validate(
                record.key() and record.key().decode()
            )
            if "payload" in message:
                Draft7Validator(message["payload"]).validate(json.loads(record.value()))
        counts[channel["address"]] = len(records)
    print(f"records as docs/asyncapi.yaml says: {counts}")
    return counts


def aborted(brokers, topic, record):
    """A copy of a record in a transaction that is aborted: no reader of committed records may see it."""
    producer = Producer({"bootstrap.servers": brokers, "transactional.id": "aborting"})
    producer.init_transactions(LIMIT)
    producer.begin_transaction()
    value = record.value().replace(b"nobody@", b"aborted@")
    assert value != record.value()
    producer.produce(topic, value, record.key(), headers=record.headers())
    producer.flush(LIMIT)
    producer.abort_transaction(LIMIT)


def suppression_list(brokers, db, group):
    command = [sys.executable, CONSUMERS / "suppression_list/suppression_list.py", "--once"]
    command += ["--brokers", brokers, "--db", db, "--group", group]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert run.returncode == 0, run.stderr
    with contextlib.closing(sqlite3.connect(db)) as table:
        rows = table.execute("SELECT address, code, since FROM suppressed ORDER BY address").fetchall()
    return run.stdout.strip(), rows, run.stderr


def check_suppression_list(brokers, url, admin, folder):
    db = folder / "suppression-list.db"
    since = "2026-10-01T09:15:06+09:00"
    first = [("nobody@example.net", "2", since), ("taro@no-such-host", "1", "2026-10-01T09:15:02+09:00")]
    said, rows, _ = suppression_list(brokers, db, "one")
    assert (said, rows) == ("2 suppressed", first), (said, rows)
    # Every code, payload version 1, an address that is known, and what Python's json can't read or SQLite can't store.
    codes = ["3", "4", "5", "6", "7", "8", "9", "10", "11", "99", "new"]
    bounces = [bounce(f"code{code}@EXAMPLE.net", code) for code in codes]
    bounces.append(bounce(None, "2", envelopeTo="old@example.net", messageId="<v1>"))
    bounces.append(bounce("nobody@example.net", "1"))
    bounces.append(bounce("half@example.net", "2", reason="\ud83d"))
    long = webhook(bounce("long@example.net", "2", n=0)).replace(b'"n": 0', b'"n": ' + b"9" * 5000)
    assert [post(url, webhook(*bounces)), post(url, long)] == [200, 200]
    wait("delivery", lambda: drained(admin))
    added = [(f"code{code}@example.net", code, since) for code in ("10", "11", "9")]
    others = [("half@example.net", "2", since), ("old@example.net", "2", since)]
    said, rows, errors = suppression_list(brokers, db, "one")
    assert said == "1 known, 5 suppressed, 8 temporary, 1 unreadable", (said, errors)
    assert rows == sorted(first + added + others), rows
    # Where it ended stands in Kafka; and all of it once more changes nothing.
    assert suppression_list(brokers, db, "one")[:2] == ("nothing new", rows)
    assert suppression_list(brokers, db, "two")[:2] == ("8 known, 8 temporary, 1 unreadable", rows)
    print(f"suppression list: {len(rows)} addresses, the same after reading all again")


def multipart(fields, files):
    """A body with the boundary "b": fields as (header, bytes), files as (disposition, bytes)."""
    parts = [*fields, *((f"name=attachment{number}; {name}", content) for number, (name, content) in enumerate(files, 1))]
    head = b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n"
    return b"".join(head % (header.encode(), content) for header, content in parts) + b"--b--\r\n"


def received_mail(brokers, out, group, *args):
    command = [sys.executable, CONSUMERS / "received_mail/received_mail.py", *args]
    return [*command, "--brokers", brokers, "--out", out, "--group", group]


def received_mail_once(brokers, out, group):
    run = subprocess.run(received_mail(brokers, out, group, "--once"), capture_output=True, text=True, timeout=LIMIT)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip(), run.stderr


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_received_mail(stack, brokers, url, admin, folder):
    out = folder / "received-mail"
    files = [
        ('filename="plain.bin"', random.randbytes(2_500_000)),
        ('filename="../見積.csv"', "品,円\r\n".encode()),
        ("filename=\"=?ISO-2022-JP?B?GyRCOCsbKEI=?= =?ISO-2022-JP?B?GyRCQFEbKEI=?=\"", b""),
        ("filename*=UTF-8''%E8%A6%8B%E7%A9%8D.csv", b"\0\xff"),
    ]
    names = ["plain.bin", "../見積.csv", "見積", "見積.csv"]
    html = "<p>" + "大" * 500_000
    for number in range(8):
        headers = json.dumps([{"name": "Message-ID", "value": f"<{number}@mail>"}, {"name": "Subject", "value": "件名"}])
        fields = [
            ("name=server_composition", b"pro"),
            ("name=headers", headers.encode()),
            ("name=text\r\nContent-Type: text/plain; charset=ISO-2022-JP", "本文".encode("iso2022_jp")),
            ("name=html", html.encode()),
        ]
        body = multipart(fields, files if number % 2 == 0 else files[1:])
        assert post(url, body, "multipart/form-data; boundary=b", "/webhooks/inbound") == 200
    wait("delivery", lambda: drained(admin))
    # Killed in the middle, twice.
    for most in (2, 5):
        reader = spawn(stack, received_mail(brokers, out, "one"), folder / f"received-mail-{most}.log")
        wait("folders", lambda: out.exists() and len([d for d in out.iterdir() if d.name[0] != "."]) >= most)
        reader.kill()
        reader.wait()
    said, errors = received_mail_once(brokers, out, "one")
    written = tree(out)
    folders = {name.split("/")[0] for name in written}
    # With the two samples.
    assert len(folders) == 10 and not any(name.startswith(".") for name in folders), (said, errors, folders)
    for id in folders:
        mail = json.loads(written[f"{id}/mail.json"])
        message = email.message_from_bytes(written[f"{id}/message.eml"], policy=email.policy.default)
        attached = list(message.iter_attachments())
        of_files = [one for one in mail["attachments"] if "member" not in one]
        assert [part.get_filename() for part in attached] == [one["name"] for one in of_files]
        for part, one in zip(attached, of_files):
            saved = next(content for name, content in written.items() if name.startswith(f"{id}/{one['index']}-"))
            content = part.get_payload(decode=True)
            assert hashlib.sha256(saved).hexdigest() == hashlib.sha256(content).hexdigest() == one["sha256"], one
        if message["Message-ID"].endswith("@mail>"):
            assert [one["name"] for one in of_files] in (names, names[1:])
            assert message.get_body(("plain",)).get_content().rstrip() == "本文"
            assert message.get_body(("html",)).get_content().rstrip() == html
            assert message["Subject"] == "件名"
    # Another group reads all of it again, and writes nothing.
    assert received_mail_once(brokers, out, "two") == ("10 known", "") and tree(out) == written
    # A group whose last part is late: nothing is written until it is there, although the consumer is started anew.
    records = records_of(brokers, "cmc.inbound")
    large = next(r for r in records if dict(r.headers())["ce_type"] == b"jp.smtps.cmc.inbound.attachment" and r.key() == b"<0@mail>")
    id = dict(large.headers())["cmc-mail-id"]
    of_mail = [r for r in records if id in (dict(r.headers()).get("cmc-mail-id"), dict(r.headers())["ce_id"])]
    late = str(uuid.uuid4()).encode()
    producer = Producer({"bootstrap.servers": brokers})

    def send(record):
        renamed = [(name, late if value == id else value) for name, value in record.headers()]
        producer.produce("cmc.inbound", record.value(), record.key(), partition=record.partition(), headers=renamed)
        assert producer.flush(LIMIT) == 0

    for record in of_mail[:-1]:
        send(record)
    said = received_mail_once(brokers, out, "one")
    assert said == ("1 waiting", ""), said
    send(of_mail[-1])
    said = received_mail_once(brokers, out, "one")
    assert said == ("1 written", ""), said
    assert {name: content for name, content in tree(out).items() if not name.startswith(late.decode())} == written
    print(f"received mail: {len(folders) + 1} folders, each whole, the same after kills and after reading all again")


def check_java(java, libs, brokers, counts):
    command = [java, "-cp", f"{libs}/*", CONSUMERS / "check_records/CheckRecords.java", brokers, ROOT / "docs/schemas"]

    def run(*topics):
        return subprocess.run([*command, *topics], capture_output=True, text=True, timeout=2 * LIMIT)

    done = run(*counts)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, end="")
    seen = {}
    for line in done.stdout.splitlines():
        topic, kinds = line.split(": ", 1)
        seen[topic] = sum(int(count) for count in re.findall(r"=(\d+)", kinds))
    assert seen == counts, (seen, counts)
    # It would have found what is wrong: a record on another partition than its key's, with no headers.
    producer = Producer({"bootstrap.servers": brokers})
    right = next(record for record in records_of(brokers, "cmc.deliveries") if record.key())
    producer.produce("cmc.blocks", right.value(), right.key(), partition=(right.partition() + 1) % 3)
    assert producer.flush(LIMIT) == 0
    done = run("cmc.blocks")
    assert done.returncode == 1 and "another partition" in done.stdout and "ce_id is missing" in done.stdout, done


def main():
    java, libs, asyncapi_schema = sys.argv[1:]
    # So that the stack below is unwound.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    document = check_documents(pathlib.Path(asyncapi_schema))
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="consumers-", dir=ROOT / "target")))
        brokers = start_kafka(stack, java, libs, folder)
        bridge, url, admin = start_bridge(stack, brokers, folder)
        for sample in sorted((ROOT / "tests/samples").iterdir()):
            body, is_mail = sample.read_bytes(), sample.name.startswith("inbound")
            kind = "application/json" if sample.suffix == ".json" else "application/x-www-form-urlencoded"
            if is_mail and sample.suffix != ".json":
                boundary = body.splitlines()[0].decode().removeprefix("--")
                kind = f'multipart/form-data; boundary="{boundary}"'
            path = "/webhooks/inbound" if is_mail else "/webhooks/events"
            assert post(url, body, kind, path) == 200, sample
        assert post(url, b'{"event_type":') == 400
        assert post(url, b"a,b", "text/csv") == 415
        assert post(url, webhook("no object")) == 200
        wait("delivery", lambda: drained(admin))
        counts = check_records(document, brokers)
        with_address = (r for r in records_of(brokers, "cmc.bounces") if b"nobody@" in r.value())
        aborted(brokers, "cmc.bounces", next(with_address))
        check_java(java, libs, brokers, counts)
        check_suppression_list(brokers, url, admin, folder)
        check_received_mail(stack, brokers, url, admin, folder)
        bridge.terminate()
        assert bridge.wait(LIMIT) == 0
    print("the consumers agree with the contract")


if __name__ == "__main__":
    main()
