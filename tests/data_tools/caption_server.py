"""A real server on loopback that speaks OpenAI's chat protocol, well or badly, as a test says."""

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
class Heard:
    """One question as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    number: int  # among all questions, from 0

    @property
    def picture(self) -> Image.Image:
        """The picture that was sent."""
        uri = self.body["messages"][0]["content"][1]["image_url"]["url"]
        assert uri.startswith("data:image/jpeg;base64,")
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))

    @property
    def prompt(self) -> str:
        """What was asked."""
        return str(self.body["messages"][0]["content"][0]["text"])

    @property
    def colour(self) -> str:
        """red, green or blue: what the middle of the picture is."""
        pixel = self.picture.convert("RGB").resize((3, 3)).getpixel((1, 1))
        return ("red", "green", "blue")[max(range(3), key=lambda i: pixel[i])]  # type: ignore[index]


Reply = Callable[[Heard], Any]
"""Says what to answer: text, (text, finish reason), status, (status, headers), bytes, or seconds to drip."""


@dataclass
class Talker:
    """The server's address and all that it heard."""

    url: str = ""
    heard: list[Heard] = field(default_factory=list)
    at_once: int = 0
    models: list[str] = field(default_factory=lambda: ["talker"])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _now: int = 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Counts how many questions are answered at once."""
        with self._lock:
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        yield
        with self._lock:
            self._now -= 1


def completion(text: Any, reason: str = "stop") -> bytes:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]}).encode()


def _handler(talker: Talker, reply: Reply) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps({"data": [{"id": name} for name in talker.models]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with talker.busy():
                heard = Heard(body, dict(self.headers), len(talker.heard))
                talker.heard.append(heard)
                said = reply(heard)
            self._say(said)  # who has the answer may ask again before this thread goes on

        def _say(self, said: Any) -> None:
            if isinstance(said, str):
                self._send(200, completion(said))
            elif isinstance(said, int):
                self._send(said, b'{"error": {"message": "as the test wants"}}')
            elif isinstance(said, bytes):
                self._send(200, said)
            elif isinstance(said, float):
                self._drip(said)
            elif isinstance(said[0], int):
                self._send(said[0], b"{}", said[1])
            else:
                self._send(200, completion(*said))

        def _drip(self, seconds: float) -> None:
            """An answer that comes a byte at a time, each soon enough for a socket's own timeout."""
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in completion("too late"):
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(seconds)

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
def talking(reply: Reply) -> Iterator[Talker]:
    """The server while it runs."""
    talker = Talker()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(talker, reply))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    talker.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield talker
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
