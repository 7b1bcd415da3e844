"""A model hub on loopback that accepts uploads: the API that huggingface_hub uses for one commit.

Repositories are dictionaries of files by name. Large files come through LFS, small ones in the commit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

import yaml

from tests.network import servers

TOKEN = "hf_" + "a" * 34
LARGE = (".safetensors", ".png", ".jpg")  # stored outside git


@dataclass
class Repository:
    private: bool = True
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: int = 1

    @property
    def sha(self) -> str:
        return hashlib.sha1(str((self.commits, sorted(self.files))).encode()).hexdigest()


@dataclass
class FakeHub:
    """Repositories of the user `me` and others; `objects` are the uploaded LFS files."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    owners: tuple[str, ...] = ("me",)
    broken: int = 0
    """Status of every commit, if it is not 0."""

    def read(self, name: str, path: str) -> bytes:
        return self.repositories[name].files[path]


def _is_large(path: str) -> bool:
    return path.endswith(LARGE)


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def route(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = unquote(self.path.partition("?")[0])
            hub.requests.append(f"{self.command} {path}")
            if path.startswith("/lfs/"):  # a signed address, without a token
                self.store(path.removeprefix("/lfs/"), body)
            elif self.headers.get("authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid token"})
            elif path == "/api/repos/create":
                self.create(json.loads(body))
            elif path == "/api/validate-yaml":
                self.validate(json.loads(body))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/(\w+)/(\w+))?", path):
                self.repository(match[1], match[2], body)
            elif match := re.fullmatch(r"/([^/]+/[^/]+?)\.git/info/lfs/objects/batch", path):
                self.batch(json.loads(body))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self.file(match[1], match[2])
            else:
                self.answer(404, {"error": path})

        do_GET = do_HEAD = do_POST = do_PUT = route

        def create(self, request: dict[str, Any]) -> None:
            owner = request.get("organization") or "me"
            name = f"{owner}/{request['name']}"
            if owner not in hub.owners:
                self.answer(
                    403, {"error": "You don't have the rights to create a model under this namespace"}
                )
            elif name in hub.repositories:
                self.answer(409, {"error": "You already created this model repo"})
            else:
                private = request.get("private", request.get("visibility") == "private")
                hub.repositories[name] = Repository(bool(private))
                self.answer(200, {"url": f"{self.address()}/{name}", "name": name})

        def validate(self, request: dict[str, Any]) -> None:
            front = re.match(r"---\n(.*?)\n---\n", request["content"], re.S)
            errors = (
                []
                if front and isinstance(yaml.safe_load(front[1]), dict)
                else [{"message": "no front matter"}]
            )
            self.answer(200 if not errors else 400, {"errors": errors, "warnings": []})

        def repository(self, name: str, action: str | None, body: bytes) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            elif action in (None, "revision"):
                self.answer(
                    200, {"id": name, "sha": repository.sha, "private": repository.private, "siblings": []}
                )
            elif action == "tree":
                self.answer(200, [self.row(path, data) for path, data in sorted(repository.files.items())])
            elif name.partition("/")[0] not in hub.owners:
                self.answer(403, {"error": "Forbidden: you must use a write token"})
            elif action == "preupload":
                rows = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": rows})
            else:
                self.commit(name, repository, [json.loads(line) for line in body.splitlines()])

        def row(self, path: str, data: bytes) -> dict[str, Any]:
            row = {"type": "file", "path": path, "size": len(data), "oid": _git_sha1(data)}
            if _is_large(path):
                row["oid"] = "0" * 40  # of the pointer file
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            return row

        def batch(self, request: dict[str, Any]) -> None:
            objects = [
                one | {"actions": {"upload": {"href": f"{self.address()}/lfs/{one['oid']}"}}}
                for one in request["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})

        def store(self, oid: str, body: bytes) -> None:
            hub.objects[oid] = body
            self.answer(200 if hashlib.sha256(body).hexdigest() == oid else 400, {})

        def commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
            header = lines[0]["value"]
            if hub.broken:
                self.answer(hub.broken, {"error": "broken"})
                return
            if header.get("parentCommit", repository.sha) != repository.sha:
                self.answer(412, {"error": "A commit has happened since"})
                return
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    assert not _is_large(value["path"])
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = hub.objects[value["oid"]]
                else:
                    assert line["key"] == "deletedFile"
                    del repository.files[value["path"]]
            repository.commits += 1
            url = f"{self.address()}/{name}/commit/{repository.sha}"
            self.answer(200, {"commitUrl": url, "commitOid": repository.sha, "hookOutput": ""})

        def file(self, name: str, path: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None or path not in repository.files:
                self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
                return
            data = repository.files[path]
            headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{_git_sha1(data)}"'}
            self.answer(200, data, headers)

        def address(self) -> str:
            return f"http://{self.headers['host']}"

        def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def running(hub: FakeHub) -> Iterator[str]:
    """Run the hub and yield its address."""
    with servers.serving(_handler(hub)) as address:
        yield address
