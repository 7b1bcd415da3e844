"""The variants of a run: its checkpoints at some strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorakit import adapters
from lorakit.core import checksums
from lorakit.core.errors import ConfigError
from lorakit.training import checkpoint


@dataclass(frozen=True)
class CheckpointVariant:
    """One adapter file at one strength."""

    step: int
    file: Path
    strength: float = 1.0

    @property
    def name(self) -> str:
        """The name in reports and files: `step-200`, `step-200@0.7`."""
        return f"step-{self.step}{self._suffix}"

    @property
    def folder(self) -> str:
        """The name of the folder of its images."""
        return f"step-{self.step:08d}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return "" if self.strength == 1 else f"@{self.strength:g}"


@dataclass
class RunVariants:
    """The variants of a run, and notes about checkpoints that cannot be used."""

    variants: list[CheckpointVariant]
    notes: list[str] = field(default_factory=list)


def list_variants(
    run: Path, steps: str | Sequence[int] = "all", strengths: Sequence[float] = (1.0,)
) -> RunVariants:
    """List the variants of a run, ordered by step and strength.

    `steps` is "all", "last", steps such as "200,400", or a list of steps. Raises ConfigError for a run
    without an adapter and for a step without a checkpoint.
    """
    files, notes = _adapter_files(run)
    if not files:
        remedy = "use a run that has saved a checkpoint"
        raise ConfigError("the run has no adapter yet", where=str(run), remedy=remedy)
    if steps == "last":
        files = {max(files): files[max(files)]}
    elif steps != "all":
        requested = steps.split(",") if isinstance(steps, str) else [str(step) for step in steps]
        unknown = [step for step in requested if not step.isdigit() or int(step) not in files]
        if unknown:
            remedy = f"all, last, or some of {', '.join(map(str, sorted(files)))}"
            raise ConfigError(f"no checkpoint of step {', '.join(unknown)}", where=str(run), remedy=remedy)
        files = {int(step): files[int(step)] for step in requested}
    variants = [
        CheckpointVariant(step, file, strength)
        for step, file in sorted(files.items())
        for strength in sorted(strengths)
    ]
    return RunVariants(variants, notes)


def _adapter_files(run: Path) -> tuple[dict[int, Path], list[str]]:
    """Return the usable adapter files by step, and a note for each damaged checkpoint."""
    files: dict[int, Path] = {}
    notes = []
    for step in checkpoint.checkpoint_steps(run):
        folder = checkpoint.step_folder(run, step)
        if problem := checksums.find_folder_damage(folder, (checkpoint.ADAPTER_FILE,)):
            notes.append(f"The checkpoint of step {step} is left out: {problem}.")
        else:
            files[step] = folder / checkpoint.ADAPTER_FILE
    final = run / "adapter.safetensors"
    if final.is_file():
        files[int(adapters.read_adapter_metadata(final).get("step", 0))] = final
    return files, notes
