"""The trackers by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.training.trackers.backend import Backend
from lorakit.training.trackers.labels import Labels
from lorakit.training.trackers.local_backends import Aim, DVCLive, Mlflow, TensorBoard, Trackio
from lorakit.training.trackers.record import TrackerRecord
from lorakit.training.trackers.service_backends import ClearML, CometML, SwanLab, Wandb

BACKENDS: dict[str, type[Backend]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "comet_ml": CometML,
    "clearml": ClearML,
    "swanlab": SwanLab,
    "trackio": Trackio,
    "aim": Aim,
    "dvclive": DVCLive,
}


def create_backend(
    name: str, run: Path, labels: Labels, record: TrackerRecord, settings: Mapping[str, Any]
) -> Backend:
    """Return a tracker that is not started; accelerate's state is set to one process that uses no GPU."""
    from accelerate.state import PartialState

    PartialState(cpu=True)
    return BACKENDS[name](run, labels, record, settings)
