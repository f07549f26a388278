"""A loopback server that speaks chat completions and, on demand, misbehaves."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["spurious", "relevant"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
GOOD = '{"verdict": "spurious"}'


def completion(text: str, reason: str = "stop") -> bytes:
    """The body of a chat completion: 11 prompt tokens, 5 completion tokens."""
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 5},
        }
    ).encode()


class Handler(BaseHTTPRequestHandler):
    """Hands a request to the script with the number of the call (from 0)."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            call = len(self.server.calls)
            self.server.calls.append(body)
            self.server.headers.append(self.headers)
            self.server.times.append(time.monotonic())
        try:
            self.server.script(self, call, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def reply(self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def start(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def reset(self) -> None:
        """Cut the connection the hard way (RST)."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


Script = Callable[[Handler, int, dict[str, Any]], None]


class Loopback(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: Script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.lock = threading.Lock()
        self.calls: list[dict[str, Any]] = []
        self.headers: list[Message] = []
        self.times: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving(script: Script) -> Iterator[Loopback]:
    """A running server; `calls`, `headers` and `times` tell what it was asked."""
    server = Loopback(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(text: str = GOOD) -> Script:
    """A script that always answers `text`."""
    return lambda handler, call, body: handler.reply(completion(text))


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
