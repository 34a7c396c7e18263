"""The sender's Web API over TLS: lists the deliveries and bounces that it is given, by day, hour and page."""

import json
import ssl
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = "reader"
KEY = "k3y&=+ %"


class Sender:
    def __init__(self, address, certificate, key):
        """Serves at https://ADDRESS:PORT from now on."""
        self.rows = {"deliveries": [], "bounces": []}
        self.server = ThreadingHTTPServer((address, 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://{address}:{self.server.server_port}/transaction/v2"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path, fields):
        if (fields.get("api_user"), fields.get("api_key")) != (USER, KEY):
            return 401, {"errors": [{"code": "01-002", "field": "api_key", "message": "wrong"}]}
        stream = path.removeprefix("/transaction/v2/").removesuffix("/list.json")
        if stream not in self.rows:
            return 404, {"errors": [{"code": "00-001", "field": "", "message": "no such resource"}]}
        begin = f"{fields['date']} {int(fields['hour']):02}:"
        found = [row for row in self.rows[stream] if row["created"].startswith(begin) and fields["server_composition"] == "pro"]
        size = int(fields["r"])
        page = found[int(fields["p"]) * size :][:size]
        return (200, {stream: page}) if page else (204, None)

    def _handler(sender):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                status, value = sender.answer(self.path, dict(urllib.parse.parse_qsl(body, keep_blank_values=True)))
                content = json.dumps(value).encode() if value else b""
                self.send_response(status)
                if content:
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        return Handler
