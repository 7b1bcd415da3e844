"""A hub on loopback with the API that huggingface_hub uses, and faults that tests switch on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

from tests.network import servers

LARGE = ".safetensors"  # suffix of files that a hub stores outside git, named by SHA-256


@dataclass
class Hub:
    """One repository's commits and names; faults are read at every request."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    repository: str = "team/base"
    refuse: dict[str, str] = field(default_factory=dict)  # status and X-Error-Code for every request
    busy: int = 0  # number of further requests that get a 429
    cut: str = ""  # a file whose content ends early
    altered: str = ""  # a file whose content has one wrong byte
    requests: list[str] = field(default_factory=list)

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit and point `name` to it; returns its hash."""
        text = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in files.items()})
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        self.names[name] = commit
        return commit

    def downloaded(self) -> list[str]:
        """Return the paths of the files that were requested."""
        paths = [re.search(r"^GET /[^/]+/[^/]+/resolve/\w+/(.*)$", line) for line in self.requests]
        return sorted({match[1] for match in paths if match})


def _hash_name(path: str, data: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.requests.append(f"{self.command} {path}")
            if hub.refuse:
                self.answer(int(hub.refuse["status"]), b"", {"X-Error-Code": hub.refuse.get("code", "")})
            elif hub.busy:
                hub.busy -= 1
                self.answer(429, b"", {"Retry-After": "0"})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
                self.listing(match[1], match[2], match[3])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(match[1], match[2], match[3])
            else:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def listing(self, repository: str, kind: str, revision: str) -> None:
            commit = hub.names.get(revision, revision)
            if repository != hub.repository:
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif commit not in hub.commits:
                self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif kind == "revision":
                self.answer(200, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
            else:
                rows = []
                for path, data in hub.commits[commit].items():
                    row = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
                    if path.endswith(LARGE):
                        row["lfs"] = {"oid": _hash_name(path, data), "size": len(data), "pointerSize": 1}
                    else:
                        row["oid"] = _hash_name(path, data)
                    rows.append(row)
                self.answer(200, json.dumps(rows).encode())

        def file(self, repository: str, commit: str, path: str) -> None:
            data = hub.commits.get(commit, {}).get(path)
            if data is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_hash_name(path, data)}"'}
            if path == hub.altered:
                data = data[:-1] + bytes([data[-1] ^ 1])
            self.answer(200, data, headers, cut=path == hub.cut and self.command == "GET")

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[str]:
    """Run the hub and yield its address."""
    with servers.serving(_handler(hub)) as address:
        yield address
