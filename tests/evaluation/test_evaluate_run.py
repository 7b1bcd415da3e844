"""The evaluation of a run: its variants, its reused images, its losses and its report."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit import adapters
from lorakit.adapters import selection_record
from lorakit.adapters.selection_record import SELECTION_FILE
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.evaluation import checkpoints, score_table, variant_sampler
from lorakit.evaluation.evaluate_run import evaluate_run
from lorakit.evaluation.judges import JudgeOptions
from lorakit.evaluation.result import EvaluationResult
from lorakit.evaluation.sample_files import SampleKey
from lorakit.sampling.pipeline import SamplingOptions
from tests.browser import browser
from tests.evaluation import embedded
from tests.long_tier import long
from tests.page_checks import access_faults, layout_faults

FAST = SamplingOptions(num_inference_steps=3, guidance_scale=3.0, batch_size=8, quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """48 steps with a checkpoint every 16, two of eight images held out."""
    folder = tmp_path_factory.mktemp("run")
    data = embedded.dataset(folder / "data", 6, ordinary=2)
    embedded.prompt_file(folder / "p.jsonl", embedded.prompts(4, 2))
    validate = {"fraction": 0.25, "every": 16}
    return embedded.train(folder, data, steps=48, save_every=16, lr=5e-3, validate=validate)


def evaluate(run: Path, prompts: Path, **options) -> EvaluationResult:
    """Evaluate with few sampling steps."""
    return evaluate_run(run, prompts=prompts, sampling=FAST, **options)


@pytest.fixture(scope="module")
def result(run) -> EvaluationResult:
    return evaluate(run, run.parent / "p.jsonl")


def test_the_result_names_the_selected_checkpoint_and_holds_the_scores(run, result):
    best, selected = result.best, result.selection.variant
    if selected is None:
        assert best is None
    else:
        assert (best.run, best.step, best.strength) == (run, selected.step, selected.strength)
        assert best.adapter.is_file()
    record = selection_record.read_selection(run, 48).record
    assert record is not None
    assert {row["score"] for row in record.scores} >= {"CLIP-T", "Fidelity", "Prompt adherence"}
    assert all("[" in row["adapter"] or "cannot" in row["adapter"] for row in record.scores)
    for folder in record.images.values():
        assert len(list((run / folder).glob("*.png"))) == 12
    assert set(record.images) == {"base", "adapter"}
    assert {row["variant"] for row in result.scores} == {v.name for v in result.evaluation.variants}
    assert all(row["clip_t"]["ci_low"] < row["clip_t"]["ci_high"] for row in result.scores)


def pixels(root: Path, file: str) -> np.ndarray:
    with Image.open(root / file) as image:
        return np.asarray(image.convert("RGB"), np.int16)


def test_every_checkpoint_is_a_variant_with_the_same_noise_as_the_base_model(run, result):
    evaluation = result.evaluation
    assert [variant.name for variant in evaluation.variants] == ["base", "step-16", "step-32", "step-48"]
    assert all(len(variant.files) == 12 for variant in evaluation.variants)
    root = result.report.parent
    base, first, last = (pixels(root, evaluation.variants[i].files[SampleKey("c0", 1)]) for i in (0, 1, 3))
    assert np.abs(first - last).max() > 0
    assert np.abs(base - last).max() > 0
    drifts = [
        evaluation.interval(variant, "drift", evaluation.prompts).mean
        for variant in evaluation.adapter_variants
    ]
    assert drifts[0] < drifts[-1]  # with the same noise a short training changes less than a longer one


def test_the_validation_loss_equals_the_trainings(run, result):
    rows = storage.read_jsonl(run / "metrics.jsonl")
    logged = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    for variant in result.evaluation.adapter_variants:
        assert np.mean(variant.losses["validation"]) == pytest.approx(logged[variant.step], rel=1e-4)
        assert len(variant.losses["validation"]) == len(variant.losses["train"]) == 2
    base = result.evaluation.base
    assert np.mean(base.losses["validation"]) == pytest.approx(logged[16], rel=0.5)


def test_references_are_the_subjects_images_and_held_out_ones_cannot_be_copied(run, result):
    evaluation = result.evaluation
    names = [name for unit in evaluation.references.units for name in unit.names]
    assert len(names) == 6  # of eight images six are striped
    assert evaluation.train_images == "../../data"
    trained = {name for variant in evaluation.variants for name in variant.nearest_train_images.values()}
    assert trained <= {f"{n:02d}.png" for n in range(6)}


def test_a_repeated_evaluation_samples_only_missing_and_damaged_images(run, result):
    images = result.report.parent / "images"
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in images.rglob("*.png")}
    deleted, truncated = images / "base/c0-0.png", images / "step-00000032/u1-1.png"
    deleted.unlink()
    truncated.write_bytes(truncated.read_bytes()[:200])
    again = evaluate(run, run.parent / "p.jsonl")
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in images.rglob("*.png")}
    assert {file: data for file, (_, data) in after.items()} == {f: data for f, (_, data) in before.items()}
    assert {file for file in after if after[file][0] != before[file][0]} == {deleted, truncated}
    assert again.evaluation.to_json() == result.evaluation.to_json()
    assert again.report.read_bytes() == result.report.read_bytes()


@long
def test_an_evaluation_that_was_killed_continues_and_ends_with_the_same_files(run, result, tmp_path):
    """Images that were sampled before the kill are reused."""
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    images = copied / "eval/images"
    process = multiprocessing.get_context("forkserver").Process(
        target=evaluate, args=(copied, run.parent / "p.jsonl")
    )
    process.start()
    deadline = time.monotonic() + 600
    while len(list(images.rglob("*.png"))) < 16 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = {
        file: file.stat().st_mtime_ns
        for file in images.rglob("*.png")
        if variant_sampler.read_sample_hash(file)
    }
    assert 16 <= len(before) < 48
    assert not (copied / "eval/scores.json").exists()
    again = evaluate(copied, run.parent / "p.jsonl")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    expected = result.report.parent / "images"
    for file in expected.rglob("*.png"):
        assert (images / file.relative_to(expected)).read_bytes() == file.read_bytes()
    assert not list(images.rglob("*.tmp*"))
    assert (copied / SELECTION_FILE).read_bytes() == (run / SELECTION_FILE).read_bytes()
    assert [variant.to_json() for variant in again.evaluation.variants] == [
        variant.to_json() for variant in result.evaluation.variants
    ]


def test_a_changed_prompt_is_sampled_again_and_the_others_are_reused(run, tmp_path):
    prompts = embedded.prompts(4, 2)
    changed = [replace(prompts[1], id="c0"), *prompts[1:]]
    file = embedded.prompt_file(tmp_path / "q.jsonl", changed)
    copied = shutil.copytree(run, tmp_path / "run")
    before = (copied / "eval/images/base/c0-0.png").read_bytes()
    reused = (copied / "eval/images/base/c1-0.png").stat().st_mtime_ns
    evaluate(copied, file, checkpoints="last")
    assert (copied / "eval/images/base/c0-0.png").read_bytes() != before
    assert (copied / "eval/images/base/c1-0.png").stat().st_mtime_ns == reused


def test_strength_two_samples_the_images_of_a_doubled_adapter(run, tmp_path):
    doubled = shutil.copytree(run, tmp_path / "doubled", ignore=shutil.ignore_patterns("eval"))
    scale(doubled, 2.0)
    prompts = run.parent / "p.jsonl"
    two = evaluate(run, prompts, checkpoints="last", strengths=(0.5, 2.0), validation_loss=False)
    one = evaluate(doubled, prompts, checkpoints="last", validation_loss=False)
    assert [variant.name for variant in two.evaluation.variants] == ["base", "step-48@0.5", "step-48@2"]
    strong, evaluation = two.evaluation.adapter_variants[1], one.evaluation.adapter_variants[0]
    for key in strong.files:
        a = pixels(two.report.parent, strong.files[key])
        b = pixels(one.report.parent, evaluation.files[key])
        assert np.abs(a - b).max() <= 2
    weak = two.evaluation.adapter_variants[0]
    assert two.evaluation.paired_difference(weak, strong, "drift", two.evaluation.prompts).ci_low > 0


def scale(run: Path, factor: float) -> None:
    """Scale the effect of a run's finished adapter."""
    file = run / "adapter.safetensors"
    tensors = storage.read_safetensors(file)
    facts = adapters.pack_metadata(adapters.read_adapter_metadata(file))
    changed = {name: t * factor if ".lora_B." in name else t for name, t in tensors.items()}
    storage.write_safetensors(file, changed, facts)


def test_checkpoints_are_listed_by_step_and_a_damaged_one_is_left_out(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "checkpoints/step-00000016/adapter.safetensors").write_bytes(b"cut off")
    damaged = checkpoints.list_variants(copied)
    assert [variant.step for variant in damaged.variants] == [32, 48]
    assert "step 16 is left out" in damaged.notes[0]
    assert [variant.step for variant in checkpoints.list_variants(run, "last").variants] == [48]
    names = ["step-16@0.5", "step-16", "step-48@0.5", "step-48"]
    for steps in ("16,48", [16, 48]):
        listed = checkpoints.list_variants(run, steps, (0.5, 1.0)).variants
        assert [variant.name for variant in listed] == names
    with pytest.raises(ConfigError, match="no checkpoint of step 20") as caught:
        checkpoints.list_variants(run, "20")
    assert "16, 32, 48" in str(caught.value)


def test_without_the_dataset_only_its_scores_are_missing_and_notes_say_so(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    recipe = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(recipe.replace(str(run.parent / "data"), str(tmp_path / "moved")))
    result = evaluate(copied, run.parent / "p.jsonl", checkpoints="last")
    assert result.evaluation.copy_scale is None
    assert "clip_i" not in result.evaluation.metric_names()
    notes = " ".join(result.evaluation.notes)
    assert "Fidelity and copies are not measured" in notes
    assert "The validation loss is not measured" in notes
    assert "Fidelity and copies are not measured" in result.report.read_text()
    with_references = evaluate(
        copied,
        run.parent / "p.jsonl",
        checkpoints="last",
        references=run.parent / "data",
        validation_loss=False,
    )
    assert with_references.evaluation.copy_scale is not None


def test_the_command_answers_as_json_and_the_selection_can_be_repeated(run, result, capsys):
    command = [
        "eval",
        "run",
        str(run),
        "--prompts",
        str(run.parent / "p.jsonl"),
        "--num-inference-steps",
        "3",
    ]
    assert main.main([*command, "--guidance-scale", "3", "--quiet", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(run / "eval/report.html")
    assert main.main(["eval", "pick", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer["selection"] | {"votes": None}
    assert main.main(["eval", "pick", str(run), "--max-drift", "0"]) == 0
    assert "Drift: " in capsys.readouterr().out
    assert score_table.find_evaluation_folder(run) == run / "eval"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "ddim"], "no sampler 'ddim' for flow"),
        (["--strengths", "x"], "is not a list of strengths"),
        (["--strengths", "0"], "is not a list of strengths above 0"),
        (["--size", "65x64"], "multiples of"),
        (["--image-encoder", "timm:nothing_like_it"], "cannot load the image encoder"),
        (["--checkpoints", "7"], "no checkpoint of step 7"),
        (["--img2img-strength", "0.5", "--controlnet", "x"], "cannot be combined"),
        (["--controlnet", "nowhere"], "no such folder"),
        (["--img2img-strength", "0.5"], "has no image for the control"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_error(run, capsys, options, message):
    command = ["eval", "run", str(run), "--prompts", str(run.parent / "p.jsonl"), "--quiet"]
    assert main.main([*command, *options]) == 2
    assert message in capsys.readouterr().err


def test_the_report_of_a_run_opens_offline_and_can_be_read(result):
    with browser() as tab:
        tab.open(result.report)
        for width in (1280, 390):
            assert layout_faults(tab, width) == []
        assert access_faults(tab) == []
        files = [address for address in tab.requests if not address.startswith("data:")]
        assert files == [result.report.resolve().as_uri()]
        assert tab.complaints == []
        assert tab.evaluate("document.querySelectorAll('section').length") >= 6


def test_metrics_by_name_are_used_and_described(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    from lorakit.models import base_model

    metrics = (f"clip_t={base_model.EMBEDDED_CLIP}", f"clipscore={base_model.EMBEDDED_CLIP}")
    evaluation = evaluate(
        copied,
        run.parent / "p.jsonl",
        checkpoints="last",
        judges=JudgeOptions(metrics=metrics),
        validation_loss=False,
    ).evaluation
    variant = evaluation.adapter_variants[0]
    assert variant.scores["clip_t@clip"] == pytest.approx(variant.scores["clip_t"])
    assert set(variant.scores["clipscore"]) == set(variant.files)
    assert {"clip_model", "clip_t@clip", "clipscore"} <= set(evaluation.settings)
