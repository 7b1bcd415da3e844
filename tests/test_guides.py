"""The pages of `examples/` from their first command to their last: prepared, trained, killed, gone on with to
the same bytes, exported, sampled. Only what a tiny base cannot take is said after what stands on the page.

`LORAKIT_LONG=1 pytest tests/test_guides.py` launches and kills for good; `tests/command_lines.py` says how.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from lorakit import adapters, manifest
from lorakit.cli import main
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.evaluation import score_table
from lorakit.models import base_model, clip_score
from tests import command_lines, tiny
from tests.data_tools.folders import photo
from tests.imaging import videos

SIZES = [(80, 80), (96, 64), (80, 80)]
SMALL = ["resolution=64", "optimizer.warmup=0", *command_lines.FEWER]
LOOKS = ["samples.every=4", "samples.steps=1", "samples.guidance=null"]
SAMPLED = ["--steps", "1", "--size", "64x64", "--out", "pictures"]
long = pytest.mark.skipif(not command_lines.LONG, reason="for the longer tier")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the checkout's top, with one prompt in the file of prompts."""
    for name in ("examples", "recipes"):
        shutil.copytree(command_lines.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png"))
    row = {"id": "a", "prompt": "a photo of sks dog", "seeds": [0]}
    storage.write_jsonl(tmp_path / "examples/prompts.jsonl", [row])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _photos(folder: Path) -> None:
    folder.mkdir()
    for index, size in enumerate(SIZES):
        photo(index, size).save(folder / f"{index}.png")


def _pairs(folder: Path) -> None:
    _photos(folder)
    for index, (width, height) in enumerate(SIZES):
        (folder / f"{index}.txt").write_text("make it red")
        photo(index + 10, (width // 2, height // 2)).save(folder / f"{index}.source.png")  # half as large


def _joins(folder: Path) -> None:
    """One picture comes of two others: it shares no batch with those that come of one."""
    _pairs(folder)
    (folder / "2.source.png").rename(folder / "2.source1.png")
    photo(20, (40, 40)).save(folder / "2.source2.png")


def _prompts(page: str) -> None:
    """The page's line of prompts, under the name by which its commands call the file, and its pictures."""
    text = (command_lines.ROOT / f"examples/{page}.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^    (\{\"id\".*\})$", text, re.M)
    (name,) = set(re.findall(r"samples\.prompts=(\S+\.jsonl)", text))
    given = json.loads(row)
    storage.write_jsonl(Path(name), [given | {"seeds": [0]}])
    photo(30, (80, 80)).save(given["image"])
    if "mask" in given:
        Image.new("L", (40, 40), 255).save(given["mask"])


def _on(base: str, told: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same lines with another base to sample from."""
    return [[line[0], base, *line[2:]] if line[0] == "sample" else list(line) for line in told]


def _drawn(folder: str) -> list[Path]:
    """The pictures of a folder, none of them of one colour."""
    files = sorted(Path(folder).glob("*.png"))
    for file in files:
        with Image.open(file) as picture:
            assert max(high - low for low, high in picture.getextrema()) > 0, file
    return files


def _exported(run: str) -> list[str]:
    """`lorakit export` says what training did of itself, to the byte; the names."""
    command_lines.say(["export", run, "--for", "all", "--out", "exported"])
    made = {file.name: file.read_bytes() for file in Path("exported").iterdir()}
    own = {file.name: file.read_bytes() for file in (Path(run) / "exports").iterdir()}
    assert own.items() <= made.items()
    return sorted(made)


# page, row of the tiny pipeline, how its data are made, recipe, family that is trained
SHOWN = {
    "edit pairs": ("edit-pairs", "flux1-kontext", _pairs, "flux1-kontext", "flux1-kontext"),
    "joined pictures": ("edit-pairs", "qwen-image-edit-plus", _joins, "qwen-image-edit", None),
    "inpainting": ("inpainting", "sd15-inpaint", _photos, "sd15-inpaint", "sd15-inpaint"),
    "control": ("control", "flux1-dev", _photos, "flux1-control", "flux1-control"),  # becomes a Control LoRA
}


@pytest.mark.parametrize("what", SHOWN)
def test_bases_that_see_pictures(what, place):
    page, row, make, name, family = SHOWN[what]
    base, told = str(tiny.tiny_folder(row)), command_lines.of_page(page)
    make(Path(told[0][2]))
    _prompts(page)
    (train,) = (line for line in told if line[0] == "train")
    run = next(word.removeprefix("out=") for word in train if word.startswith("out="))
    told = [["train", f"recipes/{name}.yaml", *line[2:]] if line is train else line for line in told]
    more = {
        "prepare": ["--resolution", "64"],
        "train": [f"base={base}", *SMALL, *LOOKS],
        "sample": SAMPLED,
    }
    command_lines.play(_on(base, told), more)
    assert adapters.read_adapter_metadata(f"{run}/adapter.safetensors")["family"] == (family or row)
    assert len(_drawn(f"{run}/samples/step-00000004")) == len(_drawn("pictures")) == 1
    assert _exported(run)
    if what == "joined pictures":
        assert [len(record.given) for record in manifest.load_manifest(Path(told[0][2]))] == [1, 1, 2]


def _clips(folder: Path) -> None:
    """Two stills and three films, one shorter than the others."""
    folder.mkdir()
    for index, size in enumerate([(80, 80), (96, 64)]):
        photo(index, size).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a sks picture number {index}")
    for name, count in {"a.mp4": 10, "b.webm": 9, "c.mkv": 3}.items():
        codec = "libvpx-vp9" if name == "b.webm" else "libx264"
        (folder / name).write_bytes(videos.encode(count, size=(96, 64), rate=16, name=name, codec=codec))
        (folder / name).with_suffix(".txt").write_text(f"a sks film of {count} frames")


@pytest.mark.parametrize(("row", "frames"), [("wan", 5), pytest.param("ltx", 9, marks=long)])
def test_video(row, frames, place):
    base, told = str(tiny.tiny_folder(row)), _on(str(tiny.tiny_folder(row)), command_lines.of_page("video"))
    _clips(place / "CLIPS")
    sampled = ["--steps", "1", "--size", "64x64"]
    more = {
        "prepare": ["--resolution", "64"],
        "train": [f"base={base}", f"frames={frames}", *SMALL, *LOOKS],
        "sample": [*sampled, "--frames", str(frames)],
    }
    command_lines.play(told, more)
    file = Path("runs/sks/adapter.safetensors")
    facts = adapters.read_adapter_metadata(file)
    assert (facts["family"], facts["frames"]) == ({"ltx": "ltx-video"}.get(row, row), frames)
    assert all(value.any() for value in storage.read_safetensors(file).values())
    for folder in ("runs/sks/samples/step-00000004", "films"):
        (drawn,) = storage.read_json(Path(folder) / "samples.json")
        with (
            Image.open(f"{folder}/{drawn['file']}") as strip,
            Image.open(f"{folder}/{drawn['clip']}") as film,
        ):
            assert (strip.size, film.size, film.n_frames) == ((3 * 64, 64), (64, 64), frames)
    assert len(_exported("runs/sks")) == 2  # ComfyUI has names of its own
    (sample,) = (line for line in told if line[0] == "sample")
    command_lines.say([*sample, *sampled, "--frames", "1", "--out", "still"])
    assert [file.name for file in _drawn("still")] == ["a-0.png"]
    _evaluated(["--prompts", "examples/prompts.jsonl", "--checkpoints", "last", *sampled])


def _evaluated(options: list[str]) -> None:
    """`lorakit eval run` scores the frames of clips, and draws what has none again."""
    line = ["eval", "run", "runs/sks", "--clip", "embedded", "--quiet", *options]
    command_lines.say(line)
    _, made = score_table.load_evaluation(Path("runs/sks"))
    folder = Path("runs/sks/eval/images/step-00000005")
    with Image.open(folder / "a-0.webp") as film:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(film)]
    clip = clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)
    mean = float(clip.clip_t(frames, [made.prompts[0].score_text] * len(frames)).mean())
    assert made.arms[1].scores["clip_t"]["a", 0] == pytest.approx(mean, abs=1e-6)
    (drawn,) = storage.read_json(folder / "samples.json")
    assert drawn["clip"] == "a-0.webp"
    before = (folder / "a-0.webp").read_bytes()
    (folder / "a-0.webp").unlink()
    command_lines.say(line)
    assert (folder / "a-0.webp").read_bytes() == before


# what a run's adapter is called in its page's lines: (exported files, networks that it changes)
ADAPTERS = {
    "dora": (3, {"unet"}),
    "text": (1, {"unet", "text_encoder"}),
    "word": (1, {"text_encoder"}),
    "slider": (1, {"unet"}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_other_adapters(name, place):
    """On the embedded base, which is a Stable Diffusion 1.5."""
    first, *told = command_lines.of_page("adapters")
    told = [line for line in told if any(f"runs/{name}" in word for word in line)]
    _photos(place / "PHOTOS")
    more = {
        "train": [
            *command_lines.FEWER,
            *(["samples.steps=1", "slider.pictures=2"] if name == "slider" else []),
        ],
        "sample": ["--steps", "1"],
    }
    command_lines.play([first, *told], more)
    files, networks = ADAPTERS[name]
    tensors = storage.read_safetensors(f"runs/{name}/adapter.safetensors")
    assert {key.split(".")[0] for key in tensors} == networks
    assert all(value.any() for value in tensors.values())
    if name == "word":  # which is no adapter to other programs: training leaves its file
        assert [file.name for file in Path("runs/word/exports").iterdir()] == ["my-dog.safetensors"]
    else:
        assert len(_exported(f"runs/{name}")) == files
    drawn = [_drawn(line[-1]) for line in told if line[0] == "sample"]
    assert [len(files) for files in drawn] == ([2, 2] if name == "slider" else [2])
    pictures = [file.read_bytes() for files in drawn for file in files]
    assert len(set(pictures)) == len(pictures)  # by seed, and by the slider's strength


def test_the_page_of_adapters_is_told_whole():
    told = command_lines.of_page("adapters")[1:]
    assert all(any(f"runs/{name}" in " ".join(line) for name in ADAPTERS) for line in told)


@pytest.mark.parametrize("name", ["dora", "text-encoder", "word", "slider"])
def test_its_recipes_name_what_they_are_about(name):
    made = recipe.load_recipe(command_lines.ROOT / f"examples/{name}.yaml")
    about = {
        "dora": made.adapter.type == "dora",
        "text-encoder": made.adapter.text_encoder,
        "word": made.embedding is not None and made.adapter.type == "none",
        "slider": made.slider is not None and made.dataset == Path("runs/slider-pictures"),
    }
    assert about[name]


@pytest.mark.parametrize("page", ["inpainting", "control"])
def test_what_is_told_in_passing_is_a_command_too(page):
    text = (command_lines.ROOT / f"examples/{page}.md").read_text(encoding="utf-8")
    told = re.findall(r"`lorakit ([^`]*)`", text)
    assert [main.build_parser().parse_args(shlex.split(line)) for line in told]
