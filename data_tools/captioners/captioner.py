"""The interface of captioners: images and prompts in, texts out, and failures with a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit.core import storage
from lorakit.core.errors import ConfigError, first_line
from lorakit.models import hub

# Downloaded from the hub.
CAPTIONER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.csv")

CHAT_PROMPT = (
    "Describe this image in one or two sentences for training a text-to-image model: subject, setting, "
    "light, composition and style. State what is visible; do not begin with 'The image'."
)


@dataclass(frozen=True)
class CaptionRequest:
    """An image (RGB, upright, cropped), a prompt, and the seed for sampled answers."""

    image: Image.Image
    prompt: str
    seed: int = 0


@dataclass(frozen=True)
class CaptionResponse:
    """An answer, its tags if the model gives tags, and True if it reached the length limit (`truncated`).

    `notes` say what was removed from the answer.
    """

    text: str
    tags: tuple[str, ...] = ()
    truncated: bool = False
    notes: tuple[str, ...] = ()


class CaptionFailure(Exception):
    """A request without an answer. `code` is stable, for scripts and for the note in the manifest.

    `fatal` means that all other images would fail in the same way (a wrong key, an unknown model).
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.fatal = code, message, fatal

    @property
    def reason(self) -> str:
        """`code: message`."""
        return f"{self.code}: {self.message}"


class Captioner(ABC):
    """A model that captions images; `num_workers` threads call `caption` with `batch_size` requests each."""

    name: str
    """The name of the model in the manifest."""
    prompts: tuple[str, ...]
    """The prompts if the user gives none."""
    batch_size: int = 1
    num_workers: int = 1

    @abstractmethod
    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """Return one response for each request; raise `CaptionFailure` if any of them has none."""

    def cancel(self) -> None:
        """Tell calls in progress, from another thread, not to retry any more."""
        return None


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, and its name in the manifest: the hub id with the commit, or the folder's name."""

    folder: Path
    name: str

    @classmethod
    def resolve(cls, spec: str, role: str = "captioner") -> ModelFolder:
        """Return a local folder, or download a hub id (with optional @revision): no pickles, no code."""
        folder = Path(spec).expanduser()
        if folder.is_dir():
            return cls(folder, folder.resolve().name)
        if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
            raise ConfigError(
                "the model does not exist",
                where=f"{role}: {spec}",
                remedy="give a folder or a hub id (owner/name)",
            )
        downloaded = hub.download_model(spec, CAPTIONER_FILES, role)
        return cls(downloaded, f"{spec.partition('@')[0]}@{downloaded.name[:12]}")

    def read_config(self) -> dict[str, object]:
        """Read config.json; a folder without it, or without safetensors weights, is a `ConfigError`."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise ConfigError(
                "not a model folder: it has no config.json", where=str(path.parent), remedy="check the path"
            )
        value = storage.read_json(path, allow_infinity=True)
        if not isinstance(value, dict):
            raise ConfigError(
                "config.json is not a JSON object", where=str(path), remedy="download the model again"
            )
        if not list(self.folder.glob("*.safetensors")):
            remedy = "use a model with *.safetensors; pickles are never loaded"
            raise ConfigError("the model has no safetensors weights", where=str(path.parent), remedy=remedy)
        return value

    def load_pretrained(self, model_class: Any, role: str = "captioner", **kwargs: Any) -> Any:
        """Call `model_class.from_pretrained` of transformers on this folder, without code of the model."""
        from transformers.utils import logging

        progress_bars_enabled = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # lorakit shows its own progress
        try:
            return model_class.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, **kwargs
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            reason = first_line(error)
            where, remedy = f"{role}: {self.name}", "download it again, or use another model"
            raise ConfigError(f"the model cannot be loaded: {reason}", where=where, remedy=remedy) from error
        finally:
            if progress_bars_enabled:
                logging.enable_progress_bar()
