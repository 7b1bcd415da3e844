"""The pages of an evaluation, a comparison and a training in a browser: readable on a wide and a narrow
window, and the viewer by the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lorakit import reports
from lorakit.core import storage
from lorakit.evaluation.report import write
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import select_checkpoint
from lorakit.training import data_record, training_report
from tests.browser import Browser, browser
from tests.evaluation.simulated import Truth, simulate
from tests.page_checks import access_faults, layout_faults, press

WIDTHS = (1280, 390, 320)
PAGES = ("evaluation", "comparison", "training")
FIGURES = (
    "[...document.querySelectorAll('.shot figure')]"
    ".filter(f => f.getClientRects().length && getComputedStyle(f).visibility === 'visible')"
)
CHECKED = "document.querySelector('input[name={}]:checked')"


def draw_images(evaluation: Evaluation, root: Path) -> None:
    evaluation.train_images = "data"
    for number, variant in enumerate(evaluation.variants):
        for key, file in variant.files.items():
            image = Image.new("RGB", (96, 96), (40 * number, 255 - 40 * number, 128))
            ImageDraw.Draw(image).text((8, 40), f"{key.prompt_id} {key.seed}", "black")
            storage.save_image(root / file, image)
            variant.nearest_train_images[key] = "3.png"
    for name in ("1.png", "2.png", "3.png"):
        storage.save_image(root / "data" / name, Image.new("RGB", (96, 64), "orange"))


def write_training_page(file: Path) -> None:
    """The page of a run with several concepts, as `write_training_report` renders it."""
    rows = [
        {
            "folder": f"photos-of-the-{name}",
            "trigger": name,
            "images": 12,
            "held_out": 3,
            "repeats": 4,
            "weight": 1.0,
            "captions": 12,
            "captions_with_trigger": 11,
            "samples_per_epoch": 36,
            "steps_per_epoch": 9.0,
        }
        for name in ("sks", "ohwx", "someverylongtriggerword")
    ]
    image = reports.embed_image(Image.new("RGB", (96, 96), "teal"), alt="a sample", width=128, zoom_width=96)
    metrics = [{"step": i, "loss": 1 / (i + 1), "lr": 1e-4, "clip_t": 0.2} for i in range(80)]
    page = reports.render_page(
        training_report.TEMPLATE,
        title="a-run-with-a-rather-long-name-and-several-concepts",
        subtitle="Training report of tiny-dit: done",
        figures=[("36", "images"), ("1,500", "steps"), ("0.1234", "last loss")],
        curves=reports.training_curves(metrics),
        samples=reports.Grid(
            [f"step {i}" for i in range(8)], [reports.GridRow("a prompt", [[image]] * 8)], "s"
        ),
        warnings=["2 of 12 captions of photos-of-the-sks lack the trigger word"],
        concepts=reports.Table(data_record.COLUMNS, data_record.table_cells(rows)),
        buckets=reports.bar_chart(
            [f"{64 * i}×{1024 - 64 * i}" for i in range(4, 13)], range(9), y_label="images"
        ),
        settings=reports.Table(
            ["", ""], [("Base", "tiny-dit"), ("Optimizer", "adamw8bit, lr 0.0001, constant")]
        ),
        versions=reports.Table(["Package", "Version"], [("torch", "2.15.0")]),
    )
    storage.write_text(file, page)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    truths = [Truth(100, 0.4, 1.0), Truth(200, 0.8, 1.0), Truth(300, 0.9, 0.8, copies=0.8, drift=0.5)]
    evaluation = simulate(truths, subject=12, unrelated=3, noise=0.5)
    evaluation.notes = ["The validation loss is not measured: no image is held out."]
    evaluation.details = [("Base model", "tiny-dit"), ("Adapter", "rank 16, alpha 16, 4,200,000 parameters")]
    evaluation.settings = {"sampler": "DPMSolverMultistepScheduler", "clip_model": {"sha256": "0f" * 32}}
    draw_images(evaluation, root)
    metrics = [{"step": i, "loss": 1 / (i + 1), "lr": 1e-4} for i in range(80)]
    write.write_evaluation(root, evaluation, select_checkpoint(evaluation), metrics=metrics)
    two = Evaluation(
        "200 compared with 100", evaluation.prompts, evaluation.variants[1:3], fidelity_metric="dino_i"
    )
    for variant in two.variants:
        variant.files = {key: f"../{file}" for key, file in variant.files.items()}
    write.write_comparison(root / "compared", two)
    write_training_page(root / "training.html")
    (root / write.REPORT_FILE).rename(root / "evaluation.html")
    (root / "compared" / write.REPORT_FILE).rename(root / "comparison.html")
    return root


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_read_on_a_wide_and_on_a_narrow_window(tab: Browser, folder: Path, page: str) -> None:
    tab.requests.clear()
    tab.open(folder / f"{page}.html")
    for width in WIDTHS:
        assert layout_faults(tab, width) == []
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width in WIDTHS:
        assert layout_faults(tab, width) == []
    assert access_faults(tab) == []
    assert tab.complaints == []
    files = [address for address in tab.requests if not address.startswith("data:")]
    assert files == [(folder / f"{page}.html").resolve().as_uri()]
    assert tab.evaluate("document.scripts.length") == 0


@pytest.fixture
def viewer(tab: Browser, folder: Path) -> Browser:
    tab.open(folder / "evaluation.html")
    return tab


def focus(tab: Browser, name: str) -> None:
    tab.evaluate(f"{CHECKED.format(name)}.focus()")


def viewed(tab: Browser) -> list[str]:
    """The variants of the images that the viewer shows."""
    return list(tab.evaluate(f"{FIGURES}.map(f => f.querySelector('figcaption b').textContent)"))


def test_arrow_keys_step_through_checkpoints_on_the_same_prompt(viewer: Browser) -> None:
    prompt = viewer.evaluate(f"{FIGURES}[0].parentElement.querySelector('.prompt').textContent")
    assert viewed(viewer) == ["base", "step-200"]
    focus(viewer, "second")
    press(viewer, "ArrowRight")
    assert viewed(viewer) == ["base", "step-300"]
    press(viewer, "ArrowLeft")
    press(viewer, "ArrowLeft")
    assert viewed(viewer) == ["base", "step-100"]
    focus(viewer, "first")
    press(viewer, "ArrowRight")
    assert viewed(viewer) == ["step-100"]  # the same on both sides
    assert viewer.evaluate(f"{FIGURES}[0].parentElement.querySelector('.prompt').textContent") == prompt


def test_flipping_shows_both_images_at_the_same_place(viewer: Browser) -> None:
    box = f"{FIGURES}[0].querySelector('img').getBoundingClientRect()"
    place = f"(r => [r.left, r.top, r.width, r.height])({box})"
    focus(viewer, "view")
    press(viewer, "ArrowRight")
    assert viewed(viewer) == ["base"]
    first = viewer.evaluate(place)
    press(viewer, "ArrowRight")
    assert viewed(viewer) == ["step-200"]
    assert viewer.evaluate(place) == first
    press(viewer, "ArrowRight")
    assert viewed(viewer) == ["base", "step-200"]
    blends = f"{FIGURES}.map(f => getComputedStyle(f.querySelector('img')).mixBlendMode)"
    assert viewer.evaluate(blends) == ["normal", "difference"]


def test_prompts_are_chosen_and_filtered_by_keys(viewer: Browser) -> None:
    labels = "[...document.querySelectorAll('.shots label')].filter(l => l.getClientRects().length)"
    title = f"{FIGURES}[0].parentElement.querySelector('.prompt').textContent"
    total = viewer.evaluate(f"{labels}.length")
    before = viewer.evaluate(title)
    assert "typical" in before
    focus(viewer, "shot")
    press(viewer, "ArrowDown")
    assert viewer.evaluate(title) != before
    focus(viewer, "only")
    for word in ("best", "typical", "weakest"):
        press(viewer, "ArrowRight")
        count = viewer.evaluate(f"+{CHECKED.format('only')}.parentElement.querySelector('b').textContent")
        classes = viewer.evaluate(f"{labels}.map(l => l.className)")
        assert len(classes) == count < total
        assert all(f"f-{word}" in names.split() for names in classes)
    viewer.evaluate(f"{labels}[0].querySelector('input').focus()")
    press(viewer, " ")
    for _ in range(3):
        press(viewer, "ArrowDown")
        assert "weakest" in viewer.evaluate(title)


def test_a_point_of_a_curve_leads_to_the_images_of_its_checkpoint(viewer: Browser) -> None:
    link = "[...document.querySelectorAll('#training a')].find(a => a.href.baseVal.endsWith('at-v3'))"
    viewer.evaluate(f"{link}.focus()")
    press(viewer, "Enter")
    assert "step-300" in viewer.evaluate("document.querySelector('tr:target th').textContent")
    top = viewer.evaluate("document.querySelector('tr:target').getBoundingClientRect().top")
    assert 0 <= top < 900
    viewer.evaluate("document.querySelector('tr:target .jump').click()")
    assert viewed(viewer) == ["base", "step-300"]


def test_a_click_enlarges_an_image_and_another_one_does_not(viewer: Browser) -> None:
    image = f"{FIGURES}[1].querySelector('img')"
    state = f"getComputedStyle({image}).position"
    assert viewer.evaluate(state) == "static"
    viewer.evaluate(f"{image}.click()")
    assert viewer.evaluate(state) == "fixed"
    assert viewer.evaluate(f"{image}.getBoundingClientRect().height") > 600
    viewer.evaluate(f"{image}.click()")
    assert viewer.evaluate(state) == "static"
