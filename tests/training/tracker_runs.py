"""Runs as a trainer writes them, without training; and readers of what trackers have stored."""

from __future__ import annotations

import json
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit.config.monitoring import TrackerConfig
from lorakit.core import storage
from lorakit.training.trackers.sender import Sender

SETTINGS = {"optimizer.lr": 1e-4, "train.steps": 12, "trigger": "sks"}


class WrittenRun:
    """A run's folder with loss and learning rate in each step, samples and validation in each fourth."""

    def __init__(self, path: Path, base: str = "tiny-dit") -> None:
        self.path = path
        record = {"settings": SETTINGS, "inputs": {}, "versions": {}, "status": "running"}
        storage.write_json(path / "run.json", record)
        storage.write_json(path / "recipe.yaml", {"base": base, "out": str(path)})

    def append(self, step: int, **values: float | None) -> None:
        """Append a row to metrics.jsonl."""
        storage.append_jsonl(self.path / "metrics.jsonl", {"step": step, **values})

    def sample(self, step: int) -> None:
        """Write two samples of a step."""
        folder = self.path / "samples" / f"step-{step:08d}"
        rows = [{"file": "a-0.png"}, {"file": "b-0.png"}]
        for index, row in enumerate(rows):
            storage.save_image(folder / row["file"], Image.new("RGB", (8, 8), (step * 9, index * 99, 0)))
        storage.write_json(folder / "samples.json", rows)

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, as a run does that is resumed from its checkpoint."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            storage.write_jsonl(file, [row for row in storage.read_jsonl(file) if row["step"] <= step])

    def train(self, first: int, last: int) -> None:
        """Write the steps after `first` up to `last`."""
        for step in range(first + 1, last + 1):
            self.append(step, loss=step / 10, lr=1e-4)
            if step % 4 == 0:
                self.sample(step)
                self.append(step, validation_loss=step / 100)

    def session(
        self,
        config: TrackerConfig,
        checkpoint: int,
        last: int,
        *,
        done: bool = False,
        lost_record: bool = False,
    ) -> Sender:
        """Resume from a checkpoint, train and send to `last`, then end as if killed, or finish.

        With `lost_record` the tracker was killed, too, before it recorded what it had handed over.
        """
        if config.name == "tensorboard":
            time.sleep(1.0 - time.time() % 1)  # the names of event files sort by second
        self.rewind(checkpoint)
        sender = Sender(config, self.path, print)
        sender.start()
        before = (self.path / "tracker.json").read_bytes()
        for step in range(checkpoint, last):
            self.train(step, step + 1)
            sender.send(step + 1)
        sender.finish(done=done)
        if lost_record:
            storage.write_bytes(self.path / "tracker.json", before)
        return sender


def read_wandb(run: Path) -> tuple[set[str], list[dict[str, Any]]]:
    """Return the ids and all history rows of the offline files of a run."""
    from wandb.proto import wandb_internal_pb2

    ids, rows = set(), []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        for data in _leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
            elif kind == "history":
                items = record.history.item
                rows.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in items})
    return ids, rows


def _leveldb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, which wandb writes after a header of 7 bytes."""
    position, record = 7, b""
    while position < len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def wandb_values(run: Path) -> dict[str, list[int]]:
    """Return the steps of each metric of a run in wandb's offline files; `samples` are images."""
    steps = defaultdict(list)
    for row in read_wandb(run)[1]:
        for name in row:
            if name == "samples._type" or not (name == "step" or name.startswith(("_", "samples"))):
                steps[name.partition(".")[0]].append(row["step"])
    return {name: sorted(values) for name, values in steps.items()}


def tensorboard_values(run: Path) -> dict[str, list[int]]:
    """Return the steps of each metric of a run as TensorBoard shows them; `samples` are images."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = events.Tags()
    steps = {name: [event.step for event in events.Scalars(name)] for name in tags["scalars"]}
    if tags["images"]:
        assert tags["images"] == ["samples/a-0", "samples/b-0"]
        steps["samples"] = [event.step for event in events.Images(tags["images"][0])]
    return {name: sorted(values) for name, values in steps.items()}


READERS = {"wandb": wandb_values, "tensorboard": tensorboard_values}
