"""The report: one page, inert whatever the captions say, equal for equal data."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from folders import fill
from PIL import Image

from data_tools import report
from data_tools.prepare import PrepareOptions, prepare, report_only

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
    prepare(
        tmp_path, PrepareOptions(resolution=128, mode="square", trigger="sks", class_noun="cat", quiet=True)
    )
    return tmp_path


def parse(folder: Path) -> Page:
    page = Page()
    page.feed((folder / report.HTML).read_text(encoding="utf-8"))
    return page


def test_nothing_in_the_page_runs_or_loads(folder: Path) -> None:
    page = parse(folder)
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object", "b"} == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "alert(1)" in page.text  # shown, as text
    assert "{{7*7}}" in page.text
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "content" in a and "src" in str(a)]
    assert any("default-src 'none'" in str(policy) for policy in policies)


def test_the_page_shows_problems_first_and_every_image(folder: Path) -> None:
    page = parse(folder)
    assert page.text.index("markup") < page.text.index("128x128")
    for name in ("a.png", "<b onclick=x>.png", "bad.png"):
        assert name in page.text
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [
        "<b onclick=x>.png",
        "a.png",
    ]
    assert sum(tag == "mark" for tag, _ in page.tags) == 3


def test_the_crop_is_drawn_where_it_is(folder: Path) -> None:
    html = (folder / report.HTML).read_text(encoding="utf-8")
    data = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)[-1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")).astype(float)
    with Image.open(folder / "a.png") as opened:
        whole = np.asarray(opened.convert("L").resize((shown.shape[1], shown.shape[0]))).astype(float)
    quarter = shown.shape[1] // 4  # 400x200 cropped to a square: a quarter is lost on each side
    ratio = shown / np.maximum(whole, 1)
    assert abs(np.median(ratio[:, : quarter - 4]) - 0.35) < 0.05
    assert abs(np.median(ratio[:, -quarter + 4 :]) - 0.35) < 0.05
    assert abs(np.median(ratio[4:-4, quarter + 4 : -quarter - 4]) - 1) < 0.05


def test_the_twin_says_the_same_to_a_script(folder: Path) -> None:
    value = json.loads((folder / report.JSON).read_text(encoding="utf-8"))
    assert value["counts"]["kept"] == 2
    assert [image["keep"] for image in value["images"]] == [True, True, False]
    assert value["images"][1]["captions"] == [HOSTILE]
    assert value["images"][1]["cropped"] == 0.5
    assert {"markup", "cropped"} <= {finding["code"] for finding in value["findings"]}
    assert str(folder) not in json.dumps(value)


def test_the_report_alone_gives_the_same_page(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in (report.HTML, report.JSON)}
    (folder / report.HTML).unlink()
    report_only(folder, trigger="sks", quiet=True)
    assert {name: (folder / name).read_bytes() for name in (report.HTML, report.JSON)} == before
