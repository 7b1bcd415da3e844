"""The folder of a captioner's model: found or downloaded, and its kind, or the reason why it is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.captioners import unsupported_models
from lorakit.core import storage
from lorakit.core.errors import ConfigError, first_line
from lorakit.models import hub

# Downloaded from the hub.
CAPTIONER_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.csv")
ONNX_FILES = (*CAPTIONER_FILES, "model.onnx")


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, and its name in the manifest: the hub id with the commit, or the folder's name.

    `role` says what the model is for, in errors.
    """

    folder: Path
    name: str
    role: str = unsupported_models.CAPTIONER

    @classmethod
    def resolve(cls, spec: str, role: str = unsupported_models.CAPTIONER) -> ModelFolder:
        """Return a local folder, or download a hub id (with optional @revision): no pickles, no code."""
        folder = Path(spec).expanduser()
        if folder.is_dir():
            return cls(folder, folder.resolve().name, role)
        if folder.is_file():
            raise unsupported_models.file_error(folder, role)
        if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
            raise ConfigError(
                "the model does not exist",
                where=f"{role}: {spec}",
                remedy="give a folder or a hub id (owner/name)",
            )
        downloaded = hub.download_model(spec, CAPTIONER_FILES, role)
        if (downloaded / unsupported_models.TAGS_FILE).is_file() and not list(
            downloaded.glob("*.safetensors")
        ):
            downloaded = hub.download_model(spec, ONNX_FILES, role)
        return cls(downloaded, f"{spec.partition('@')[0]}@{downloaded.name[:12]}", role)

    def read_config(self) -> dict[str, object]:
        """Read config.json; a folder without it, or without safetensors weights, is a `ConfigError`."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise unsupported_models.folder_error(self.folder, {}, self.role)
        value = storage.read_json(path, allow_infinity=True)
        if not isinstance(value, dict):
            raise ConfigError(
                "config.json is not a JSON object", where=str(path), remedy="download the model again"
            )
        unsupported_models.check_weights(self.folder, value, self.role)
        return value

    def load_pretrained(self, model_class: Any, role: str | None = None, **kwargs: Any) -> Any:
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
            where, remedy = f"{role or self.role}: {self.name}", "download it again, or use another model"
            raise ConfigError(f"the model cannot be loaded: {reason}", where=where, remedy=remedy) from error
        finally:
            if progress_bars_enabled:
                logging.enable_progress_bar()
