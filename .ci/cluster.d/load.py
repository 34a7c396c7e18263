"""Posts numbered webhooks at a steady rate until SIGTERM, and writes what became of each.

    load.py NAME URL FILE --rate R [--connections N] [--events N] [--pad BYTES]

Half of the connections stay open, half are new for each webhook. A webhook without an answer is not repeated: the sender may not
do so either. A credential is read from FILE.credential for each webhook, so it can change. With https, any certificate will do.
A line of FILE is: kind, number, events, status or error, start, milliseconds.
"""

import argparse
import asyncio
import base64
import json
import signal
import ssl
import time
import urllib.parse
from pathlib import Path

SAMPLES = Path(__file__).parents[2] / "tests/samples"
# Every fifth webhook is a bounce.
KINDS = {"bounces": "bounces-unknown-user.json", "deliveries": "deliveries-succeeded.json"}
TIMEOUT = 15


def keys(name, number, events):
    """The keys of a webhook's events."""
    return [f"<{name}.{number}.{event}@load.example.jp>" for event in range(events)]


def body(name, number, events, pad):
    kind = "bounces" if number % 5 == 0 else "deliveries"
    webhook = json.loads((SAMPLES / KINDS[kind]).read_text())
    (sample,) = webhook["event"][kind]
    webhook["event"][kind] = [sample | {"messageId": key, "reason": "x" * pad} for key in keys(name, number, events)]
    return json.dumps(webhook).encode()


class Load:
    def __init__(self, arguments):
        self.arguments = arguments
        self.url = urllib.parse.urlsplit(arguments.url)
        self.credential = Path(arguments.file + ".credential")
        self.out = open(arguments.file, "w", buffering=1)
        self.next = 0
        self.begin = time.time()
        self.over = False
        self.tls = None
        if self.url.scheme == "https":
            self.tls = ssl.create_default_context()
            self.tls.check_hostname = False
            self.tls.verify_mode = ssl.CERT_NONE

    async def connection(self, kept):
        reader = writer = None
        while not self.over:
            number, self.next = self.next, self.next + 1
            await asyncio.sleep(max(0, self.begin + number / self.arguments.rate - time.time()))
            start = time.time()
            try:
                async with asyncio.timeout(TIMEOUT):
                    if writer is None:
                        reader, writer = await asyncio.open_connection(self.url.hostname, self.url.port, ssl=self.tls)
                    status, open_still = await self.post(reader, writer, number, kept)
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError) as error:
                status, open_still = type(error).__name__, False
            if not open_still and writer:
                writer.close()
                reader = writer = None
            took = (time.time() - start) * 1000
            self.out.write(f"{'kept' if kept else 'new'}\t{number}\t{self.arguments.events}\t{status}\t{start:.3f}\t{took:.1f}\n")

    async def post(self, reader, writer, number, kept):
        content = body(self.arguments.name, number, self.arguments.events, self.arguments.pad)
        basic = base64.b64encode(self.credential.read_bytes().strip()).decode()
        head = (
            f"POST {self.url.path} HTTP/1.1\r\nHost: {self.url.netloc}\r\nContent-Type: application/json\r\n"
            f"Authorization: Basic {basic}\r\nConnection: {'keep-alive' if kept else 'close'}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = answer.partition("content-length:")[2].split("\r\n")[0]
        await reader.readexactly(int(length or 0))
        return answer.split()[1], kept and "connection: close" not in answer

    async def run(self):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: setattr(self, "over", True))
        await asyncio.gather(*(self.connection(number % 2 == 0) for number in range(self.arguments.connections)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("url")
    parser.add_argument("file")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--events", type=int, default=1)
    parser.add_argument("--pad", type=int, default=20)
    asyncio.run(Load(parser.parse_args()).run())


if __name__ == "__main__":
    main()
