"""Trackers beside metrics.jsonl: best effort, in a process of their own.

A tracker's library is never imported by the trainer. It is handed lines over a pipe that is never waited for,
so one that is missing, fails, hangs or crashes cannot stop, change or slow a run, and the training process
itself opens no socket. The one wait is at the end, and it is bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

MAX_QUEUE_BYTES = 1 << 20  # bytes that may wait for a slow tracker: about 7,000 rows
CLOSE_TIMEOUT = 10.0  # seconds that a finished run waits for its tracker
ORPHAN_TIMEOUT = 60.0  # seconds that a tracker goes on sending after its trainer has died


class Tracker(Protocol):
    """Where metrics also go; lives in the tracker's own process."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def images(self, name: str, files: list[Path], step: int) -> None: ...

    def close(self) -> None: ...


class _Wandb:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        # This process has no output, code or repository that would tell anything about the run.
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

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def images(self, name: str, files: list[Path], step: int) -> None:
        self._run.log({name: [self._wandb.Image(str(file), caption=file.stem) for file in files]}, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def images(self, name: str, files: list[Path], step: int) -> None:
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
    """Hands metrics and pictures to a tracker's process; never raises, never waits but in `close`."""

    def __init__(self, kind: str, run: Path, config: Mapping[str, Any]) -> None:
        self.kind = kind
        self._waiting = bytearray()
        self._lost = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        if kind in _TRACKERS:
            # -P: a file in the working folder is never taken for the tracker's library
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
                # A session of its own: Ctrl-C is the trainer's business, and one signal ends all of it.
                child = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
            except OSError as error:
                self._say(f"could not start ({error})")
                return
            assert child.stdin is not None
            self._child, self._pipe = child, child.stdin.fileno()
            os.set_blocking(self._pipe, False)
            self._send({"config": dict(config)})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send numbers."""
        self._send({"metrics": dict(metrics), "step": step})

    def images(self, name: str, files: list[Path], step: int) -> None:
        """Send pictures, which are read later: the files must stay."""
        self._send({"images": name, "files": [str(file.absolute()) for file in files], "step": step})

    def close(self) -> bool:
        """Let the tracker finish, for at most `CLOSE_LIMIT` seconds, then end it.

        True when it has everything (or when there is none).
        """
        child, deadline = self._child, time.monotonic() + CLOSE_TIMEOUT
        if child is None:
            return self.kind not in _TRACKERS
        while self._waiting and self._pipe >= 0 and time.monotonic() < deadline:
            select.select([], [self._pipe], [], max(0.0, deadline - time.monotonic()))
            self._push()
        self._hang_up()
        self._child = None
        try:
            code = child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            self._say(f"not finished within {CLOSE_TIMEOUT:g} s, so it was ended")
            return False
        if self._lost and code == 0:
            self._say(f"it was too slow for {self._lost} messages, which it has not")
        return code == 0 and not self._lost

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._pipe < 0:
            return
        line = (json.dumps(message) + "\n").encode()
        if len(self._waiting) + len(line) > MAX_QUEUE_BYTES:
            self._lost += 1
            return
        self._waiting += line
        self._push()

    def _push(self) -> None:
        """Write what the pipe takes now."""
        try:
            del self._waiting[: os.write(self._pipe, self._waiting)]
        except BlockingIOError:
            pass
        except OSError:  # the tracker has ended, and has said why
            self._hang_up()

    def _hang_up(self) -> None:
        if self._pipe >= 0 and self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
        self._pipe = -1
        self._waiting.clear()

    def _say(self, what: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"{self.kind}: {what}; metrics.jsonl has everything", file=sys.stderr, flush=True)


def _exit_after_parent(trainer: int) -> None:
    """End this process some time after its trainer, even when the tracker's library never returns."""
    while os.getppid() == trainer:
        time.sleep(1)
    time.sleep(ORPHAN_TIMEOUT)
    os._exit(1)


def tracker_main(kind: str, run: str, trainer: str) -> int:
    """The tracker's process: one JSON line a message on stdin, until it is closed; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, args=(int(trainer),), daemon=True).start()
    what = "start"
    try:
        tracker: Tracker = _TRACKERS[kind](Path(run), json.loads(sys.stdin.buffer.readline())["config"])
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "metrics" in message:
                what = "log"
                tracker.log(message["metrics"], message["step"])
            else:
                what = "send pictures"
                tracker.images(message["images"], [Path(f) for f in message["files"]], message["step"])
        what = "finish"
        tracker.close()
    except Exception as error:  # a remote service may fail in any way; the run goes on
        with contextlib.suppress(OSError, ValueError):
            reason = (str(error).splitlines() or [""])[0]
            print(f"{kind}: could not {what} ({reason}); metrics.jsonl has everything", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    ended = tracker_main(*sys.argv[1:])
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(ended)  # no exit hook of a tracker's library may hang
