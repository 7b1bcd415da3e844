"""Trackers (wandb, tensorboard) beside metrics.jsonl: best effort, in a process of their own.

The trainer never imports a tracker's library. It writes lines to a pipe without ever waiting, so that a
tracker that is missing, fails, hangs or crashes cannot stop, change or slow a run, and the training process
itself opens no socket. The only wait is at the end, and it is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lorakit.core import platform

MAX_QUEUE_BYTES = 1 << 20  # waiting for a slow tracker: about 7,000 rows
CLOSE_TIMEOUT = 10.0  # seconds that a finished run waits for its tracker
ORPHAN_TIMEOUT = 60.0  # seconds that a tracker may still send after its trainer has died


class Tracker(Protocol):
    """A receiver of metrics and images, in the tracker's own process."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_images(self, name: str, files: list[Path], step: int) -> None: ...

    def close(self) -> None: ...


class _Wandb:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        # The console, code and repository of this process have nothing to do with the run.
        settings = wandb.Settings(console="off", disable_git=True, disable_code=True)
        self._wandb = wandb
        self._run = wandb.init(
            project="lorakit",
            name=run.name,
            dir=str(run),
            config=dict(config),
            resume="allow",
            settings=settings,
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_images(self, name: str, files: list[Path], step: int) -> None:
        self._run.log({name: [self._wandb.Image(str(file), caption=file.stem) for file in files]}, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_images(self, name: str, files: list[Path], step: int) -> None:
        import numpy as np
        from PIL import Image

        for file in files:
            pixels = np.asarray(Image.open(file).convert("RGB"))
            self._writer.add_image(f"{name}/{file.stem}", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


_TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
}


class TrackerProcess:
    """Sends metrics and images to a tracker's process; never raises, and waits only in `close`."""

    def __init__(self, kind: str, run: Path, config: Mapping[str, Any]) -> None:
        self.kind = kind
        self._buffer = bytearray()
        self._dropped = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        if kind in _TRACKERS:
            # -P: no file in the working folder may be imported as the tracker's library
            command = [
                sys.executable,
                "-P",
                "-m",
                "lorakit.training.trackers",
                kind,
                str(run),
                str(os.getpid()),
            ]
            try:
                # In a group of its own: Ctrl-C reaches only the trainer, and one signal ends all of it.
                child = platform.start_in_own_group(command, stdin=subprocess.PIPE, bufsize=0)
            except OSError as error:
                self._log(f"could not start ({error})")
                return
            assert child.stdin is not None
            self._child, self._pipe = child, child.stdin.fileno()
            platform.set_nonblocking(self._pipe)
            self._send({"config": dict(config)})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a row of metrics."""
        self._send({"metrics": dict(metrics), "step": step})

    def log_images(self, name: str, files: list[Path], step: int) -> None:
        """Send images; the files are read later and must stay."""
        self._send({"images": name, "files": [str(file.absolute()) for file in files], "step": step})

    def close(self) -> bool:
        """Let the tracker finish, for at most `CLOSE_TIMEOUT` seconds, then end it.

        Returns True if it has received everything, or there is none.
        """
        child, deadline = self._child, time.monotonic() + CLOSE_TIMEOUT
        if child is None:
            return self.kind not in _TRACKERS
        while self._buffer and self._pipe >= 0 and time.monotonic() < deadline:
            platform.wait_writable(self._pipe, max(0.0, deadline - time.monotonic()))
            self._flush()
        self._close_pipe()
        self._child = None
        try:
            code = child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            platform.end_group(child, force=True)
            child.wait()
            self._log(f"not finished within {CLOSE_TIMEOUT:g} s, so it was ended")
            return False
        if self._dropped and code == 0:
            self._log(f"it was too slow, and {self._dropped} messages were dropped")
        return code == 0 and not self._dropped

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._pipe < 0:
            return
        line = (json.dumps(message) + "\n").encode()
        if len(self._buffer) + len(line) > MAX_QUEUE_BYTES:
            self._dropped += 1
            return
        self._buffer += line
        self._flush()

    def _flush(self) -> None:
        """Write as much as the pipe accepts now."""
        try:
            del self._buffer[: platform.write_available(self._pipe, self._buffer)]
        except OSError:  # the tracker has ended, and has printed why
            self._close_pipe()

    def _close_pipe(self) -> None:
        if self._pipe >= 0 and self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._pipe = -1
        self._buffer.clear()

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"{self.kind}: {text}; metrics.jsonl has everything", file=sys.stderr, flush=True)


def _exit_after_parent(trainer: int) -> None:
    """End this process some time after its trainer, even when the tracker's library never returns."""
    while platform.is_parent_alive(trainer):
        time.sleep(1)
    time.sleep(ORPHAN_TIMEOUT)
    os._exit(1)


def tracker_main(kind: str, run: str, trainer: str) -> int:
    """Read one JSON line a message from stdin until it is closed; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, args=(int(trainer),), daemon=True).start()
    action = "start"
    try:
        tracker: Tracker = _TRACKERS[kind](Path(run), json.loads(sys.stdin.buffer.readline())["config"])
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "metrics" in message:
                action = "log"
                tracker.log_metrics(message["metrics"], message["step"])
            else:
                action = "send images"
                tracker.log_images(message["images"], [Path(f) for f in message["files"]], message["step"])
        action = "finish"
        tracker.close()
    except Exception as error:  # a remote service may fail in any way; the run goes on
        with contextlib.suppress(OSError, ValueError):
            reason = (str(error).splitlines() or [""])[0]
            print(f"{kind}: could not {action} ({reason}); metrics.jsonl has everything", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    exit_code = tracker_main(*sys.argv[1:])
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(exit_code)  # an exit hook of a tracker's library might hang
