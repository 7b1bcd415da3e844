"""`lorakit plan`: its text and its JSON, for this machine, a card and a memory size, and its refusals."""

from __future__ import annotations

import json

import pytest

from lorakit.cli import main
from lorakit.cli.json_answers import JSON_ANSWERS
from lorakit.core.errors import ConfigError, MemoryLimitError
from tests import runs, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 4)


@pytest.fixture
def plan(capsys, tmp_path, data):
    """Return a function that plans a recipe on a tiny model: exit code, standard output, errors."""
    file = runs.make_recipe(tmp_path / "recipe.json", tiny.tiny_folder("sd15"), data, tmp_path / "run")

    def run(*arguments: str, recipe: str = str(file)) -> tuple[int, str, str]:
        code = main.main(["plan", recipe, *arguments])
        return code, *capsys.readouterr()

    return run


def test_the_text_names_memory_time_buckets_and_settings(plan):
    code, text, _ = plan("train.batch_size=2", "train.precision=fp32")
    assert code == 0
    assert text.startswith("plan for this CPU")
    for words in ("peak memory", "  weights", "  activations", "measured on this machine", "12 steps"):
        assert words in text
    assert "bucket         64 x 64: 2 images" in text
    assert "cost" not in text


def test_the_json_has_the_documented_keys_and_agrees_with_itself(plan):
    code, text, _ = plan("--gpu", "RTX 3060", "--price", "2", "train.steps=3600", "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer.keys() == JSON_ANSWERS["plan"].keys()
    assert answer["device"]["name"] == "RTX 3060 12GB"
    assert answer["fits"] is True
    assert answer["timing"] == "computed from published speeds"
    assert answer["hours"] == pytest.approx(answer["step_seconds"]["total"], rel=0.01)  # 3600 steps
    assert answer["cost"] == pytest.approx(2 * answer["hours"], rel=0.01)
    parts = {name: size for name, size in answer["peak_bytes"].items() if name != "total"}
    assert sum(parts.values()) == answer["peak_bytes"]["total"] <= answer["device"]["usable_bytes"]
    assert sum(bucket["images"] for bucket in answer["buckets"]) == 4
    assert answer["cache_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "value", "reason"),
    [
        ((), "fp32", "on a CPU"),
        (("--gpu", "RTX 3060"), "bf16", "the GPU computes in it"),
        (("--gpu", "T4"), "fp16", "the GPU has no bf16"),
        (("--gpu", "T4", "train.precision=fp32"), "fp32", "set in the recipe"),
    ],
)
def test_the_precision_is_chosen_for_the_device_with_a_reason(plan, arguments, value, reason):
    auto = () if any("precision" in word for word in arguments) else ("train.precision=auto",)
    _, text, _ = plan(*arguments, *auto)
    assert f"precision      {value}: {reason}" in text
    _, text, _ = plan(*arguments, *auto, "--json")
    assert json.loads(text)["precision"]["value"] == value


def test_a_published_model_is_planned_without_its_files(plan):
    code, text, _ = plan("--vram", "8GB", "--json", recipe="flux1-dev")
    answer = json.loads(text)
    assert code == 0
    assert answer["peak_bytes"]["total"] <= answer["device"]["usable_bytes"] < 8 << 30
    assert "hf download black-forest-labs/FLUX.1-dev" in answer["notes"][0]
    assert answer["alternatives"]
    assert any("stream" in reason for reason in answer["reasons"])


def test_what_no_settings_fit_ends_with_the_exit_code_of_memory(plan):
    code, text, _ = plan("--vram", "1GB", recipe="qwen-image")
    assert code == MemoryLimitError.exit_code
    assert "nothing fits: at least" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "RTX 3061"], "did you mean 'RTX 3060"),
        (["--vram", "eight"], "'eight' is not the memory of a card"),
        (["--vram", "0"], "give it in GB: --vram 8GB"),
        (["--vram", "8GB", "--gpu", "RTX 3060"], "leave one of them out"),
        (["--price", "-1"], "--price"),
        (["base=nobody/unknown"], "hf download nobody/unknown"),
        (["base=nowhere"], "there is no such base model"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_a_remedy(plan, arguments, words):
    code, _, error = plan(*arguments)
    assert code == ConfigError.exit_code
    assert words in error
    assert "Traceback" not in error
