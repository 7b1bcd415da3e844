"""Recipes from the configurations of other trainers: every setting is used, or named with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.config.recipe_files import trainer_of
from lorakit.config.recipe_import import (
    ai_toolkit,
    diffusers_scripts,
    diffusion_pipe,
    kohya,
    onetrainer,
    simpletuner,
)
from lorakit.config.recipe_import.checked_tree import build_tree, missing_keys
from lorakit.config.recipe_import.draft import Draft, Note
from lorakit.config.recipe_import.source import Source, read_tree
from lorakit.config.recipe_import.write import recipe_text
from lorakit.core.errors import ConfigError

__all__ = ["ImportedRecipe", "Note", "import_recipe"]


_READERS: dict[str, Callable[[Source, Draft], None]] = {
    "ai-toolkit": ai_toolkit.read,
    "OneTrainer": onetrainer.read,
    "SimpleTuner": simpletuner.read,
    "diffusion-pipe": diffusion_pipe.read,
    "kohya's scripts": kohya.read,
    "diffusers' scripts": diffusers_scripts.read,
}
_DIFFUSERS_OPTIONS = {"instance_data_dir", "dataset_name", "rank", "validation_prompt", "checkpointing_steps"}


@dataclass(frozen=True)
class ImportedRecipe:
    """A recipe made from another trainer's configuration."""

    trainer: str
    tree: dict[str, Any]
    """The recipe as nested values; `base`, `dataset` or `out` may be missing."""
    notes: tuple[Note, ...]
    off: tuple[str, ...]
    prompts: tuple[dict[str, Any], ...]
    """Lines of a prompt file."""
    _draft: Draft

    @property
    def missing(self) -> tuple[str, ...]:
        """The required keys that the configuration does not name."""
        return missing_keys(self.tree)

    def summary(self, file: Path) -> str:
        """Return the result in a few words, with the next command."""
        number = sum(note.needed for note in self.notes)
        counts = f"{number} settings without an equal are named in it" if number else ""
        needed = f"write {', '.join(self.missing)} in it, then: " if self.missing else ""
        solve = "solve the contradictions at its top, then: " if self._draft.problems else ""
        words = "; ".join(part for part in (f"{file}: a recipe from {self.trainer}", counts) if part)
        return f"{words}\n{needed}{solve}lorakit train {file}"

    def text(self, name: str, prompts: Path | None = None) -> str:
        """Return the recipe as YAML with comments; `prompts` is the prompt file that was written for it."""
        tree = self.tree
        if prompts is not None and self.prompts:
            tree = tree | {"samples": {"prompts": prompts.as_posix()} | tree.get("samples", {})}
        return recipe_text(tree, self._draft, self.trainer, name)


def import_recipe(path: str | Path) -> ImportedRecipe:
    """Make a recipe from a configuration file or the command line in a script.

    Raises ConfigError if the file is of no known trainer, or does not train an adapter.
    """
    source = read_tree(Path(path))
    trainer = _trainer(source)
    if trainer is None:
        raise ConfigError(
            "this is not a configuration of a trainer that lorakit knows",
            where=str(path),
            remedy="give a file of kohya's sd-scripts, musubi-tuner, ai-toolkit, OneTrainer, SimpleTuner or "
            "diffusion-pipe, or a script with the command line of one of them or of diffusers",
        )
    draft = Draft(source.settings)
    _READERS[trainer](source, draft)
    tree = build_tree(draft)
    prompts = tuple(draft.prompts)
    return ImportedRecipe(trainer, tree, tuple(draft.notes), tuple(draft.off), prompts, draft)


def _trainer(source: Source) -> str | None:
    names = source.settings.keys()
    if not source.script:
        return trainer_of(source.tree)
    if source.script.endswith("train_network.py") or "network_module" in names:
        return "kohya's scripts"
    return "diffusers' scripts" if len(_DIFFUSERS_OPTIONS & names) >= 2 else None
