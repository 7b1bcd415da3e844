"""What the report says: the verdict, ties, alarms beside their originals, the grid by the worst; hostile text
stays text; the numbers' twins as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.data.prompts import Prompt
from lorakit.evaluation import quality, score_table
from lorakit.evaluation.report import gallery, verdict, write
from lorakit.evaluation.report.page import evaluation_page
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import select_checkpoint
from tests.evaluation.simulated import Truth, evaluation, overfitting
from tests.reports.test_reports import read

ATTACK = "<script>alert(1)</script> {{7*7}} \" onload='x'"
COLOURS = ["gray", "red", "green", "blue", "purple", "orange"]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(quality, "RESAMPLES", 400)


def drawn(made: Evaluation, root: Path) -> Evaluation:
    """Give every picture of an evaluation a file, the arms in different colours, and originals to copies."""
    made.training = "data"
    for number, arm in enumerate(made.arms):
        for key, file in arm.files.items():
            picture = Image.new("RGB", (16, 16), COLOURS[number % len(COLOURS)])
            storage.save_image(root / file, picture)
            arm.lookalikes[key] = "original.png"
    storage.save_image(root / "data/original.png", Image.new("RGB", (16, 16), "yellow"))
    return made


def small(root: Path, *truths: Truth, subject: int = 8, other: int = 3) -> Evaluation:
    return drawn(evaluation(truths, subject=subject, other=other, noise=0.5), root)


def document(made: Evaluation, root: Path, **more):
    return read(evaluation_page(made, select_checkpoint(made), root, versions={"torch": "2"}, **more))


def test_the_verdict_leads_and_the_sections_follow_in_order(tmp_path):
    made = small(tmp_path, Truth(100, 0.4, 1.0), Truth(200, 0.8, 1.0), Truth(300, 0.8, 0.9, copies=0.8))
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    made.facts = [("Base", "a base")]
    text = document(made, tmp_path, metrics=rows).text
    heads = ["Take step 200", "Fidelity and adherence", "As training went on", "Alarms", "Scores", "Pictures"]
    heads += ["What was done", "Training", "Settings and versions"]
    places = [text.index(head) for head in heads]
    assert places == sorted(places)
    assert "Copies: step 300" in text
    assert "training image original.png at the right" in text
    assert "Indicative: 8 prompts" in text


def test_an_alarm_shows_the_picture_beside_the_training_image(tmp_path):
    made = small(tmp_path, Truth(100, 0.8, 1.0, copies=0.9))
    arm = made.tuned[0]
    (alarm,) = [a for s in select_checkpoint(made).standings for a in s.alarms if a.kind == "copy"]
    reader = read(gallery.alarm_examples(made, arm, alarm, tmp_path))
    assert reader.names().count("img") == 2 * len(alarm.examples)
    assert len({key[0] for key in alarm.examples}) == len(alarm.examples)  # one a prompt
    similarity = max(arm.scores["nearest"].values())
    assert f"similarity {100 * similarity:.1f}" in reader.text


def test_nothing_to_take_is_said_with_its_reason(tmp_path):
    made = small(tmp_path, Truth(100, 0.9, 1.0, copies=0.9), Truth(200, 0.9, 1.0, copies=0.9))
    text, good = verdict.selection_headline(made, select_checkpoint(made))
    assert good is False
    assert text.startswith("No checkpoint to take: every arm has an alarm. Copies: step 100 and step 200")


def test_what_is_not_beyond_chance_is_not_praised(tmp_path):
    made = evaluation([Truth(100, 0.02, 1.0, drift=0.1)], subject=8, noise=2.0)
    text, good = verdict.selection_headline(made, select_checkpoint(made))
    assert good is None
    assert "not beyond chance" in text


def test_a_better_lower_strength_says_that_the_adapter_is_too_strong(tmp_path):
    made = evaluation([Truth(100, 0.8, 1.0), Truth(101, 0.9, 0.5, drift=0.5)])
    low, full = made.tuned
    low.name, low.strength, full.step = "step 100 × 0.5", 0.5, 100
    chosen = select_checkpoint(made)
    assert chosen.arm is low
    assert "too strong: take it at 0.5" in " ".join(verdict.selection_remarks(made, chosen))


def test_the_grid_has_the_worst_prompt_first_and_an_arm_a_column(tmp_path):
    made = small(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    chosen = select_checkpoint(made)
    gains = made.column(chosen.arm, "clip_t", made.prompts) - made.column(made.base, "clip_t", made.prompts)
    worst = made.prompts[int(gains.argmin())]
    note, grid = gallery.sample_grid(made, made.arms, tmp_path, chosen)
    rows = read(grid)
    assert gallery.rank_prompts(made, made.base, chosen.arm)[0] is worst
    assert rows.text.index(worst.prompt) == min(rows.text.index(p.prompt) for p in made.prompts)
    assert [h for h in ("base", "step 100", "step 200") if h in rows.text] == ["base", "step 100", "step 200"]
    assert "gained least" in note
    assert rows.names().count("img") == len(made.prompts) * 3 * 4
    assert rows.names().count("input") == rows.names().count("img")  # each can be enlarged


def test_a_picture_that_is_gone_is_told_not_fatal(tmp_path):
    made = small(tmp_path, Truth(100, 0.6, 1.0))
    (tmp_path / made.arms[1].files["s0", 0]).unlink()
    assert "missing" in document(made, tmp_path).text


def test_hostile_text_stays_text_in_every_place(tmp_path):
    made = small(tmp_path, Truth(100, 0.8, 1.0, copies=0.9), Truth(200, 0.7, 1.0))
    made.title, made.notes, made.facts = ATTACK, [ATTACK], [(ATTACK, ATTACK)]
    made.settings = {"clip": {"model": ATTACK, "truncated": [ATTACK]}, ATTACK: ATTACK}
    made.prompts = [
        replace(p, prompt=f"{ATTACK} {p.id}", kind=ATTACK if p.kind == "view" else p.kind)
        for p in made.prompts
    ]
    for arm in made.arms:
        arm.lookalikes = dict.fromkeys(arm.files, "original.png")
    made.arms[2].name = ATTACK
    reader = document(made, tmp_path)
    assert {"script", "a", "form", "iframe"}.isdisjoint(reader.names())
    for name, attributes in reader.elements:
        assert not [key for key in attributes if key.startswith("on")], name
    assert reader.text.count(ATTACK) >= 12


def test_long_texts_that_were_cut_are_listed(tmp_path):
    made = small(tmp_path, Truth(100, 0.6, 1.0))
    made.settings = {"clip": {"model": "m", "truncated": ["a very long text"]}}
    text = document(made, tmp_path).text
    assert "1 text did not fit its context" in text
    assert "a very long text" in text


def test_the_twins_hold_every_number(tmp_path):
    made = small(tmp_path, Truth(100, 0.6, 1.0), Truth(200, 0.7, 1.0))
    chosen = select_checkpoint(made)
    write.write_evaluation(tmp_path, made, chosen)
    value = json.loads((tmp_path / score_table.SCORES_FILE).read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / write.CSV_FILE).read_text())))
    assert len(rows) == 3 * len(made.prompts) * 4
    scores = {(arm["name"], p["prompt_id"], p["seed"]): p for arm in value["arms"] for p in arm["pictures"]}
    for row in rows:
        found = scores[row["arm"], row["prompt_id"], int(row["seed"])]
        assert float(row["clip_t"]) == pytest.approx(found["clip_t"], abs=1e-6)
        assert row["file"] == found["file"]
    assert value["pick"] == json.loads(json.dumps(chosen.to_json()))
    gain = next(s for s in value["summary"] if s["arm"] == "step 200" and s["kind"] == "view")["clip_t_gain"]
    subject = made.of_role("subject")
    assert gain["mean"] == pytest.approx(made.gain(made.base, made.tuned[1], "clip_t", subject).mean)
    with Image.open(tmp_path / write.CONTACT_SHEET_FILE) as sheet:
        assert sheet.width > 8 * gallery.SHEET_CELL


def test_csv_cells_cannot_run_as_formulas():
    bad = ['=HYPERLINK("x")', "+1+1", "-2", "@SUM(A1)", "\tx", " =1", "＝1", 'a "red", dog\nline']
    made = Evaluation(
        "e", [Prompt(f"p{i}", text, text, seeds=(0,), kind=text) for i, text in enumerate(bad)], []
    )
    made.arms = [score_table.VariantScores("=arm", files={(p.id, 0): "=file.png" for p in made.prompts})]
    rows = list(csv.DictReader(io.StringIO(write.format_scores_csv(made))))
    assert len(rows) == len(bad)
    for row, text in zip(rows, bad, strict=True):
        for cell in (row["prompt"], row["kind"], row["score_text"], row["arm"], row["file"]):
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
        assert row["prompt"].removeprefix("'") == text


def test_written_twice_it_is_the_same_bytes(tmp_path):
    made = small(tmp_path, Truth(100, 0.6, 1.0))
    names = (score_table.SCORES_FILE, write.CSV_FILE, write.CONTACT_SHEET_FILE, write.REPORT_FILE)
    write.write_evaluation(tmp_path, made, select_checkpoint(made))
    first = [(tmp_path / name).read_bytes() for name in names]
    write.write_evaluation(tmp_path, made, select_checkpoint(made))
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_the_overfit_run_is_told_as_it_is():
    made = evaluation(overfitting(), subject=24, other=24)
    chosen = select_checkpoint(made)
    text, good = verdict.selection_headline(made, chosen)
    told = " ".join(verdict.selection_remarks(made, chosen))
    assert good is True
    assert text.startswith(f"Take {chosen.arm.name}: ")
    assert "Copies:" in told
    assert "step 1000" in told


def test_a_comparison_names_what_is_better_and_what_is_worse():
    made = evaluation([Truth(100, 0.5, 1.0, drift=0.05), Truth(200, 0.8, 0.6, drift=0.05)])
    text, good = verdict.comparison_summary(made, *made.tuned)
    assert text.startswith("step 200 is better in DINO-I")
    assert "worse in CLIP-T" in text
    assert good is None
    same, neutral = verdict.comparison_summary(made, made.tuned[0], made.tuned[0])
    assert same == "step 100 and step 100 cannot be told apart."
    assert neutral is None
