"""A run and its checkpoints, read from the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lorakit.config.recipe import Recipe, load_recipe
from lorakit.training.run_folder import RunFolder, run_recipe_file
from lorakit.training.run_records import ADAPTER_FILE, CHECKPOINTS_FOLDER

if TYPE_CHECKING:
    from lorakit.adapters.sources import AdapterSource


@dataclass(frozen=True)
class Checkpoint:
    """The adapter of a run after `step` training steps; `strength` is the strength to use it with."""

    run: Path
    """The folder of the run."""
    step: int
    adapter: Path
    """The .safetensors file."""
    strength: float = 1.0

    def __fspath__(self) -> str:
        """Return the adapter file, so that a checkpoint can be given wherever an adapter file can."""
        return str(self.adapter)

    def export(
        self, consumer: str = "all", out: Path | str | None = None, *, apply_strength: bool = False
    ) -> list[Path]:
        """Write the adapter for `consumer` ("comfyui", "a1111", "diffusers" or "all"); returns the files.

        `out` is a folder; the default is `exports/step-STEP` in the run. The strength is in the metadata of
        the files, or with `apply_strength` multiplied into the weights. Raises ConfigError if the consumer
        cannot load the adapter, or if the strength of its method cannot be multiplied in.
        """
        folder = Path(out) if out else self.run / "exports" / f"step-{self.step:08d}"
        from lorakit.adapters.sources import AdapterSource

        source = AdapterSource(self.adapter, self.strength, self.run, self.step)
        return _export(self.run, source, consumer, folder, apply_strength)


class Run:
    """One run, in the folder `path`."""

    def __init__(self, path: Path | str) -> None:
        """Open the run in `path`. Raises ConfigError if the folder is not a run."""
        self.path = Path(path)
        self._recipe_file = run_recipe_file(self.path)

    def __fspath__(self) -> str:
        """Return the folder, so that a run can be given wherever an adapter can: its selected checkpoint."""
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.status!r}, step={self.step})"

    @property
    def recipe(self) -> Recipe:
        """The recipe as resolved."""
        return load_recipe(self._recipe_file)

    @property
    def status(self) -> str:
        """`running`, `interrupted`, `failed` or `done`."""
        return RunFolder(self.path).status

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: loss, grad_norm and lr of each step, validation_loss where measured."""
        return RunFolder(self.path).metrics()

    @property
    def step(self) -> int:
        """The number of training steps done so far."""
        return max((int(row["step"]) for row in self.metrics), default=0)

    @property
    def adapter(self) -> Path:
        """The file of the finished adapter; it exists when `status` is `done`."""
        return self.path / ADAPTER_FILE

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The saved checkpoints, oldest first."""
        names = {f: f.name.removeprefix("step-") for f in (self.path / CHECKPOINTS_FOLDER).glob("step-*")}
        files = {int(name): f / ADAPTER_FILE for f, name in names.items() if name.isdecimal()}
        return [Checkpoint(self.path, step, file) for step, file in sorted(files.items()) if file.is_file()]

    @property
    def best(self) -> Checkpoint | None:
        """The checkpoint that the evaluation selected; None without an evaluation or if it is outdated.

        If the evaluation recommends none, because all have alarms, it is the best of them.
        """
        from lorakit.adapters.sources import find_adapter

        source = find_adapter(self.path) if self.checkpoints or self.adapter.is_file() else None
        if source is None or source.step is None or not source.is_selected:
            return None
        return Checkpoint(self.path, source.step, source.path, source.strength)

    def export(
        self,
        consumer: str = "all",
        out: Path | str | None = None,
        *,
        step: int | Literal["last"] | None = None,
        apply_strength: bool = False,
    ) -> list[Path]:
        """Write the selected checkpoint for `consumer`, as `Checkpoint.export` does; returns the files.

        Without an evaluation it is the last checkpoint; `step` names another one. A line on stderr says which
        one it is, and why. `out` is a folder; the default is `exports` in the run, for a checkpoint that is
        not the last `exports/step-STEP`.
        """
        from lorakit.adapters.sources import find_adapter

        source = find_adapter(self.path if step is None else f"{self.path}@{step}").print_line()
        folder = Path(out) if out else source.export_folder()
        return _export(self.path, source, consumer, folder, apply_strength)


def _export(run: Path, source: AdapterSource, consumer: str, out: Path, apply_strength: bool) -> list[Path]:
    from lorakit.adapters.publishing.export_run import export_source
    from lorakit.models import base_model

    base = base_model.local_base_folder(Run(run).recipe.base)
    exported = export_source(source, consumer, out, base=base, apply_strength=apply_strength)
    return [one.path for one in exported]
