"""Before against after: pairing, means, choices, and the four files a reader gets."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorakit import report
from lorakit.errors import DataError
from lorakit.evaluate import compare, headline, load_shots, remarks, word_alternatives, write_report
from lorakit.evaluate.write import rank_prompts, scores_csv
from lorakit.prompts import Prompt, Shot
from tests.test_report import read

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourScorer:
    """A scorer one can check by hand: pictures are their mean colour, texts the colour they name."""

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        means = torch.tensor(np.array([np.asarray(image.convert("RGB")).mean((0, 1)) for image in images]))
        return torch.nn.functional.normalize(means, dim=-1)

    def _text(self, text: str) -> torch.Tensor:
        named = [torch.tensor(rgb, dtype=torch.float64) for name, rgb in COLOURS.items() if name in text]
        return torch.nn.functional.normalize(named[0], dim=-1)

    def clip_t(self, images: torch.Tensor, texts: Sequence[str]) -> Any:
        return (images * torch.stack([self._text(text) for text in texts])).sum(-1).numpy()

    def choose(self, images: torch.Tensor, options: Sequence[Sequence[str]]) -> Any:
        picks = [
            max(range(len(texts)), key=lambda i: float(self._text(texts[i]) @ image))
            for image, texts in zip(images, options, strict=True)
        ]
        return np.array(picks)

    def describe(self) -> dict[str, Any]:
        return {
            "model": "colours",
            "truncated": ["a <long> red text"],
            "size": [8, 8],
            "weights_sha256": None,
        }


def prompt(name: str, colour: str, kind: str = "concept", seeds: tuple[int, ...] = (0, 1)) -> Prompt:
    return Prompt(name, f"a sks {colour} dog", f"a {colour} dog", seeds=seeds, kind=kind)


def shots(prompts: Sequence[Prompt], colours: dict[str, tuple[int, int, int]]) -> list[Shot]:
    """Pictures in the colour given for the prompt, a little different for each seed."""
    made = []
    for item in prompts:
        for seed in item.seeds:
            rgb = tuple(min(255, value + 9 * seed) for value in colours[item.id])
            made.append(Shot(item, seed, Image.new("RGB", (24, 16), rgb)))
    return made


PROMPTS = [prompt("r", "red"), prompt("g", "green"), prompt("b", "blue", "other")]
BEFORE = shots(PROMPTS, {"r": (90, 90, 90), "g": (90, 90, 90), "b": (10, 10, 250)})
AFTER = shots(PROMPTS, {"r": (240, 10, 10), "g": (80, 100, 80), "b": (60, 10, 250)})


def test_scores_are_paired_by_prompt_and_seed_not_by_order() -> None:
    straight = compare(BEFORE, AFTER, ColourScorer())
    mixed = compare(BEFORE, list(reversed(AFTER)), ColourScorer())
    assert mixed.to_json() == straight.to_json()
    first = straight.pairs[0]
    assert (first.prompt.id, first.seed) == ("r", 0)
    assert first.before == pytest.approx(1 / np.sqrt(3))  # gray against red
    assert first.after == pytest.approx(240 / np.sqrt(240**2 + 10**2 + 10**2))
    assert first.gain == pytest.approx(first.after - first.before)


def test_groups_lead_with_the_concept_and_end_with_all() -> None:
    result = compare(list(reversed(BEFORE)), AFTER, ColourScorer())
    assert [group.kind for group in result.groups] == ["concept", "other", "all prompts"]
    concept, other, everything = result.groups
    assert (concept.pairs, concept.gain.units) == (4, 2)
    assert concept.gain.mean == pytest.approx(
        np.mean([p.gain for p in result.pairs if p.prompt.kind == "concept"])
    )
    assert concept.gain.mean > 0 > other.gain.mean
    assert everything.pairs == 6
    alone = compare(BEFORE[:4], AFTER[:4], ColourScorer())
    assert [group.kind for group in alone.groups] == ["concept"]


def test_accuracy_counts_the_pictures_that_were_asked() -> None:
    alternatives = word_alternatives(PROMPTS[:2], list(COLOURS))
    result = compare(BEFORE, AFTER, ColourScorer(), alternatives=alternatives)
    concept, other, _ = result.groups
    assert concept.right_after is not None
    assert concept.right_after.mean == 1.0
    assert concept.right_before is not None
    assert concept.right_before.mean == 0.5  # gray ties, and the first option, red, is taken
    assert other.right_after is None
    chosen = {(pair.prompt.id, pair.chosen_before, pair.chosen_after) for pair in result.pairs}
    assert chosen == {("r", "a red dog", "a red dog"), ("g", "a red dog", "a green dog"), ("b", None, None)}


def test_word_alternatives_swap_the_one_word_and_fit_the_article() -> None:
    texts = ["a striped red circle", "an outlined heart", "a circle", "striped neon", "a deep neon glow"]
    prompts = [Prompt(str(i), text, text) for i, text in enumerate(texts)]
    found = word_alternatives(prompts, ["striped", "outlined", "deep neon", ""])
    assert found == {
        "0": ["a striped red circle", "an outlined red circle", "a deep neon red circle", "a red circle"],
        "1": ["a striped heart", "an outlined heart", "a deep neon heart", "a heart"],
        "3": ["striped neon", "outlined neon", "deep neon neon", "neon"],
        "4": ["a striped glow", "an outlined glow", "a deep neon glow", "a glow"],
    }


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (BEFORE, AFTER[:-1], "missing pictures: b seed 1"),
        (BEFORE[1:], AFTER, "missing pictures: r seed 0"),
        (BEFORE, [*AFTER, AFTER[0]], "'r' with seed 0 appears twice"),
        ([], [], "no pictures"),
        (BEFORE, [Shot(replace(s.prompt, prompt="x"), s.seed, s.image) for s in AFTER], "not the same"),
    ],
)
def test_sets_that_cannot_be_paired_are_refused(before: list[Shot], after: list[Shot], said: str) -> None:
    with pytest.raises(DataError, match=said):
        compare(before, after, ColourScorer())


@pytest.mark.parametrize(
    ("alternatives", "said"),
    [({"x": ["a"]}, "no pictures"), ({"r": ["a blue dog", "a green dog"]}, "right answer, 'a red dog'")],
)
def test_alternatives_need_the_right_answer(alternatives: dict[str, list[str]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        compare(BEFORE, AFTER, ColourScorer(), alternatives=alternatives)


def save(folder: Path, rows: Any, names: Sequence[str] = ("one.png",)) -> Path:
    folder.mkdir()
    for name in names:
        Image.new("RGB", (8, 8), "red").save(folder / name)
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


def test_a_folder_of_any_generator_is_read_by_its_list(tmp_path: Path) -> None:
    rows = [{"prompt_id": "g", "seed": 7, "file": "one.png", "model": "closed"}]
    (shot,) = load_shots(save(tmp_path / "a", rows), PROMPTS)
    assert (shot.prompt, shot.seed) == (PROMPTS[1], 7)
    assert shot.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_that_sampling_wrote_is_read(tmp_path: Path) -> None:
    from lorakit import sample

    made = list(AFTER)
    sample.save(tmp_path, made)
    shots_read = load_shots(tmp_path, PROMPTS)
    assert compare(made, shots_read, ColourScorer()).groups[0].gain.mean == pytest.approx(0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "at least one"),
        ({"a": 1}, "at least one"),
        ([{"prompt_id": "r", "seed": 0}], "a row needs"),
        ([{"prompt_id": "r", "seed": "0", "file": "one.png"}], "a row needs"),
        ([{"prompt_id": "z", "seed": 0, "file": "one.png"}], "no id 'z'"),
        ([{"prompt_id": "r", "seed": 0, "file": "two.png"}], "does not exist"),
        ([{"prompt_id": "r", "seed": 0, "file": "../out.png"}], "outside the folder"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path: Path, rows: Any, said: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    with pytest.raises(DataError, match=said) as caught:
        load_shots(save(tmp_path / "a", rows), PROMPTS)
    assert "samples.json" in str(caught.value)


def test_a_folder_without_a_list_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"samples\.json") as caught:
        load_shots(tmp_path, PROMPTS)
    assert "prompt_id" in str(caught.value)


def many(gain: float) -> tuple[list[Shot], list[Shot]]:
    """24 prompts whose pictures turn from gray towards (or, below zero, away from) red."""
    prompts = [prompt(f"p{i}", "red") for i in range(24)]
    before = shots(prompts, {p.id: (100 + i, 100, 100) for i, p in enumerate(prompts)})
    after = shots(prompts, {p.id: (round(100 + i + 100 * gain), 100, 100) for i, p in enumerate(prompts)})
    return before, after


@pytest.mark.parametrize(
    ("gain", "good", "said"), [(1, True, "better"), (-0.9, False, "worse"), (0, None, "no diff")]
)
def test_the_verdict_follows_the_interval(gain: float, good: bool | None, said: str) -> None:
    groups = compare(*many(gain), ColourScorer()).groups
    text, verdict = headline(groups)
    assert verdict is good
    assert said in text
    assert remarks(groups) == ""


def test_the_verdict_names_scores_accuracy_others_and_few_prompts() -> None:
    alternatives = word_alternatives(PROMPTS[:2], list(COLOURS))
    groups = compare(BEFORE, AFTER, ColourScorer(), alternatives=alternatives).groups
    text, _ = headline(groups)
    shown = [f"{100 * value:.1f}" for value in (groups[0].before.mean, groups[0].after.mean)]
    assert f"CLIP-T {shown[0]} → {shown[1]}" in text
    text = remarks(groups)
    assert "100 % of the pictures, 50 % before" in text
    assert "Other prompts: −" in text
    assert "Indicative: 2 prompts, fewer than 24." in text


def test_csv_cells_cannot_run_as_formulas() -> None:
    bad = ['=HYPERLINK("x")', "+1+1", "-2", "@SUM(A1)", "\tx", " =1", "＝1", 'a "red", dog\nline']
    prompts = [Prompt(f"p{i}", text, f"{text} red", kind=text) for i, text in enumerate(bad)]
    pictures = [Shot(item, 0, Image.new("RGB", (8, 8), "red")) for item in prompts]
    rows = list(csv.DictReader(io.StringIO(scores_csv(compare(pictures, pictures, ColourScorer()).pairs))))
    assert len(rows) == len(bad)
    for row, text in zip(rows, bad, strict=True):
        for cell in (row["prompt"], row["kind"], row["score_text"]):
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
        assert row["prompt"].removeprefix("'") == text
        assert float(row["gain"]) == 0


def metrics(steps: int) -> list[dict[str, Any]]:
    return [
        {"step": i, "loss": 1 / (i + 1), "lr": 1e-4, "event": "step", "clipped": True} for i in range(steps)
    ]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    hostile = replace(PROMPTS[0], prompt="<script>alert(1)</script> red")
    rename = {"r": hostile}
    before, after = (
        [Shot(rename.get(shot.prompt.id, shot.prompt), shot.seed, shot.image) for shot in some]
        for some in (BEFORE, AFTER)
    )
    alternatives = word_alternatives([hostile, PROMPTS[1]], list(COLOURS))
    result = compare(before, after, ColourScorer(), alternatives=alternatives)
    extra = [report.section("More", report.paragraph("an extra section"))]
    facts = [("Base", "tiny-unet"), ("Steps", "300")]
    return write_report(
        tmp_path / "eval", result, title="Dog", facts=facts, metrics=metrics(120), extra=extra
    )


def test_the_page_shows_everything(written: Path) -> None:
    document = written.read_text(encoding="utf-8")
    page = read(document)
    assert "script" not in page.names()
    assert page.text.count("<script>alert(1)</script> red") >= 1
    for part in (
        "tiny-unet",
        "an extra section",
        "loss, running mean",
        "lr",
        "colours",
        "8 × 8",
        "torch",
        "open-clip",
    ):
        assert part in page.text
    assert "a <long> red text" in page.text
    assert page.names().count("img") == 12
    assert (
        page.text.index("a sks blue dog") < page.text.index("a sks green dog") < page.text.index("alert(1)")
    )
    assert "seed 1after" in page.text  # a line break between them
    badges = [a["class"] for name, a in page.elements if name == "span" and "badge" in str(a.get("class"))]
    assert badges.count("badge good") == 4  # both seeds of red and green
    assert badges.count("badge bad") == 2


def test_the_numbers_are_in_json_and_csv(written: Path) -> None:
    scores = json.loads((written.parent / "scores.json").read_text())
    assert [group["kind"] for group in scores["groups"]] == ["concept", "other", "all prompts"]
    assert len(scores["pairs"]) == 6
    assert scores["scorer"]["model"] == "colours"
    assert scores["versions"]["torch"]
    rows = list(csv.DictReader((written.parent / "scores.csv").open(encoding="utf-8")))
    gains = [float(row["gain"]) for row in rows]
    np.testing.assert_allclose(gains, [pair["gain"] for pair in scores["pairs"]], atol=1e-6)


def test_the_contact_sheet_has_before_and_after_side_by_side_for_each_prompt(written: Path) -> None:
    with Image.open(written.parent / "contact.png") as sheet:
        assert sheet.format == "PNG"
        assert 3 * 128 < sheet.height < 5 * 128
        assert sheet.width > 6 * 128  # the head, two seeds, a gap, the same two seeds
        last = sheet.convert("RGB").getpixel((sheet.width - 70, sheet.height - 70))
    assert last[0] > 200 > 100 > last[1]  # the best prompt's "after" is red and comes last


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    result = compare(BEFORE, AFTER, ColourScorer())
    one, two = (write_report(tmp_path / n, result, title="t", facts=[], metrics=[]) for n in "ab")
    for name in ("report.html", "scores.json", "scores.csv", "contact.png"):
        assert (one.parent / name).read_bytes() == (two.parent / name).read_bytes()


def test_prompts_with_different_seeds_and_no_metrics_fit_one_page(tmp_path: Path) -> None:
    prompts = [prompt("r", "red", seeds=(0, 1, 2)), prompt("g", "green", seeds=(5,))]
    pictures = shots(prompts, {"r": (200, 9, 9), "g": (9, 200, 9)})
    result = compare(pictures, pictures, ColourScorer())
    path = write_report(tmp_path, result, title="t", facts=[], metrics=[])
    page = read(path.read_text(encoding="utf-8"))
    assert page.names().count("img") == 8
    assert "seed 5" in page.text
    assert "What was done" not in page.text
    assert "no difference" in page.text


def test_many_prompts_are_shown_worst_first_and_the_rest_is_announced(tmp_path: Path) -> None:
    prompts = [prompt(f"p{i}", "red", seeds=(0,)) for i in range(60)]
    before = shots(prompts, {p.id: (100, 100, 100) for p in prompts})
    after = shots(prompts, {p.id: (100 + 2 * i, 100, 100) for i, p in enumerate(prompts)})
    result = compare(before, after, ColourScorer())
    assert [row[0].prompt.id for row in rank_prompts(result.pairs)][:3] == ["p0", "p1", "p2"]
    page = read(write_report(tmp_path, result, title="t", facts=[], metrics=[]).read_text(encoding="utf-8"))
    assert page.names().count("img") == 96
    assert "12 further pairs" in page.text
