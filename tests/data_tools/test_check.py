"""Checks of a dataset: duplicates, defects of images, names and captions."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from data_tools import duplicates, image_quality
from data_tools.captions import lint
from data_tools.findings import Finding, any_at_level, sort_findings
from data_tools.prepare import PrepareOptions, check_dataset_folder, prepare_dataset
from lorakit.core import storage
from lorakit.core.errors import DataError
from lorakit.imaging import near_duplicates
from lorakit.manifest import Caption, Record
from lorakit.quickstart import concept
from tests.data_tools.folders import fill, photo


def record(name: str, image: Image.Image | None = None, caption: str = "x", **changes: object) -> Record:
    phash = image_quality.phash(image) if image else None
    plain = Record(name, "0" * 64, f"{hash(name) % 10**8:064d}", 64, 64, captions=(Caption(caption, "file"),))
    return dataclasses.replace(plain, phash=phash, **changes)  # type: ignore[arg-type]


def jpeg(image: Image.Image, quality: int = 40) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(image: Image.Image, share: float) -> Image.Image:
    dx, dy = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.resize((150, 110), Image.Resampling.BICUBIC),
        jpeg,
        lambda p: cut(p, 0.04),
        lambda p: p.point(lambda value: min(255, int(value * 1.15 + 6))),
        lambda p: p.filter(ImageFilter.GaussianBlur(1)),
    ],
    ids=["resized", "jpeg", "cropped", "brighter", "blurred"],
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_near_duplicates_are_found(change, mirrored: bool) -> None:  # type: ignore[no-untyped-def]
    images = [photo(seed) for seed in range(12)]
    changed = change(ImageOps.mirror(images[5]) if mirrored else images[5])
    records = [record(f"{index}.png", image) for index, image in enumerate(images)]
    clusters = duplicates.find_near_duplicates([*records, record("copy.png", changed)])
    assert [cluster.files for cluster in clusters] == [("5.png", "copy.png")]
    assert clusters[0].mirrored is mirrored


def test_different_images_are_not_duplicates() -> None:
    records = [record(f"{seed:03}.png", photo(seed, (96, 96))) for seed in range(150)]
    assert duplicates.find_near_duplicates(records) == []


def test_exact_duplicates_are_by_pixels_and_chains_are_one_cluster() -> None:
    base = photo(1)
    same = [record(name, base, content_hash="a" * 64) for name in ("a.png", "b.png")]
    assert [c.files for c in duplicates.find_exact_duplicates(same)] == [("a.png", "b.png")]
    assert duplicates.find_near_duplicates(same) == []  # reported once
    chain = [record("c.png", jpeg(base)), record("d.png", base.resize((200, 150)))]
    assert [c.files for c in duplicates.find_near_duplicates([*same, *chain])] == [
        ("a.png", "c.png", "d.png")
    ]
    refused = [dataclasses.replace(r, keep=False, reason="user") for r in same]
    assert duplicates.find_exact_duplicates(refused) == []


def test_images_of_one_color_have_no_hash() -> None:
    assert image_quality.phash(Image.new("RGB", (64, 64), "red")) is None


def test_blur_is_detected_at_any_size() -> None:
    for size in (300, 900):
        noise = np.random.default_rng(0).integers(0, 256, (size // 3, size // 3), dtype=np.uint8)
        sharp = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
        soft = sharp.filter(ImageFilter.GaussianBlur(size / 60))
        assert not any(note.startswith("blurry") for note in image_quality.quality_notes(sharp))
        assert any(note.startswith("blurry") for note in image_quality.quality_notes(soft))


@pytest.mark.parametrize("size", [(48, 48), (640, 480)])
def test_an_image_of_one_color_is_noted_and_not_called_blurry(size: tuple[int, int]) -> None:
    found = {note.split(":")[0] for note in image_quality.quality_notes(Image.new("RGB", size, (90, 90, 90)))}
    assert found == {"single_color"}


def test_letterbox_bars_are_detected_and_plain_backgrounds_are_not() -> None:
    video = Image.new("RGB", (640, 480))
    video.paste(photo(2, (640, 360)), (0, 60))
    assert "letterbox: uniform bars at top and bottom" in image_quality.quality_notes(video)
    assert "letterbox: uniform bars at left and right" in image_quality.quality_notes(
        video.transpose(Image.Transpose.ROTATE_90)
    )
    product = Image.new("RGB", (640, 480), "white")
    product.paste(photo(2, (200, 200)), (220, 140))
    assert not any(note.startswith("letterbox") for note in image_quality.quality_notes(product))
    assert not any(note.startswith("letterbox") for note in image_quality.quality_notes(photo(2, (640, 480))))


def test_clipped_tones_are_noted() -> None:
    mostly_white = Image.new("RGB", (300, 300), "white")
    mostly_white.paste(photo(1, (100, 300)), (0, 0))
    assert any("67% of the image is pure white" in note for note in image_quality.quality_notes(mostly_white))


def codes(records: list[Record], trigger: str | None = None) -> dict[str, tuple[str, ...]]:
    return {finding.code: finding.files for finding in lint.lint_captions(records, trigger)}


def test_caption_texts_are_checked() -> None:
    found = codes(
        [
            record("a", caption="a photo of sks dog"),
            record("b", caption="a photo of a dog"),
            record("c", caption="I'm sorry, I can't help with that."),
            record("d", caption="A photo of SKS dog"),
            record("e", caption="sks"),
            record("f", caption="sks " + "very " * 75 + "long"),
            record("g", caption="desks and risks"),
        ],
        "sks",
    )
    assert found["trigger_missing"] == ("b", "c", "g")
    assert found["captioner_refusal"] == ("c",)
    assert found["identical_captions"] == ("a", "d")
    assert found["short_caption"] == ("e",)
    assert found["long_caption"] == ("f",)
    assert "common_phrase" not in found


def test_phrases_in_every_caption_are_reported() -> None:
    scenes = ["on grass", "in snow", "by a lake", "at home", "in a car", "on a sofa"]
    records = [
        record(str(i), caption=f"sks fluffy orange corgi with blue collar, {s}") for i, s in enumerate(scenes)
    ]
    phrases = [phrase for phrase, _ in lint.common_phrases(records, "sks")]
    assert phrases == ["fluffy orange corgi with blue collar"]
    assert "common_phrase" in codes(records, "sks")
    assert lint.lint_captions(records[:2], "sks") == []


def test_equal_template_captions_are_not_reported() -> None:
    same = Caption("a photo of sks dog", "template")
    records = [dataclasses.replace(record(str(i)), captions=(same,)) for i in range(8)]
    assert lint.lint_captions(records, "sks") == []


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    folder = fill(
        tmp_path, {"a.png": "one thing", "b.png": None, "c.jpg": "other thing", "C.JPG": "third thing"}
    )
    photo(0).save(folder / "copy.png")
    (folder / "copy.txt").write_text("same picture")
    (folder / "bad.png").write_bytes(b"")
    (folder / "lonely.txt").write_text("no image")
    (folder / "notes.md").write_text("x")
    photo(1).save(folder / ".hidden.png")
    before = sorted(folder.rglob("*"))
    result = check_dataset_folder(folder, PrepareOptions(quiet=True))
    found = {finding.code: finding for finding in result.findings}
    assert found["empty"].level == "error"
    assert found["no_caption"].files == ("b.png",)
    assert found["duplicate"].files == ("a.png", "copy.png")
    assert found["name_differs_by_case"].files == ("C.JPG", "c.jpg")
    assert found["orphan_caption"].files == ("lonely.txt",)
    assert found["hidden_file"].files == (".hidden.png",)
    assert found["unused_files"].files == ("notes.md",)
    assert [finding.level for finding in result.findings] == sorted(
        (finding.level for finding in result.findings), key=["error", "warning", "note"].index
    )
    assert sorted(folder.rglob("*")) == before


def test_the_level_decides_the_exit_code() -> None:
    warning, error = Finding("warning", "w", "x"), Finding("error", "e", "x")
    assert sort_findings([warning, error])[0] is error
    assert any_at_level([warning], "warning")
    assert not any_at_level([warning], "error")
    assert any_at_level([error], "warning")
    assert not any_at_level([error], "never")


@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "__MACOSX",
        "sub/Thumbnails",
        ".trash",
    ],
)
def test_folders_of_systems_and_programs_are_named_and_not_used(tmp_path: Path, folder: str) -> None:
    fill(tmp_path, {"a.png": "a dog", f"{folder}/b.png": "a copy of a dog"})
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True))
    assert [record.file for record in result.records] == ["a.png"]
    (found,) = [f for f in result.findings if f.code in ("system_folder", "hidden_folder")]
    assert found.files == (folder,)


@pytest.mark.parametrize("name", [".IMG_1.HEIC.icloud", "b.jpg.cloud", "sub/.c.png.icloud"])
def test_a_file_that_is_in_the_cloud_only_is_named(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {"a.png": "a dog"})
    storage.write_bytes(tmp_path / name, b"bplist00")
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True))
    assert [f.files for f in result.findings if f.code == "cloud_placeholder"] == [(name,)]


def check_images(
    folder: Path, images: list[Image.Image], resolution: int = 64, **options: Any
) -> dict[str, str]:
    """Return the level of each finding for a folder with these images, captioned differently."""
    for number, image in enumerate(images):
        storage.save_image(folder / f"{number}.png", image)
        if "class_noun" not in options:
            (folder / f"{number}.txt").write_text(f"image number {number}")
    result = prepare_dataset(folder, PrepareOptions(resolution=resolution, quiet=True, **options))
    return {finding.code: finding.level for finding in result.findings}


@pytest.mark.parametrize(
    ("images", "code"),
    [
        ([photo(1)], "few_images"),
        ([photo(seed) for seed in range(4)], "few_images"),
        ([photo(1)] * 8, "few_images"),
        ([jpeg(photo(1), 90 - 5 * step) for step in range(8)], "few_images"),
        ([photo(seed, (40, 40)) for seed in range(8)], "upscaled"),
    ],
    ids=["one image", "four images", "copies", "near duplicates", "tiny images"],
)
def test_a_set_that_nothing_can_be_learned_from_is_a_warning(
    tmp_path: Path, images: list[Image.Image], code: str
) -> None:
    levels = check_images(tmp_path, images, 256)
    assert levels[code] in ("warning", "error")


def test_an_ordinary_set_has_no_warning(tmp_path: Path) -> None:
    levels = check_images(tmp_path, [photo(seed, (256, 200)) for seed in range(8)])
    assert {code for code, level in levels.items() if level != "note"} <= {
        "blurry",
        "cropped",
    }  # of drawn photos


@pytest.mark.parametrize(("side", "level"), [(48, "note"), (40, "warning"), (18, "error")])
def test_enlarged_images_are_graded_by_the_factor(tmp_path: Path, side: int, level: str) -> None:
    assert check_images(tmp_path, [photo(seed, (side, side)) for seed in range(6)])["upscaled"] == level


@pytest.mark.parametrize(
    ("number", "trigger", "level"), [(6, "sks", "note"), (6, None, "warning"), (51, "sks", "warning")]
)
def test_captions_of_one_template_are_graded(
    tmp_path: Path, number: int, trigger: str | None, level: str
) -> None:
    images = [photo(seed, (64, 48)) for seed in range(number)]
    levels = check_images(tmp_path, images, class_noun="dog", trigger=trigger, report=False)
    assert levels["template_captions"] == level


def test_a_check_of_a_folder_that_is_not_prepared_measures_enlargement(tmp_path: Path) -> None:
    folder = fill(tmp_path, {f"{seed}.png": f"image {seed}" for seed in range(6)}, size=(40, 40))
    for resolution, expected in ((512, "error"), (64, "warning"), (32, None)):
        result = check_dataset_folder(folder, PrepareOptions(resolution=resolution, quiet=True))
        assert {f.code: f.level for f in result.findings}.get("upscaled") == expected


@pytest.mark.parametrize(
    "caption", ["12", "IMG_0042", "DSC-1234.", "photo 7.jpg", "2024-01-02 03:04", "x9.png"]
)
def test_numbers_and_names_of_files_are_no_captions(caption: str) -> None:
    codes = {finding.code for finding in lint.lint_captions([record_with(caption)])}
    assert "caption_without_words" in codes


@pytest.mark.parametrize(
    "caption", ["sks", "a dog", "12 dogs", "犬", "photo 7 of a dog", "IMG studio portrait"]
)
def test_short_captions_with_words_are_captions(caption: str) -> None:
    codes = {finding.code for finding in lint.lint_captions([record_with(caption)])}
    assert "caption_without_words" not in codes


def record_with(caption: str) -> Record:
    return Record("a.png", "0" * 64, "0" * 64, 64, 64, captions=(Caption(caption, "file"),))


def test_a_folder_of_videos_names_the_option(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mov"):
        (tmp_path / name).write_bytes(b"video")
    with pytest.raises(DataError, match=r"no images, but 2 videos: a\.mov, b\.mp4") as caught:
        prepare_dataset(tmp_path, PrepareOptions(quiet=True))
    assert "--videos" in str(caught.value)


@pytest.mark.parametrize(("name", "level"), [("clip.mp4", "warning"), ("0.mov", "note")])
def test_videos_beside_images_are_named(tmp_path: Path, name: str, level: str) -> None:
    """Phones store a short video with each photo, under its name."""
    (tmp_path / name).write_bytes(b"video")
    assert check_images(tmp_path, [photo(1, (64, 48))])["unused_videos"] == level


def test_drawings_that_differ_in_color_only_are_no_near_duplicates(tmp_path: Path) -> None:
    """Their perceptual hashes, of grey images, are equal or close."""
    scenes = []
    for color, ground in (("red", "blue"), ("yellow", "green"), ("white", "purple"), ("black", "orange")):
        scene = Image.new("RGB", (96, 96), ground)
        scene.paste(Image.new("RGB", (40, 40), color), (28, 28))
        scenes.append(scene)
    hashes = [image_quality.phash(scene) or "" for scene in scenes]
    assert list(near_duplicates.near_pairs(hashes))
    assert "near_duplicate" not in check_images(tmp_path, scenes)


@pytest.mark.parametrize("change", ["jpeg", "mirror", "gray", "brighter", "crop"])
def test_near_duplicates_are_confirmed_in_color(tmp_path: Path, change: str) -> None:
    original = photo(5)
    changed = {
        "jpeg": jpeg(original),
        "mirror": ImageOps.mirror(original),
        "gray": original.convert("L").convert("RGB"),
        "brighter": original.point(lambda value: min(255, int(value * 1.15 + 6))),
        "crop": cut(original, 0.04),
    }[change]
    assert "near_duplicate" in check_images(tmp_path, [photo(1), original, changed])


@pytest.mark.parametrize(("trigger", "level"), [("sks", "note"), (None, "warning")])
def test_a_check_of_a_prepared_folder_knows_if_its_template_had_a_trigger_word(
    tmp_path: Path, trigger: str | None, level: str
) -> None:
    for number in range(5):
        photo(number, (80, 64)).save(tmp_path / f"{number}.png")
    prepare_dataset(tmp_path, PrepareOptions(class_noun="dog", trigger=trigger, resolution=64, quiet=True))
    result = check_dataset_folder(tmp_path, PrepareOptions(resolution=64, quiet=True))
    assert {f.code: f.level for f in result.findings}["template_captions"] == level


def test_the_summary_of_a_preparation_names_errors_of_images_that_are_kept(tmp_path: Path) -> None:
    folder = fill(tmp_path, {f"{seed}.png": f"image {seed}" for seed in range(6)}, size=(18, 18))
    (folder / "bad.png").write_bytes(b"")
    summary = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True)).summary()
    assert "error   upscaled" in summary
    assert summary.count("bad.png") == 1


def test_the_drawings_of_the_quickstart_have_no_false_near_duplicates_or_bars(tmp_path: Path) -> None:
    """Other shapes and colors on one plain background, and a square above the middle of one."""
    concept.make_dataset(tmp_path, concept.DemoConcept("striped"))
    result = prepare_dataset(tmp_path, PrepareOptions(resolution=64, report=False, quiet=True))
    assert [finding.code for finding in result.findings if finding.level != "note"] == ["truncated"]


def test_a_shape_that_ends_before_a_plain_background_is_no_letterbox() -> None:
    drawing = Image.new("RGB", (200, 200), "green")
    drawing.paste(Image.new("RGB", (120, 100), "yellow"), (40, 10))
    assert not any(note.startswith("letterbox") for note in image_quality.quality_notes(drawing))
    drawing.paste(Image.new("RGB", (200, 100), "yellow"), (0, 10))
    assert any(note.startswith("letterbox") for note in image_quality.quality_notes(drawing))
