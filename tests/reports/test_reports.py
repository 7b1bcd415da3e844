"""Building blocks of reports: text is escaped, nothing is loaded, charts show their data."""

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from lorakit import reports
from lorakit.core import storage
from lorakit.reports.charts import MAX_POINTS
from lorakit.reports.drawing import NARROW, WIDE, axis_ticks
from lorakit.reports.rendering import CONTENT_SECURITY_POLICY, TEMPLATES

ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style><svg onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
]
VOID = {"br", "img", "input", "meta"}


class Reader(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def names(self) -> list[str]:
        return [name for name, _ in self.elements]


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(str(markup))
    reader.close()
    assert reader.open == []
    return reader


def make_image(width: int = 40, height: int = 20, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), "red")


EVERYTHING = """{% extends "page.html" %}
{% import "blocks.html" as blocks %}
{% block style %}{{ blocks.viewer_style(viewer) }}{% endblock %}
{% block main %}
{{ blocks.verdict(text, "good", text, [text]) }}
{{ blocks.contents([("a", text, true), ("b", "hidden", false)]) }}
{% call blocks.section("a", text) %}{{ blocks.paragraphs([text]) }}{{ badge }}{% endcall %}
{% call blocks.card(text, "bad") %}{{ blocks.tiles([(text, text)]) }}{% endcall %}
{% call blocks.details(text) %}{{ blocks.columns(parts) }}{% endcall %}
{{ blocks.pairs(pairs) }}
{{ blocks.radio_group("r", text, choices) }}
{{ viewer }}
{% endblock %}
"""


def everything(text: str, folder: Path) -> str:
    """A page that puts `text` into every place that takes text."""
    template = storage.write_text(folder / "everything.html", EVERYTHING)
    image = reports.embed_image(make_image(), alt=text)
    viewed = reports.ViewedImage(image, [text, reports.Badge(text, tooltip=text)])
    choices = [reports.Choice("x", text, 3, reports.Badge(text))]
    shot = reports.Shot(text, text, [viewed], ["x"], reports.Badge(text))
    parts = [
        reports.Table([text, "n"], [[text, [reports.Badge(text), text]]], text),
        reports.Grid([text], [reports.GridRow([text, reports.Jump(text, "r-x")], [[image, text]])], text),
        reports.line_chart({text: [(0, 1), (1, 2)], "b": [(0, 1)]}, x_label=text, y_label=text),
        reports.line_chart({text: []}, x_label=text, y_label=text),
        reports.bar_chart([text, "b"], [1, 2], y_label=text),
        reports.embed_image(make_image(), alt=text, zoom_width=64),
        reports.file_link(text, text),
        reports.line_chart(
            {text: [(0, 1)]}, x_label="x", y_label="y", horizontal_lines={text: 1}, vertical_lines={text: 0}
        ),
        reports.scatter_chart(
            [reports.ScatterPoint(text, (0, -1, 1), (0, -1, 1), note=text, link="#a")],
            x_label=text,
            y_label=text,
            connected_labels=[text],
        ),
        reports.histogram(
            [0.0],
            title=text,
            value_label=text,
            marks={text: 0.1},
            mark_label=text,
            ticks={text: 0},
            noun=text,
        ),
        reports.training_curves([{"step": 0, "loss": 1.0, text: 2.0}]),
    ]
    return reports.render_page(
        template,
        title=text,
        subtitle=text,
        text=text,
        badge=reports.Badge(text),
        parts=parts,
        choices=choices,
        pairs=[reports.Pair(image, reports.Badge(text), text)],
        viewer=reports.Viewer(choices, [shot], [*choices, *choices], 0, 0, references=[image]),
    )


@pytest.mark.parametrize("attack", [*ATTACKS, "../../../etc/passwd", "//example.org/x", "{{7*7}}"])
def test_hostile_text_stays_text_everywhere(attack: str, tmp_path: Path) -> None:
    reader = read(everything(attack, tmp_path))
    assert set(reader.names()).isdisjoint({"script", "iframe", "link", "object", "form"})
    for name, attributes in reader.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        if name == "img":
            assert str(attributes["src"]).startswith("data:image/")
            assert attributes["alt"] == attack
        if name == "a":
            assert str(attributes["href"]).startswith(("#", "./", "../"))
            assert ":" not in str(attributes["href"])
    assert reader.text.count(attack) >= 30


def test_hidden_characters_are_visible_everywhere(tmp_path: Path) -> None:
    document = everything("a\u202eb\x1b[2Jc\u2066", tmp_path)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u2066]", document)
    assert document.count("a\\u202eb\\x1b[2Jc") >= 30


def test_page_is_self_contained_and_its_policy_forbids_the_rest(tmp_path: Path) -> None:
    document = everything("plain", tmp_path)
    reader = read(document)
    metas = [attributes for name, attributes in reader.elements if name == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": CONTENT_SECURITY_POLICY} in metas
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in CONTENT_SECURITY_POLICY
    assert "prefers-color-scheme: dark" in document
    assert document.startswith("<!doctype html>")
    links = re.findall(r"https?://[^\"' )]+", document)
    assert set(links) == {"http://www.w3.org/2000/svg"}  # a namespace, never loaded
    assert not re.search(r"url\(|@import|<script", document)


def luminance(color: str) -> float:
    """The relative luminance of #rrggbb (WCAG 2.2)."""
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_curves_have_enough_contrast(theme: str) -> None:
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if theme == "light" else dark))
    levels = ("good", "warn", "bad", "note")
    text = [(name, ground) for name in ("ink", "soft", "faint") for ground in ("ground", "card", "zebra")]
    text += [(name, ground) for name in levels for ground in (f"{name}-ground", "card", "ground")]
    text += [("ink", f"{name}-ground") for name in levels] + [("card", name) for name in levels]
    text += [("c1", ground) for ground in ("ground", "card")]  # links
    curves = [(f"c{i}", "card") for i in range(1, 7)]
    for pairs, minimum in ((text, 4.5), (curves, 3.0)):
        for name, ground in pairs:
            low, high = sorted(luminance(colors[one]) for one in (name, ground))
            assert (high + 0.05) / (low + 0.05) >= minimum, (name, ground)


def test_a_value_that_a_template_lacks_is_an_error(tmp_path: Path) -> None:
    template = storage.write_text(tmp_path / "t.html", "{{ missing }}")
    with pytest.raises(Exception, match="missing"):
        reports.render_page(template, title="t")


def test_code_between_backticks_is_code() -> None:
    reader = read(reports.render_block("paragraphs", ["use `lorakit <x>`, then `b`"]))
    assert reader.names() == ["p", "code", "code"]
    assert reader.text.strip() == "use lorakit <x>, then b"


def test_number_columns_are_aligned_right() -> None:
    rows = [
        ["dog", "10 cats", "+1.2 [−0.3, 2.1]", 3, "1", reports.Badge("1")],
        ["1", "38 % [22, 60]", "4", 4.5, "sks", reports.Badge("2")],
        ["", "", "–", "", "", ""],
    ]
    assert reports.Table(list("abcdef"), rows).numeric == [False, False, True, True, False, False]
    cells = [a for name, a in read(reports.Table(list("abcdef"), rows).__html__()).elements if name == "td"]
    assert [cell.get("class") for cell in cells] == [None, "number", "number", None, None] * 3
    assert [cell["data-label"] for cell in cells] == list("bcdef") * 3


def test_empty_headers_are_not_shown() -> None:
    reader = read(reports.Table(["", ""], [["a", "b"]]).__html__())
    assert "thead" not in reader.names()
    assert [a["scope"] for name, a in reader.elements if name == "th"] == ["row"]


@pytest.mark.parametrize("row", [["1"], ["1", "2", "3"], []])
def test_a_table_row_of_another_length_is_refused(row: list[str]) -> None:
    with pytest.raises(ValueError, match="cells"):
        reports.Table(["a", "b"], [row])


@pytest.mark.parametrize(("good", "level"), [(True, "good"), (False, "bad"), (None, "note")])
def test_the_verdict_shows_good_and_bad_by_sign_and_color(good: bool | None, level: str) -> None:
    signs = {
        kind: read(reports.render_block("verdict", "gain", kind)).text.split()[0]
        for kind in ("good", "warn", "bad", "note")
    }
    assert len(set(signs.values())) == 4
    reader = read(reports.render_block("verdict", "gain", reports.level_of(good), "train longer", ["why"]))
    assert reader.elements[0] == ("div", {"class": f"verdict {level}"})
    assert reader.text.split() == [signs[level], "gain", "why", "Next:", "train", "longer"]


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("images/a b.png", "./images/a%20b.png"),
        ("../data/#1?.png", "../data/%231%3F.png"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("//host/x", "./host/x"),
        ("/etc/x", "./etc/x"),
    ],
)
def test_links_to_files_stay_relative(path: str, address: str) -> None:
    assert reports.file_link("file", path).address == address


def test_the_viewer_needs_no_script_and_names_its_choices() -> None:
    columns = [reports.Choice(f"v{i}", name) for i, name in enumerate(["base", "<b>", "c'"])]
    image = reports.ViewedImage(reports.embed_image(make_image(), alt="x"))
    shots = [
        reports.Shot("one", "seed 0", [image, image, reports.ViewedImage(None)], ["best"]),
        reports.Shot("two", "seed 1", [image, image, image], ["weakest"]),
    ]
    filters = [reports.Choice("all", "all", 2), reports.Choice("best", "best", 1)]
    viewer = reports.Viewer(columns, shots, filters, first=0, second=2, start=1)
    reader = read(viewer.__html__())
    checked = [a["id"] for name, a in reader.elements if name == "input" and "checked" in a]
    assert checked == ["first-v0", "second-v2", "view-both", "only-all", "shot-1"]
    groups = {a["name"] for name, a in reader.elements if name == "input"}
    assert groups == {"first", "second", "view", "only", "shot"}
    assert reader.names().count("legend") == 5
    assert reader.text.count("no image") == 1
    rules = reports.render_block("viewer_style", viewer)
    assert "#shot-1:checked" in rules
    assert "label:not(.f-best)" in rules
    assert "<b>" not in rules


def decoded(image: reports.EmbeddedImage) -> tuple[Image.Image, dict[str, str | None]]:
    attributes = read(image.__html__()).elements[0][1]
    data = str(attributes["src"]).split(",", 1)[1]
    return Image.open(io.BytesIO(base64.b64decode(data))), attributes


@pytest.mark.parametrize(("format", "name"), [("JPEG", "jpeg"), ("PNG", "png")])
def test_image_is_inlined_at_most_twice_as_large_as_shown(format: str, name: str) -> None:
    stored, attributes = decoded(reports.embed_image(make_image(400, 200), alt="a", width=50, format=format))
    assert stored.size == (100, 50)
    assert stored.format == format
    assert str(attributes["src"]).startswith(f"data:image/{name};base64,")
    assert (attributes["width"], attributes["height"]) == ("50", "25")


def test_transparent_images_are_placed_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    stored, _ = decoded(reports.embed_image(clear, alt="a"))
    assert min(stored.convert("RGB").getpixel((4, 4))) > 250


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.1, 0.54), (-20, 20), (21.3, 21.4), (0, 12345), (3, 3), (0, 0), (1e-7, 3e-7)]
)
def test_ticks_cover_the_range_in_round_steps(low: float, high: float) -> None:
    ticks = axis_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 3 <= len(ticks) <= 9
    step = ticks[1] - ticks[0]
    assert f"{step:e}"[0] in "125" or math.isclose(step / 10 ** math.floor(math.log10(step)), 10)


def shapes(chart: reports.Chart, size: str = "wide") -> Reader:
    """The elements of a chart, those of one of its two drawings."""
    drawing = next(drawing for drawing in chart.drawings if drawing.kind == size)
    return read("".join(reports.render_block("draw", shape) for shape in drawing.shapes))


def polylines(chart: reports.Chart, size: str = "wide") -> list[list[tuple[float, float]]]:
    paths = [str(a["points"]) for name, a in shapes(chart, size).elements if name == "polyline"]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())] for path in paths]


def test_a_line_chart_sorts_its_points_and_skips_values_that_are_not_finite() -> None:
    chart = reports.line_chart(
        {"loss": [(2, 1.0), (0, 3.0), (1, math.nan), (3, math.inf)]}, x_label="step", y_label="loss"
    )
    ((first, second),) = polylines(chart)
    assert first[0] < second[0]  # steps increase to the right
    assert first[1] < second[1]  # the larger value is higher
    assert "loss: 3 at 0" in shapes(chart).text


def test_bands_enclose_their_curve() -> None:
    band = [(0, 0.5, 1.5), (1, 1.5, 2.5)]
    chart = reports.line_chart({"a": [(0, 1), (1, 2)]}, x_label="x", y_label="y", bands={"a": band})
    area = next(str(a["points"]) for name, a in shapes(chart).elements if name == "polygon")
    ys = [float(pair.split(",")[1]) for pair in area.split()]
    curve = [y for _, y in polylines(chart)[0]]
    assert min(ys) < min(curve)
    assert max(ys) > max(curve)


def test_a_long_curve_is_thinned_and_keeps_its_spike() -> None:
    points = [(float(i), 1.0 + (i == 7777) * 9.0) for i in range(20_000)]
    chart = reports.line_chart({"loss": points}, x_label="step", y_label="loss")
    (path,) = polylines(chart)
    assert len(path) <= MAX_POINTS + 2
    assert min(y for _, y in path) < path[0][1] - 100
    assert len(chart.__html__()) < 60_000


def test_horizontal_and_vertical_lines_are_at_their_values() -> None:
    chart = reports.line_chart(
        {"a": [(0, 1), (10, 3)]},
        x_label="x",
        y_label="y",
        horizontal_lines={"base": 3.0, "none": math.nan},
        vertical_lines={"selected": 10},
    )
    reader = shapes(chart)
    lines = {
        a["class"]: a for name, a in reader.elements if name == "line" and a["class"] in ("level", "mark")
    }
    ((x, y),) = [points[-1] for points in polylines(chart)]
    assert float(str(lines["level"]["y1"])) == float(str(lines["level"]["y2"])) == y
    assert float(str(lines["mark"]["x1"])) == float(str(lines["mark"]["x2"])) == x
    assert "base" in reader.text
    assert "none" not in reader.text


CROSSES = [
    reports.ScatterPoint("one", (1.0, 0.5, 1.5), (2.0, 1.0, 3.0)),
    reports.ScatterPoint("two", (3.0, 2.5, 3.5), (4.0, 3.0, 5.0), "good", link="#at-two"),
    reports.ScatterPoint("three", (2.0, math.nan, math.nan), (1.0, 0.0, 2.0), "bad", "an alarm"),
    reports.ScatterPoint("gone", (math.nan, 0.0, 1.0), (1.0, 0.0, 2.0)),
]


@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_crosses_span_their_intervals_and_show_the_selected_and_rejected_points(size: str) -> None:
    chart = reports.scatter_chart(CROSSES, x_label="x", y_label="y", connected_labels=["one", "three", "two"])
    reader = shapes(chart, size)
    circles = [a for name, a in reader.elements if name == "circle"]
    assert [a["class"] for a in circles] == ["cross", "cross bad", "cross good"]  # the selected one on top
    lines = [a for name, a in reader.elements if name == "line" and str(a["class"]).startswith("cross")]
    assert len(lines) == 5  # "three" has no horizontal interval
    horizontal = [line for line in lines if line["y1"] == line["y2"]]
    centre = float(str(circles[0]["cx"]))
    assert float(str(horizontal[0]["x1"])) < centre < float(str(horizontal[0]["x2"]))
    assert centre == pytest.approx(
        (float(str(horizontal[0]["x1"])) + float(str(horizontal[0]["x2"]))) / 2, abs=0.02
    )
    assert "an alarm" in reader.text
    assert "gone" not in reader.text
    assert [a["href"] for name, a in reader.elements if name == "a"] == ["#at-two"]


@pytest.mark.parametrize("half", [False, True])
def test_a_chart_has_a_drawing_for_wide_and_for_narrow_pages(half: bool) -> None:
    chart = reports.line_chart({"a": [(0, 1), (1, 2)]}, x_label="x", y_label="y", half_width=half)
    assert [drawing.kind for drawing in chart.drawings] == (["narrow"] if half else ["wide", "narrow"])
    for drawing in chart.drawings:
        size = {"wide": WIDE, "narrow": NARROW}[drawing.kind]
        edges = [value for path in polylines(chart, drawing.kind) for value, _ in path]
        assert edges == [size.left, size.right]


def test_points_lead_to_a_place_of_the_page() -> None:
    points = [(100.0, 1.0), (200.0, 2.0)]
    links = {("a", 200.0): "#at-v2"}
    chart = reports.line_chart({"a": points}, x_label="x", y_label="y", half_width=True, links=links)
    reader = read(chart.__html__())
    anchors = [a for name, a in reader.elements if name == "a"]
    assert anchors == [{"href": "#at-v2", "aria-label": "a: 2 at 200"}]
    assert {a["role"] for name, a in reader.elements if name == "svg"} == {"group"}  # an image hides links
    plain = reports.line_chart({"a": points}, x_label="x", y_label="y", half_width=True)
    assert {a["role"] for name, a in read(plain.__html__()).elements if name == "svg"} == {"img"}


def test_labels_of_close_points_do_not_overlap() -> None:
    points = [reports.ScatterPoint(f"step {i}", (1 + i / 50, 0, 2), (1 + i / 50, 0, 2)) for i in range(12)]
    chart = reports.scatter_chart(points, x_label="x", y_label="y")
    names = [
        a for n, a in shapes(chart).elements if n == "text" and str(a.get("class", "")).startswith("name")
    ]
    positions = [(float(str(a["x"])), float(str(a["y"]))) for a in names]
    assert len(positions) >= 4
    for i, (x, y) in enumerate(positions):
        for u, v in positions[:i]:
            assert abs(x - u) > 40 or abs(y - v) > 12


def test_an_image_that_a_click_enlarges_needs_no_script() -> None:
    image = reports.embed_image(make_image(400, 200), alt="a dog", width=50, zoom_width=300)
    reader = read(image.__html__())
    assert reader.names() == ["label", "input", "img"]
    assert reader.elements[1][1]["aria-label"] == "enlarge a dog"
    data = str(reader.elements[2][1]["src"]).split(",", 1)[1]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (300, 150)
    assert reader.elements[2][1]["width"] == "50"


def metrics(steps: int) -> list[dict[str, object]]:
    return [
        {"step": i, "loss": 1 / (i + 1), "lr": 1e-4, "event": "step", "clipped": True} for i in range(steps)
    ]


def test_training_curves_show_the_smoothed_loss_and_hide_the_other_metrics() -> None:
    rows = [*metrics(120), {"step": 60, "validation_loss": 0.4}, {"step": 60, "clip_t": 0.7}]
    reader = read(reports.training_curves(rows).__html__())
    for part in ("loss, running mean", "validation_loss", "lr"):
        assert part in reader.text
    assert "event" not in reader.text
    assert "clipped" not in reader.text
    assert "running mean" not in read(reports.training_curves(metrics(10)).__html__()).text


@pytest.mark.parametrize("names", [(), ("lr_text_encoder",), ("lr_lora_b", "lr_embedding")])
def test_the_learning_rates_of_all_groups_are_in_one_chart(names: tuple[str, ...]) -> None:
    rows = [{"step": step, "loss": 1.0, "lr": 1e-3, **dict.fromkeys(names, 1e-4)} for step in (1, 2)]
    curves = reports.training_curves(rows)
    reader = read(curves.__html__())
    assert len([*curves.main, *curves.more]) == 2  # loss, learning rates
    for name in ("learning rate", *names):
        assert name in reader.text


def test_a_chart_without_data_says_so() -> None:
    for chart in (
        reports.line_chart({"a": [(0, math.nan)]}, x_label="x", y_label="loss"),
        reports.bar_chart([], [], y_label="loss"),
        reports.scatter_chart([CROSSES[-1]], x_label="x", y_label="loss"),
    ):
        assert "no data" in read(chart.__html__()).text
        assert "svg" not in read(chart.__html__()).names()


def test_bars_start_at_zero() -> None:
    chart = reports.bar_chart(["a", "b", "c"], [2.0, -1.0, 0.0], y_label="n")
    bars = [a for name, a in shapes(chart).elements if name == "rect"]
    heights = [float(str(a["height"])) for a in bars]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)
    assert float(str(bars[0]["y"])) + heights[0] == pytest.approx(float(str(bars[1]["y"])), abs=0.02)
    assert heights[2] < 1


def test_a_contact_sheet_fits_images_and_draws_heads() -> None:
    cells = [[make_image(300, 100), None], [make_image(50, 50, "RGBA"), make_image(10, 90, "L")]]
    heads = {
        "column_heads": ["seed 0", "a heading much longer than its column is wide"],
        "row_heads": ["before", "x"],
    }
    sheet = reports.contact_sheet(cells, cell=96, **heads)
    plain = reports.contact_sheet(cells, cell=96, column_heads=["", ""], row_heads=["", ""])
    assert sheet.mode == "RGB"
    assert sheet.width - plain.width >= 96
    red = [
        point
        for point in ((x, y) for x in range(sheet.width) for y in range(sheet.height))
        if sheet.getpixel(point) == (255, 0, 0)
    ]
    assert len(red) == 96 * 32 + 96 * 96  # the aspect ratio is kept, the gap is empty
    head = sheet.crop((0, 0, sheet.width, 20)).getextrema()
    assert min(low for low, _ in head) < 150  # the head's text


def test_reports_load_without_torch() -> None:
    code = "import sys, lorakit.reports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
