"""Building blocks of reports: text is escaped, nothing is loaded, charts show their data."""

import base64
import io
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from lorakit import reports
from lorakit.reports.charts import MAX_POINTS, axis_ticks
from lorakit.reports.html import CONTENT_SECURITY_POLICY

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
    reader.feed(markup)
    reader.close()
    assert reader.open == []
    return reader


def make_image(width: int = 40, height: int = 20, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), "red")


def everything(text: str) -> str:
    """A page that puts `text` into every place that takes text."""
    image = reports.embed_image(make_image(), alt=text)
    parts = [
        reports.summary_banner(text, True),
        reports.section(text, reports.paragraph(text), reports.badge(text)),
        reports.html_table([text, "n"], [[text, "1"]]),
        reports.html_grid([text], [text], [[reports.join([image, text])]]),
        reports.line_chart({text: [(0, 1), (1, 2)], "b": [(0, 1)]}, x_label=text, y_label=text),
        reports.line_chart({text: []}, x_label=text, y_label=text),
        reports.bar_chart([text, "b"], [1, 2], y_label=text),
        reports.details(text, reports.paragraph(text)),
        reports.card(text, reports.columns(reports.paragraph(text)), good=False),
        reports.embed_image(make_image(), alt=text, zoom_width=64),
        reports.line_chart(
            {text: [(0, 1)]}, x_label="x", y_label="y", horizontal_lines={text: 1}, vertical_lines={text: 0}
        ),
        reports.scatter_chart(
            [reports.ScatterPoint(text, (0, -1, 1), (0, -1, 1), note=text)],
            x_label=text,
            y_label=text,
            connected_labels=[text],
        ),
        *reports.training_curves([{"step": 0, "loss": 1.0, text: 2.0}]),
    ]
    return reports.html_page(text, parts, subtitle=text)


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_text_stays_text_everywhere(attack: str) -> None:
    reader = read(everything(attack))
    assert set(reader.names()).isdisjoint({"script", "a", "iframe", "link", "object", "form"})
    for name, attributes in reader.elements:
        assert not [key for key in attributes if key.startswith("on")], (name, attributes)
        if name == "img":
            assert str(attributes["src"]).startswith("data:image/")
            assert attributes["alt"] == attack
    assert reader.text.count(attack) >= 10


def test_templates_are_not_evaluated() -> None:
    text = read(reports.html_page("{{7*7}} ${7*7} %(x)s {0}", [reports.paragraph("{{7*7}}")])).text
    assert text.count("{{7*7}}") == 3  # title, heading, paragraph
    assert "49" not in text


def test_page_is_self_contained_and_its_policy_forbids_the_rest() -> None:
    document = everything("plain")
    reader = read(document)
    metas = [attributes for name, attributes in reader.elements if name == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": CONTENT_SECURITY_POLICY} in metas
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in document
    assert "prefers-color-scheme: dark" in document
    assert document.startswith("<!doctype html>")
    links = re.findall(r"https?://[^\"' )]+", document)
    assert set(links) == {"http://www.w3.org/2000/svg"}  # a namespace, never loaded
    assert not re.search(r"url\(|@import|<script", document)


def test_markup_is_kept_and_text_is_escaped() -> None:
    assert reports.escape(reports.tag("b", "x<y")) == "<b>x&lt;y</b>"
    assert reports.escape("<b>") == "&lt;b&gt;"
    assert (
        reports.tag("i", data_x='a"b<c&', class_="k", id=None)
        == '<i data-x="a&quot;b&lt;c&amp;" class="k"></i>'
    )
    assert not isinstance(
        reports.tag("b") + "<script>", reports.Html
    )  # concatenation with + gives text again


def test_number_columns_are_aligned_right() -> None:
    rows = [["dog", "+1.2 [−0.3, 2.1]", 3, "1"], ["10 cats", "38 % [22, 60]", 4.5, "sks"], ["", "–", "", ""]]
    cells = [
        attributes
        for name, attributes in read(reports.html_table(["a", "b", "c", "d"], rows)).elements
        if name == "td"
    ]
    assert [cell.get("class") for cell in cells] == [None, "number", "number", None] * 3


def test_empty_headers_are_not_shown() -> None:
    assert "th" not in read(reports.html_table(["", ""], [["a", "b"]])).names()


def test_a_table_row_of_another_length_is_refused() -> None:
    with pytest.raises((ValueError, IndexError)):
        reports.html_table(["a", "b"], [["1"]])


@pytest.mark.parametrize(("good", "kind"), [(True, "good"), (False, "bad"), (None, "note")])
def test_the_banner_shows_good_and_bad_by_sign_and_colour(good: bool | None, kind: str) -> None:
    reader = read(reports.summary_banner("gain", good))
    assert reader.elements[0] == ("div", {"class": f"verdict {kind}"})
    assert reader.text.endswith("gain")
    assert len(reader.text) == len("gain") + 1


def decoded(markup: str) -> tuple[Image.Image, dict[str, str | None]]:
    attributes = read(markup).elements[0][1]
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


def polylines(markup: str) -> list[list[tuple[float, float]]]:
    paths = [str(a["points"]) for name, a in read(markup).elements if name == "polyline"]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())] for path in paths]


def test_a_line_chart_sorts_its_points_and_skips_values_that_are_not_finite() -> None:
    chart = reports.line_chart(
        {"loss": [(2, 1.0), (0, 3.0), (1, math.nan), (3, math.inf)]}, x_label="step", y_label="loss"
    )
    ((first, second),) = polylines(chart)
    assert first[0] < second[0]  # steps increase to the right
    assert first[1] < second[1]  # the larger value is higher
    assert "loss: 3 at 0" in read(chart).text


def test_bands_enclose_their_curve() -> None:
    band = [(0, 0.5, 1.5), (1, 1.5, 2.5)]
    chart = reports.line_chart({"a": [(0, 1), (1, 2)]}, x_label="x", y_label="y", bands={"a": band})
    area = next(str(a["points"]) for name, a in read(chart).elements if name == "polygon")
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
    assert len(chart) < 60_000


def test_horizontal_and_vertical_lines_are_at_their_values() -> None:
    chart = reports.line_chart(
        {"a": [(0, 1), (10, 3)]},
        x_label="x",
        y_label="y",
        horizontal_lines={"base": 3.0, "none": math.nan},
        vertical_lines={"selected": 10},
    )
    reader = read(chart)
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
    reports.ScatterPoint("two", (3.0, 2.5, 3.5), (4.0, 3.0, 5.0), good=True),
    reports.ScatterPoint("three", (2.0, math.nan, math.nan), (1.0, 0.0, 2.0), good=False, note="an alarm"),
    reports.ScatterPoint("gone", (math.nan, 0.0, 1.0), (1.0, 0.0, 2.0)),
]


def test_crosses_span_their_intervals_and_show_the_selected_and_rejected_points() -> None:
    chart = reports.scatter_chart(CROSSES, x_label="x", y_label="y", connected_labels=["one", "three", "two"])
    reader = read(chart)
    classes = [a["class"] for name, a in reader.elements if name == "g"]
    assert sorted(map(str, classes)) == ["cross", "cross rejected", "cross selected"]
    assert classes[-1] == "cross selected"  # drawn last, on top
    circles = [a for name, a in reader.elements if name == "circle"]
    lines = [a for name, a in reader.elements if name == "line" and "class" not in a]
    assert len(circles) == 3
    assert len(lines) == 5  # "three" has no horizontal interval
    horizontal = [line for line in lines if line["y1"] == line["y2"]]
    centre = float(str(circles[0]["cx"]))
    assert float(str(horizontal[0]["x1"])) < centre < float(str(horizontal[0]["x2"]))
    assert centre == pytest.approx(
        (float(str(horizontal[0]["x1"])) + float(str(horizontal[0]["x2"]))) / 2, abs=0.02
    )
    assert "an alarm" in reader.text
    assert "gone" not in reader.text


def test_labels_of_close_points_do_not_overlap() -> None:
    points = [reports.ScatterPoint(f"step {i}", (1 + i / 50, 0, 2), (1 + i / 50, 0, 2)) for i in range(12)]
    chart = reports.scatter_chart(points, x_label="x", y_label="y")
    names = [a for n, a in read(chart).elements if n == "text" and str(a.get("class", "")).startswith("name")]
    positions = [(float(str(a["x"])), float(str(a["y"]))) for a in names]
    assert len(positions) >= 4
    for i, (x, y) in enumerate(positions):
        for u, v in positions[:i]:
            assert abs(x - u) > 40 or abs(y - v) > 12


def test_an_image_that_a_click_enlarges_needs_no_script() -> None:
    markup = reports.embed_image(make_image(400, 200), alt="a dog", width=50, zoom_width=300)
    reader = read(markup)
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
    parts = reports.training_curves(rows)
    reader = read(reports.join(parts))
    for part in ("loss, running mean", "validation_loss", "lr"):
        assert part in reader.text
    assert "event" not in reader.text
    assert "clipped" not in reader.text
    assert "running mean" not in read(reports.join(reports.training_curves(metrics(10)))).text


@pytest.mark.parametrize("names", [(), ("lr_text_encoder",), ("lr_lora_b", "lr_embedding")])
def test_the_learning_rates_of_all_groups_are_in_one_chart(names: tuple[str, ...]) -> None:
    rows = [{"step": step, "loss": 1.0, "lr": 1e-3, **dict.fromkeys(names, 1e-4)} for step in (1, 2)]
    reader = read(reports.join(reports.training_curves(rows)))
    assert reader.names().count("svg") == 2  # loss, learning rates
    for name in ("learning rate", *names):
        assert name in reader.text


def test_a_chart_without_data_says_so() -> None:
    for chart in (
        reports.line_chart({"a": [(0, math.nan)]}, x_label="x", y_label="loss"),
        reports.bar_chart([], [], y_label="loss"),
        reports.scatter_chart([CROSSES[-1]], x_label="x", y_label="loss"),
    ):
        assert "no data" in read(chart).text
        assert "svg" not in read(chart).names()


def test_bars_start_at_zero() -> None:
    chart = reports.bar_chart(["a", "b", "c"], [2.0, -1.0, 0.0], y_label="n")
    bars = [a for name, a in read(chart).elements if name == "rect"]
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
