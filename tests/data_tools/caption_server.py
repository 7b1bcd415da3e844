"""A real server on loopback that speaks OpenAI's chat protocol, correctly or not, as a test needs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass
class ReceivedRequest:
    """A request as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    number: int  # among all requests, from 0

    @property
    def image(self) -> Image.Image:
        """The image of the request."""
        uri = self.body["messages"][0]["content"][0]["image_url"]["url"]
        assert uri.startswith("data:image/jpeg;base64,")
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

    @property
    def prompt(self) -> str:
        """The prompt of the request."""
        return str(self.body["messages"][0]["content"][1]["text"])

    @property
    def color(self) -> str:
        """The color of the image's center: red, green or blue."""
        pixel = self.image.convert("RGB").resize((3, 3)).getpixel((1, 1))
        return ("red", "green", "blue")[max(range(3), key=lambda i: pixel[i])]  # type: ignore[index]


Reply = Callable[[ReceivedRequest], Any]
"""Returns the answer: text, (text, finish reason), status, (status, headers[, body]), bytes, seconds between
the bytes of a slow answer, or None for a connection that breaks off."""


@dataclass
class CaptionServer:
    """The server's address, and the requests that it received."""

    url: str = ""
    requests: list[ReceivedRequest] = field(default_factory=list)
    max_concurrency: int = 0
    models: list[str] = field(default_factory=lambda: ["served-model"])
    path: str = ""
    """The only path that has answers; "" for any."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _in_progress: int = 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Count the requests in progress."""
        with self._lock:
            self._in_progress += 1
            self.max_concurrency = max(self.max_concurrency, self._in_progress)
        yield
        with self._lock:
            self._in_progress -= 1


def completion(text: Any, reason: str = "stop") -> bytes:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode()


def _handler(server: CaptionServer, reply: Reply) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(server.path):
                self._send(404, b"404 page not found")
                return
            self._send(200, json.dumps({"data": [{"id": name} for name in server.models]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.path.startswith(server.path):
                self._send(404, b"404 page not found")
                return
            with server.busy():
                request = ReceivedRequest(body, dict(self.headers), len(server.requests))
                server.requests.append(request)
                answer = reply(request)
            self._answer(answer)  # outside: a client with its answer may send the next request at once

        def _answer(self, answer: Any) -> None:
            if isinstance(answer, str):
                self._send(200, completion(answer))
            elif isinstance(answer, int):
                self._send(answer, b'{"error": {"message": "refused by the test"}}')
            elif isinstance(answer, bytes):
                self._send(200, answer)
            elif isinstance(answer, float):
                self._drip(answer)
            elif answer is None:
                self._break_off()
            elif isinstance(answer[0], int):
                status, headers, *body = answer
                self._send(status, body[0] if body else b"{}", headers)
            else:
                self._send(200, completion(*answer))

        def _drip(self, seconds: float) -> None:
            """Send an answer byte by byte, each within the timeout of a socket."""
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in completion("too late"):
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(seconds)

        def _break_off(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving_captions(reply: Reply) -> Iterator[CaptionServer]:
    """Yield the server while it runs."""
    server = CaptionServer()
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server, reply))
    http_server.daemon_threads = True
    thread = threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http_server.server_port}/v1"
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()
