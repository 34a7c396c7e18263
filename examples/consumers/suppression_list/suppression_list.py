"""Keeps a list of addresses that must get no more mail, from cmc.bounces.

The list is a table in SQLite. A bounce whose code says that the address will never work puts it on the list; only you can
take it off. Offsets are committed to Kafka after the rows are durable, so after a crash some events are read again, and none
is lost. An address that is already on the list stays as it is, so reading again changes nothing.
"""

import argparse
import signal
import sqlite3
import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

# The status codes of permanent faults of the address. The others concern a temporary condition (3 retransmission time-out,
# 5 over capacity, 7 receiving-server error), the mail (4 rejection, 8 oversized), the route (6 forward error), or
# have an unknown cause (99).
PERMANENT = {
    "1": "unknown host",
    "2": "unknown user",
    "9": "address format",
    "10": "blocked address",
    "11": "one-click unsubscribed",
}


def open_table(path):
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(
        """CREATE TABLE IF NOT EXISTS suppressed (
            address TEXT PRIMARY KEY, code TEXT NOT NULL, why TEXT NOT NULL,
            reason TEXT NOT NULL, since TEXT, ce_id TEXT NOT NULL
        )"""
    )
    return db


def text(value):
    """A member's text as SQLite accepts it: half a surrogate pair, which JSON allows, becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def address_of(event):
    """The recipient: payload version 2, then version 1. A domain is case-insensitive; the part before the @ may not be."""
    address = text(event.get("to")) or text(event.get("envelopeTo"))
    local, at, domain = address.strip().rpartition("@")
    return local + at + domain.lower()


def apply(db, record):
    """Puts a bounce's address on the list if it belongs there. Returns one word for what it did."""
    headers = dict(record.headers() or [])
    # Streams may share a topic with dead letters, and refused records have an event's headers, too.
    if headers.get("ce_type") != b"jp.smtps.cmc.bounces" or "cmc-dead-letter-reason" in headers:
        return "skipped"
    try:
        event = from_binary_event(KafkaMessage(headers=headers, key=record.key(), value=record.value()))
        bounce = event.get_data()
        if not isinstance(bounce, dict):
            # If the SDK can't parse the value, it returns it as text.
            raise ValueError("the value can't be read as JSON")
    except Exception as error:
        # The bridge passes on whatever the sender sent, even a number too long for Python. Such an event must not block
        # the others forever.
        print(f"{record.topic()}/{record.partition()}/{record.offset()}: {error}", file=sys.stderr)
        return "unreadable"
    code, address = bounce.get("status"), address_of(bounce)
    if not address:
        return "skipped"
    if not isinstance(code, str) or code not in PERMANENT:
        return "temporary"
    time = event.get_time()
    row = (
        address,
        code,
        PERMANENT[code],
        text(bounce.get("reason")),
        time.isoformat() if time else None,
        event.get_id(),
    )
    new = db.execute("INSERT INTO suppressed VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount
    return "suppressed" if new else "known"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", default="cmc.bounces")
    parser.add_argument("--group", default="suppression-list")
    parser.add_argument("--db", default="suppression-list.db")
    parser.add_argument("--once", action="store_true", help="stop at the end of the topic")
    args = parser.parse_args()

    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))
    db = open_table(args.db)
    consumer = Consumer(
        {
            "bootstrap.servers": args.brokers,
            "group.id": args.group,
            # Otherwise a consumer also sees events of aborted transactions, which the bridge writes again.
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    # This member's partitions that it has not yet read to the end; None before the first assignment.
    unread = None

    def assigned(_, partitions):
        nonlocal unread
        unread = {partition.partition for partition in partitions}

    consumer.subscribe([args.topic], on_assign=assigned)
    counts = {}
    while not stopped and not (args.once and unread is not None and not unread):
        records = consumer.consume(500, timeout=0.2)
        next_offsets = {}
        # One transaction for all records; it is durable when the block ends.
        with db:
            for record in records:
                error = record.error()
                if error is None:
                    what = apply(db, record)
                    counts[what] = counts.get(what, 0) + 1
                    next_offsets[record.partition()] = record.offset() + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(record.partition())
                else:
                    print(error, file=sys.stderr)
        if next_offsets:
            # Commit offsets after the rows, never before.
            offsets = [TopicPartition(args.topic, number, offset) for number, offset in next_offsets.items()]
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                # The partition's new owner reads these again, which changes nothing.
                print(error, file=sys.stderr)
    consumer.close()
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing new")


if __name__ == "__main__":
    main()
