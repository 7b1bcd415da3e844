"""Weights of open_clip's models: pinned tags, other tags, files and folders, each with its hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import ConfigError
from lorakit.models.judge_files import PINS, require_weights, resolve_judge

LOCAL = "local-dir:"  # open_clip's prefix for a folder
_PINNED_FILES = ("open_clip_model.safetensors",)
_OWN_FILES = (*_PINNED_FILES, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ClipWeights:
    """The weights of a model as open_clip's `create_model` takes them."""

    weights: str | None
    """A tag or a file; None for a folder, which has its own."""
    quick_gelu: bool = False
    """True if the weights were trained with QuickGELU, about which open_clip only warns."""
    preprocessing: dict[str, Any] | None = None
    """That of a tag whose file is loaded directly; open_clip knows it by the tag only."""
    revision: str | None = None
    file: Path | None = None
    repository: str = ""
    """The hub repository that open_clip downloads the weights from itself."""

    def sha256(self) -> str | None:
        """Return the SHA-256 of the weights that were loaded; None if their file is not known."""
        file = self.file or _cached_file(self.repository)
        return sha256_file(file) if file else None


def find_weights(model: str, pretrained: str | None) -> ClipWeights:
    """Find the weights of `model`, of a pinned tag by downloading them.

    `model` may be a folder with open_clip's prefix. Raises ConfigError for weights that open_clip would not
    find or would unpickle.
    """
    import open_clip

    if ":" in model:
        return ClipWeights(None, file=next(Path(model.removeprefix(LOCAL)).glob("*.safetensors"), None))
    _check_weights(model, pretrained)
    if pretrained and Path(pretrained).is_file():
        return ClipWeights(pretrained, file=Path(pretrained))
    config = open_clip.get_pretrained_cfg(model, pretrained)
    quick_gelu = bool(config.get("quick_gelu"))
    repository = str(config.get("hf_hub") or "").rpartition("/")[0]
    if repository not in PINS:
        return ClipWeights(pretrained, quick_gelu, repository=repository)
    where = f"CLIP {model}/{pretrained}"
    files = resolve_judge(repository, _PINNED_FILES, where)
    file = require_weights(files, where)
    return ClipWeights(str(file), quick_gelu, dict(config), files.revision, file)


def _check_weights(model: str, pretrained: str | None) -> None:
    """Raise ConfigError for weights that open_clip would not find or would unpickle."""
    import open_clip

    if model not in open_clip.list_models():
        remedy = "see open_clip.list_models(), or name a folder"
        raise ConfigError(f"open_clip has no model {model!r}", remedy=remedy)
    tags = open_clip.list_pretrained_tags_by_model(model)
    is_file = (
        bool(pretrained) and str(pretrained).endswith(".safetensors") and Path(str(pretrained)).is_file()
    )
    if pretrained in tags or is_file:
        return
    remedy = f"use a .safetensors file, or one of: {', '.join(tags) or 'none for this model'}"
    raise ConfigError(f"there are no weights {pretrained!r} for {model}", remedy=remedy)


def _cached_file(repository: str) -> Path | None:
    """Return the weights that open_clip downloaded itself; None if they are not in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(repository, name) for name in _OWN_FILES] if repository else []
    return next((Path(path) for path in paths if isinstance(path, str)), None)
