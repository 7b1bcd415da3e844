"""Folders of images of other tools: each image is matched with its own prompt, or named with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from lorakit.core.errors import DataError
from lorakit.data.prompts import Prompt
from lorakit.data.subjects import Subject
from lorakit.evaluation.sample_files import SampleFile, find_samples
from tests.evaluation import generated_folders
from tests.evaluation.generated_folders import METADATA, NAMES, save_png

COLORS = {"a red circle": "red", "a blue square on grass": "blue", "a green ring beside a tree": "green"}
PROMPTS = [Prompt(f"{number:04d}", text, text) for number, text in enumerate(COLORS, 1)]
IMAGES = [(text, Image.new("RGB", (16, 16), color)) for text, color in COLORS.items()]


def color_of(sample: SampleFile) -> str:
    with Image.open(sample.path) as image:
        pixel = image.convert("RGB").getpixel((8, 8))
    assert isinstance(pixel, tuple)
    return max(("red", "green", "blue"), key=lambda name: pixel[["red", "green", "blue"].index(name)])


def colors(samples: list[SampleFile]) -> dict[str, str]:
    return {sample.prompt.prompt: color_of(sample) for sample in samples}


@pytest.mark.parametrize("tool", [*METADATA, *NAMES])
def test_an_image_of_each_tool_is_matched_with_its_prompt(tmp_path: Path, tool: str) -> None:
    (METADATA | NAMES)[tool](tmp_path / "x", IMAGES)
    assert colors(find_samples(tmp_path / "x", PROMPTS)) == COLORS
    # a prompt file in another order changes nothing for metadata, and everything for numbers
    shuffled = colors(find_samples(tmp_path / "x", PROMPTS[::-1]))
    by_number = tool in NAMES and not tool.startswith(("Midjourney", "T2I", "A1111"))
    assert (shuffled == COLORS) is not by_number


@pytest.mark.parametrize("tool", METADATA)
def test_without_a_prompt_file_the_prompts_are_those_of_the_images(tmp_path: Path, tool: str) -> None:
    METADATA[tool](tmp_path / "x", IMAGES)
    lines: list[str] = []
    samples = find_samples(tmp_path / "x", subject=Subject("red", "dog"), log=lines.append)
    by_prompt = {re.sub(r", masterpiece$|,", "", s.prompt.prompt): color_of(s) for s in samples}
    assert by_prompt == COLORS
    assert {s.seed for s in samples} == {100, 101, 102}
    assert any(s.prompt.score_text.startswith("a dog") for s in samples)
    assert "Prompts of the images come from" in lines[0]


@pytest.mark.parametrize("tool", NAMES)
def test_numbers_and_cut_words_need_the_prompt_file(tmp_path: Path, tool: str) -> None:
    NAMES[tool](tmp_path / "x", IMAGES)
    with pytest.raises(DataError, match="images without a prompt") as caught:
        find_samples(tmp_path / "x")
    assert "--prompts" in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{index}_*", ["0_a.png", "1_b.png", "2_c.png"]),
        ("*-{number}.png", ["x-1.png", "y-2.png", "z-3.png"]),
        ("{step}/{index}-{seed}", ["500/0-7.png", "500/1-7.png", "500/2-7.png"]),
        ("{prompt}-{seed}.png", [f"{text.replace(' ', '_')}-4.png" for text in COLORS]),
        ("out/*/{id}.png", ["out/a/0001.png", "out/b/0002.png", "out/c/0003.png"]),
    ],
)
def test_a_pattern_names_the_parts_of_a_name(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name, (_, image) in zip(names, IMAGES, strict=True):
        save_png(tmp_path / name, image)
    assert colors(find_samples(tmp_path, PROMPTS, pattern)) == COLORS


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{idx}.png", "did you mean '(prompt_)?id|index'"),
        ("{promt}_{seed}", "did you mean 'prompt'"),
        ("{seed}_*.png", "has no {prompt_id}, {prompt}, {index}"),
        ("{index}_{index}.png", "has {index} twice"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    save_png(tmp_path / "0.png", IMAGES[0][1])
    with pytest.raises(DataError) as caught:
        find_samples(tmp_path, PROMPTS, pattern)
    assert re.search(message.replace("{", r"\{"), caught.value.message)


def test_metadata_that_contradicts_the_name_is_reported_and_decides(tmp_path: Path) -> None:
    for prompt, (text, image) in zip(PROMPTS[::-1], IMAGES, strict=True):
        save_png(tmp_path / f"{prompt.id}-3.png", image, parameters=generated_folders.infotext(text, 1))
    lines: list[str] = []
    samples = find_samples(tmp_path, PROMPTS, log=lines.append)
    assert "another prompt than the name says" in "\n".join(lines)
    assert "0001-3.png" in "\n".join(lines)
    assert {s.prompt.id for s in samples} == {"0001", "0002", "0003"}


def test_a_text_that_only_contains_a_prompt_is_called_uncertain(tmp_path: Path) -> None:
    for text, image in IMAGES:
        save_png(
            tmp_path / f"{text}.png", image, parameters=f"{text}, oil painting\nSteps: 1, Sampler: x, Seed: 1"
        )
    lines: list[str] = []
    assert colors(find_samples(tmp_path, PROMPTS, log=lines.append)) == COLORS
    assert "matched by a part of the prompt, which is uncertain" in "\n".join(lines)


def test_images_without_a_prompt_and_grids_are_named_and_the_others_scored(tmp_path: Path) -> None:
    METADATA["A1111 PNG"](tmp_path, IMAGES)
    save_png(
        tmp_path / "grid-0001.png", IMAGES[0][1], parameters=generated_folders.infotext("a red circle", 1)
    )
    save_png(tmp_path / "preview.png", IMAGES[0][1])
    lines: list[str] = []
    assert colors(find_samples(tmp_path, PROMPTS, log=lines.append)) == COLORS
    text = "\n".join(lines)
    assert "Grids of several images are not scored: grid-0001.png" in text
    assert "not scored: preview.png" in text


def test_a_prompt_that_the_file_does_not_have_is_the_reason(tmp_path: Path) -> None:
    METADATA["ComfyUI Flux"](tmp_path, IMAGES)
    with pytest.raises(DataError, match="the prompt file has no prompt 'a"):
        find_samples(tmp_path, [Prompt("x", "a yellow star", "a yellow star")])


def test_images_of_one_batch_share_a_seed_and_are_numbered(tmp_path: Path) -> None:
    for number in range(3):
        save_png(
            tmp_path / f"{number}.png", IMAGES[0][1], parameters=generated_folders.infotext("a red circle", 9)
        )
    lines: list[str] = []
    samples = find_samples(tmp_path, PROMPTS, log=lines.append)
    assert [sample.seed for sample in samples] == [9, 0, 1]
    assert "2 of 3 images have no seed of their own" in "\n".join(lines)


def test_two_prompts_with_the_same_first_words_are_not_guessed(tmp_path: Path) -> None:
    twins = [Prompt("a", "a red circle on a table", "x"), Prompt("b", "a red circle on a tablet", "y")]
    save_png(tmp_path / "u_a_red_circle_on_a_tab_00000000-1234-1234-1234-123456789abc.png", IMAGES[0][1])
    with pytest.raises(DataError, match="fits several prompts: a, b"):
        find_samples(tmp_path, twins)
