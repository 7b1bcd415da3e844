"""Sends a run to a tracker: each value of each step once, however often the run is stopped and resumed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from lorakit.config.monitoring import TrackerConfig
from lorakit.core.checksums import sha256_bytes
from lorakit.core.storage import dump_json
from lorakit.training.trackers import labels
from lorakit.training.trackers.backends import create_backend
from lorakit.training.trackers.feed import RunFeed, StepValues
from lorakit.training.trackers.record import TrackerRecords

SAVE_EVERY = 0.5  # seconds between writes of tracker.json while values are sent
SAMPLES = "samples"


class RunMovedError(Exception):
    """The run's folder was moved or removed: nothing may be written at its old path."""


class Sender:
    """A run's tracker, and the record of what it has received. `action` names what is being done."""

    def __init__(self, config: TrackerConfig, run: Path, say: Callable[[str], None]) -> None:
        self.config, self.run, self.say = config, run, say
        self.action = "start"
        self.feed = RunFeed(run)
        self._folder = run.stat().st_ino
        self._saved = 0.0

    def start(self) -> None:
        """Start or continue the run in the tracker, and send its settings if they are new there."""
        places = labels.resolve_labels(self.config, self.run, os.environ)
        labels.remove_overruled_variables(self.config, os.environ)
        self.records = TrackerRecords(self.run)
        if self.records.problem:
            self.say(self.records.problem)
        self.record = self.records.find(self.config.name, places)
        earlier_id = self.record.id
        settings = labels.sent_settings(self.run)
        self.backend = create_backend(self.config.name, self.run, places, self.record, settings)
        self.backend.prepare()
        if self.record.id != earlier_id:
            self._save()  # before the service knows it: a crash in between must not make a second run
        self.backend.start()
        self.record.url, self.record.complete = self.backend.url(), False
        if earlier_id and self.record.id != earlier_id:
            self.say("its earlier run cannot be continued; this is a new one, which receives everything")
        self.action = "send the settings"
        digest = sha256_bytes(dump_json(settings).encode())
        if digest != self.record.settings_hash or self.backend.sends_settings_always:
            self.backend.send_settings(is_new=not self.record.settings_hash)
            self.record.settings_hash = digest
        self._save()

    def send(self, last_step: int) -> None:
        """Send everything up to a step that was not sent before."""
        for values in self.feed.read(last_step):
            self._send_step(values)
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save()
        self._save()

    def finish(self, *, done: bool) -> None:
        """Let the tracker finish; `done` says that the run is finished, too."""
        self.action = "finish"
        self.backend.finish(done=done)
        self.record.complete = done
        self._save()

    def _send_step(self, values: StepValues) -> None:
        step, record = values.step, self.record
        metrics = {name: value for name, value in values.metrics.items() if not record.has(name, step)}
        images = [] if record.has(SAMPLES, step) else [file for file in values.images if file.is_file()]
        if not metrics and not images:
            return
        self.action = "send images" if images else "log"
        self.backend.log(step, metrics, images)
        for name in [*metrics, *([SAMPLES] if images else [])]:
            record.add(name, step)

    def _save(self) -> None:
        if not self.run.is_dir() or self.run.stat().st_ino != self._folder:
            raise RunMovedError
        self.records.save(self.record)
        self._saved = time.monotonic()
