"""The packages of the trackers, and the check before a run that the recipe's tracker is installed."""

from __future__ import annotations

from importlib import metadata

from lorakit.config.monitoring import TrackerConfig
from lorakit.core.errors import ConfigError

PACKAGES: dict[str, tuple[str, ...]] = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
    "aim": ("aim",),
    "dvclive": ("dvclive",),
}
"""Packages of each tracker, of which one is enough; the first is the one to install."""


def check_tracker(config: TrackerConfig) -> None:
    """Refuse a tracker that is not installed, before a run starts."""
    packages = PACKAGES.get(config.name, ())
    if packages and not any(_is_installed(package) for package in packages):
        raise ConfigError(
            f"the tracker {config.name} is not installed",
            where=f"tracker: {config.name}",
            remedy=f"install it (uv pip install {packages[0]}), or use tracker=none",
        )


def _is_installed(package: str) -> bool:
    """Return True for an installed package; a folder of its name in the working folder is none."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
