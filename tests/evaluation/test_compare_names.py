"""The names of variants in `eval compare`: FOLDER@VARIANT, as RUN@STEP everywhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.evaluation.evaluate_folder import _find_variant
from lorakit.evaluation.score_table import BASE, SCORES_FILE, VariantScores
from lorakit.evaluation.variant_origin import VariantOrigin
from tests.evaluation.simulated import overfitting_run, simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An evaluation of steps 100, 200 and 300, of step 200 at .7, and of a guest."""
    evaluation = simulate(overfitting_run(3))
    files = evaluation.variants[1].files
    evaluation.variants.append(VariantScores("step-200@0.7", 200, 0.7, files))
    origin = VariantOrigin("theirs.safetensors", "0", is_guest=True)
    evaluation.variants.append(VariantScores("theirs@0.8", None, 0.8, files, origin=origin))
    folder = tmp_path_factory.mktemp("evaluations") / "me@home"
    storage.write_json(folder / SCORES_FILE, evaluation.to_json())
    return folder


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("@100", "step-100"),
        ("@200", "step-200"),
        ("@200:0.7", "step-200@0.7"),
        ("@200:1", "step-200"),
        ("@step-200@0.7", "step-200@0.7"),
        ("@last", "step-300"),
        ("@base", BASE),
        ("@theirs@0.8", "theirs@0.8"),
    ],
)
def test_a_variant_is_named_by_its_step_its_strength_or_its_name(folder, name, variant):
    assert _find_variant(f"{folder}{name}").variant.name == variant


def test_without_a_name_it_is_one_of_the_runs_own(folder):
    side = _find_variant(str(folder))
    assert side.folder == folder
    assert side.variant.step in (100, 200, 300)


@pytest.mark.parametrize("name", ["@400", "@200:0.5", "@theirs", "@"])
def test_an_unknown_variant_is_an_error_with_the_names(folder, name):
    if name == "@":
        assert _find_variant(f"{folder}{name}").variant.step in (100, 200, 300)
        return
    with pytest.raises(ConfigError, match="there is no variant") as caught:
        _find_variant(f"{folder}{name}")
    assert "step-200@0.7" in str(caught.value)
