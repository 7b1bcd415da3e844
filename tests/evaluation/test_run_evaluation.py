"""The evaluation of a run as a whole: resumed after kills, raced, with guests, within memory, selecting."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorakit
from lorakit.adapters.selection_record import SELECTION_FILE
from lorakit.adapters.sources import find_adapter
from lorakit.cli import main
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError
from lorakit.evaluation import judge_pass, race, run_sampling
from lorakit.evaluation.evaluate_run import evaluate_run
from lorakit.evaluation.feature_cache import cached_features
from lorakit.evaluation.guests import GuestRequest
from lorakit.evaluation.judges import JudgeOptions
from lorakit.evaluation.report.verdict import selection_notes
from lorakit.evaluation.result import EvaluationResult
from lorakit.evaluation.score_table import load_evaluation
from lorakit.models import base_model
from lorakit.models.clip_score import ClipScorer
from lorakit.sampling.pipeline import SamplingOptions
from tests.evaluation import embedded, untrained
from tests.long_tier import long

FAST = SamplingOptions(num_inference_steps=2, guidance_scale=3.0, batch_size=8, quiet=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    embedded.prompt_file(folder / "p.jsonl", embedded.prompts(3, 1))
    embedded.prompt_file(folder / "many.jsonl", embedded.prompts(9, 3))
    return untrained.make_run(folder)


@pytest.fixture
def run(original, tmp_path) -> Path:
    """A run that was not evaluated, beside its dataset and prompts."""
    shutil.copytree(original.parent, tmp_path / "place")
    return tmp_path / "place/run"


def evaluate(run: Path, prompts: str = "p.jsonl", **options: object) -> EvaluationResult:
    values = {"sampling": FAST, "validation_loss": False, "references": run.parent / "data"} | options
    return evaluate_run(run, prompts=run.parent / prompts, **values)


def results(run: Path) -> dict[str, bytes]:
    names = ("scores.json", "scores.csv", "selection.json", "report.html")
    return {name: (run / "eval" / name).read_bytes() for name in names}


class Killed(BaseException):
    """An exception that no code of lorakit catches."""


@pytest.fixture
def kill_at(monkeypatch) -> Iterator[object]:
    """Return a function that ends the process's work at its n-th completed write from now on."""

    def arm(count: int) -> None:
        left = count

        def hook(name: str, path: Path) -> None:
            nonlocal left
            left -= name == "rename"
            if left < 0:
                raise Killed

        monkeypatch.setattr(storage, "io_hook", hook)

    yield arm
    monkeypatch.setattr(storage, "io_hook", lambda name, path: None)


def test_an_evaluation_that_is_killed_again_and_again_ends_with_the_same_bytes(
    run, tmp_path, monkeypatch, kill_at
):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    evaluate(run)
    expected = results(run)
    shutil.rmtree(run / "eval")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "another cache"))
    kills = 0
    for count in (9, 27, 2, 3, 1, 1):  # images, then features, then results
        kill_at(count)
        try:
            evaluate(run)
        except Killed:
            kills += 1
        else:
            break
    kill_at(10_000)
    evaluate(run)
    assert kills >= 5
    assert results(run) == expected


def test_one_more_prompt_encodes_only_its_own_images(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    encoded = []
    original_features = ClipScorer.image_features

    def counting(self, images):
        encoded.append(len(images))
        return original_features(self, images)

    monkeypatch.setattr(ClipScorer, "image_features", counting)
    evaluate(run, checkpoints="last")
    first = sum(encoded)
    encoded.clear()
    embedded.prompt_file(run.parent / "p.jsonl", embedded.prompts(4, 1))
    evaluate(run, checkpoints="last")
    assert first >= 16  # base and one checkpoint: 4 prompts x 2 seeds, and the references
    assert sum(encoded) == 4  # one prompt x 2 seeds x 2 variants


def test_the_base_model_is_freed_before_a_judge_encodes_an_image(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    denoisers: list[weakref.ref] = []
    load = run_sampling.load_run_pipeline

    def remember(*arguments: object):
        pipeline = load(*arguments)
        denoisers.append(weakref.ref(pipeline.denoiser))
        return pipeline

    alive = []

    def check(*arguments: object, **options: object):
        alive.append(sum(reference() is not None for reference in denoisers))
        return cached_features(*arguments, **options)

    monkeypatch.setattr(run_sampling, "load_run_pipeline", remember)
    monkeypatch.setattr(judge_pass, "cached_features", check)
    guest = storage.write_bytes(run.parent / "theirs.safetensors", untrained.adapter_bytes(5, 0.5, 7))
    gc.disable()  # it must not depend on a collection that happens to come
    try:
        evaluate(run, checkpoints="last", guests=[GuestRequest(str(guest))])
    finally:
        gc.enable()
    assert len(denoisers) == 2
    assert alive
    assert not any(alive)


def test_judges_are_loaded_again_one_at_a_time_and_released(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    loaded: list[weakref.ref] = []
    most = 0
    create = ClipScorer.__init__

    def counting(self, *arguments, **options):
        nonlocal most
        create(self, *arguments, **options)
        loaded.append(weakref.ref(self))
        most = max(most, sum(reference() is not None for reference in loaded))

    monkeypatch.setattr(ClipScorer, "__init__", counting)
    spec = f"clip_t={base_model.EMBEDDED_CLIP}", f"clipscore={base_model.EMBEDDED_CLIP}"
    result = evaluate(run, checkpoints="last", judges=JudgeOptions(metrics=spec))
    assert len(loaded) == 7  # three judges, each to be checked and to score, and CLIP for the captions
    assert most == 1
    assert not any(reference() for reference in loaded)
    assert {"clip_t", "clip_t@clip", "clipscore"} <= set(result.evaluation.variants[0].scores)
    again = evaluate(run, checkpoints="last", judges=JudgeOptions(metrics=spec))
    assert again.evaluation.to_json() == result.evaluation.to_json()


def test_a_missing_judge_is_an_error_before_anything_is_sampled(run):
    for options in (JudgeOptions(clip_model="nowhere"), JudgeOptions(metrics=("clip_t=nowhere",))):
        with pytest.raises(ConfigError):
            evaluate(run, judges=options)
    assert not (run / "eval").exists()


def test_the_selection_is_what_export_sample_and_python_use(run, capsys, tmp_path):
    result = evaluate(run, strengths=(0.5, 1.0))
    record = storage.read_json(run / SELECTION_FILE)
    best = result.best
    assert best is not None
    assert (record["step"], record["strength"]) == (best.step, best.strength)
    assert record["sha256"] == checksums.sha256_file(run / record["file"])
    assert record["num_prompts"] == 4
    assert lorakit.Run(run).best == best
    assert "selected by" in find_adapter(run).reason or "recommends none" in find_adapter(run).reason
    command = ["export", str(run), "--for", "comfyui", "--out", str(tmp_path / "out"), "--json"]
    assert main.main(command) == 0
    output = capsys.readouterr()
    (row,) = json.loads(output.out)
    assert (row["step"], row["strength"]) == (best.step, best.strength)
    assert f"step {best.step}, " in output.err
    own = json.loads(storage.read_safetensors_metadata(row["path"])["lorakit"])
    assert own.get("strength", 1.0) == best.strength
    assert result.next_commands[0] == f"lorakit export {run} --for all"
    assert f"--adapter {run} --prompts {run.parent / 'p.jsonl'}" in result.next_commands[1]


def test_a_report_written_again_updates_the_selection_with_the_hashes_of_the_evaluation(run):
    evaluate(run, checkpoints="200,300")
    before = (run / SELECTION_FILE).read_bytes()
    (run / SELECTION_FILE).unlink()
    for step in (200, 300):  # the run was trained again meanwhile
        file = run / f"checkpoints/step-{step:08d}/adapter.safetensors"
        file.write_bytes(untrained.adapter_bytes(step, 0.1, seed=9))
    (run / "adapter.safetensors").write_bytes(untrained.adapter_bytes(300, 0.1, seed=9))
    assert main.main(["eval", "report", str(run), "--quiet"]) == 0
    assert (run / SELECTION_FILE).read_bytes() == before
    source = find_adapter(run)
    assert not source.is_selected
    assert "was changed since" in source.reason
    assert main.main(["eval", "pick", str(run), "--quiet"]) == 0
    assert (run / SELECTION_FILE).read_bytes() == before


def test_a_guest_is_a_row_with_the_same_prompts_and_its_own_trigger_word_and_is_never_selected(run):
    word = embedded.CONCEPT.word
    guest = run.parent / "theirs.safetensors"
    storage.write_bytes(guest, untrained.adapter_bytes(5, 0.9, 7, trigger="ohwx", resolution=128))
    result = evaluate(run, guests=[GuestRequest(f"{guest}:0.8"), GuestRequest(f"{run}@100")])
    evaluation = load_evaluation(run)
    assert [variant.name for variant in evaluation.guests] == ["theirs@0.8", "run-step-100"]
    theirs, own = evaluation.guests
    assert theirs.origin.trigger == "ohwx"
    assert theirs.files.keys() == evaluation.base.files.keys()
    rows = storage.read_json((run / "eval" / next(iter(theirs.files.values()))).with_name("samples.json"))
    assert all(
        "ohwx" in row["prompt"] and word not in row["prompt"] for row in rows if row["prompt_id"][0] == "c"
    )
    assert {variant.name for variant in evaluation.adapter_variants} == {"step-100", "step-200", "step-300"}
    assert result.best.step in (100, 200, 300)
    # the run itself as a guest: the same images, up to the rounding of another way to inject it
    checkpoint = next(variant for variant in evaluation.variants if variant.name == "step-100")
    for key, value in checkpoint.scores["clip_t"].items():
        assert own.scores["clip_t"][key] == pytest.approx(value, abs=0.01)
    assert evaluation.paired_difference(own, theirs, "clip_t", evaluation.prompts) is not None
    assert "theirs@0.8" in (run / "eval/report.html").read_text()
    notes = " ".join(selection_notes(result.evaluation, result.selection))
    best = (result.selection.variant or result.selection.best).name
    assert (
        "theirs@0.8 is better" in notes or "theirs@0.8 is worse" in notes or f"theirs@0.8 and {best}" in notes
    )


@long
def test_a_race_samples_the_other_prompts_only_for_those_that_can_still_be_the_best(run, monkeypatch):
    monkeypatch.setattr(race, "find_losers", lambda evaluation: ["step-100"])
    evaluate(run, "many.jsonl", race=True)
    evaluation = load_evaluation(run)
    (stopped,) = evaluation.stopped_variants
    assert stopped.name == "step-100"
    assert len(stopped.files) == 2 * race.FIRST_PROMPTS
    others = [variant for variant in evaluation.variants if variant is not stopped]
    assert all(len(variant.files) == 2 * 12 for variant in others)
    assert any("stopped step-100 after 8 of 12 prompts" in note for note in evaluation.notes)
    assert [variant.name for variant in evaluation.adapter_variants] == ["step-200", "step-300"]
    images = {file.relative_to(run): file.read_bytes() for file in (run / "eval/images").rglob("*.png")}
    before = results(run)
    evaluate(run, "many.jsonl", race=True)
    assert results(run) == before
    evaluate(run, "many.jsonl")  # without a race only the missing images are added
    assert not load_evaluation(run).stopped_variants
    assert all((run / file).read_bytes() == data for file, data in images.items())


def test_the_first_prompts_of_a_race_are_of_all_kinds_and_mostly_of_the_subject():
    prompts = embedded.prompts(9, 3)
    first = race.first_prompts(prompts, (embedded.CONCEPT.word,))
    assert len(first) == race.FIRST_PROMPTS
    assert [prompt.role((embedded.CONCEPT.word,)) for prompt in first].count("subject") == 6
    assert first == [prompt for prompt in prompts if prompt in first]
    assert race.first_prompts(prompts[:5], ()) == prompts[:5]


def test_a_limit_of_images_is_kept_and_noted(run):
    result = evaluate(run, "many.jsonl", max_images=60)
    assert len(list((run / "eval/images").rglob("*.png"))) <= 60
    assert any("At most 60 images" in note for note in result.evaluation.notes)
