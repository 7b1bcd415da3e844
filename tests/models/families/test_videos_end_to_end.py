"""A video base model on stills and videos: batches, both experts, refusals; `tests/test_guides.py` has a full
run."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorakit import adapters, manifest
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.config.concepts import Concept
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import caches
from lorakit.data.items import DatasetItem
from lorakit.imaging import resize
from lorakit.models import families, loading
from lorakit.sampling import pipeline
from lorakit.training.train import train_recipe
from tests import command_lines, runs, tiny
from tests.data_tools.folders import photo
from tests.imaging import videos
from tests.long_tier import some_long
from tests.models.families.common import encoded

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


@pytest.mark.parametrize("row", some_long(["wan-i2v", "wan-i2v-2.2"], "wan-i2v"))
def test_a_video_is_trained_from_its_first_frame_or_its_own_source(row, tmp_path):
    """By the commands of the recipe, killed and resumed to the same bytes; both programs get a file."""
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for name in ("a", "b"):
        (data / f"{name}.mp4").write_bytes(videos.encode(7, size=(96, 64), rate=16, name=f"{name}.mp4"))
        (data / f"{name}.txt").write_text(f"a sks video {name}")
    photo(5, (96, 64)).save(data / "b.source.png")
    photo(6, (64, 64)).save(tmp_path / "ring.png")
    prompts = storage.write_jsonl(
        tmp_path / "p.jsonl", [{"id": "a", "prompt": "a ring", "image": "ring.png", "seeds": [0]}]
    )
    base = str(tiny.tiny_folder(row))
    settings = ["samples.every=4", "samples.num_inference_steps=1", f"samples.prompts={prompts}", "frames=5"]
    more = [f"base={base}", f"dataset={data}", f"out={run}", "resolution=64", "optimizer.warmup=0", *settings]
    command_lines.run(["data", "prepare", str(data), "--videos", "--resolution", "64"])
    several = ["train.accumulate=4"] if row == "wan-i2v-2.2" else []  # noise levels of both experts
    train = ["train", "recipes/wan-i2v.yaml", *more, *command_lines.FEWER, *several]
    command_lines.train_killed_and_resumed(train, launched=False)
    assert adapters.read_adapter_metadata(run / "adapter.safetensors")["family"] == "wan-i2v"
    tensors = storage.read_safetensors(run / "adapter.safetensors")
    assert all(value.any() for value in tensors.values())
    with Image.open(run / "samples/step-00000004/a-0.webp") as video:
        assert video.n_frames == 5
    names = {file.name for file in (run / "exports").glob("*.safetensors")}
    assert len(names) == (2 if row == "wan-i2v" else 4)
    native = [storage.read_safetensors(run / "exports" / name) for name in names if "native" in name]
    keys = [key for file in native for key in file]
    assert all(key.startswith("diffusion_model.blocks.") for key in keys)
    assert any(".cross_attn.k_img." in key for key in keys) == (row == "wan-i2v")
    if row == "wan-i2v":
        _assert_image_to_video_loads(run)


def _assert_image_to_video_loads(run):
    """Load the exported file in diffusers' own pipeline: it predicts the same as the run's adapter."""
    base = tiny.tiny_folder("wan-i2v")
    ours = pipeline.SamplingPipeline(str(base), run / "adapter.safetensors")
    theirs = ours.family.load(base, dtype=torch.float32)
    (file,) = (run / "exports").glob("*diffusers.safetensors")
    theirs.load_lora_weights(str(file))
    cond = ours.family.collate(encoded("wan-i2v", ["a red circle"], (64, 64), 5))
    noise = torch.randn(1, *ours.family.latent_shape(ours.pipe, 64, 64, 5))
    predict = functools.partial(ours.family.predict, noisy_latents=noise, timesteps=torch.tensor([500.0]))
    with torch.no_grad():
        trained, loaded = (predict(network, cond=cond) for network in (ours.denoiser, theirs.transformer))
        with ours.adapter_disabled():
            plain = predict(ours.denoiser, cond=cond)
    assert torch.allclose(trained, loaded, atol=1e-5)
    assert not torch.allclose(plain, trained, atol=1e-5)


def test_the_source_of_a_video_is_its_first_frame_unless_it_has_its_own(tmp_path):
    """The frame is cropped and resized as the video is; another number of frames is another entry."""
    (tmp_path / "a.mp4").write_bytes(videos.encode(7, size=(96, 64), rate=16, name="a.mp4"))
    (tmp_path / "a.txt").write_text("a sks video")
    prepare = ["data", "prepare", str(tmp_path), "--videos", "--resolution", "64", "--quiet", "--no-report"]
    command_lines.run(prepare)
    base, family = tiny.tiny_folder("wan-i2v"), families.get_family("wan-i2v")
    cache = caches.ConditioningCache(family, base, tmp_path / "cache")

    def item(*frames: int) -> DatasetItem:
        (record,) = manifest.load_manifest(tmp_path)
        return DatasetItem(Concept(folder=tmp_path), record, (0, 0, 96, 64), (48, 32), frames)

    images = cache.conditioning_inputs(item(*range(5))).load_tensors()["source"]
    clip = resize.load_video_tensor(tmp_path, item(0).record, (0, 0, 96, 64), (48, 32), (0, 1))
    assert torch.equal(images, clip[None, :, 0])
    assert not torch.equal(clip[:, 0], clip[:, 1])
    short, long = item(0), item(*range(5))
    cache.fill(
        [long, short],
        family.load(base, dtype=torch.float32, only=loading.conditioning_components(family, base)),
    )
    shapes = [{name: tuple(value.shape) for name, value in cache[one].items()} for one in (short, long)]
    assert [shape["source_latents"] for shape in shapes] == [(1, 4, 1, 4, 6), (1, 4, 2, 4, 6)]
    assert [shape["image_embeds"] for shape in shapes] == [(1, 5, 16)] * 2
    photo(5, (96, 64)).save(tmp_path / "a.source.png")
    command_lines.run(prepare)
    assert cache.missing([item(*range(5))])
    other = cache.conditioning_inputs(item(*range(5))).load_tensors()["source"]
    assert other.shape == images.shape
    assert not torch.equal(other, images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"transformer/config.json": {"pos_embed_seq_len": 10}}, "between a first and a last frame"),
        ({"model_index.json": {"expand_timesteps": True}}, "small model of Wan 2.2"),
        ({"lorakit.json": {"max_sequence_length": 64}}, "after 512 tokens"),
    ],
)
def test_image_to_video_models_of_other_kinds_are_refused(change, words, tmp_path):
    base = shutil.copytree(tiny.tiny_folder("wan-i2v"), tmp_path / "base")
    for name, settings in change.items():
        file = base / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | settings))
    with pytest.raises(ConfigError, match=words):
        families.detect_family(base).load(base, dtype=torch.float32, only=("scheduler",))


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
