"""Image files are matched with prompts by a list, a pattern or their names, and never by order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lorakit.core.errors import DataError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import find_samples, prompts_with_seeds

PROMPTS = [Prompt("dog", "a dog", "a dog"), Prompt("0002", "a cat", "a cat"), Prompt("a-b", "c", "c")]


def folder(tmp_path: Path, *names: str) -> Path:
    root = tmp_path / "images"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(root / name)
    root.mkdir(exist_ok=True)
    return root


def keys(root: Path, pattern: str | None = None) -> dict[tuple[str, int], str]:
    return {p.key: p.path.relative_to(root).as_posix() for p in find_samples(root, PROMPTS, pattern)}


def test_images_are_matched_by_name(tmp_path):
    root = folder(tmp_path, "dog-3.png", "dog_12.webp", "0002.jpg", "a-b-7.png", "a-b.PNG")
    expected = {("dog", 3): "dog-3.png", ("dog", 12): "dog_12.webp", ("0002", 0): "0002.jpg"}
    assert keys(root) == expected | {("a-b", 7): "a-b-7.png", ("a-b", 0): "a-b.PNG"}


@pytest.mark.parametrize("pattern", ["{prompt_id}/{seed}.png", "{prompt_id}/{seed}"])
def test_images_are_matched_by_a_pattern(tmp_path, pattern):
    root = folder(tmp_path, "dog/0.png", "dog/1.png", "0002/5.png")
    assert keys(root, pattern) == {
        ("dog", 0): "dog/0.png",
        ("dog", 1): "dog/1.png",
        ("0002", 5): "0002/5.png",
    }


def test_a_pattern_without_a_seed_means_one_image_for_each_prompt(tmp_path):
    root = folder(tmp_path, "out_dog.final.png", "out_0002.final.png")
    assert set(keys(root, "out_{prompt_id}.final.png")) == {("dog", 0), ("0002", 0)}


@pytest.mark.parametrize("listing", ["samples.json", "samples.jsonl", "samples.csv"])
def test_images_are_matched_by_a_list_in_any_order_and_with_any_name(tmp_path, listing):
    root = folder(tmp_path, "z.png", "sub/y.png")
    rows = [
        {"prompt_id": "0002", "seed": 7, "file": "z.png", "model": "closed"},
        {"prompt_id": "dog", "seed": 1, "file": "sub/y.png", "model": "closed"},
    ]
    if listing.endswith(".csv"):
        lines = ["prompt_id,seed,file", *(f"{r['prompt_id']},{r['seed']},{r['file']}" for r in rows)]
        text = "\n".join(lines)
    else:
        text = json.dumps(rows) if listing.endswith(".json") else "\n".join(map(json.dumps, rows))
    (root / listing).write_text(text)
    assert keys(root) == {("0002", 7): "z.png", ("dog", 1): "sub/y.png"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one"),
        ({"a": 1}, "at least one"),
        ([{"prompt_id": "dog", "seed": 0}], "a row needs"),
        ([{"prompt_id": "dog", "seed": "0", "file": "one.png"}], "a row needs"),
        ([{"prompt_id": "z", "seed": 0, "file": "one.png"}], "no id 'z'"),
        ([{"prompt_id": "dog", "seed": 0, "file": "two.png"}], "does not exist"),
        ([{"prompt_id": "dog", "seed": 0, "file": "../out.png"}], "outside the folder"),
        ([{"prompt_id": "dog", "seed": 0, "file": "one.png"}] * 2, "two images"),
    ],
)
def test_invalid_lists_are_refused(tmp_path, rows, message):
    root = folder(tmp_path, "one.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    (root / "samples.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        find_samples(root, PROMPTS)


def test_an_image_without_a_prompt_is_an_error_that_names_it(tmp_path):
    root = folder(tmp_path, "dog-0.png", "IMG_001.png", "00001.png")
    with pytest.raises(DataError, match=r"00001\.png, IMG_001\.png") as caught:
        find_samples(root, PROMPTS)
    assert "--pattern" in str(caught.value)


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_samples(tmp_path / "none", PROMPTS)
    with pytest.raises(DataError, match="no images"):
        find_samples(folder(tmp_path), PROMPTS)
    with pytest.raises(DataError, match=r"has no \{prompt_id\}"):
        find_samples(folder(tmp_path, "x.png"), PROMPTS, "{seed}.png")


def test_prompts_keep_only_the_seeds_that_have_an_image(tmp_path):
    root = folder(tmp_path, "dog-5.png", "dog-2.png", "a-b-0.png")
    assert {p.id: p.seeds for p in prompts_with_seeds(find_samples(root, PROMPTS))} == {
        "dog": (2, 5),
        "a-b": (0,),
    }


def test_a_video_is_listed_beside_its_still_image(tmp_path):
    root = folder(tmp_path, "a.png", "a.webp")
    row = {"prompt_id": "dog", "seed": 1, "file": "a.png", "video": "a.webp"}
    (root / "samples.json").write_text(json.dumps([row, {**row, "seed": 2, "video": None}]))
    assert [p.video and p.video.name for p in find_samples(root, PROMPTS)] == ["a.webp", None]
    for video, message in (("../a.webp", "outside"), ("b.webp", "does not exist"), (3, "name of a file")):
        (root / "samples.json").write_text(json.dumps([row | {"video": video}]))
        with pytest.raises(DataError, match=message):
            find_samples(root, PROMPTS)
