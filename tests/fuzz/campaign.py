"""The parent of the worker: gives it inputs, limits time and memory, and keeps what failed."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.core.tables import format_table
from tests.fuzz.worker import MAX_MEMORY

MAX_SECONDS = 10.0
START_SECONDS = 120.0  # the imports of a new worker
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Failure:
    """An input that ended in a traceback, took too long or took too much memory."""

    kind: str
    seed: int
    problem: str
    kept: Path


class Campaign:
    """Inputs of some kinds in turn, read by one worker, which is started again when it dies."""

    def __init__(
        self, kinds: Sequence[str], keep: Path, *, max_seconds: float = MAX_SECONDS, plant: str = ""
    ) -> None:
        """`plant` lets the worker fail with each input in this way, to test the campaign itself."""
        self.kinds, self.keep, self.max_seconds, self.plant = list(kinds), keep, max_seconds, plant
        self.failures: list[Failure] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.slowest: dict[str, float] = dict.fromkeys(kinds, 0.0)
        self.peak = self.idle = 0  # bytes
        self._scratch = Path(tempfile.mkdtemp(prefix="lorakit-fuzz-"))
        self._log = open(self._scratch / "log.txt", "a+b")  # noqa: SIM115 - closed with the campaign
        self._worker: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._log.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, seed: int, count: int) -> Iterator[int]:
        """Read `count` inputs from `seed` on; yield their number so far."""
        for number in range(count):
            kind = self.kinds[number % len(self.kinds)]
            self._read(kind, seed + number // len(self.kinds))
            yield number + 1

    def _read(self, kind: str, seed: int) -> None:
        timeout = 3 * self.max_seconds  # other programs use the CPU as well
        if self._worker is None:
            self._start()
            if self._answers.get(timeout=START_SECONDS) is None:
                raise RuntimeError(f"the worker cannot start: {self._words()}")
        assert self._worker is not None
        assert self._worker.stdin is not None
        self._worker.stdin.write(json.dumps([kind, seed]) + "\n")
        self._worker.stdin.flush()
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            self._fail(kind, seed, f"no answer after {timeout:g} s")
            self._stop()
            return
        if answer is None:
            code = self._worker.wait()
            self._fail(kind, seed, f"the process died with code {abs(code)}: {self._words()}")
            self._stop()
            return
        self._judge(kind, seed, *json.loads(answer))

    def _judge(self, kind: str, seed: int, outcome: str, message: str, seconds: float, memory: int) -> None:
        self.slowest[kind] = max(self.slowest[kind], seconds)
        self.idle = self.idle or memory
        grown, self.peak = memory > self.peak, max(self.peak, memory)
        if outcome == "failed":
            self._fail(kind, seed, message)
        elif seconds > self.max_seconds:
            self._fail(kind, seed, f"{seconds:.1f} s")
        elif grown and memory > self.idle + MAX_MEMORY:
            self._fail(kind, seed, f"{memory >> 20} MiB of memory")
            self._stop()
        else:
            self.outcomes[kind, outcome] += 1

    def _fail(self, kind: str, seed: int, problem: str) -> None:
        self.outcomes[kind, "failed"] += 1
        kept = self.keep / f"{kind}-{seed}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        if (self._scratch / "input").is_dir():
            shutil.copytree(self._scratch / "input", kept, symlinks=True, dirs_exist_ok=True)
        (kept / "problem.txt").write_text(problem, encoding="utf-8", errors="backslashreplace")
        self.failures.append(Failure(kind, seed, problem, kept))

    def _start(self) -> None:
        self._answers = queue.Queue()
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(self._scratch / "input"), self.plant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
        )
        threading.Thread(target=_forward, args=(self._worker, self._answers), daemon=True).start()

    def _words(self) -> str:
        return (self._scratch / "log.txt").read_text(encoding="utf-8", errors="replace")[-1000:]

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def summary(self, seconds: float) -> str:
        """Return the result as text."""
        rows: list[Sequence[Any]] = [
            (
                kind,
                *(self.outcomes[kind, name] for name in ("read", "refused", "failed")),
                f"{self.slowest[kind]:.2f}",
            )
            for kind in self.kinds
        ]
        columns = ("kind", "read", "refused", "failed", "slowest (s)")
        lines = [format_table(columns, rows, numeric=columns[1:])]
        lines += [
            f"FAILED {one.kind} {one.seed}: {one.problem.strip()[-300:]}\n  kept in {one.kept}"
            for one in self.failures[:20]
        ]
        number = sum(self.outcomes.values())
        lines.append(
            f"{number} inputs in {seconds:.0f} s, {len(self.failures)} failed;"
            f" at most {self.peak >> 20} MiB of memory, {self.idle >> 20} of them idle"
        )
        return "\n".join(lines)


def _forward(worker: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        answers.put(line)
    answers.put(None)
