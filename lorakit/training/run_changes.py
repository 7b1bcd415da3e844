"""Start of a session: a new run, the same run again, or a run that continues with changes. Needs no torch.

Changes are recorded only when the checkpoint that they apply to has been loaded: until then a stopped start
changes nothing in the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorakit.config.recipe import Recipe, training_settings
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.training import optimizer_classes, run_identity, run_records, run_results
from lorakit.training.run_folder import RunFolder
from lorakit.training.run_identity import Comparison, Difference


@dataclass(frozen=True)
class SessionChanges:
    """The changes that a session makes; `recipe` and `identity` are the new ones."""

    comparison: Comparison
    recipe: Recipe
    identity: Mapping[str, Any]

    def record(self, run: RunFolder, step: int) -> None:
        """Record that they apply from the checkpoint of `step` on."""
        record, comparison = run.record(), self.comparison
        for text in self._describe(step):
            run.log(text)
        values: dict[str, Any] = dict(self.identity)
        if lines := [str(difference) for difference in (*comparison.rounding, *comparison.changes)]:
            run_hash = run_identity.run_hash(record)
            entry = {"step": step, "differences": lines, "run_hash": run_hash}
            values["changes"] = [*record.get("changes", []), entry]
        run.update_record(**values)
        run.write_recipe(self.recipe)

    def _describe(self, step: int) -> Iterator[str]:
        """Yield a line for the log for each kind of change."""
        comparison = self.comparison
        if comparison.extension:
            yield f"the run is extended ({_joined(comparison.extension)}); the steps before do not change"
        if comparison.rounding:
            yield (
                f"from step {step} on, the same samples are divided in another way"
                f" ({_joined(comparison.rounding)}): sums are rounded differently"
            )
        if comparison.changes:
            yield (
                f"warning: from step {step} on, the run continues with accepted changes"
                f" ({_joined(comparison.changes)}); its result can no longer be reproduced byte for byte"
            )


def start_or_resume(
    run: RunFolder, recipe: Recipe, inputs: Mapping[str, Any], *, accept_changes: bool = False
) -> SessionChanges | None:
    """Record a new run, or check that an existing one may continue with this recipe; returns its changes.

    `inputs` holds the hashes of the inputs and `num_processes`. Afterwards the status is `done` if there is
    nothing to do, otherwise `running`. Raises ConfigError for differences that are not accepted.
    """
    new = _identity(recipe, inputs)
    if not run.exists:
        run.write_new_record(recipe, new)
        return None
    storage.remove_partial_files(run.path, owned=run_records.CHECKPOINTS_FOLDER)
    old = run.record()
    comparison = run_identity.compare_identities(old, new)
    if old["status"] == "done" and _is_finished(run, old, recipe, comparison):
        run.write_recipe(recipe)
        return None
    if comparison.exists and not _has_saved(run, old):
        _replace_first_try(run, recipe, old, new)
        return None
    _check_changes(run, comparison, recipe, accept_changes=accept_changes)
    if old["status"] == "done":
        run.update_record(status="running", step=None)
    if not comparison.exists:
        run.write_recipe(recipe)
        return None
    return SessionChanges(comparison, recipe, new)


def check_settings(run: RunFolder, recipe: Recipe, num_processes: int, *, accept_changes: bool) -> None:
    """Check, before anything is loaded, that a run may continue with these settings and this software.

    `start_or_resume` compares the inputs too. Raises ConfigError for differences that are not accepted.
    """
    if not run.exists:
        return
    record = run.record()
    new = _identity(recipe, record["inputs"] | {"num_processes": num_processes})
    comparison = run_identity.compare_identities(record, new)
    if _has_saved(run, record) and not is_finished_with(record, comparison):
        _check_changes(run, comparison, recipe, accept_changes=accept_changes)


def _identity(recipe: Recipe, inputs: Mapping[str, Any]) -> dict[str, Any]:
    versions = run_identity.package_versions() | optimizer_classes.package_version(recipe.optimizer.name)
    return {"settings": training_settings(recipe), "inputs": dict(inputs), "versions": versions}


def is_finished_with(record: Mapping[str, Any], comparison: Comparison) -> bool:
    """Return True if a run is finished and only software or rounding differs, which changes no result."""
    software_only = {difference.key for difference in comparison.changes} <= record["versions"].keys()
    return (
        record["status"] == "done" and software_only and not (comparison.extension or comparison.impossible)
    )


def _is_finished(run: RunFolder, record: Mapping[str, Any], recipe: Recipe, comparison: Comparison) -> bool:
    if not is_finished_with(record, comparison):
        return False
    if damage := run_results.find_damaged_results(run, record, recipe.export):
        run.log(f"this run is finished, but {'; '.join(damage)}: it is written again")
        return False
    return True


def _has_saved(run: RunFolder, record: Mapping[str, Any]) -> bool:
    """Return True if the run has saved a checkpoint, so that there is something to lose."""
    return "checkpoint_step" in record or (run.path / run_records.CHECKPOINTS_FOLDER).exists()


def _replace_first_try(
    run: RunFolder, recipe: Recipe, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Start the run again with other settings: it has saved no step, so nothing is lost."""
    lines = _joined(run_identity.differences(old, new))
    run.log(f"this run had saved no step yet; it starts again with other settings ({lines})")
    storage.remove_file(run.metrics_file)
    if (run.path / run_records.SAMPLES_FOLDER).exists():
        storage.remove_folder(run.path / run_records.SAMPLES_FOLDER)
    run.write_new_record(recipe, new)


def _check_changes(run: RunFolder, comparison: Comparison, recipe: Recipe, *, accept_changes: bool) -> None:
    if comparison.impossible:
        raise ConfigError(
            "a run cannot continue with another value of these keys:" + _listed(comparison.impossible),
            where=str(run.path),
            remedy="undo the change; or set another `out`, and `init_from` to this run, to start a new run"
            " from its adapter; or start over with --fresh",
        )
    if comparison.changes and not accept_changes:
        raise ConfigError(
            "this run was started with something else:" + _listed(comparison.changes),
            where=str(run.path),
            remedy=_remedy(run, comparison.changes, recipe),
        )


def _remedy(run: RunFolder, changes: Sequence[Difference], recipe: Recipe) -> str:
    """Return what to do about differences that were not accepted."""
    remedy = (
        "undo the change; or add --accept-changes to continue with it from the last checkpoint; or start over"
        " with --fresh; or choose another `out`"
    )
    keys = {change.key for change in changes}
    if keys == {"train.steps"} and recipe.train.steps > changes[0].before:
        return f"train on with `lorakit train {run.path} --extend {recipe.train.steps}`; or {remedy}"
    if keys & set(run_identity.BATCH_KEYS):
        return f"keep the product of batch_size, accumulate and processes; or {remedy}"
    return remedy


def _listed(differences: Sequence[Difference]) -> str:
    return "".join(f"\n    {difference}" for difference in differences)


def _joined(differences: Sequence[Difference]) -> str:
    return "; ".join(map(str, differences))
