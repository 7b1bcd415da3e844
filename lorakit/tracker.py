"""Trackers beside metrics.jsonl: best effort, never able to stop or change a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Where metrics also go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def images(self, name: str, files: list[Path], step: int) -> None: ...

    def close(self) -> None: ...


class _Wandb:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project="lorakit", name=run.name, dir=str(run), config=dict(config), resume="allow"
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


class Guarded:
    """Forwards to a tracker until its first failure, then says so once and stays silent."""

    def __init__(self, kind: str, run: Path, config: Mapping[str, Any]) -> None:
        self.kind = kind
        self._tracker: Tracker | None = None
        makers = {"wandb": _Wandb, "tensorboard": _TensorBoard}
        if kind in makers:
            self._try("start", lambda: setattr(self, "_tracker", makers[kind](run, config)))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send numbers."""
        if tracker := self._tracker:
            self._try("log", lambda: tracker.log(metrics, step))

    def images(self, name: str, files: list[Path], step: int) -> None:
        """Send pictures."""
        if tracker := self._tracker:
            self._try("send pictures", lambda: tracker.images(name, files, step))

    def close(self) -> None:
        """Flush and end."""
        if tracker := self._tracker:
            self._try("finish", tracker.close)

    def _try(self, what: str, action: Any) -> None:
        try:
            action()
        except Exception as error:  # a remote service may fail in any way; the run goes on
            self._tracker = None
            print(f"{self.kind}: could not {what} ({error}); metrics.jsonl has everything", file=sys.stderr)
