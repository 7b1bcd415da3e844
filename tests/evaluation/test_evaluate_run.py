"""The evaluation of a run of the embedded base: its arms, what is drawn again, its losses, its page."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit import adapters
from lorakit.cli import main
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.evaluation import checkpoints, score_table
from lorakit.evaluation.evaluate_run import EvaluationResult, RunEvaluationOptions, evaluate_run
from lorakit.evaluation.judges import JudgeOptions
from lorakit.sampling.pipeline import SamplingOptions
from tests.browser import browser
from tests.evaluation import embedded

FAST = SamplingOptions(steps=3, guidance=3.0, batch=8, quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """48 steps with a checkpoint every 16, two of eight images held out."""
    folder = tmp_path_factory.mktemp("run")
    data = embedded.dataset(folder / "data", 6, ordinary=2)
    embedded.prompt_file(folder / "p.jsonl", embedded.prompts(4, 2))
    validate = {"fraction": 0.25, "every": 16}
    return embedded.train(folder, data, steps=48, save_every=16, lr=5e-3, validate=validate)


def request(run: Path, **changes) -> RunEvaluationOptions:
    return RunEvaluationOptions(**{"prompts": run.parent / "p.jsonl", "options": FAST, **changes})


@pytest.fixture(scope="module")
def result(run) -> EvaluationResult:
    return evaluate_run(run, request(run))


def pixels(root: Path, file: str) -> np.ndarray:
    with Image.open(root / file) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


def test_every_checkpoint_is_an_arm_and_starts_from_the_base_s_noise(run, result):
    made = result.evaluation
    assert [arm.name for arm in made.arms] == ["base", "step 16", "step 32", "step 48"]
    assert all(len(arm.files) == 12 for arm in made.arms)
    root = result.report.parent
    base, first, last = (pixels(root, made.arms[i].files["c0", 1]) for i in (0, 1, 3))
    assert np.abs(first - last).max() > 0
    assert np.abs(base - last).max() > 0
    drifts = [made.interval(arm, "drift", made.prompts).mean for arm in made.tuned]
    assert drifts[0] < drifts[-1]  # from the same noise a short training changes less than a longer one


def test_the_validation_loss_is_the_one_that_the_training_wrote(run, result):
    rows = storage.read_jsonl(run / "metrics.jsonl")
    logged = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    for arm in result.evaluation.tuned:
        assert np.mean(arm.losses["held out"]) == pytest.approx(logged[arm.step], rel=1e-4)
        assert len(arm.losses["held out"]) == len(arm.losses["trained on"]) == 2
    base = result.evaluation.base
    assert np.mean(base.losses["held out"]) == pytest.approx(logged[16], rel=0.5)


def test_references_are_the_subject_s_images_and_held_out_ones_cannot_be_copied(run, result):
    made = result.evaluation
    assert len(made.ceiling) == 6  # of eight images six are striped
    assert made.training == "../../data"
    trained = {name for arm in made.arms for name in arm.lookalikes.values()}
    assert trained <= {f"{n:02d}.png" for n in range(6)}


def test_asked_again_only_what_is_missing_or_damaged_is_drawn(run, result):
    images = result.report.parent / "images"
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in images.rglob("*.png")}
    gone, cut = images / "base/c0-0.png", images / "step-00000032/u1-1.png"
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:200])
    again = evaluate_run(run, request(run))
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in images.rglob("*.png")}
    assert {file: data for file, (_, data) in after.items()} == {f: data for f, (_, data) in before.items()}
    assert {file for file in after if after[file][0] != before[file][0]} == {gone, cut}
    assert again.evaluation.to_json() == result.evaluation.to_json()
    assert again.report.read_bytes() == result.report.read_bytes()


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same(run, result, tmp_path):
    """What was drawn before the kill is not drawn again, and nothing tells the two apart in the end."""
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    images = copied / "eval/images"
    process = multiprocessing.get_context("forkserver").Process(
        target=evaluate_run, args=(copied, request(run))
    )
    process.start()
    deadline = time.monotonic() + 600
    while len(list(images.rglob("*.png"))) < 16 and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = {file: file.stat().st_mtime_ns for file in images.rglob("*.png") if checkpoints.sample_key(file)}
    assert 16 <= len(before) < 48
    assert not (copied / "eval/scores.json").exists()
    again = evaluate_run(copied, request(run))
    assert {file: file.stat().st_mtime_ns for file in before} == before
    whole = result.report.parent / "images"
    for file in whole.rglob("*.png"):
        assert (images / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert not list(images.rglob("*.tmp*"))
    assert [arm.to_json() for arm in again.evaluation.arms] == [
        arm.to_json() for arm in result.evaluation.arms
    ]


def test_other_prompts_are_drawn_anew_and_nothing_stale_is_taken(run, tmp_path):
    made = embedded.prompts(4, 2)
    changed = [made[1].__class__("c0", made[1].prompt, made[1].score_text, seeds=(0, 1)), *made[1:]]
    file = embedded.prompt_file(tmp_path / "q.jsonl", changed)
    copied = shutil.copytree(run, tmp_path / "run")
    before = (copied / "eval/images/base/c0-0.png").read_bytes()
    kept = (copied / "eval/images/base/c1-0.png").stat().st_mtime_ns
    evaluate_run(copied, request(run, prompts=file, checkpoints="last"))
    assert (copied / "eval/images/base/c0-0.png").read_bytes() != before
    assert (copied / "eval/images/base/c1-0.png").stat().st_mtime_ns == kept


def test_strength_two_draws_what_a_doubled_adapter_draws(run, tmp_path):
    doubled = shutil.copytree(run, tmp_path / "doubled", ignore=shutil.ignore_patterns("eval"))
    scale(doubled, 2.0)
    two = evaluate_run(run, request(run, checkpoints="last", strengths=(0.5, 2.0), validate=False))
    one = evaluate_run(doubled, request(run, checkpoints="last", validate=False))
    assert [arm.name for arm in two.evaluation.arms] == ["base", "step 48 × 0.5", "step 48 × 2"]
    strong, made = two.evaluation.tuned[1], one.evaluation.tuned[0]
    for key in strong.files:
        a = pixels(two.report.parent, strong.files[key])
        b = pixels(one.report.parent, made.files[key])
        assert np.abs(a - b).max() <= 2
    weak = two.evaluation.tuned[0]
    assert two.evaluation.gain(weak, strong, "drift", two.evaluation.prompts).low > 0


def scale(run: Path, factor: float) -> None:
    """Scale the effect of a run's finished adapter."""
    file = run / "adapter.safetensors"
    tensors = storage.read_safetensors(file)
    facts = adapters.pack_metadata(adapters.read_adapter_metadata(file))
    changed = {name: t * factor if ".lora_B." in name else t for name, t in tensors.items()}
    storage.write_safetensors(file, changed, facts)


def test_checkpoints_by_step_and_a_damaged_one(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "checkpoints/step-00000016/adapter.safetensors").write_bytes(b"cut off")
    found, problems = checkpoints.list_variants(copied)
    assert [arm.step for arm in found] == [32, 48]
    assert "step 16 is left out" in problems[0]
    assert [arm.step for arm in checkpoints.list_variants(run, "last")[0]] == [48]
    assert [arm.name for arm in checkpoints.list_variants(run, "16,48", (0.5, 1.0))[0]] == [
        "step 16 × 0.5",
        "step 16",
        "step 48 × 0.5",
        "step 48",
    ]
    with pytest.raises(ConfigError, match="no checkpoint of step 20") as caught:
        checkpoints.list_variants(run, "20")
    assert "16, 32, 48" in str(caught.value)


def test_a_dataset_that_has_moved_costs_what_needs_it_and_a_note_says_so(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    recipe = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(recipe.replace(str(run.parent / "data"), str(tmp_path / "moved")))
    result = evaluate_run(copied, request(run, checkpoints="last"))
    assert result.evaluation.limit is None
    assert "clip_i" not in result.evaluation.measured()
    notes = " ".join(result.evaluation.notes)
    assert "No fidelity and no copy alarm" in notes
    assert "No validation loss" in notes
    assert "No fidelity" in result.report.read_text()
    given = evaluate_run(
        copied, request(run, checkpoints="last", references=run.parent / "data", validate=False)
    )
    assert given.evaluation.limit is not None


def test_the_command_answers_as_json_and_the_pick_is_told_again(run, result, capsys):
    given = ["eval", "run", str(run), "--prompts", str(run.parent / "p.jsonl"), "--steps", "3"]
    assert main.main([*given, "--guidance", "3", "--quiet", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(run / "eval/report.html")
    assert main.main(["eval", "pick", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer["pick"]
    assert main.main(["eval", "pick", str(run), "--drift-budget", "0"]) == 0
    assert "Drifts" in capsys.readouterr().out
    assert score_table.load_evaluation(run)[0] == run / "eval"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampler", "ddim"], "no sampler 'ddim' for flow"),
        (["--strengths", "x"], "no strengths"),
        (["--strengths", "0"], "not above 0"),
        (["--size", "65x64"], "multiples of"),
        (["--dino", "timm:nothing_like_it"], "cannot load the image model"),
        (["--checkpoints", "7"], "no checkpoint of step 7"),
        (["--img2img", "0.5", "--controlnet", "x"], "one kind of control"),
        (["--controlnet", "nowhere"], "no such folder"),
        (["--img2img", "0.5"], "has no image to be guided by"),
    ],
)
def test_what_cannot_work_is_one_error(run, capsys, options, said):
    given = ["eval", "run", str(run), "--prompts", str(run.parent / "p.jsonl"), "--quiet"]
    assert main.main([*given, *options]) == 2
    assert said in capsys.readouterr().err


def test_the_page_opens_offline_without_a_request_or_complaint_and_a_click_enlarges(result, tmp_path):
    with browser() as tab:
        tab.open(result.report, 1400, 900)
        assert tab.requests == [result.report.resolve().as_uri()] + [
            url for url in tab.requests[1:] if url.startswith("data:")
        ]
        assert tab.complaints == []
        assert tab.evaluate("document.querySelectorAll('section').length") >= 6
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1400
        state = "getComputedStyle(document.querySelector('.grid .zoom img')).position"
        assert tab.evaluate(state) == "static"
        tab.evaluate("document.querySelector('.grid .zoom img').click()")
        assert tab.evaluate(state) == "fixed"
        wide = tab.evaluate("document.querySelector('.grid .zoom img').getBoundingClientRect().height")
        assert wide > 600
        tab.evaluate("document.querySelector('.grid .zoom img').click()")
        assert tab.evaluate(state) == "static"
        assert tab.complaints == []
        heads = "document.querySelector('.grid thead th:nth-child(2)')"
        assert tab.evaluate(f"getComputedStyle({heads}).position") == "sticky"


def test_judges_by_name_are_used_and_told(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    from lorakit.models import base_model

    wanted = JudgeOptions(also=(f"clip={base_model.EMBEDDED_CLIP}", f"clipscore={base_model.EMBEDDED_CLIP}"))
    made = evaluate_run(copied, request(run, checkpoints="last", judges=wanted, validate=False)).evaluation
    arm = made.tuned[0]
    assert arm.scores["clip_t@clip"] == pytest.approx(arm.scores["clip_t"])
    assert set(arm.scores["clipscore"]) == set(arm.files)
    assert {"clip", "clip_t@clip", "clipscore"} <= set(made.settings)
