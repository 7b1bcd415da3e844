"""A video base model on stills and videos: batches, both experts, refusals; `tests/test_guides.py` has a full
run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorakit import manifest
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.sampling import pipeline
from lorakit.training.train import train_recipe
from tests import runs, tiny
from tests.data_tools.folders import photo
from tests.imaging import videos

WAN = recipe.builtin_recipes_folder() / "wan.yaml"


def _folder(path: Path, *, with_videos: bool) -> Path:
    """Write two stills, and with `with_videos` three videos, one of them short, and a broken file."""
    path.mkdir()
    for index, size in enumerate([(80, 80), (96, 64)]):
        photo(index, size).save(path / f"{index}.png")
        (path / f"{index}.txt").write_text(f"a sks picture number {index}")
    if with_videos:
        for name, count in {"a.mp4": 7, "b.webm": 6, "c.mkv": 3}.items():
            codec = "libvpx-vp9" if name == "b.webm" else "libx264"
            (path / name).write_bytes(videos.encode(count, size=(96, 64), rate=16, name=name, codec=codec))
            (path / name).with_suffix(".txt").write_text(f"a sks video of {count} frames")
        (path / "broken.mp4").write_bytes(b"not a video")
    return path


def _overrides(data: Path, out: Path, row: str = "wan", **more: object) -> list[str]:
    prompts = storage.write_jsonl(
        out.parent / "prompts.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}]
    )
    settings = {
        **{"base": str(tiny.tiny_folder(row)), "dataset": str(data), "out": str(out), "resolution": 64},
        **{"optimizer.warmup": 0, "train.steps": 4, "train.save_every": 2, "train.accumulate": 2},
        **{
            "samples.prompts": str(prompts),
            "samples.every": 4,
            "samples.num_inference_steps": 1,
            "samples.guidance_scale": None,
        },
        **{"frames": 5, "train.precision": "fp32"},
        **more,
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def test_prepared_videos_stay_in_the_manifest_and_a_broken_one_is_reported(tmp_path):
    data = _folder(tmp_path / "data", with_videos=True)
    assert main.main(["data", "prepare", str(data), "--videos", "--resolution", "64"]) == 0
    records = {record.file: record for record in manifest.load_manifest(data)}
    assert {file for file, record in records.items() if record.video} == {"a.mp4", "b.webm", "c.mkv"}
    assert records["broken.mp4"].reason.startswith("not_an_image: ")
    before = (data / "manifest.jsonl").read_bytes()
    assert main.main(["data", "prepare", str(data), "--resolution", "64"]) == 0  # known from the manifest
    assert (data / "manifest.jsonl").read_bytes() == before


def test_videos_and_stills_have_separate_batches(tmp_path):
    """The shortest video has no fifth frame, and trains as a still."""
    from lorakit.data import caches
    from lorakit.training import run_plan

    data = _folder(tmp_path / "data", with_videos=True)
    assert main.main(["data", "prepare", str(data), "--videos", "--resolution", "64", "--quiet"]) == 0
    plan = run_plan.plan_training(
        recipe.load_recipe(WAN, _overrides(data, tmp_path / "run")), lambda text: None
    )
    frames = {item.record.file: item.frame_indices for item in plan.items}
    assert frames == {
        **dict.fromkeys(("0.png", "1.png", "c.mkv"), (0,)),
        **dict.fromkeys(("a.mp4", "b.webm"), (0, 1, 2, 3, 4)),
    }
    stills = run_plan.plan_training(
        recipe.load_recipe(WAN, _overrides(data, tmp_path / "r", frames=1)), lambda text: None
    )
    assert {item.frame_indices for item in stills.items} == {(0,)}
    latents = caches.LatentCache(plan.base_folder)
    video = next(item for item in plan.items if item.record.file == "a.mp4")
    still = next(item for item in stills.items if item.record.file == "a.mp4")
    assert latents.key(video) != latents.key(still)


def test_both_experts_train_on_stills_alone(tmp_path):
    data, run = _folder(tmp_path / "data", with_videos=False), tmp_path / "run"
    assert main.main(["data", "prepare", str(data), "--resolution", "64", "--quiet"]) == 0
    more = {"frames": 1, "train.accumulate": 4}
    train_recipe(recipe.load_recipe(WAN, _overrides(data, run, "wan-2.2", **more)))
    tensors = storage.read_safetensors(run / "adapter.safetensors")
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"transformer", "transformer_2"}
    assert all(value.any() for value in tensors.values())
    _assert_diffusers_reads_both(run)
    with Image.open(run / "samples/step-00000004/a-0.png") as image:
        assert image.size == (64, 64)
    interrupted = recipe.load_recipe(WAN, _overrides(data, tmp_path / "broken", "wan-2.2", **more))
    with runs.killed_at(3):
        train_recipe(interrupted)
    resumed = train_recipe(interrupted).path
    assert (resumed / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def _assert_diffusers_reads_both(run):
    """Load one file for each expert in diffusers' own pipeline: it predicts the same as the run's adapter."""
    base = tiny.tiny_folder("wan-2.2")
    ours = pipeline.SamplingPipeline(str(base), run / "adapter.safetensors")
    theirs = ours.family.load(base, dtype=torch.float32)
    for second, name in enumerate(("high-noise", "low-noise")):
        file = run / f"exports/adapter-{name}-diffusers.safetensors"
        theirs.load_lora_weights(str(file), load_into_transformer_2=bool(second))
    conds = ours.run_with_text_encoders(lambda pipe: ours.family.encode_text(pipe, ["a red circle"]))
    cond = ours.family.collate(conds)
    noise = torch.randn(1, *ours.family.latent_shape(ours.pipe, 64, 64))
    with torch.no_grad():
        for timestep in (950.0, 50.0):
            predictions = [
                ours.family.predict(denoiser, noise, torch.tensor([timestep]), cond)
                for denoiser in (ours.denoiser, ours.family.denoiser(theirs))
            ]
            assert torch.allclose(*predictions, atol=1e-5)
            with ours.adapter_disabled():
                plain = ours.family.predict(ours.denoiser, noise, torch.tensor([timestep]), cond)
            assert not torch.allclose(plain, predictions[0], atol=1e-5)


@pytest.mark.parametrize("row", ["sd3", "wan"])
def test_unsuitable_data_is_refused_before_any_work(row, tmp_path):
    from lorakit.training import run_plan

    data = _folder(tmp_path / "data", with_videos=True)
    assert main.main(["data", "prepare", str(data), "--videos", "--resolution", "64", "--quiet"]) == 0
    loaded = recipe.load_recipe(WAN, _overrides(data, tmp_path / "run", row))
    if row == "wan":
        (data / "a.mp4").write_bytes(videos.encode(2))
        with pytest.raises(DataError, match="has changed"):
            run_plan.plan_training(loaded, lambda text: None)
        return
    with pytest.raises(ConfigError, match="makes images, not videos of 5 frames"):
        run_plan.plan_training(loaded, lambda text: None)
    single_frame = recipe.load_recipe(WAN, _overrides(data, tmp_path / "run", row, frames=1))
    with pytest.raises(DataError, match=r"3 videos, but .* generates images: data/a\.mp4"):
        run_plan.plan_training(single_frame, lambda text: None)


def test_videos_are_ignored_without_the_option(tmp_path, capsys):
    data = _folder(tmp_path / "data", with_videos=True)
    assert main.main(["data", "prepare", str(data), "--resolution", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert b"video" not in (data / "manifest.jsonl").read_bytes()
