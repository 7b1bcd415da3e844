"""The evaluation report: verdict, alarms beside their originals, the best prompts first; hostile text stays
text; the same numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.core.statistics import Interval
from lorakit.data.prompts import Prompt
from lorakit.evaluation import score_table
from lorakit.evaluation.alarms import Alarm
from lorakit.evaluation.quality import NormalizedScores
from lorakit.evaluation.report import (
    alarm_cards,
    contact_sheet,
    figures,
    gallery,
    ranking,
    tables,
    variants,
    verdict,
    viewer,
    write,
)
from lorakit.evaluation.report.page import evaluation_page
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation, VariantScores
from lorakit.evaluation.select import Selection, select_checkpoint
from lorakit.evaluation.variant_origin import VariantOrigin
from lorakit.evaluation.vote.summary import PairResult, VoteSummary
from tests.evaluation.simulated import Truth, simulate
from tests.reports.test_reports import read
from tests.security import pages

ATTACK = "<script>alert(1)</script> {{7*7}} \" onload='x'"
COLORS = ["gray", "red", "green", "blue", "purple", "orange"]


def write_images(evaluation: Evaluation, root: Path) -> Evaluation:
    """Write a file for every image, each variant in its own color, and a training image as the original."""
    evaluation.train_images = "data"
    for number, variant in enumerate(evaluation.variants):
        for key, file in variant.files.items():
            image = Image.new("RGB", (16, 16), COLORS[number % len(COLORS)])
            storage.save_image(root / file, image)
            variant.nearest_train_images[key] = "original.png"
    for name in ("original.png", "3.png"):
        storage.save_image(root / "data" / name, Image.new("RGB", (16, 16), "yellow"))
    return evaluation


def small_evaluation(root: Path, *truths: Truth, subject: int = 8, unrelated: int = 3) -> Evaluation:
    return write_images(simulate(truths, subject=subject, unrelated=unrelated, noise=0.5), root)


def read_page(evaluation: Evaluation, root: Path, **options):
    selection = select_checkpoint(evaluation)
    return read(evaluation_page(evaluation, selection, root, versions={"torch": "2"}, **options))


def absent_images(reader) -> int:
    return sum(attributes.get("class") == "absent" for _, attributes in reader.elements)


def test_the_verdict_comes_first_and_the_sections_follow_in_order(tmp_path):
    evaluation = small_evaluation(
        tmp_path, Truth(100, 0.4, 1.0), Truth(200, 0.8, 1.0), Truth(300, 0.8, 0.9, copies=0.8)
    )
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    evaluation.details, evaluation.notes = [("Base model", "a base")], ["The validation loss is unknown."]
    selection = select_checkpoint(evaluation)
    page = evaluation_page(evaluation, selection, tmp_path, metrics=rows, versions={"torch": "2"})
    headings = re.findall(r"<h2 id[^>]*>(.*?)</h2>", page)
    assert headings == [
        "Images",
        "Every checkpoint",
        "Alarms",
        "Over training",
        "Fidelity and prompt adherence",
        "Figures",
        "Run",
        "Settings and versions",
    ]
    reader = read(page)
    links = [str(a["href"]) for name, a in reader.elements if name == "a" and str(a["href"]).startswith("#")]
    anchors = {a["id"] for _, a in reader.elements if "id" in a}
    assert {link.removeprefix("#") for link in links} <= anchors
    headline = verdict.selection_headline(evaluation, selection).headline
    assert reader.text.index(headline) < reader.text.index("Not known from this evaluation")
    assert reader.text.index("The validation loss is unknown.") < reader.text.index("Same prompt and noise")
    assert "Copied images: step-300" in reader.text
    assert "training image original.png on the right" in reader.text


def test_an_alarm_shows_the_image_beside_the_training_image(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.8, 1.0, copies=0.9))
    variant = evaluation.adapter_variants[0]
    selection = select_checkpoint(evaluation)
    (alarm,) = [alarm for alarm in selection.candidates[0].alarms if alarm.name == "copied_images"]
    pairs = alarm_cards.alarm_examples(evaluation, variant, alarm, tmp_path)
    assert len(pairs) == len(alarm.examples) > 0
    assert len({key.prompt_id for key in alarm.examples}) == len(alarm.examples)  # one for each prompt
    similarity = max(variant.scores["nearest_train_similarity"].values())
    for pair in pairs:
        assert pair.first.source != pair.second.source
        assert f"similarity {100 * similarity:.1f}" in pair.caption


@pytest.mark.parametrize(("level", "color"), [("alarm", "bad"), ("warning", "warn")])
def test_an_alarm_has_the_color_of_its_level_everywhere(tmp_path, level, color):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.8, 1.0), Truth(200, 0.8, 1.0))
    selection = select_checkpoint(evaluation)
    alarm = Alarm("drift", "it drifts", level=level)
    candidates = [
        replace(selection.candidates[0], alarms=[alarm]),
        replace(selection.candidates[1], alarms=[]),
    ]
    selection = replace(selection, variant=candidates[1].variant, candidates=candidates)
    (card,) = alarm_cards.alarm_cards(evaluation, selection, tmp_path)
    assert card.level == color
    (badge,) = variants.variant_badges(candidates[0].variant, selection)
    assert (badge.text, badge.level) == ("Drift", color)
    selected = replace(selection, variant=candidates[0].variant)
    column = gallery.evaluation_gallery(evaluation, tmp_path, selected).viewer.columns[1]
    assert (column.badge.text, column.badge.level) == ({"bad": "✓✕", "warn": "✓!"}[color], color)
    chart = figures.fidelity_adherence_chart(evaluation, selection)
    crosses = {str(shape.attributes["class"]) for shape in chart.drawings[0].shapes if shape.name == "circle"}
    assert crosses == {f"cross {color}", "cross good"}


def test_the_best_prompts_come_first_and_the_viewer_starts_with_a_typical_one(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    selection = select_checkpoint(evaluation)
    best = variants.best_variant(evaluation, selection)
    ranked = ranking.rank_prompts(evaluation, best)
    assert [one.prompt.role(evaluation.triggers) for one in ranked] == ["subject"] * 8 + ["unrelated"] * 3
    assert [one.label for one in ranked[:8]] == ["best"] * 2 + [""] + ["typical"] * 2 + [""] + ["weakest"] * 2
    subject = evaluation.prompts_of_role("subject")
    scores = {}
    for name in ("clip_t", "dino_i"):
        means = evaluation.prompt_means(best, name, subject)
        images = np.array([best.scores[name][SampleKey(p.id, s)] for p in subject for s in p.seeds])
        for prompt, mean in zip(subject, means, strict=True):
            scores[prompt.id] = scores.get(prompt.id, 0) + (mean - images.mean()) / images.std()
    assert [one.prompt.id for one in ranked[:8]] == sorted(scores, key=lambda id: -scores[id])
    shown = gallery.evaluation_gallery(evaluation, tmp_path, selection).viewer
    assert "typical" in shown.shots[shown.start].filters
    assert shown.shots[0].title == ranked[0].prompt.prompt
    assert [column.label for column in shown.columns] == ["base", "step-100", "step-200"]
    assert (shown.first, shown.columns[shown.second].label) == (0, best.name)
    assert len(shown.shots) == 11 * 4
    counts = {choice.key: choice.count for choice in shown.filters}
    assert counts == {"all": 44, "best": 8, "typical": 8, "weakest": 8, "kind-0": 32, "kind-1": 12}
    assert len(shown.references) == 1  # the other references have no file


@pytest.mark.parametrize(("num_variants", "prompts"), [(1, 8), (3, 24), (9, 24), (30, 24), (5, 200)])
def test_a_page_holds_a_limited_number_of_images_and_says_so(tmp_path, monkeypatch, num_variants, prompts):
    opened = []
    monkeypatch.setattr(variants.SampleImages, "open", lambda self, file: opened.append(file))
    truths = [Truth(100 * i, 0.5 + i / 100, 1.0) for i in range(1, num_variants + 1)]
    evaluation = simulate(truths, subject=prompts, unrelated=2)
    selection = Selection(evaluation.variants[-1], "", [], tied_with=["step-200"])
    shown = gallery.evaluation_gallery(evaluation, tmp_path, selection)
    assert len(shown.viewer.columns) <= variants.MAX_COLUMNS
    names = {column.label for column in shown.viewer.columns}
    assert {"base", evaluation.variants[-1].name} <= names
    assert num_variants < 2 or "step-200" in names
    assert len(shown.viewer.columns) * len(shown.viewer.shots) <= viewer.MAX_IMAGES
    assert {"best", "weakest"} <= {choice.key for choice in shown.viewer.filters}
    total = sum(len(variant.files) for variant in evaluation.variants)
    assert f"{total} more images only in the folder" in shown.note  # none of them could be opened
    assert (shown.overview is None) == (num_variants < 2)


def test_of_a_prompt_the_most_typical_seeds_are_shown(tmp_path):
    evaluation = simulate([Truth(100, 0.6, 1.0)], subject=8, unrelated=0)
    (variant,) = evaluation.adapter_variants
    prompt = evaluation.prompts[0]
    for seed, score in zip(prompt.seeds, (0.1, 0.5, 0.52, 0.9), strict=True):
        variant.scores["clip_t"][SampleKey(prompt.id, seed)] = score
        variant.scores["dino_i"][SampleKey(prompt.id, seed)] = 0.5
    assert ranking.typical_seeds(evaluation, variant, prompt, 2) == (1, 2)
    assert ranking.typical_seeds(evaluation, variant, prompt, 9) == (0, 1, 2, 3)


def test_curves_are_paired_gains_over_the_base_model_and_lead_to_the_images(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 0.9), Truth(200, 0.7, 0.8))
    evaluation.base.losses["validation"] = [0.5, 0.4, 0.3]
    for variant, gain in zip(evaluation.adapter_variants, (0.1, 0.2), strict=True):
        variant.losses["validation"] = [loss - gain for loss in evaluation.base.losses["validation"]]
    selection = select_checkpoint(evaluation)
    charts = {chart.title: chart for chart in figures.training_charts(evaluation, selection)}
    assert {
        "Fidelity, %",
        "Prompt adherence, %",
        "CLIP-T: gain over the base model, prompts of the subject",
        "Drift, unrelated prompts",
        "Diversity, % of the base model's",
        "Validation loss: change from the base model",
    } <= charts.keys()
    shapes = charts["Validation loss: change from the base model"].drawings[0].shapes
    assert [shape.title for shape in shapes if shape.link][-1].endswith(": -0.2 at 200")
    chart = charts["CLIP-T: gain over the base model, prompts of the subject"]
    assert [shape.link for shape in chart.drawings[0].shapes if shape.link] == ["#at-v1", "#at-v2"]
    difference = evaluation.paired_difference(
        evaluation.base, evaluation.adapter_variants[1], "clip_t", evaluation.prompts_of_role("subject")
    )
    titles = [shape.title for shape in chart.drawings[0].shapes if shape.title]
    assert titles[-1].endswith(f": {100 * difference.mean:.5g} at 200")


def test_a_figure_that_cannot_be_determined_is_named_and_in_no_chart(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    selection = select_checkpoint(evaluation)
    prompts = evaluation.prompts_of_role("subject")
    lowest = NormalizedScores(evaluation, [selection.variant], prompts).lowest("fidelity", 0)
    unknown = Interval.unknown("it needs more prompts", 8)
    candidates = [replace(candidate, fidelity=unknown) for candidate in selection.candidates]
    selection = replace(selection, fidelity=unknown, candidates=candidates)
    text = read(evaluation_page(evaluation, selection, tmp_path, versions={})).text
    assert "A more exact fidelity cannot be determined: it needs more prompts." in text
    assert f"at least {100 * lowest:.0f} %fidelity: 0 %" in re.sub(r"\s+(?=fidelity: 0)", "", text)
    assert figures.fidelity_adherence_chart(evaluation, selection) is None
    titles = {chart.title for chart in figures.training_charts(evaluation, selection)}
    assert "Fidelity, %" not in titles
    assert "Prompt adherence, %" in titles
    cells = [row[1] for row in tables.variants_table(evaluation, selection).rows]
    assert [getattr(cell, "tooltip", "") for cell in cells] == ["", *["it needs more prompts"] * 2]


def test_guests_and_variants_that_a_race_has_stopped_have_their_place(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0), Truth(300, 0.5, 1.0))
    guest, stopped = evaluation.variants[2], evaluation.variants[3]
    guest.name, guest.step = "theirs", None
    guest.origin = VariantOrigin("theirs.safetensors", "0" * 64, is_guest=True)
    stopped.stopped_early = True
    for key in [key for key in stopped.files if key.prompt_id != "s0"]:
        for scores in (stopped.files, *stopped.scores.values()):
            scores.pop(key, None)
    selection = select_checkpoint(evaluation)
    table = tables.variants_table(evaluation, selection)
    notes = {row[0]: [badge.text for badge in row[-1]] for row in table.rows}
    assert "other origin" in notes["theirs"]
    assert "stopped early" in notes["step-300"]
    reader = read_page(evaluation, tmp_path)
    assert absent_images(reader) == 10 * 4
    assert "missing" in reader.text  # in the overview


def test_the_votes_have_a_section(tmp_path, monkeypatch):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    share = Interval(0.8, 0.6, 0.9, 8)
    pair = PairResult("step-200", "step-100", 12, 8, 2, 1, 1, 6, 1, 8, share, 0.05, "step-200", 12)
    votes = VoteSummary((pair,), 1, 0, 0, 0.5, 0)
    reader = read_page(evaluation, tmp_path, votes=votes)
    assert "Votes of people" in reader.text
    assert "step-200 is preferred to step-100" in reader.text
    assert "Votes of people" not in read_page(evaluation, tmp_path).text


def test_a_deleted_image_is_shown_as_missing(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0))
    (tmp_path / evaluation.variants[1].files[SampleKey("s0", 0)]).unlink()
    assert absent_images(read_page(evaluation, tmp_path)) == 1


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
    selection = select_checkpoint(evaluation)
    page = evaluation_page(evaluation, selection, tmp_path, versions={ATTACK: ATTACK})
    assert pages.faults(page) == []
    assert read(page).text.count(ATTACK) >= 12


def test_links_lead_to_the_files_beside_the_page(tmp_path):
    evaluation = small_evaluation(tmp_path, Truth(100, 0.6, 1.0))
    reader = read_page(evaluation, tmp_path)
    files = [str(a["href"]) for name, a in reader.elements if name == "a" and str(a["href"]).startswith("./")]
    assert len(files) == 2 * 11 * 4
    assert all((tmp_path / file).is_file() for file in files)


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
        assert sheet.width > 8 * contact_sheet.SHEET_CELL


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


def test_a_comparison_names_the_metrics_that_are_better_and_worse():
    evaluation = simulate([Truth(100, 0.5, 1.0, drift=0.05), Truth(200, 0.8, 0.6, drift=0.05)])
    first, second = evaluation.adapter_variants
    summary = verdict.comparison_summary(evaluation, first, second)
    assert summary.text.startswith("step-200 is better in DINO-I")
    assert "worse in CLIP-T" in summary.text
    assert summary.good is None
    same = verdict.comparison_summary(evaluation, first, first)
    assert same.text.startswith("step-100 and step-100 cannot be distinguished")
    assert same.good is None
