"""A tracker's library, through accelerate's class for it.

It starts a run or continues the one in the record, and sends no path, user or machine beside the values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.training.trackers.labels import DEFAULT_PROJECT, Labels
from lorakit.training.trackers.record import TrackerRecord

IMAGES = "samples"


class Backend(ABC):
    """A tracker; `tracker` is accelerate's, `tracker.tracker` the library's own run."""

    sends_settings_always = False

    def __init__(self, run: Path, labels: Labels, record: TrackerRecord, settings: Mapping[str, Any]) -> None:
        self.run, self.labels, self.record, self.settings = run, labels, record, dict(settings)
        self.project = labels.project or DEFAULT_PROJECT
        self.tracker: Any = None

    @abstractmethod
    def create(self) -> Any:
        """Return accelerate's tracker, not started."""

    @abstractmethod
    def url(self) -> str:
        """Return where the results are, for the log."""

    def prepare(self) -> None:
        """Choose the id of the run; nothing is sent yet."""
        self.tracker = self.create()

    def start(self) -> None:
        """Start the run, or continue the one in the record."""
        self.tracker.start()

    def send_settings(self, *, is_new: bool) -> None:
        """Send the settings of the run; `is_new` is False if others were sent before."""
        self.tracker.store_init_configuration(self.settings)

    def log(self, step: int, metrics: Mapping[str, float], images: list[Path]) -> None:
        """Send metrics and images of a step."""
        for file in images:
            self.log_image(step, f"{IMAGES}/{file.stem}", file)
        if metrics:
            self.tracker.log(dict(metrics), step=step)

    @abstractmethod
    def log_image(self, step: int, name: str, file: Path) -> None:
        """Send an image."""

    def finish(self, *, done: bool) -> None:
        """Send the rest and end; `done` says that the training run is finished."""
        self.tracker.finish()

    def forget_if_gone(self, folder: Path) -> None:
        """Send everything again if a folder with the results was removed."""
        if not folder.exists():
            self.record.sent.clear()
            self.record.settings_hash = ""


def read_pixels(file: Path) -> Any:
    """Return an image as an array (height, width, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
