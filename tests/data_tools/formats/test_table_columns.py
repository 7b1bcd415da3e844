"""Columns of imported tables: each is used in its role, or named with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from data_tools.formats.column_roles import ColumnChoice
from data_tools.formats.import_export import import_dataset
from data_tools.formats.transfer_result import TransferResult
from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.core.errors import ConfigError
from lorakit.manifest import Record
from tests.commands import call_data
from tests.data_tools.formats.tables import cell, jpeg, write_table

PHOTOS = ["photo 1", "photo 2"]


def run(folder: Path, choice: ColumnChoice | None = None, **columns: list[Any]) -> TransferResult:
    table = write_table(folder / "source/train.parquet", **columns)
    return import_dataset(folder / "out", [table], choice=choice)


def records(folder: Path) -> list[Record]:
    options = PrepareOptions(resolution=32, quiet=True, report=False, allow_missing_captions=True)
    return list(prepare_dataset(folder / "out", options).records)


def captions(folder: Path) -> list[list[str]]:
    return [[caption.text for caption in record.captions] for record in records(folder)]


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"description": ["a dog", "a cat"]}, [["a dog"], ["a cat"]]),
        ({"captions": [["a dog", "a pet"], ["a cat"]]}, [["a dog", "a pet"], ["a cat"]]),
        ({"caption_0": ["a dog", "a cat"], "caption_1": ["a pet", None]}, [["a dog", "a pet"], ["a cat"]]),
        ({"text": ["a dog", "a cat"], "blip_caption": ["a dog", "a pet"]}, [["a dog"], ["a cat", "a pet"]]),
        ({"sentences": [[{"raw": "a dog"}, {"raw": "a pet"}], []]}, [["a dog", "a pet"], []]),
        ({"text": ["a dog", "a cat"], "tags": [["solo"], ["cat", "sofa"]]}, [["a dog"], ["a cat"]]),
        ({"tags": [["solo", "dog"], ["cat"]]}, [["solo, dog"], ["cat"]]),
    ],
)
def test_every_column_of_captions_gives_variants(
    tmp_path: Path, columns: dict[str, list[Any]], texts: list[list[str]]
) -> None:
    done = run(tmp_path, image=PHOTOS, **columns)
    assert captions(tmp_path) == texts
    used = [name for role in ("captions", "tags") for name in done.log.columns.get(role, [])]
    assert sorted(used) == sorted(columns)
    assert not done.left_out.names("column")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["Blue Note", "x y"], "--caption-column"),
        (["https://h/a.jpg", "https://h/b.jpg"], "not downloaded"),
        ([3, 4], "numbers"),
        ([{"who": "a dog"}, {"who": "a cat"}], "--caption-column extra.KEY"),
    ],
)
def test_a_column_that_is_not_used_is_named_with_the_reason(
    tmp_path: Path, values: list[Any], reason: str
) -> None:
    done = run(tmp_path, image=PHOTOS, caption=["a dog", "a cat"], extra=values)
    (entry,) = done.left_out.to_json()
    assert (entry["type"], entry["names"]) == ("column", ["extra"])
    assert reason in entry["reason"]
    assert "extra" in done.summary()


BEFORE, AFTER, MASKS = ["photo 1", "photo 2"], ["photo 3", "photo 4"], ["mask", "mask"]
WORDS, OLD, NEW = ["make it red", "in snow"], ["a", "b"], ["c", "d"]
EDITS: dict[str, tuple[dict[str, list[Any]], str, list[str]]] = {
    "InstructPix2Pix": (
        {"original_prompt": OLD, "original_image": BEFORE, "edit_prompt": WORDS, "edited_prompt": NEW,
         "edited_image": AFTER},
        "edited_image", ["original_image"]),
    "samples of InstructPix2Pix": (
        {"input_image": BEFORE, "edit_prompt": WORDS, "edited_image": AFTER},
        "edited_image", ["input_image"]),
    "MagicBrush": (
        {"img_id": ["1", "2"], "turn_index": [1, 1], "source_img": BEFORE, "mask_img": MASKS,
         "instruction": WORDS, "target_img": AFTER},
        "target_img", ["source_img"]),
    "OmniEdit": (
        {"omni_edit_id": ["x", "y"], "task": ["swap", "env"], "src_img": BEFORE, "edited_img": AFTER,
         "edited_prompt_list": [["make it red"], ["in snow"]], "width": [40, 40], "sc_score_1": [9, 8]},
        "edited_img", ["src_img"]),
    "UltraEdit": (
        {"source_caption": OLD, "source_image": BEFORE, "edited_image": AFTER, "mask_image": ["mask", None],
         "target_caption": NEW, "edit_prompt": WORDS},
        "edited_image", ["source_image"]),
    "HQ-Edit": (
        {"input": OLD, "input_image": BEFORE, "edit": WORDS, "inverse_edit": ["e", "f"], "output": NEW,
         "output_image": AFTER},
        "output_image", ["input_image"]),
    "HumanEdit": (
        {"IMG_ID": ["1", "2"], "INPUT_IMG": BEFORE, "MASK_IMG": MASKS, "OUTPUT_IMG": AFTER,
         "EDITING_INSTRUCTION": WORDS, "OUTPUT_CAPTION_BY_LLAMA": NEW},
        "OUTPUT_IMG", ["INPUT_IMG"]),
    "image and edited image": (
        {"image": BEFORE, "instruction": WORDS, "edited_image": AFTER}, "edited_image", ["image"]),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "target", "sources"), EDITS.values(), ids=EDITS)
def test_public_sets_of_edits_train_on_the_edited_image(
    tmp_path: Path, columns: dict[str, list[Any]], target: str, sources: list[str]
) -> None:
    done = run(tmp_path, **columns)
    assert (done.log.columns["image"], done.log.columns["source"]) == ([target], sources)
    first = records(tmp_path)[0]
    assert (tmp_path / "out" / first.file).read_bytes() == jpeg(3)
    (source,) = first.conditioning_images
    assert (source.type, (tmp_path / "out" / source.file).read_bytes()) == ("source", jpeg(1))
    assert first.caption == "make it red"
    assert (first.mask is not None) is any("mask" in name.lower() for name in columns)
    named = {*done.left_out.names("column"), *(name for names in done.log.columns.values() for name in names)}
    assert named == set(columns)


def test_conditioning_images_are_controls_and_a_mask_in_color_is_named(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        image=PHOTOS,
        conditioning_image=["photo 5", "photo 6"],
        mask=["mask", "color mask"],
        text=["a dog", "a cat"],
    )
    first, second = records(tmp_path)
    assert [image.type for image in (*first.conditioning_images, *second.conditioning_images)] == [
        "control"
    ] * 2
    assert (first.mask is None, second.mask is None) == (False, True)
    assert done.left_out.names("mask") == ["train.parquet row 2"]
    assert "in color" in done.summary()


@pytest.mark.parametrize(
    "columns",
    [
        {"image_1": PHOTOS, "image_2": PHOTOS},
        {"left": PHOTOS, "right": PHOTOS, "text": ["x", "y"]},
        {"image": PHOTOS, "thumbnail": PHOTOS},
        {"edited_image": PHOTOS, "output_image": PHOTOS, "input_image": PHOTOS},
    ],
)
def test_several_images_that_are_not_clear_are_one_error_with_the_columns(
    tmp_path: Path, columns: dict[str, list[Any]]
) -> None:
    names = [name for name in columns if name != "text"]
    with pytest.raises(ConfigError, match=", ".join(names)) as caught:
        run(tmp_path, **columns)
    assert "--image-column" in str(caught.value.remedy)
    assert "--target-column" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "image", "roles"),
    [
        (ColumnChoice(images=("right",)), 2, []),
        (ColumnChoice(target="right", images=("left",)), 2, ["source"]),
        (ColumnChoice(images=("left",), controls=("right",)), 1, ["control"]),
    ],
)
def test_the_user_chooses_the_columns(
    tmp_path: Path, choice: ColumnChoice, image: int, roles: list[str]
) -> None:
    done = run(tmp_path, choice, left=["photo 1"], right=["photo 2"], text=["x"])
    (record,) = records(tmp_path)
    assert (tmp_path / "out" / record.file).read_bytes() == jpeg(image)
    assert [one.type for one in record.conditioning_images] == roles
    assert done.left_out.names("column") == (["left"] if image == 2 and not roles else [])


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("title",), ["Blue Note"]),
        (("title", "caption"), ["Blue Note", "a dog"]),
        (("info.alt",), ["a dog on grass"]),
    ],
)
def test_the_user_chooses_the_captions(tmp_path: Path, names: tuple[str, ...], texts: list[str]) -> None:
    columns: dict[str, list[Any]] = {"caption": ["a dog"], "title": ["Blue Note"]}
    columns["info"] = [{"alt": "a dog on grass", "n": 1}]
    run(tmp_path, ColumnChoice(captions=names), image=["photo 1"], **columns)
    assert captions(tmp_path) == [texts]


def test_a_choice_that_does_not_exist_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column 'txt'") as caught:
        run(tmp_path, ColumnChoice(captions=("txt",)), image=PHOTOS, text=["a", "b"])
    assert "image, text" in str(caught.value.remedy)


def test_rows_without_image_or_words_are_named_and_stop_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, image=["photo 1", None, "photo 2"], text=["a dog", "lost", None])
    assert captions(tmp_path) == [["a dog"], []]
    assert done.left_out.names("row") == ["train.parquet row 2"]
    assert done.left_out.names("caption") == ["train.parquet row 3"]


def test_paths_lead_to_images_beside_the_table_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "source/images").mkdir(parents=True)
    (tmp_path / "source/images/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "secret.jpg").write_bytes(jpeg(2))
    paths = ["images/a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg")]
    done = run(tmp_path, file=paths, text=["a", "b", "c"])
    lost = ["train.parquet row 2", "train.parquet row 3"]
    assert (done.num_images, done.left_out.names("row")) == (1, lost)


def test_a_table_of_addresses_is_refused_with_the_way_to_download(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not downloaded: url") as caught:
        run(tmp_path, url=["https://h/a.jpg"], text=["a dog"])
    assert "img2dataset" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="no column has images; the columns are text"):
        run(tmp_path, text=["a dog"])


def test_bytes_and_lists_of_images_are_read(tmp_path: Path) -> None:
    both = [cell(jpeg(1), "a.jpg"), cell(jpeg(2), "b.jpg")]
    run(tmp_path, images=[both, [cell(jpeg(3), None)]], text=["two", "one"])
    assert captions(tmp_path) == [["two"], ["two"], ["one"]]
    run(tmp_path / "b", jpg=[jpeg(1)], prompt=["x"])
    assert captions(tmp_path / "b") == [["x"]]


def test_the_json_answer_has_columns_and_what_was_left_out(tmp_path: Path) -> None:
    answer = run(tmp_path, image=PHOTOS, text=["a dog", "a cat"], score=[1.5, 2.5]).to_json()
    assert json.loads(json.dumps(answer))["columns"] == {"image": ["image"], "captions": ["text"]}
    assert [entry["names"] for entry in answer["left_out"]] == [["score"]]


def test_the_command_reads_its_options_and_answers_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "t.parquet", before=["photo 1"], after=["photo 2"], title=["Make it red"])
    options = ["--target-column", "after", "--image-column", "before", "--caption-column", "title", "--json"]
    assert call_data("import", str(tmp_path / "out"), str(table), *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["columns"] == {"image": ["after"], "source": ["before"], "captions": ["title"]}
    assert (answer["num_images"], answer["num_conditioning_images"], answer["left_out"]) == (1, 1, [])
    assert (tmp_path / "out/00000000.jpg").read_bytes() == jpeg(2)
    with pytest.raises(ConfigError, match="no column 'After'"):
        call_data("import", str(tmp_path / "out"), str(table), "--target-column", "After")


@pytest.mark.parametrize("name", ["import", "export"])
def test_the_help_says_of_each_folder_if_it_is_only_read(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(click.exceptions.Exit):
        call_data(name, "--help")
    words = " ".join(capsys.readouterr().out.split())
    if name == "import":
        assert "DIR Folder to fill" in words
        assert "SOURCE... " in words
        assert words.index("They are only read") > words.index("SOURCE... ")
    else:
        assert "DIR Prepared folder of images, which is only read" in words
