"""The guides in `examples/`, every command in order: prepared, trained, killed, resumed to the same bytes,
exported and sampled. Options that a tiny base model needs are added to the commands of the page.

`LORAKIT_SLOW_TESTS=1 pytest tests/test_guides.py` uses real processes and SIGKILL; see
`tests/command_lines.py`.
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
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.evaluation import score_table
from lorakit.models import base_model, clip_score
from tests import command_lines, commands, tiny
from tests.data_tools.folders import photo
from tests.imaging import videos
from tests.long_tier import some_long

SIZES = [(80, 80), (96, 64), (80, 80)]
SMALL = ["resolution=64", "optimizer.warmup=0", *command_lines.FEWER]
SAMPLES = ["samples.every=4", "samples.num_inference_steps=1", "samples.guidance_scale=null"]
SAMPLING = ["--num-inference-steps", "1", "--size", "64x64", "--out", "images"]
slow = pytest.mark.skipif(not command_lines.SLOW, reason="needs LORAKIT_SLOW_TESTS=1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a folder like the top of the checkout, with one prompt in the prompt file."""
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
        photo(index + 10, (width // 2, height // 2)).save(folder / f"{index}.source.png")  # half the size


def _two_sources(folder: Path) -> None:
    """Give one image two sources: it shares no batch with images that have one."""
    _pairs(folder)
    (folder / "2.source.png").rename(folder / "2.source1.png")
    photo(20, (40, 40)).save(folder / "2.source2.png")


def _prompts(page: str) -> None:
    """Write the prompt line of the page into the file that its commands name, and the images of that line."""
    text = (command_lines.ROOT / f"examples/{page}.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^    (\{\"id\".*\})$", text, re.M)
    (name,) = set(re.findall(r"samples\.prompts=(\S+\.jsonl)", text))
    prompt = json.loads(row)
    storage.write_jsonl(Path(name), [prompt | {"seeds": [0]}])
    photo(30, (80, 80)).save(prompt["image"])
    if "mask" in prompt:
        Image.new("L", (40, 40), 255).save(prompt["mask"])


def _with_base(base: str, lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Replace the base model of the `sample` lines."""
    return [[line[0], base, *line[2:]] if line[0] == "sample" else list(line) for line in lines]


def _samples(folder: str) -> list[Path]:
    """Return the images of a folder; none may have only one color."""
    files = sorted(Path(folder).glob("*.png"))
    for file in files:
        with Image.open(file) as image:
            assert max(high - low for low, high in image.getextrema()) > 0, file
    return files


def _exported(run: str) -> list[str]:
    """Check that `lorakit export` writes the bytes that training exported, and return the file names."""
    command_lines.run(["export", run, "--for", "all", "--out", "exported"])
    folders = (Path("exported"), Path(run) / "exports")
    files, of_run = (
        {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} for folder in folders
    )
    assert all((folder / "README.md").is_file() for folder in folders)
    assert of_run.items() <= files.items()
    return sorted(files)


# guide, row of the tiny pipeline, function that writes the data, recipe, trained family
CONDITIONED = {
    "edit pairs": ("edit-pairs", "flux1-kontext", _pairs, "flux1-kontext", "flux1-kontext"),
    "two sources": ("edit-pairs", "qwen-image-edit-plus", _two_sources, "qwen-image-edit", None),
    "inpainting": ("inpainting", "sd15-inpaint", _photos, "sd15-inpaint", "sd15-inpaint"),
    "control": ("control", "flux1-dev", _photos, "flux1-control", "flux1-control"),  # becomes a Control LoRA
}


@pytest.mark.parametrize("case", CONDITIONED)
def test_the_guides_for_conditioning_images_work(case, place):
    page, row, write_data, name, family = CONDITIONED[case]
    base, lines = str(tiny.tiny_folder(row)), command_lines.of_page(page)
    write_data(Path(lines[0][2]))
    _prompts(page)
    (train,) = (line for line in lines if line[0] == "train")
    run = next(word.removeprefix("out=") for word in train if word.startswith("out="))
    lines = [["train", f"recipes/{name}.yaml", *line[2:]] if line is train else line for line in lines]
    more = {
        "prepare": ["--resolution", "64"],
        "train": [f"base={base}", *SMALL, *SAMPLES],
        "sample": SAMPLING,
    }
    command_lines.play(_with_base(base, lines), more)
    assert adapters.read_adapter_metadata(f"{run}/adapter.safetensors")["family"] == (family or row)
    assert len(_samples(f"{run}/samples/step-00000004")) == len(_samples("images")) == 1
    assert _exported(run)
    if case == "two sources":
        assert [len(record.conditioning_images) for record in manifest.load_manifest(Path(lines[0][2]))] == [
            1,
            1,
            2,
        ]


def _videos(folder: Path) -> None:
    """Write two still images and three videos, one shorter than the others."""
    folder.mkdir()
    for index, size in enumerate([(80, 80), (96, 64)]):
        photo(index, size).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"a sks picture number {index}")
    for name, count in {"a.mp4": 10, "b.webm": 9, "c.mkv": 3}.items():
        codec = "libvpx-vp9" if name == "b.webm" else "libx264"
        (folder / name).write_bytes(videos.encode(count, size=(96, 64), rate=16, name=name, codec=codec))
        (folder / name).with_suffix(".txt").write_text(f"a sks video of {count} frames")


@pytest.mark.parametrize(("row", "frames"), [("wan", 5), pytest.param("ltx", 9, marks=slow)])
def test_the_video_guide_works(row, frames, place):
    base = str(tiny.tiny_folder(row))
    lines = _with_base(base, command_lines.of_page("video"))
    _videos(place / "VIDEOS")
    sampling = ["--num-inference-steps", "1", "--size", "64x64"]
    more = {
        "prepare": ["--resolution", "64"],
        "train": [f"base={base}", f"frames={frames}", *SMALL, *SAMPLES],
        "sample": [*sampling, "--frames", str(frames)],
    }
    command_lines.play(lines, more)
    file = Path("runs/sks/adapter.safetensors")
    metadata = adapters.read_adapter_metadata(file)
    assert (metadata["family"], metadata["frames"]) == ({"ltx": "ltx-video"}.get(row, row), frames)
    assert all(value.any() for value in storage.read_safetensors(file).values())
    for folder in ("runs/sks/samples/step-00000004", "videos"):
        (sample,) = storage.read_json(Path(folder) / "samples.json")
        with (
            Image.open(f"{folder}/{sample['file']}") as strip,
            Image.open(f"{folder}/{sample['video']}") as video,
        ):
            assert (strip.size, video.size, video.n_frames) == ((3 * 64, 64), (64, 64), frames)
    assert len(_exported("runs/sks")) == 2  # ComfyUI has names of its own
    (line,) = (line for line in lines if line[0] == "sample")
    command_lines.run([*line, *sampling, "--frames", "1", "--out", "still"])
    assert [file.name for file in _samples("still")] == ["a-0.png"]
    _check_evaluation(["--prompts", "examples/prompts.jsonl", "--checkpoints", "last", *sampling])


def _check_evaluation(options: list[str]) -> None:
    """Check that `lorakit eval run` scores the frames of videos, and samples a missing video again."""
    line = ["eval", "run", "runs/sks", "--clip-model", "embedded", "--quiet", *options]
    command_lines.run(line)
    evaluation = score_table.load_evaluation(Path("runs/sks"))
    folder = Path("runs/sks/eval/images/step-00000005")
    with Image.open(folder / "a-0.webp") as video:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(video)]
    clip = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    mean = float(clip.clip_t(frames, [evaluation.prompts[0].score_text] * len(frames)).mean())
    scores = evaluation.variants[1].scores["clip_t"]
    assert scores[score_table.SampleKey("a", 0)] == pytest.approx(mean, abs=1e-6)
    (sample,) = storage.read_json(folder / "samples.json")
    assert sample["video"] == "a-0.webp"
    before = (folder / "a-0.webp").read_bytes()
    (folder / "a-0.webp").unlink()
    command_lines.run(line)
    assert (folder / "a-0.webp").read_bytes() == before


# run in the guide: (number of exported files, networks that the adapter changes)
ADAPTERS = {
    "dora": (3, {"unet"}),
    "text": (1, {"unet", "text_encoder"}),
    "word": (1, {"text_encoder"}),
    "slider": (1, {"unet"}),
}


@pytest.mark.parametrize("name", some_long(ADAPTERS, "text"))
def test_the_adapters_guide_works(name, place):
    """Run the commands on the embedded base model, which is a Stable Diffusion 1.5."""
    first, *lines = command_lines.of_page("adapters")
    lines = [line for line in lines if any(f"runs/{name}" in word for word in line)]
    _photos(place / "PHOTOS")
    more = {
        "train": [
            *command_lines.FEWER,
            *(["samples.num_inference_steps=1", "slider.num_images=2"] if name == "slider" else []),
        ],
        "sample": ["--num-inference-steps", "1"],
    }
    command_lines.play([first, *lines], more)
    files, networks = ADAPTERS[name]
    tensors = storage.read_safetensors(f"runs/{name}/adapter.safetensors")
    assert {key.split(".")[0] for key in tensors} == networks
    assert all(value.any() for value in tensors.values())
    if name == "word":  # other programs load it as an embedding, so there is one file
        assert [file.name for file in Path("runs/word/exports").glob("*.safetensors")] == [
            "my-dog.safetensors"
        ]
    else:
        assert len(_exported(f"runs/{name}")) == files
    samples = [_samples(line[-1]) for line in lines if line[0] == "sample"]
    assert [len(files) for files in samples] == ([2, 2] if name == "slider" else [2])
    images = [file.read_bytes() for files in samples for file in files]
    assert len(set(images)) == len(images)  # seeds differ, and so do the strengths of the slider


def test_every_command_of_the_adapters_guide_is_tested():
    lines = command_lines.of_page("adapters")[1:]
    assert all(any(f"runs/{name}" in " ".join(line) for name in ADAPTERS) for line in lines)


@pytest.mark.parametrize("name", ["dora", "text-encoder", "word", "slider", "concepts"])
def test_the_example_recipes_train_what_their_names_say(name):
    loaded = recipe.load_recipe(command_lines.ROOT / f"examples/{name}.yaml")
    expected = {
        "dora": loaded.adapter.type == "dora",
        "text-encoder": loaded.adapter.text_encoder,
        "word": loaded.textual_inversion is not None and loaded.adapter.type == "none",
        "concepts": loaded.triggers == ("sks", "ohwx"),
        "slider": loaded.slider is not None and loaded.dataset == Path("runs/slider-images"),
    }
    assert expected[name]


def test_the_concepts_guide_works(place):
    """Train on three folders with images of their own."""
    for number, name in enumerate(("rex", "mia", "others")):
        (place / "photos" / name).mkdir(parents=True)
        for index, size in enumerate(SIZES):
            photo(10 * number + index, size).save(place / "photos" / name / f"{index}.png")
    for index in range(len(SIZES)):
        (place / "photos/others" / f"{index}.txt").write_text("a picture")
    command_lines.play(command_lines.of_page("concepts"), {"train": command_lines.FEWER}, compared=False)
    captions = {n: manifest.load_manifest(place / "photos" / n)[0].caption for n in ("rex", "mia", "others")}
    assert captions == {"rex": "a photo of sks dog", "mia": "a photo of ohwx cat", "others": "a picture"}
    assert len((place / "pets.jsonl").read_text().splitlines()) == 34  # 8 + 6 of each pet, 6 of other things


@pytest.mark.parametrize("page", ["inpainting", "control"])
def test_commands_within_the_text_of_a_guide_are_valid(page):
    text = (command_lines.ROOT / f"examples/{page}.md").read_text(encoding="utf-8")
    lines = re.findall(r"`lorakit ([^`]*)`", text)
    assert [commands.parse(shlex.split(line)) for line in lines]
