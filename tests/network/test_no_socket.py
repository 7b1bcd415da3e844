"""Training opens no socket, by the interpreter's own audit events over a whole run with sampling."""

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
from lorakit.training.trackers import process
from tests import runs
from tests.long_tier import long
from tests.network import servers


def listen() -> list[list[str]]:
    """Record every further socket event of this process, with its stack."""
    events: list[list[str]] = []

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event.startswith("socket."):
            events.append([event, repr(details)[:200], "".join(traceback.format_stack()[-8:])])

    sys.addaudithook(hook)
    return events


def audit(result_file: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Train in this process and write its exit code and socket events to `result_file`."""
    events = listen()
    os.environ.update(environment)
    from lorakit.training.train import main

    code = main(arguments)
    storage.write_json(result_file, {"code": code, "events": list(events)})


def read_result(result_file: Path) -> tuple[int, list[list[str]]]:
    """Return exit code and events, without the check for IPv6 that urllib3 makes when it is imported (by
    diffusers, through requests): it binds a socket to ::1 and closes it."""
    result = json.loads(result_file.read_text())
    return result["code"], [event for event in result["events"] if "in _has_ipv6" not in event[2]]


def whole_run(folder: Path, base: str, **changes: Any) -> Path:
    """Write the recipe of a run with new caches, sampling, validation and an export."""
    data = runs.make_dataset(folder / "data", 3)
    prompts = runs.make_prompts(folder / "p.jsonl")
    changes |= {
        "samples": {"prompts": str(prompts), "every": 2, "num_inference_steps": 2},
        "export": ["diffusers"],
    }
    changes |= {"validate": {"fraction": 0.34, "every": 2}, "train": {"steps": 2, "precision": "fp32"}}
    return runs.make_recipe(folder / "r.yaml", base, data, folder / "run", **changes)


def online(folder: Path) -> dict[str, str]:
    """Return the environment of a user's machine with a network."""
    return {"LORAKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}


def test_a_fresh_process_trains_without_a_socket_though_its_tracker_hangs(tmp_path):
    """With a server that never answers: a bounded delay, the right exit code, and a prompt exit."""
    file = whole_run(tmp_path, "tiny-dit", tracker="wandb")
    result, adapter = tmp_path / "result.json", tmp_path / "run/adapter.safetensors"
    with servers.faulty("silent") as address:
        settings = {"WANDB_MODE": "online", "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        arguments = (str(result), [str(file)], online(tmp_path) | settings)
        code = f"from tests.network import test_no_socket\ntest_no_socket.audit{arguments!r}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
        ended = time.time()
    assert done.returncode == 0, done.stderr
    assert read_result(result) == (0, [])
    assert "wandb: not finished within 10 s" in done.stderr
    assert (tmp_path / "run/samples/step-00000002/samples.json").exists()
    assert result.stat().st_mtime - adapter.stat().st_mtime < process.CLOSE_TIMEOUT + 20
    assert ended - result.stat().st_mtime < 20


@long
def test_the_other_embedded_base_model_opens_no_socket_either(tmp_path):
    file = whole_run(tmp_path, "tiny-unet")
    process = runs._CONTEXT.Process(
        target=audit, args=(str(tmp_path / "result.json"), [str(file)], online(tmp_path))
    )
    process.start()
    process.join(120)
    assert read_result(tmp_path / "result.json") == (0, [])


def test_the_audit_detects_a_socket():
    code = "import socket\nfrom tests.network import test_no_socket\nevents = test_no_socket.listen()\n"
    with servers.faulty("refused") as address:
        port = address.rsplit(":", 1)[1]
        code += f"try:\n    socket.create_connection(('127.0.0.1', {port}))\nexcept OSError:\n    pass\n"
        code += "print([name for name, *_ in events])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "socket.getaddrinfo" in done.stdout
    assert "socket.connect" in done.stdout
