"""The wheel: what it contains, and that recipes and examples work outside a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel; uv is the README's way to install, so it is there when the tests run."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not on the PATH")
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [uv, "build", "--wheel", "--out-dir", str(out), str(ROOT)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Unpack the wheel, as an installation does."""
    folder = wheel.parent / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, cwd: Path, code: str) -> str:
    """Run Python code with the unpacked wheel before everything else, in a folder outside the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_packages_recipes_examples_and_weights_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"lorakit", "data_tools"}
    for name in (
        "lorakit/py.typed",
        "lorakit/recipes/sd15.yaml",
        "lorakit/examples/prompts.jsonl",
        "lorakit/quickstart/weights/tiny-dit/model_index.json",
        "lorakit/evaluation/vote/templates/vote.html",
        "lorakit/evaluation/vote/templates/keys.js",
        "lorakit/reports/templates/page.html",
        "lorakit/reports/templates/style.css",
        "lorakit/training/templates/training_report.html",
        "lorakit/evaluation/report/templates/evaluation.html",
        "data_tools/report/templates/dataset.html",
    ):
        assert name in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if "pretrain" in name or name.rsplit("/", 1)[-1].startswith("test_")]


def test_recipes_and_their_prompts_are_found_outside_a_checkout(installed, tmp_path):
    code = (
        "import lorakit; from lorakit.config.recipe import load_recipe\n"
        f"assert lorakit.__file__.startswith({str(installed)!r}), lorakit.__file__\n"
        "recipe = load_recipe('sd15')\n"
        "assert recipe.samples.prompts.is_file(), recipe.samples.prompts\n"
    )
    run_installed(installed, tmp_path, code)
    listed = run_installed(installed, tmp_path, "from lorakit.cli import main; main.main(['recipes'])")
    assert "sd15" in listed
    assert "quickstart-dit" in listed


def test_the_example_script_is_in_the_installation(installed, tmp_path):
    script = installed / "lorakit/examples/train_on_photos.py"
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='example')"
    run_installed(installed, tmp_path, code)
