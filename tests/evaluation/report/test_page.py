"""The evaluation report: verdict, alarms beside their originals, the grid with the worst first; hostile text
stays text; the same numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.data.prompts import Prompt
from lorakit.evaluation import quality, score_table
from lorakit.evaluation.report import gallery, verdict, write
from lorakit.evaluation.report.page import evaluation_page
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import select_checkpoint
from tests.evaluation.simulated import Truth, overfitting_run, simulate
from tests.reports.test_reports import read

ATTACK = "<script>alert(1)</script> {{7*7}} \" onload='x'"
COLOURS = ["gray", "red", "green", "blue", "purple", "orange"]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(quality, "RESAMPLES", 400)


def write_images(evaluation: Evaluation, root: Path) -> Evaluation:
    """Write a file for every image, each variant in its own colour, and a training image as the original."""
    evaluation.train_images = "data"
    for number, variant in enumerate(evaluation.variants):
        for key, file in variant.files.items():
            image = Image.new("RGB", (16, 16), COLOURS[number % len(COLOURS)])
            storage.save_image(root / file, image)
            variant.nearest_train_images[key] = "original.png"
    storage.save_image(root / "data/original.png", Image.new("RGB", (16, 16), "yellow"))
    return evaluation


def small_evaluation(root: Path, *truths: Truth, subject: int = 8, unrelated: int = 3) -> Evaluation:
    return write_images(simulate(truths, subject=subject, unrelated=unrelated, noise=0.5), root)


def read_page(evaluation: Evaluation, root: Path, **options):
    selection = select_checkpoint(evaluation)
    return read(evaluation_page(evaluation, selection, root, versions={"torch": "2"}, **options))


def test_the_verdict_comes_first_and_the_sections_follow_in_order(tmp_path):
    evaluation = small_evaluation(
        tmp_path, Truth(100, 0.4, 1.0), Truth(200, 0.8, 1.0), Truth(300, 0.8, 0.9, copies=0.8)
    )
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    evaluation.details = [("Base model", "a base")]
    selection = select_checkpoint(evaluation)
    page = evaluation_page(evaluation, selection, tmp_path, metrics=rows, versions={"torch": "2"})
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Fidelity and prompt adherence",
        "Scores over training",
        "Alarms",
        "Scores",
        "Images",
        "Run",
        "Training",
        "Settings and versions",
    ]
    text = read(page).text
    assert text.index("Use step-200") < text.index("Fidelity is the similarity to the reference images")
    assert "Copied images: step-300" in text
    assert "training image original.png on the right" in text
    assert "Indicative only: 8 prompts" in text


def test_an_alarm_shows_the_image_beside_the_training_image(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.8, 1.0, copies=0.9))
    variant = evaluation.adapter_variants[0]
    (candidate,) = select_checkpoint(evaluation).candidates
    (alarm,) = [alarm for alarm in candidate.alarms if alarm.name == "copied_images"]
    reader = read(gallery.alarm_examples(evaluation, variant, alarm, tmp_path))
    assert reader.names().count("img") == 2 * len(alarm.examples)
    assert len({key.prompt_id for key in alarm.examples}) == len(alarm.examples)  # one for each prompt
    similarity = max(variant.scores["nearest_train_similarity"].values())
    assert f"similarity {100 * similarity:.1f}" in reader.text


def test_the_verdict_says_why_no_checkpoint_is_recommended(tmp_path):
    evaluation = small_evaluation(
        tmp_path, Truth(100, 0.9, 1.0, copies=0.9), Truth(200, 0.9, 1.0, copies=0.9)
    )
    headline = verdict.selection_headline(evaluation, select_checkpoint(evaluation))
    assert headline.good is False
    assert headline.text.startswith(
        "No checkpoint is recommended: every variant has an alarm. Copied images: step-100 and step-200 ("
    )


def test_a_gain_that_chance_explains_is_not_good_news():
    evaluation = simulate([Truth(100, 0.02, 1.0, drift=0.1)], subject=8, noise=2.0)
    headline = verdict.selection_headline(evaluation, select_checkpoint(evaluation))
    assert headline.good is None
    assert "not beyond chance" in headline.text


def test_a_selected_lower_strength_says_that_the_adapter_is_too_strong():
    evaluation = simulate([Truth(100, 0.8, 1.0), Truth(101, 0.9, 0.5, drift=0.5)])
    low, full = evaluation.adapter_variants
    low.name, low.strength, full.step = "step-100@0.5", 0.5, 100
    selection = select_checkpoint(evaluation)
    assert selection.variant is low
    notes = " ".join(verdict.selection_notes(evaluation, selection))
    assert "too strong at strength 1: use it at 0.5" in notes


def test_the_grid_has_the_worst_prompt_first_and_a_column_for_each_variant(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    selection = select_checkpoint(evaluation)
    base, selected = evaluation.base, selection.variant
    after, before = (evaluation.prompt_means(v, "clip_t", evaluation.prompts) for v in (selected, base))
    worst = evaluation.prompts[int((after - before).argmin())]
    note, grid = gallery.sample_grid(evaluation, evaluation.variants, tmp_path, selection)
    rows = read(grid)
    assert gallery.rank_prompts(evaluation, base, selected)[0] is worst
    assert rows.text.index(worst.prompt) == min(rows.text.index(p.prompt) for p in evaluation.prompts)
    heads = [rows.text.index(head) for head in ("base", "step-100", "step-200")]
    assert heads == sorted(heads)
    assert "smallest gain" in note
    assert rows.names().count("img") == len(evaluation.prompts) * 3 * 4
    assert rows.names().count("input") == rows.names().count("img")  # each can be enlarged


def test_a_deleted_image_is_shown_as_missing(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0))
    (tmp_path / evaluation.variants[1].files[SampleKey("s0", 0)]).unlink()
    assert "missing" in read_page(evaluation, tmp_path).text


def test_hostile_text_stays_text_in_every_place(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.8, 1.0, copies=0.9), Truth(200, 0.7, 1.0))
    evaluation.title, evaluation.notes, evaluation.details = ATTACK, [ATTACK], [(ATTACK, ATTACK)]
    evaluation.settings = {"clip_model": {"model": ATTACK, "truncated_texts": [ATTACK]}, ATTACK: ATTACK}
    evaluation.prompts = [
        replace(p, prompt=f"{ATTACK} {p.id}", kind=ATTACK if p.kind == "view" else p.kind)
        for p in evaluation.prompts
    ]
    for variant in evaluation.variants:
        variant.nearest_train_images = dict.fromkeys(variant.files, "original.png")
    evaluation.variants[2].name = ATTACK
    reader = read_page(evaluation, tmp_path)
    assert {"script", "a", "form", "iframe"}.isdisjoint(reader.names())
    for name, attributes in reader.elements:
        assert not [key for key in attributes if key.startswith("on")], name
    assert reader.text.count(ATTACK) >= 12


def test_truncated_texts_are_listed(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0))
    evaluation.settings = {"clip_model": {"model": "m", "truncated_texts": ["a very long text"]}}
    text = read_page(evaluation, tmp_path).text
    assert "1 text too long for the model" in text
    assert "a very long text" in text


def test_json_and_csv_hold_every_number(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    selection = select_checkpoint(evaluation)
    write.write_evaluation(tmp_path, evaluation, selection)
    value = json.loads((tmp_path / score_table.SCORES_FILE).read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / write.CSV_FILE).read_text())))
    assert len(rows) == 3 * len(evaluation.prompts) * 4
    images = {
        (variant["name"], image["prompt_id"], image["seed"]): image
        for variant in value["variants"]
        for image in variant["images"]
    }
    for row in rows:
        image = images[row["variant"], row["prompt_id"], int(row["seed"])]
        assert float(row["clip_t"]) == pytest.approx(image["clip_t"], abs=1e-6)
        assert row["file"] == image["file"]
    assert value["selection"] == json.loads(json.dumps(selection.to_json()))
    gains = {(row["variant"], row["kind"]): row.get("clip_t_gain") for row in value["summary"]}
    subject = evaluation.prompts_of_role("subject")
    second = evaluation.adapter_variants[1]
    difference = evaluation.paired_difference(evaluation.base, second, "clip_t", subject)
    assert gains["step-200", "view"]["mean"] == pytest.approx(difference.mean)
    with Image.open(tmp_path / write.CONTACT_SHEET_FILE) as sheet:
        assert sheet.width > 8 * gallery.SHEET_CELL


def test_csv_cells_cannot_run_as_formulas():
    bad = ['=HYPERLINK("x")', "+1+1", "-2", "@SUM(A1)", "\tx", " =1", "＝1", 'a "red", dog\nline']
    prompts = [Prompt(f"p{i}", text, text, seeds=(0,), kind=text) for i, text in enumerate(bad)]
    files = {SampleKey(prompt.id, 0): "=file.png" for prompt in prompts}
    evaluation = Evaluation("e", prompts, [VariantScores("=variant", files=files)])
    rows = list(csv.DictReader(io.StringIO(write.format_scores_csv(evaluation))))
    assert len(rows) == len(bad)
    for row, text in zip(rows, bad, strict=True):
        for cell in (row["prompt"], row["kind"], row["score_text"], row["variant"], row["file"]):
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
        assert row["prompt"].removeprefix("'") == text


def test_files_written_twice_are_byte_identical(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0))
    names = (score_table.SCORES_FILE, write.CSV_FILE, write.CONTACT_SHEET_FILE, write.REPORT_FILE)
    write.write_evaluation(tmp_path, evaluation, select_checkpoint(evaluation))
    first = [(tmp_path / name).read_bytes() for name in names]
    write.write_evaluation(tmp_path, evaluation, select_checkpoint(evaluation))
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_the_verdict_of_an_overfitting_run_names_the_best_and_the_copying_checkpoints():
    evaluation = simulate(overfitting_run(), subject=24, unrelated=24)
    selection = select_checkpoint(evaluation)
    headline = verdict.selection_headline(evaluation, selection)
    notes = " ".join(verdict.selection_notes(evaluation, selection))
    assert headline.good is True
    assert headline.text.startswith(f"Use {selection.variant.name}: fidelity ")
    assert "Copied images:" in notes
    assert "step-1000" in notes


def test_a_comparison_names_the_metrics_that_are_better_and_worse():
    evaluation = simulate([Truth(100, 0.5, 1.0, drift=0.05), Truth(200, 0.8, 0.6, drift=0.05)])
    first, second = evaluation.adapter_variants
    summary = verdict.comparison_summary(evaluation, first, second)
    assert summary.text.startswith("step-200 is better in DINO-I")
    assert "worse in CLIP-T" in summary.text
    assert summary.good is None
    same = verdict.comparison_summary(evaluation, first, first)
    assert same.text == "step-100 and step-100 cannot be distinguished."
    assert same.good is None
