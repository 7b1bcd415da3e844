"""Project, group, name and tags of a run in a tracker: recipe, then environment, then default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorakit.config import strict_yaml
from lorakit.config.monitoring import TrackerConfig
from lorakit.core import storage
from lorakit.core.errors import LorakitError
from lorakit.core.strict_json import parse_json
from lorakit.training import run_records

DEFAULT_PROJECT = "lorakit"

ENVIRONMENT: dict[str, dict[str, tuple[str, ...]]] = {
    "wandb": {
        "project": ("WANDB_PROJECT",),
        "entity": ("WANDB_ENTITY",),
        "group": ("WANDB_RUN_GROUP",),
        "run_name": ("WANDB_NAME",),
        "tags": ("WANDB_TAGS",),
        "id": ("WANDB_RUN_ID",),
        "server": ("WANDB_BASE_URL",),
    },
    "mlflow": {
        "project": ("MLFLOW_EXPERIMENT_NAME",),
        "run_name": ("MLFLOW_RUN_NAME",),
        "tags": ("MLFLOW_TAGS",),
        "id": ("MLFLOW_RUN_ID",),
        "server": ("MLFLOW_TRACKING_URI",),
    },
    "comet_ml": {
        "project": ("COMET_PROJECT_NAME",),
        "entity": ("COMET_WORKSPACE",),
        "run_name": ("COMET_START_EXPERIMENT_NAME",),
        "tags": ("COMET_START_EXPERIMENT_TAGS",),
        "id": ("COMET_EXPERIMENT_KEY", "COMET_START_EXPERIMENT_KEY"),
        "server": ("COMET_URL_OVERRIDE",),
    },
    "clearml": {
        "project": ("CLEARML_PROJECT",),
        "run_name": ("CLEARML_TASK",),
        "server": ("CLEARML_API_HOST",),
    },
    "swanlab": {
        "project": ("SWANLAB_PROJECT", "SWANLAB_PROJECT_NAME", "SWANLAB_PROJ_NAME"),
        "entity": ("SWANLAB_WORKSPACE", "SWANLAB_PROJECT_WORKSPACE"),
        "group": ("SWANLAB_GROUP", "SWANLAB_EXPERIMENT_GROUP"),
        "run_name": ("SWANLAB_EXP_NAME", "SWANLAB_EXPERIMENT_NAME"),
        "tags": ("SWANLAB_TAGS", "SWANLAB_EXPERIMENT_TAGS"),
        "id": ("SWANLAB_RUN_ID",),
        "server": ("SWANLAB_API_HOST",),
    },
    "trackio": {
        "project": ("TRACKIO_PROJECT",),
        "server": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DIR"),
    },
}
"""Environment variables of each tracker that say the same as our keys; the first one that is set counts."""


@dataclass(frozen=True)
class Labels:
    """A run's place in a tracker, and its name there; None leaves the choice to the tracker."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    run_name: str | None = None
    tags: list[str] = field(default_factory=list)
    id: str | None = None
    """An id that the user has chosen in the environment."""
    server: str = ""
    """The address of the service or its folder, without credentials; empty for the default."""


def resolve_labels(config: TrackerConfig, run: Path, environment: Mapping[str, str]) -> Labels:
    """Return the labels of a run: those of the recipe, then of the tracker's environment variables; the name
    is by default that of the run's folder."""
    values = {
        key: next((environment[name] for name in names if environment.get(name)), None)
        for key, names in ENVIRONMENT.get(config.name, {}).items()
    }
    tags = _parse_tags(values.pop("tags", None) or "")
    values |= {key: value for key, value in config.labels().items() if value is not None and key != "tags"}
    values["run_name"] = values.get("run_name") or run.resolve().name
    server = remove_credentials(values.pop("server", None) or "")
    return Labels(**values, server=server, tags=tags if config.tags is None else config.tags)


def remove_overruled_variables(config: TrackerConfig, environment: MutableMapping[str, str]) -> None:
    """Remove the variables that a key of the recipe overrules: some libraries prefer them to arguments."""
    for key, value in config.labels().items():
        if value is not None:
            for name in ENVIRONMENT.get(config.name, {}).get(key, ()):
                environment.pop(name, None)


def _parse_tags(text: str) -> list[str]:
    """Return the tags of a variable: separated by commas, or a JSON object as mlflow's."""
    if text.startswith("{"):
        tags = parse_json(text, "the environment variable for the tags of the tracker")
        return [f"{key}={value}" if value else key for key, value in tags.items()]
    return [tag.strip() for tag in text.split(",") if tag.strip()]


def remove_credentials(address: str) -> str:
    """Return an address without a user and password."""
    return re.sub(r"(?<=//)[^/@]*@", "", address)


def sent_settings(run: Path) -> dict[str, Any]:
    """Return the settings that a tracker receives: those that decide the adapter, and the base model.

    No path of this machine is among them: of a path, only the last part is kept.
    """
    settings = storage.read_json(run / run_records.RUN_FILE)["settings"]
    try:
        tree = strict_yaml.read_yaml(run / run_records.RECIPE_FILE)
        base = {"base": tree["base"]}
    except (LorakitError, OSError, KeyError, TypeError):  # the settings are worth sending without it
        base = {}
    plain = {key: _without_paths(value) for key, value in {**base, **settings}.items() if value is not None}
    return {
        key: value if isinstance(value, int | float | str) else json.dumps(value)
        for key, value in plain.items()
    }


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and re.match(r"([a-zA-Z]:)?[/\\]|~|\.\.?[/\\]", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
