"""The dataset report: one page, inert whatever the captions are, equal for equal data."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools import check, report
from data_tools.listing import list_dataset
from data_tools.prepare import PrepareOptions, bucket_dataset, prepare_dataset, rebuild_dataset_report
from lorakit import manifest
from tests.browser import Browser, browser
from tests.data_tools.folders import fill, photo
from tests.page_checks import access_faults, layout_faults, press

HOSTILE = '<script>alert(1)</script> sks "><img src=x onerror=alert(1)> {{7*7}} =cmd|calc'


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path, {"a.png": HOSTILE, "<b onclick=x>.png": "a photo of sks cat"}, size=(400, 200))
    (tmp_path / "bad.png").write_bytes(b"<html>" + HOSTILE.encode())
    prepare_dataset(
        tmp_path,
        PrepareOptions(resolution=128, bucket_mode="square", trigger="sks", class_noun="cat", quiet=True),
    )
    return tmp_path


def parse(folder: Path) -> Page:
    page = Page()
    page.feed((folder / report.HTML_FILE).read_text(encoding="utf-8"))
    return page


def test_nothing_in_the_page_runs_or_loads(folder: Path) -> None:
    page = parse(folder)
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object", "form"} == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "alert(1)" in page.text  # shown, as text
    assert "{{7*7}}" in page.text
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "content" in a and "src" in str(a)]
    assert any("default-src 'none'" in str(policy) for policy in policies)


def test_the_page_shows_problems_first_and_every_image(folder: Path) -> None:
    page = parse(folder)
    assert page.text.index("html_or_xml") < page.text.index("128 × 128")
    for name in ("a.png", "<b onclick=x>.png", "bad.png"):
        assert name in page.text
    assert {attributes["alt"] for tag, attributes in page.tags if tag == "img"} == {
        "<b onclick=x>.png",
        "a.png",
    }
    cards = [attributes["class"] for tag, attributes in page.tags if tag == "article"]
    assert cards == ["image-card excluded flagged", "image-card flagged", "image-card flagged"]
    assert sum(tag == "mark" for tag, _ in page.tags) == 2  # captions of excluded images are not shown


def test_the_trigger_is_marked_and_truncated_words_are_struck_through(tmp_path: Path) -> None:
    text = "a photo of SKS in Sksland, " + "and on " * 40
    fill(tmp_path, {"a.png": text.strip()}, size=(96, 64))
    prepare_dataset(tmp_path, PrepareOptions(resolution=64, trigger="sks", base="tiny-dit", quiet=True))
    html = (tmp_path / report.HTML_FILE).read_text()
    assert html.count("<mark>") == 1
    assert "<mark>SKS</mark> in Sksland" in html
    struck = re.findall(r"<s [^>]*>(.*?)</s>", html)
    (count, _) = json.loads((tmp_path / report.JSON_FILE).read_text())["images"][0]["captions"][0]["tokens"]
    assert struck == [count["truncated_text"]]
    assert f"{count['num_tokens']}/30 tokens" in html


def test_a_cluster_across_splits_is_shown_once_with_the_leak_named(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a.png": "x", "b.png": "y"})
    (tmp_path / "val").mkdir()
    shutil.copy(tmp_path / "train/a.png", tmp_path / "val/copy.png")
    shutil.copy(tmp_path / "b.png", tmp_path / "again.png")
    prepare_dataset(tmp_path, PrepareOptions(resolution=64, class_noun="cat", quiet=True))
    page = parse(tmp_path)
    clusters = [attributes for _, attributes in page.tags if attributes.get("class") == "cluster"]
    assert len(clusters) == 2
    duplicates = page.text[page.text.rindex("Duplicates") :]
    assert duplicates.index("in train and validation") < duplicates.index(
        "again.png"
    )  # the more serious one first
    assert duplicates.count("in train and validation") == 1


def test_the_json_report_has_the_same_data(folder: Path) -> None:
    text = (folder / report.JSON_FILE).read_text(encoding="utf-8")
    value = json.loads(text)
    assert list(value) == sorted(value)
    assert len(text.splitlines()) > len(value["images"]) + len(value["findings"])  # one line for each
    assert value["counts"]["kept"] == 2
    assert [image["keep"] for image in value["images"]] == [True, True, False]
    assert value["images"][1]["captions"] == [{"text": HOSTILE, "source": "file"}]
    assert value["images_per_epoch"] == 2
    costs = value["bucket_costs"]
    assert [cost["bucket_mode"] for cost in costs] == ["current", "auto", "native", "square", "kohya"]
    current, _, native, square, _ = costs
    assert (current["mean_crop"], current["max_crop"], current["num_buckets"]) == (0.5, 0.5, 1)
    assert current == square | {"bucket_mode": "current"}
    assert native["mean_crop"] < 0.1
    assert value["phrases"] == [{"phrase": "sks", "num_captions": 2}]
    assert value["images"][1]["crop_fraction"] == 0.5
    findings = {finding["code"]: finding for finding in value["findings"]}
    assert {"html_or_xml", "cropped"} <= findings.keys()
    assert findings["html_or_xml"]["area"] == "Images that cannot be used"
    assert findings["html_or_xml"]["action"] == "download or copy it again"
    assert str(folder) not in json.dumps(value)


def test_findings_are_grouped_with_what_to_do(folder: Path) -> None:
    text = re.sub(r"\s+", " ", parse(folder).text)
    findings = text[text.rindex("Images that cannot be used 1 error") :]
    assert findings.index("To do: download or copy it again") < findings.index("Images 1 warning")
    assert f"lorakit data bucket {folder.name} --crops FILE" in findings


def test_thousands_of_findings_stay_a_short_page_and_are_complete_in_json(tmp_path: Path) -> None:
    fill(tmp_path, {f"{number}.png": f"image {number}" for number in range(3)}, size=(64, 48))
    records = list(prepare_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True)).records)
    reasons = [f"too_small: {number}x9 (--min-side)" for number in range(3000)]
    bad = [
        replace(records[0], file=f"bad/{number:04}.png", keep=False, reason=reason)
        for number, reason in enumerate(reasons)
    ]
    cut = "truncated: the end (copy it again)"
    damaged = [replace(record, file=f"cut{record.file}", reason=cut) for record in bad]
    findings = check.check_dataset(list_dataset(tmp_path), [*records, *bad, *damaged])
    assert len(findings) < 10
    report.write_report(tmp_path, [*records, *bad, *damaged], findings, counts={"captions": {}})
    value = json.loads((tmp_path / report.JSON_FILE).read_text())
    files = {file for finding in value["findings"] for file in finding["files"]}
    assert {record.file for record in (*bad, *damaged)} <= files
    html = (tmp_path / report.HTML_FILE).read_text()
    assert "3000 images" in html
    assert "more in report.json" in html
    before_images = html[: html.index('id="images"')]
    assert before_images.count("<a ") < 1000


def test_the_rebuilt_report_is_the_same(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in (report.HTML_FILE, report.JSON_FILE)}
    (folder / report.HTML_FILE).unlink()
    rebuild_dataset_report(folder, trigger="sks", quiet=True)
    assert {name: (folder / name).read_bytes() for name in (report.HTML_FILE, report.JSON_FILE)} == before


@pytest.mark.parametrize("name", [report.HTML_FILE, report.JSON_FILE])
@pytest.mark.parametrize("change", ["nothing", "cut", "removed", "another caption"])
def test_a_report_is_written_again_only_if_it_differs(tmp_path: Path, name: str, change: str) -> None:
    fill(tmp_path, {f"{number}.png": f"thing {number}" for number in range(5)})
    options = PrepareOptions(resolution=64, quiet=True)
    prepare_dataset(tmp_path, options)
    before, file = (
        {n: (tmp_path / n).read_bytes() for n in (report.HTML_FILE, report.JSON_FILE)},
        tmp_path / name,
    )
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif change == "removed":
        file.unlink()
    elif change == "another caption":
        (tmp_path / "0.txt").write_text("something else")
    written = file.stat().st_mtime_ns if file.exists() else None
    prepare_dataset(tmp_path, options)
    assert (file.stat().st_mtime_ns == written) == (change == "nothing")
    assert ((tmp_path / name).read_bytes() == before[name]) == (change != "another caption")


# ---- in a browser ------------------------------------------------------------------------------------------

LOADED = (
    "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode() })).then(() => true)"
)
BOX = "(e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height] })"


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with an example of everything that the report can show."""
    folder = tmp_path_factory.mktemp("rich")
    names = {
        "a.png": HOSTILE,
        "sub/b.png": "a red barn by the lake, seen by sks",
        "c.png": "a red barn by the lake",
    }
    fill(folder, names, size=(400, 200))
    photo(1, (200, 100)).save(folder / "again.png")  # a small copy of sub/b.png
    (folder / "again.txt").write_text("sks, a red barn by the lake " + "and on " * 60)
    (folder / "bad.png").write_bytes(b"<html>")
    mask = Image.new("L", (400, 200))
    mask.paste(255, (0, 0, 200, 200))
    mask.save(folder / "c-masklabel.png")
    options = PrepareOptions(
        resolution=128, bucket_mode="square", trigger="sks", class_noun="barn", quiet=True
    )
    prepare_dataset(folder, options)
    boxes = folder.with_name("boxes.jsonl")
    boxes.write_text('{"file_name": "sub/b.png", "crop": [20, 40, 180, 200]}\n')
    bucket_dataset(folder, options.bucket_options(), crops_file=boxes)
    rebuild_dataset_report(folder, trigger="sks", base="tiny-dit", quiet=True)
    return folder


@pytest.fixture(scope="module")
def tab(rich: Path) -> Iterator[Browser]:
    with browser() as made:
        made.open(rich / report.HTML_FILE)
        assert made.evaluate(LOADED)
        yield made


def test_a_browser_loads_nothing_and_reports_no_error(tab: Browser, rich: Path) -> None:
    files = [address for address in tab.requests if not address.startswith("data:")]
    assert files == [(rich / report.HTML_FILE).resolve().as_uri()]
    assert tab.complaints == []
    assert tab.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
    assert tab.evaluate("document.scripts.length") == 0
    assert access_faults(tab) == []


@pytest.mark.parametrize("width", [1300, 760, 390])
def test_the_page_fits_the_window(tab: Browser, width: int) -> None:
    assert layout_faults(tab, width) == []
    for inner, outer in ((".frame", ".image-card"), (".thumbnail", ".frame")):
        found = f"[...document.querySelectorAll('{outer} {inner}')]"
        boxes = tab.evaluate(f"{found}.map(e => [{BOX}(e), {BOX}(e.closest('{outer}'))])")
        for (left, top, wide, high), (x, y, w, h) in boxes:
            assert x - 1 <= left <= left + wide <= x + w + 1
            assert y - 1 <= top <= top + high <= y + h + 1
    tab.resize(1300, 900)


def test_the_frame_is_at_the_position_of_the_crop(tab: Browser, rich: Path) -> None:
    for record in manifest.load_manifest(rich):
        if not record.keep:
            continue
        assert record.crop is not None
        cards = "[...document.querySelectorAll('.image-card')]"
        card = f"{cards}.find(c => c.querySelector('img[alt=\"{record.file}\"]'))"
        image = tab.evaluate(f"{BOX}({card}.querySelector('img'))")
        frame = tab.evaluate(f"{BOX}({card}.querySelector('.crop'))")
        left, top, right, bottom = record.crop
        scale = image[2] / record.width
        expected = [
            image[0] + scale * left,
            image[1] + scale * top,
            scale * (right - left),
            scale * (bottom - top),
        ]
        assert frame == pytest.approx(expected, abs=1.0)


def test_the_area_outside_the_crop_is_dark_and_outside_the_mask_tinted(
    tab: Browser, rich: Path, tmp_path: Path
) -> None:
    tab.evaluate("document.querySelector('img.mask').closest('.image-card').scrollIntoView()")
    left, top, width, height = map(
        round, tab.evaluate(f"{BOX}(document.querySelector('img.mask').parentElement)")
    )
    with Image.open(tab.screenshot(tmp_path / "shot.png")) as shot:
        seen = np.asarray(shot.convert("RGB").crop((left, top, left + width, top + height))).astype(float)
    with Image.open(rich / "c.png") as opened:
        whole = np.asarray(opened.convert("RGB").resize((width, height))).astype(float)
    quarter = width // 4  # 400x200 cropped to a square: a quarter is lost on each side
    ratio = seen.mean(axis=2) / np.maximum(whole.mean(axis=2), 1)
    assert np.median(ratio[:, : quarter - 4]) < 0.5
    assert np.median(ratio[8:-8, quarter + 6 : 2 * quarter - 6]) == pytest.approx(1, abs=0.05)
    right = np.s_[8:-8, 2 * quarter + 6 : 3 * quarter - 6]  # inside the crop, outside the mask
    tint = np.array([196, 64, 160])
    assert np.abs(seen[right] - tint).mean() < 0.7 * np.abs(whole[right] - tint).mean()


def test_the_filter_works_by_keys_without_a_script(tab: Browser) -> None:
    shown = "[...document.querySelectorAll('.image-card')].filter(c => c.offsetParent !== null).length"
    total = tab.evaluate(shown)
    assert total == 5
    tab.evaluate("document.getElementById('show-all').focus()")
    for kind, number in (("flagged", 5), ("excluded", 1), ("masked", 1), ("user-crop", 1), ("all", 5)):
        press(tab, "ArrowRight")
        label = f"document.getElementById('show-{kind}').parentElement"
        assert tab.evaluate(f"+{label}.querySelector('b').textContent") == number
        assert tab.evaluate(shown) == number


def test_a_finding_links_to_its_card(tab: Browser) -> None:
    target = "document.querySelector('.findings a[href^=\"#image-\"]')"
    name = tab.evaluate(f"{target}.textContent || {target}.title")
    tab.evaluate(f"{target}.click()")
    assert name in tab.evaluate("document.querySelector(':target').textContent")
    assert tab.complaints == []


def test_the_page_shows_the_important_numbers(tab: Browser) -> None:
    text = tab.evaluate("document.body.innerText")
    for words in (
        "4 images to train on",
        "1 excluded",
        "An epoch has 4 images: 4 steps at batch size 1, 2 at 2, 1 at 4, 1 at 8.",
        "nearly the same image",
        "red barn",
        "by hand",
        "captions truncated",
        "Costs of each bucket mode on these images",
    ):
        assert words in re.sub(r"\s+", " ", text)
