"""A base of clips through the command line: stills and films prepared, trained, stopped, gone on with,
exported, sampled."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorakit import adapter, cli, manifest, recipe, storage, trial
from lorakit.errors import ConfigError, DataError
from lorakit.train import train
from tests import films, runs, tiny
from tests.data_tools.folders import photo
from tests.families.test_end_to_end import _process as process  # noqa: F401 - garbage is not looked for

WAN = recipe.folder() / "wan.yaml"


def _folder(path: Path, *, clips: bool) -> Path:
    """Two stills, and with `clips` three films, one shorter than the others and one that cannot be read."""
    path.mkdir()
    for index, size in enumerate([(80, 80), (96, 64)]):
        photo(index, size).save(path / f"{index}.png")
        (path / f"{index}.txt").write_text(f"a sks picture number {index}")
    if clips:
        for name, count in {"a.mp4": 7, "b.webm": 6, "c.mkv": 3}.items():
            codec = "libvpx-vp9" if name == "b.webm" else "libx264"
            (path / name).write_bytes(films.encode(count, size=(96, 64), rate=16, name=name, codec=codec))
            (path / name).with_suffix(".txt").write_text(f"a sks film of {count} frames")
        (path / "broken.mp4").write_bytes(b"no film")
    return path


def _overrides(data: Path, out: Path, row: str = "wan", **more: object) -> list[str]:
    prompts = storage.write_jsonl(
        out.parent / "prompts.jsonl", [{"id": "a", "prompt": "a ring", "seeds": [0]}]
    )
    settings = {
        **{"base": str(tiny.tiny_folder(row)), "dataset": str(data), "out": str(out), "resolution": 64},
        **{"optimizer.warmup": 0, "train.steps": 4, "train.save_every": 2, "train.accumulate": 2},
        **{"samples.prompts": str(prompts), "samples.every": 4, "samples.steps": 1, "samples.guidance": None},
        **{"frames": 5, "train.precision": "fp32"},
        **more,
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def test_from_stills_and_films_to_a_clip(tmp_path, capsys):
    data, run = _folder(tmp_path / "data", clips=True), tmp_path / "run"
    assert cli.main(["data", "prepare", str(data), "--clips", "--resolution", "64"]) == 0
    records = {record.file: record for record in manifest.load(data)}
    assert {file for file, record in records.items() if record.clip} == {"a.mp4", "b.webm", "c.mkv"}
    assert records["broken.mp4"].reason.startswith("corrupt: no film")
    before = (data / "manifest.jsonl").read_bytes()
    assert cli.main(["data", "prepare", str(data), "--resolution", "64"]) == 0  # known by now
    assert (data / "manifest.jsonl").read_bytes() == before
    made = recipe.load(WAN, _overrides(data, run))
    with runs.killed_at(3):
        train(made)
    train(made)
    assert "going on from step 2" in (run / "log.txt").read_text()
    whole = train(recipe.load(WAN, _overrides(data, tmp_path / "whole"))).path
    assert (whole / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()
    facts = adapter.read_metadata(run / "adapter.safetensors")
    assert (facts["family"], facts["frames"]) == ("wan", 5)
    assert all(value.any() for value in storage.read_safetensors(run / "adapter.safetensors").values())
    samples = run / "samples/step-00000004"
    (row,) = storage.read_json(samples / "samples.json")
    with Image.open(samples / row["file"]) as strip, Image.open(samples / row["clip"]) as film:
        assert (strip.size, film.size, film.n_frames) == ((3 * 64, 64), (64, 64), 5)
    assert len(list((run / "exports").glob("*.safetensors"))) == 2  # ComfyUI has names of its own
    capsys.readouterr()
    command = ["sample", str(tiny.tiny_folder("wan")), "--prompts", str(tmp_path / "prompts.jsonl")]
    command += ["--steps", "1", "--size", "64x64", "--quiet", "--adapter", str(run), "--out"]
    assert cli.main([*command, str(tmp_path / "clip")]) == 0
    assert cli.main([*command, str(tmp_path / "still"), "--frames", "1"]) == 0
    assert sorted(file.name for file in (tmp_path / "clip").iterdir()) == [
        "a-0.png",
        "a-0.webp",
        "samples.json",
    ]
    assert sorted(file.name for file in (tmp_path / "still").iterdir()) == ["a-0.png", "samples.json"]


def test_films_and_stills_have_batches_of_their_own(tmp_path):
    """The shortest film has no fifth frame, and trains as a still."""
    from lorakit import dataset, session

    data = _folder(tmp_path / "data", clips=True)
    assert cli.main(["data", "prepare", str(data), "--clips", "--resolution", "64", "--quiet"]) == 0
    plan = session.plan(recipe.load(WAN, _overrides(data, tmp_path / "run")), lambda text: None)
    frames = {item.record.file: item.frames for item in plan.items}
    assert frames == {
        **dict.fromkeys(("0.png", "1.png", "c.mkv"), (0,)),
        **dict.fromkeys(("a.mp4", "b.webm"), (0, 1, 2, 3, 4)),
    }
    stills = session.plan(recipe.load(WAN, _overrides(data, tmp_path / "r", frames=1)), lambda text: None)
    assert {item.frames for item in stills.items} == {(0,)}
    caches = [dataset.LatentCache(data, plan.base) for _ in range(2)]
    film = next(item for item in plan.items if item.record.file == "a.mp4")
    still = next(item for item in stills.items if item.record.file == "a.mp4")
    assert caches[0].key(film) != caches[1].key(still)


def test_stills_alone_and_both_experts(tmp_path):
    data, run = _folder(tmp_path / "data", clips=False), tmp_path / "run"
    assert cli.main(["data", "prepare", str(data), "--resolution", "64", "--quiet"]) == 0
    more = {"frames": 1, "train.accumulate": 4}
    train(recipe.load(WAN, _overrides(data, run, "wan-2.2", **more)))
    tensors = storage.read_safetensors(run / "adapter.safetensors")
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"transformer", "transformer_2"}
    assert all(value.any() for value in tensors.values())
    _assert_diffusers_reads_both(run)
    with Image.open(run / "samples/step-00000004/a-0.png") as picture:
        assert picture.size == (64, 64)
    made = recipe.load(WAN, _overrides(data, tmp_path / "broken", "wan-2.2", **more))
    with runs.killed_at(3):
        train(made)
    assert (
        train(made).path.joinpath("adapter.safetensors").read_bytes()
        == (run / "adapter.safetensors").read_bytes()
    )


def _assert_diffusers_reads_both(run):
    """A file for each expert; diffusers' own pipeline with both predicts what the run's adapter does."""
    base = tiny.tiny_folder("wan-2.2")
    ours = trial.Painter(str(base), run / "adapter.safetensors")
    theirs = ours.family.load(base, dtype=torch.float32)
    for second, name in enumerate(("high-noise", "low-noise")):
        file = run / f"exports/adapter-{name}-diffusers.safetensors"
        theirs.load_lora_weights(str(file), load_into_transformer_2=bool(second))
    cond = ours.family.collate(ours.family.encode(ours.pipe, ["a red circle"]))
    noise = torch.randn(1, *ours.family.latent_shape(ours.pipe, 64, 64))
    with torch.no_grad():
        for time in (950.0, 50.0):
            told = [
                ours.family.predict(denoiser, noise, torch.tensor([time]), cond)
                for denoiser in (ours.denoiser, ours.family.denoiser(theirs))
            ]
            assert torch.allclose(*told, atol=1e-5)
            with ours.without_adapter():
                plain = ours.family.predict(ours.denoiser, noise, torch.tensor([time]), cond)
            assert not torch.allclose(plain, told[0], atol=1e-5)


@pytest.mark.parametrize("row", ["sd3", "wan"])
def test_what_does_not_go_together_is_refused_before_any_work(row, tmp_path):
    from lorakit import session

    data = _folder(tmp_path / "data", clips=True)
    assert cli.main(["data", "prepare", str(data), "--clips", "--resolution", "64", "--quiet"]) == 0
    made = recipe.load(WAN, _overrides(data, tmp_path / "run", row))
    if row == "wan":
        (data / "a.mp4").write_bytes(films.encode(2))
        with pytest.raises(DataError, match="has changed"):
            session.plan(made, lambda text: None)
        return
    with pytest.raises(ConfigError, match="makes pictures, not clips of 5 frames"):
        session.plan(made, lambda text: None)
    one = recipe.load(WAN, _overrides(data, tmp_path / "run", row, frames=1))
    with pytest.raises(DataError, match=r"3 clips, and .* makes pictures: a\.mp4"):
        session.plan(one, lambda text: None)


def test_films_are_left_alone_unless_asked_for(tmp_path, capsys):
    data = _folder(tmp_path / "data", clips=True)
    assert cli.main(["data", "prepare", str(data), "--resolution", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert b"clip" not in (data / "manifest.jsonl").read_bytes()


def test_the_commands_of_the_page_are_commands():
    """What they do is tested above; here, that the page spells them so."""
    page = (Path(recipe.__file__).parent.parent / "examples/video.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.S) for line in block.splitlines()]
    assert lines.pop(0) == "pip install 'lorakit[video]'"
    parsed = [cli.parser().parse_args(shlex.split(line)[1:]) for line in lines]
    assert [given.handler.__name__ for given in parsed] == [
        "_prepare",
        "_check",
        "_train",
        "_sample",
        "_export",
    ]
    assert recipe.load(parsed[2].recipe, parsed[2].overrides).frames == parsed[3].frames == 17
