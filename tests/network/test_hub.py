"""A base model from the hub is downloaded completely, verified and pinned; everything after that is local."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorakit.models import base_model
from tests.network import hub as hubs
from tests.network import servers

SPEC = "team/base@v1"
WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def embedded_files(change: str = "") -> dict[str, bytes]:
    """Return the embedded DiT as a repository, with additional files that must never be requested."""
    folder = base_model.EMBEDDED_FOLDER / "tiny-dit"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    files["vae/config.json"] += change.encode()
    for name in ("run.py", "vae/model.py", "vae/diffusion.bin", "unet/model.ckpt", "whole.safetensors"):
        files[name] = b"never"
    return files


@dataclass(frozen=True)
class Answer:
    code: int
    folder: str
    error: str


class Client:
    """Calls `base_model.resolve_base` in a separate process, with its own hub cache."""

    def __init__(self, home: Path, address: str) -> None:
        self.home, self.address = home, address

    def __call__(self, spec: str = SPEC, call: str = "resolve_base", **environment: str) -> Answer:
        code = (
            "import sys\nfrom lorakit.core import errors\nfrom lorakit.models import base_model, hub\n"
            "hub.RETRY_DELAYS = (0.05, 0.05, 0.05)\n"
            f"try:\n    print(base_model.{call}({spec!r}))\n"
            "except errors.LorakitError as error:\n    print(error, file=sys.stderr)\n"
            "    sys.exit(error.exit_code)\n"
        )
        settings = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0"}
        settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "3", "HF_TOKEN": ""}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | settings | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout.strip(), done.stderr)

    def snapshots(self) -> list[Path]:
        """Return the files that a run could load as a model's."""
        return [p for p in self.home.rglob("snapshots/*/**/*") if p.is_file()]


@pytest.fixture
def hub() -> hubs.Hub:
    hub = hubs.Hub()
    hub.commit("v1", embedded_files())
    hub.names["main"] = hub.names["v1"]
    return hub


@pytest.fixture
def client(hub: hubs.Hub, tmp_path: Path) -> Callable[..., Answer]:
    with hubs.running(hub) as address:
        yield Client(tmp_path / "home", address)


def test_a_download_is_complete_pinned_and_free_of_pickles_and_code(hub, client, tmp_path):
    answer = client()
    assert answer.code == 0, answer.error
    commit = hub.names["v1"]
    assert Path(answer.folder).name == commit
    assert base_model.base_hash(Path(answer.folder)) == base_model.base_hash(
        base_model.EMBEDDED_FOLDER / "tiny-dit"
    )
    assert {Path(path).suffix for path in hub.downloaded()} == {".json", ".safetensors"}
    assert {path for path in hub.downloaded() if "/" not in path} == {base_model.MODEL_INDEX, "lorakit.json"}
    hub.requests.clear()
    assert client(call="absolute_spec").folder == f"team/base@{commit}"  # as in a run's recipe.yaml
    assert client("team/base@" + commit).folder == answer.folder
    assert hub.requests == []  # known to be complete: no request
    with servers.faulty("refused") as address:
        client.address = address
        assert client().folder == answer.folder
        assert client(HF_HUB_OFFLINE="1").folder == answer.folder


def test_requests_to_a_busy_hub_are_repeated(hub, client):
    hub.busy = 3
    answer = client()
    assert answer.code == 0, answer.error
    hub.busy = 10**6
    refused = client("team/base@v1", HF_HOME=str(client.home) + "-2")
    assert refused.code == 2
    assert "the hub is busy (429)" in refused.error


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ({"status": "401", "code": "GatedRepo"}, "access to this base must be requested"),
        ({"status": "403", "code": "GatedRepo"}, "access to this base must be requested"),
        ({"status": "403"}, "the hub refuses access (403)"),
        ({"status": "401"}, "the hub refuses access (401)"),
        ({"status": "404", "code": "RepoNotFound"}, "the hub has no team/base"),
        ({"status": "404", "code": "RevisionNotFound"}, "team/base has no revision 'v1'"),
        ({"status": "500"}, "the hub is busy (500)"),
    ],
)
def test_each_refusal_is_one_error_with_a_remedy(refuse, words, hub, client):
    hub.refuse = refuse
    answer = client()
    assert answer.code == 2
    assert words in answer.error
    assert "base: team/base@v1" in answer.error
    assert "remedy:" in answer.error


@pytest.mark.parametrize("spec", ["team/other", "team/base@../../etc", "team/base@v2"])
def test_names_that_do_not_exist_are_refused(spec, client):
    answer = client(spec)
    assert answer.code == 2
    assert "remedy:" in answer.error


def test_an_unreachable_hub_without_a_cached_copy_is_an_error(tmp_path):
    with servers.faulty("refused") as address:
        client = Client(tmp_path / "home", address)
        answer = client()
        offline = client(HF_HUB_OFFLINE="1")
    assert answer.code == offline.code == 2
    assert "the hub cannot be reached" in answer.error
    assert "name a local folder" in answer.error
    assert "HF_HUB_OFFLINE" in offline.error


def test_an_interrupted_download_is_never_loaded_and_is_completed_later(hub, client):
    hub.cut = WEIGHTS
    answer = client(HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert answer.code == 2
    assert "remedy:" in answer.error
    assert not [p for p in client.snapshots() if p.as_posix().endswith(hub.cut)]
    with servers.faulty("refused") as address:  # the incomplete copy does not count as complete either
        assert Client(client.home, address)().code == 2
    hub.cut = ""
    assert client().code == 0


@pytest.mark.parametrize("path", [WEIGHTS, "vae/config.json"])
def test_a_file_with_a_wrong_hash_is_never_loaded(path, hub, client):
    hub.altered = path
    for _ in range(2):
        answer = client()
        assert answer.code == 3
        assert f"{path} was damaged in the download" in answer.error
        assert not [p for p in client.snapshots() if p.as_posix().endswith(path)]
    hub.altered = ""
    assert client().code == 0


def test_a_moved_revision_changes_nothing_until_it_is_downloaded_again(hub, client):
    first = client()
    old = hub.names["v1"]
    new = hub.commit("v1", embedded_files(" "))
    assert client().folder == first.folder
    other = Client(client.home.parent / "other", client.address)
    assert Path(other().folder).name == new
    again = other(f"team/base@{old}")  # a run's stored recipe names the commit
    assert Path(again.folder).name == old
    assert base_model.base_hash(Path(again.folder)) == base_model.base_hash(Path(first.folder))


def test_an_incomplete_copy_of_another_client_is_completed(hub, client):
    """A client without a list of the repository's files may have left any part of it."""
    assert client().code == 0
    for listing in client.home.rglob("trees/*.json"):
        listing.unlink()
    lost = next(p for p in client.snapshots() if p.parent.name == "vae" and p.suffix == ".safetensors")
    lost.unlink()
    assert client().code == 0
    assert lost.is_file()
    assert json.loads((lost.parent / "config.json").read_text())["_class_name"]
