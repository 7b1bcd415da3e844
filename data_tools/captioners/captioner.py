"""What every captioner offers: pictures and prompts in, texts out, and failures that name themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.models import hub

CAPTIONER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.csv")  # of a model on the hub

CHAT_PROMPT = (
    "Describe this image in one or two sentences for training a text-to-image model: subject, setting, "
    "light, composition and style. State what is visible; do not begin with 'The image'."
)


@dataclass(frozen=True)
class CaptionRequest:
    """One question: a picture (RGB, upright, cropped), what to ask, and the seed where an answer is drawn."""

    picture: Image.Image
    prompt: str
    seed: int = 0


@dataclass(frozen=True)
class CaptionResponse:
    """A text, the tags it was made of if any, and whether the model was cut off before its end."""

    text: str
    tags: tuple[str, ...] = ()
    cut: bool = False


class CaptionFailure(Exception):
    """One image without an answer: `code` is stable, for scripts and for the manifest's note.

    `hopeless` when the other images would fail in the same way (a wrong key, an unknown model).
    """

    def __init__(self, code: str, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.hopeless = code, message, hopeless

    @property
    def reason(self) -> str:
        """`code: message`."""
        return f"{self.code}: {self.message}"


class Captioner(ABC):
    """Something that describes pictures. `describe` is called from `workers` threads, `batch` asks a call."""

    name: str
    """What the manifest records as the caption's model."""
    prompts: tuple[str, ...]
    """What is asked when the user asks nothing."""
    batch: int = 1
    workers: int = 1

    @abstractmethod
    def describe(self, asks: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """One answer an ask; `CaptionFailure` when there is none for any of them."""

    def stop(self) -> None:
        """Nobody waits for answers any more: calls that still run need not be patient."""
        return None


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder and the name that the manifest records: the hub's id with the commit, or the folder's
    own name."""

    folder: Path
    name: str

    @classmethod
    def find(cls, spec: str, what: str = "captioner") -> ModelFolder:
        """From a local folder, or a hub id with an optional @revision (fetched once, no pickles, no code)."""
        folder = Path(spec).expanduser()
        if folder.is_dir():
            return cls(folder, folder.resolve().name)
        if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
            raise ConfigError(
                "there is no such model",
                where=f"{what}: {spec}",
                remedy="give a folder or a hub id (owner/name)",
            )
        fetched = hub.download_model(spec, CAPTIONER_FILES, what)
        return cls(fetched, f"{spec.partition('@')[0]}@{fetched.name[:12]}")

    def config(self) -> dict[str, object]:
        """Its config.json; a folder without one is a `ConfigError`."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise ConfigError(
                "not a model's folder: it has no config.json", where=str(path.parent), remedy="check the path"
            )
        value = storage.read_json(path)
        if not isinstance(value, dict):
            raise ConfigError("config.json holds no object", where=str(path), remedy="fetch the model again")
        if not list(self.folder.glob("*.safetensors")):
            remedy = "use a model with *.safetensors; pickles are never loaded"
            raise ConfigError("the model has no safetensors weights", where=str(path.parent), remedy=remedy)
        return value

    def load(self, kind: Any, what: str = "captioner", **more: Any) -> Any:
        """`kind.from_pretrained` of transformers: from this folder alone, no code of its own, no pickles."""
        from transformers.utils import logging

        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # the progress that matters is ours
        try:
            return kind.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False, **more)
        except (ValueError, OSError, KeyError, ImportError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            where, remedy = f"{what}: {self.name}", "fetch it again, or use another model"
            raise ConfigError(f"the model cannot be loaded: {reason}", where=where, remedy=remedy) from error
        finally:
            if bars:
                logging.enable_progress_bar()
