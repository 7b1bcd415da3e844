"""Training opens no socket: told by the interpreter's own audit events, over a whole run with sampling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from lorakit.core import storage
from lorakit.training import trackers
from tests import runs
from tests.network import servers


def listen() -> list[list[str]]:
    """Every socket event of this process from now on, with its stack."""
    seen: list[list[str]] = []

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event.startswith("socket."):
            seen.append([event, repr(details)[:200], "".join(traceback.format_stack()[-8:])])

    sys.addaudithook(hook)
    return seen


def audit(told: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Train in this process and write its exit code and socket events to `told`."""
    seen = listen()
    os.environ.update(environment)
    from lorakit.training.train import main

    code = main(arguments)
    storage.write_json(told, {"code": code, "seen": list(seen)})


def answer(told: Path) -> tuple[int, list[list[str]]]:
    """Exit code and events, without the probe that urllib3 makes when it is imported (by diffusers, through
    requests): it binds a socket to ::1 and closes it, to know whether the machine has IPv6."""
    tree = json.loads(told.read_text())
    return tree["code"], [event for event in tree["seen"] if "in _has_ipv6" not in event[2]]


def whole_run(folder: Path, base: str, **changes: Any) -> Path:
    """A run with all that a run does: caches of its own to fill, sampling, validation, an export."""
    data = runs.make_dataset(folder / "data", 3)
    prompts = runs.make_prompts(folder / "p.jsonl")
    changes |= {"samples": {"prompts": str(prompts), "every": 2, "steps": 2}, "export": ["diffusers"]}
    changes |= {"validate": {"fraction": 0.34, "every": 2}, "train": {"steps": 2, "precision": "fp32"}}
    return runs.make_recipe(folder / "r.yaml", base, data, folder / "run", **changes)


def online(folder: Path) -> dict[str, str]:
    """What is set on a user's machine that has a network."""
    return {"LORAKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}


def test_93_a_fresh_process_trains_without_a_socket_though_its_tracker_hangs(tmp_path):
    """The server accepts and never answers: a bounded delay, the true exit code, no hang at exit."""
    file = whole_run(tmp_path, "tiny-dit", tracker="wandb")
    told, adapter = tmp_path / "told", tmp_path / "run/adapter.safetensors"
    with servers.bad("silent") as address:
        own = {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        arguments = (str(told), [str(file)], online(tmp_path) | own)
        code = f"from tests.network import test_no_socket\ntest_no_socket.audit{arguments!r}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        ended = time.time()
    assert done.returncode == 0, done.stderr
    assert answer(told) == (0, [])
    assert "wandb: not finished within 10 s" in done.stderr
    assert (tmp_path / "run/samples/step-00000002/samples.json").exists()
    assert told.stat().st_mtime - adapter.stat().st_mtime < trackers.CLOSE_TIMEOUT + 20
    assert ended - told.stat().st_mtime < 20


def test_the_other_base_opens_none_either(tmp_path):
    file = whole_run(tmp_path, "tiny-unet")
    process = runs._CONTEXT.Process(
        target=audit, args=(str(tmp_path / "told"), [str(file)], online(tmp_path))
    )
    process.start()
    process.join(120)
    assert answer(tmp_path / "told") == (0, [])


def test_the_audit_would_tell():
    code = "import socket\nfrom tests.network import test_no_socket\nseen = test_no_socket.listen()\n"
    with servers.bad("refused") as address:
        port = address.rsplit(":", 1)[1]
        code += f"try:\n    socket.create_connection(('127.0.0.1', {port}))\nexcept OSError:\n    pass\n"
        code += "print([name for name, *_ in seen])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "socket.getaddrinfo" in done.stdout
    assert "socket.connect" in done.stdout
