"""Evaluation of image folders with PartiPrompts-style prompts, comparison of two evaluations, and reports
written again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from lorakit.cli import main
from lorakit.core import storage
from lorakit.evaluation import score_table
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world

PARTI = """Prompt\tCategory\tChallenge\tNote
a red circle on a white background\tAbstract\tBasic\t
a "blue" heart\tArts\tBasic\t
a green ring on a yellow background\tAbstract\tFine-grained Detail\tx
a large orange square\tArts\tQuantity\t
"""
SCENES = [
    shape_world.Scene("circle", "red", "white"),
    shape_world.Scene("heart", "blue", "pink"),
    shape_world.Scene("ring", "green", "yellow"),
    shape_world.Scene("square", "orange", "blue", size="large"),
]


def photos(folder: Path, style: str, seeds: int = 2) -> Path:
    """Images as another generator would name them: by prompt number and seed."""
    for number, scene in enumerate(SCENES, 1):
        for seed in range(seeds):
            rng = np.random.default_rng([number, seed])
            image = shape_world.render_scene(
                shape_world.jitter_scene(rng, shape_world.with_attribute(scene, "style", style)), 128
            )
            storage.save_image(folder / f"{number:04d}-{seed}.png", image)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    (root / "parti.tsv").write_text(PARTI)
    for style in ("solid", "striped"):
        photos(root / style, style)
        command = ["eval", "score", str(root / style), "--prompts", str(root / "parti.tsv")]
        assert main.main([*command, "--clip-model", "embedded", "--quiet"]) == 0
    return root


def test_a_folder_of_images_is_scored_by_the_embedded_clip(place):
    root = place / "solid-scores"
    evaluation = score_table.load_evaluation(root)
    (variant,) = evaluation.variants
    clip = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    from PIL import Image

    for key, file in variant.files.items():
        prompt = next(p for p in evaluation.prompts if p.id == key.prompt_id)
        with Image.open(root / file) as image:
            expected = clip.clip_t([image], [prompt.prompt])[0]
        assert variant.scores["clip_t"][key] == pytest.approx(expected, abs=1e-6)
    assert [p.kind for p in evaluation.prompts] == ["Abstract", "Arts", "Abstract", "Arts"]
    page = (root / "report.html").read_text()
    assert "Abstract" in page
    assert "a &#34;blue&#34; heart" in page
    rows = list(csv.DictReader((root / "scores.csv").open(encoding="utf-8")))
    assert len(rows) == 8
    assert {row["kind"] for row in rows} == {"Abstract", "Arts"}
    assert not list((place / "solid").glob("*.json"))  # the user's folder is unchanged


def test_two_evaluations_are_compared_prompt_by_prompt(place, capsys):
    out = place / "against"
    code = main.main(
        [
            "eval",
            "compare",
            str(place / "solid-scores"),
            str(place / "striped-scores"),
            "--out",
            str(out),
            "--json",
        ]
    )
    answer = json.loads(capsys.readouterr().out)
    assert code == 0
    first, second = (score_table.load_evaluation(place / f"{style}-scores") for style in ("solid", "striped"))
    gains = [
        np.mean(
            [
                second.variants[0].scores["clip_t"][p.id, s] - first.variants[0].scores["clip_t"][p.id, s]
                for s in p.seeds
            ]
        )
        for p in first.prompts
    ]
    assert answer["differences"]["clip_t"]["mean"] == pytest.approx(np.mean(gains), abs=1e-9)
    assert (answer["first"], answer["second"]) == ("solid", "striped")
    page = (out / "report.html").read_text()
    assert "Beyond chance" in page
    assert page.count("<img") == 16
    assert score_table.load_evaluation(out).variants[1].files["0001", 0] == "../striped/0001-0.png"


def test_an_evaluation_does_not_differ_from_itself(place, capsys, tmp_path):
    one = str(place / "solid-scores")
    assert main.main(["eval", "compare", one, one, "--out", str(tmp_path)]) == 0
    assert "cannot be distinguished" in capsys.readouterr().out


def test_evaluations_with_other_settings_are_not_compared(place, tmp_path, capsys):
    command = [
        "eval",
        "score",
        str(place / "solid"),
        "--prompts",
        str(place / "parti.tsv"),
        "--clip-model",
        "embedded",
    ]
    assert main.main([*command, "--resize", "squash", "--out", str(tmp_path / "pad"), "--quiet"]) == 0
    code = main.main(["eval", "compare", str(place / "solid-scores"), str(tmp_path / "pad")])
    assert code == 3
    assert "resize" in capsys.readouterr().err


def test_with_base_images_and_references_a_folder_has_all_scores_of_a_run(place, tmp_path, capsys):
    """Images that copy the references are called out, though no checkpoint of ours evaluation them."""
    style = "striped"
    for number in range(6):
        rng = np.random.default_rng(number)
        storage.save_image(
            tmp_path / f"refs/{number}.png",
            shape_world.render_scene(shape_world.random_scene(rng, styles=(style,))),
        )
    command = [
        "eval",
        "score",
        str(place / style),
        "--prompts",
        str(place / "parti.tsv"),
        "--clip-model",
        "embedded",
    ]
    more = [
        "--base-images",
        str(place / "solid"),
        "--references",
        str(tmp_path / "refs"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main.main([*command, *more, "--json", "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["selection"]["few_prompts"] is True
    evaluation = score_table.load_evaluation(tmp_path / "out")
    assert evaluation.base is not None
    assert evaluation.copy_scale is not None
    assert evaluation.adapter_variants[0].name == "striped"
    assert (
        evaluation.paired_difference(
            evaluation.base, evaluation.adapter_variants[0], "clip_i", evaluation.prompts
        ).ci_low
        > 0
    )


def test_the_report_is_written_again_from_the_numbers_alone(place, capsys):
    root = place / "solid-scores"
    before = (root / "report.html").read_bytes()
    (root / "report.html").write_text("gone")
    assert main.main(["eval", "report", str(root)]) == 0
    assert (root / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pick", "{solid}"], 2, "nothing to select from"),
        (["pick", "{root}"], 3, "lorakit eval run"),
        (["compare", "{solid}@step-9", "{solid}"], 2, "no variant 'step-9'"),
        (["score", "{root}/solid", "--prompts", "{root}/nowhere.tsv"], 3, "the file does not exist"),
        (["score", "{root}", "--prompts", "{root}/parti.tsv"], 3, "in folders of their own"),
        (
            [
                "score",
                "{root}/solid",
                "--prompts",
                "{root}/parti.tsv",
                "--metric",
                "bleu",
                "--clip-model",
                "embedded",
            ],
            2,
            "bleu",
        ),
        (
            ["score", "{root}/solid", "--prompts", "{root}/parti.tsv", "--clip-model", "ViT"],
            2,
            "--clip-model",
        ),
        (["run", "{root}"], 2, "not a run"),
        (["prompts", "{root}"], 3, "no manifest"),
    ],
)
def test_a_mistake_is_one_readable_error(place, capsys, arguments, code, message):
    command = [text.format(root=place, solid=place / "solid-scores") for text in arguments]
    assert main.main(["eval", *command]) == code
    err = capsys.readouterr().err
    assert "\nerror: " in f"\n{err}"
    assert message in err
