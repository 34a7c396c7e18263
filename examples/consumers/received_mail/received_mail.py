"""Writes each received mail into a folder of its own, from cmc.inbound.

A mail is a group of records: the mail, then its attachments in parts. The folder is named after the mail's ce_id and holds
mail.json (the mail's record as it is), the attachments, and message.eml, which Python's email library makes of both.

A folder gets its name only when it is complete and durable. Until then its files are in a folder that begins with ".waiting-".
The offset that is committed for a partition is that of the first record that is still needed: so after a crash, incomplete mails
are read again from their beginning, and a mail whose folder is there is skipped. Nothing is lost, and nothing is written twice.
"""

import argparse
import email.headerregistry
import email.message
import email.policy
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

MAIL = b"jp.smtps.cmc.inbound"
ATTACHMENT = b"jp.smtps.cmc.inbound.attachment"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
# So many mails may wait for parts in a partition. Parts follow their mail at once; what waits longer than this has lost some.
MOST_WAITING = 100
# The MIME structure of the .eml is its own, not that of the mail that was received.
OWN_HEADERS = {"content-type", "content-transfer-encoding", "content-disposition", "mime-version"}


class WrongRecord(Exception):
    """A record is not what the contract says."""


class Waiting:
    """A mail that waits for parts of its attachments."""

    def __init__(self, record, mail, folder):
        self.offset, self.folder = record.offset(), folder
        self.attachments = mail["attachments"]
        # The part that comes next: its attachment and its number. Parts come in order.
        self.index, self.part = 0, 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder / "mail.json", record.value())
        self.names = file_names(self.attachments)
        self.skip_omitted()

    def skip_omitted(self):
        """With streams.inbound.content, attachments have no parts."""
        while not self.complete() and self.attachments[self.index]["parts"] == 0:
            self.names[self.index] = None
            self.index += 1

    def complete(self):
        return self.index == len(self.attachments)

    def add(self, headers, value):
        """Takes a part. Delivery at least once may repeat earlier ones."""
        at = (int(headers["cmc-attachment-index"]) - 1, int(headers["cmc-attachment-part"]))
        if at < (self.index, self.part):
            return
        if at > (self.index, self.part):
            raise WrongRecord("a part is missing before this one")
        attachment, file = self.attachments[self.index], self.folder / self.names[self.index]
        with open(file, "ab" if self.part > 1 else "wb") as out:
            out.write(value)
        self.part += 1
        if self.part > attachment["parts"]:
            with open(file, "rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != attachment["sha256"]:
                    raise WrongRecord(f"the SHA-256 of {file.name} differs")
                os.fsync(content.fileno())
            self.index, self.part = self.index + 1, 1
            self.skip_omitted()


def write(file, content):
    with open(file, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())


def sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def file_names(attachments):
    """Names of files for attachments: a stranger chose the names in the mail. The index makes each unique."""
    names = []
    for attachment in attachments:
        name = attachment.get("name") or attachment.get("member") or "attachment"
        stem, dot, extension = re.sub(r"[^\w.() -]", "_", name).strip(" .").rpartition(".")
        stem, extension = (stem, dot + extension) if len(extension) < 16 else (stem + dot + extension, "")
        names.append(f"{attachment['index']}-{stem.encode()[:150].decode(errors='ignore')}{extension}")
    return names


def decoded(record):
    """The mail's record as a dictionary."""
    try:
        mail = json.loads(record.value())
        for number, attachment in enumerate(mail["attachments"], 1):
            if attachment["index"] != number or attachment["parts"] < 0:
                raise WrongRecord("the list of attachments is wrong")
        return mail
    except (ValueError, KeyError, TypeError) as error:
        raise WrongRecord(f"the mail can't be read: {error!r}") from error


def email_policy():
    """Headers as they came: any number of each, and only those of the MIME structure are parsed, which may fail for others."""
    registry = email.headerregistry.HeaderRegistry(use_default_map=False)
    known = email.headerregistry.HeaderRegistry().registry
    registry.registry.update((name, known[name]) for name in OWN_HEADERS)

    class Policy(email.policy.EmailPolicy):
        def header_max_count(self, name):
            return 1 if name.lower() in OWN_HEADERS else None

    return Policy(header_factory=registry, linesep="\r\n")


def text_of(mail, name, folder, names):
    """A text of the mail, wherever it is: in its record, or in an attachment because it was too large."""
    value = mail.get(name)
    if isinstance(value, dict) and isinstance(value.get("attachment"), int):
        attachment = mail["attachments"][value["attachment"] - 1]
        file = names[value["attachment"] - 1]
        if file is None or attachment.get("transfer_encoding"):
            return None
        content = (folder / file).read_bytes()
        if attachment["content_type"] == "application/json":
            value = json.loads(content)
        elif attachment["content_type"] == "text/plain; charset=utf-8":
            value = content.decode()
    # JSON allows half a surrogate pair, which no charset has.
    return value.encode(errors="replace").decode() if isinstance(value, str) else None


def eml(mail, folder, names):
    """The mail as a message. What was left out of the record, or never was text, is missing here, too."""
    message = email.message.EmailMessage(email_policy())
    headers = mail.get("headers")
    for header in headers if isinstance(headers, list) else []:
        name, value = (header.get("name"), header.get("value")) if isinstance(header, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(value, str) or name.lower() in OWN_HEADERS:
            continue
        # A line end within a value is that of a folded line; another one would begin a new header.
        value = " ".join(value.encode(errors="replace").decode().split())
        if re.fullmatch(r"[!-9;-~]+", name):
            message[name] = value
    text, html = (text_of(mail, name, folder, names) for name in ("text", "html"))
    if text is not None or html is None:
        message.set_content(text or "", cte="base64")
    if html is not None:
        (message.set_content if text is None else message.add_alternative)(html, subtype="html", cte="base64")
    for attachment, file in zip(mail["attachments"], names):
        if file is None or "member" in attachment:
            continue
        kind, _, subtype = attachment["content_type"].split(";")[0].strip().partition("/")
        is_plain = re.fullmatch(r"[\w.+-]+", kind, re.ASCII) and re.fullmatch(r"[\w.+-]+", subtype, re.ASCII)
        if not is_plain or kind in ("multipart", "message"):
            kind, subtype = "application", "octet-stream"
        name = re.sub(r"[\x00-\x1f\x7f]", "_", attachment.get("name") or file)
        name = name.encode(errors="replace").decode()
        message.add_attachment((folder / file).read_bytes(), kind, subtype, filename=name)
    return message.as_bytes()


class Mails:
    """Turns records into folders."""

    def __init__(self, out):
        self.out = out
        self.out.mkdir(parents=True, exist_ok=True)
        # Mails that wait for parts, by partition and id, the oldest first.
        self.waiting = {}

    def forget(self, partitions):
        """Other members read these partitions now, from the committed offsets on."""
        for partition in partitions:
            self.waiting.pop(partition, None)

    def safe_offset(self, partition, read):
        """Where to read on after a crash, if everything before `read` was read."""
        return min((mail.offset for mail in self.waiting.get(partition, {}).values()), default=read)

    def take(self, record):
        """Takes a record. Returns what to count, if anything was finished or is wrong."""
        headers = dict(record.headers() or [])
        kind = headers.get("ce_type")
        # Streams may share a topic with dead letters, and refused records have their own headers, too.
        if kind not in (MAIL, ATTACHMENT) or "cmc-dead-letter-reason" in headers:
            return "skipped"
        headers = {name: (value or b"").decode(errors="replace") for name, value in headers.items()}
        waiting = self.waiting.setdefault(record.partition(), {})
        id = headers.get("ce_id" if kind == MAIL else "cmc-mail-id", "")
        try:
            # It becomes the name of a folder.
            if not UUID.fullmatch(id):
                raise WrongRecord("the mail has no id")
            if (self.out / id).exists():
                return "known" if kind == MAIL else None
            if kind == MAIL:
                # Sent again from its beginning, or read again after a crash.
                waiting.pop(id, None)
                waiting[id] = Waiting(record, decoded(record), self.out / f".waiting-{record.partition()}-{id}")
            elif id in waiting:
                waiting[id].add(headers, record.value() or b"")
            else:
                # Retention took the mail, or it was wrong.
                return "orphaned"
        except (WrongRecord, ValueError, KeyError) as error:
            print(f"{record.topic()}/{record.partition()}/{record.offset()}: {error}", file=sys.stderr)
            if id in waiting:
                self.give_up(waiting, id)
            return "wrong"
        if waiting[id].complete():
            self.keep(id, waiting.pop(id))
            return "written"
        if len(waiting) > MOST_WAITING:
            oldest = next(iter(waiting))
            print(f"mail {oldest} never got all its parts", file=sys.stderr)
            self.give_up(waiting, oldest)
            return "incomplete"
        return None

    def give_up(self, waiting, id):
        shutil.rmtree(waiting.pop(id).folder, ignore_errors=True)

    def keep(self, id, mail):
        """Gives the folder its name, when everything in it is durable."""
        content = json.loads((mail.folder / "mail.json").read_bytes())
        try:
            write(mail.folder / "message.eml", eml(content, mail.folder, mail.names))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # The library stumbles over some mails. The rest of the folder has everything.
            print(f"mail {id} has no message.eml: {error!r}", file=sys.stderr)
        sync_folder(mail.folder)
        mail.folder.rename(self.out / id)
        sync_folder(self.out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", default="cmc.inbound")
    parser.add_argument("--group", default="received-mail")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("received-mail"))
    parser.add_argument("--once", action="store_true", help="stop at the end of the topic")
    args = parser.parse_args()

    stopped = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))
    mails = Mails(args.out)
    consumer = Consumer(
        {
            "bootstrap.servers": args.brokers,
            "group.id": args.group,
            # Otherwise a consumer also sees records of aborted transactions, which the bridge writes again.
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

    def revoked(_, partitions):
        mails.forget(partition.partition for partition in partitions)

    consumer.subscribe([args.topic], on_assign=assigned, on_revoke=revoked, on_lost=revoked)
    counts = {}
    committed = {}
    while not stopped and not (args.once and unread is not None and not unread):
        next_offsets = {}
        for record in consumer.consume(100, timeout=0.2):
            error = record.error()
            if error is None:
                if what := mails.take(record):
                    counts[what] = counts.get(what, 0) + 1
                next_offsets[record.partition()] = record.offset() + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(record.partition())
            else:
                print(error, file=sys.stderr)
        safe = {number: mails.safe_offset(number, read) for number, read in next_offsets.items()}
        moved = [(number, offset) for number, offset in safe.items() if committed.get(number) != offset]
        if moved:
            # Commit offsets after the folders, never before.
            try:
                offsets = [TopicPartition(args.topic, number, offset) for number, offset in moved]
                consumer.commit(offsets=offsets, asynchronous=False)
                committed.update(moved)
            except KafkaException as error:
                # The partition's new owner reads these again, which changes nothing.
                print(error, file=sys.stderr)
    # Closing revokes the partitions.
    if waiting := sum(map(len, mails.waiting.values())):
        counts["waiting"] = waiting
    consumer.close()
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing new")


if __name__ == "__main__":
    main()
