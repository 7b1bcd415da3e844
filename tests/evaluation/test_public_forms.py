"""Public prompt-file forms and folders of other tools, scored by CLIP: the right image wins for each prompt,
and not if the images are in another order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.core import storage
from lorakit.data.prompts import load_prompts
from lorakit.evaluation import score_table
from lorakit.evaluation.sample_files import find_samples
from lorakit.models import base_model, clip_score
from lorakit.quickstart import shape_world
from tests.evaluation.generated_folders import METADATA, NAMES

SCENES = [
    shape_world.Scene("circle", "red", "white"),
    shape_world.Scene("heart", "blue", "yellow"),
    shape_world.Scene("ring", "green", "pink"),
    shape_world.Scene("square", "orange", "blue"),
]
TEXTS = [shape_world.scene_caption(scene) for scene in SCENES]
PUBLIC_FORMS = {
    "prompts.jsonl": "\n".join(json.dumps({"prompt": text, "tag": "x", "include": []}) for text in TEXTS),
    "prompts.yaml": "".join(f"- prompt: {text}\n  seed: 0\n" for text in TEXTS),
    "PartiPrompts.tsv": "Prompt\tCategory\tChallenge\tNote\n" + "".join(f"{t}\tA\tB\t\n" for t in TEXTS),
    "drawbench.csv": "Prompts,Category\n" + "".join(f'"{text}",Colors\n' for text in TEXTS),
    "prompts.json": json.dumps({f"p{number}": text for number, text in enumerate(TEXTS)}),
    "kohya.txt": "".join(f"# prompt {n}\n{t} --n blurry --w 64 --d {n}\n" for n, t in enumerate(TEXTS)),
    "a1111.txt": "".join(f'--prompt "{text}" --steps 20 --cfg_scale 7\n' for text in TEXTS),
}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [shape_world.render_scene(scene, 96) for scene in SCENES]


@pytest.fixture(scope="module")
def clip() -> clip_score.ClipScorer:
    return clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)


def best_texts(clip: clip_score.ClipScorer, images: Sequence[Image.Image]) -> list[str]:
    """The text of `TEXTS` that CLIP prefers for each image."""
    scores = [clip.clip_t(list(images), [text] * len(images)) for text in TEXTS]
    return [max(zip(column, TEXTS, strict=True))[1] for column in zip(*scores, strict=True)]


def num_right(clip: clip_score.ClipScorer, folder: Path, prompt_file: Path) -> int:
    """The number of images whose prompt is the one that CLIP prefers for them."""
    samples = find_samples(folder, load_prompts(prompt_file))
    pictures = []
    for sample in samples:
        with Image.open(sample.path) as image:
            pictures.append(image.convert("RGB"))
    best = best_texts(clip, pictures)
    return sum(sample.prompt.score_text == text for sample, text in zip(samples, best, strict=True))


@pytest.mark.parametrize("name", PUBLIC_FORMS)
def test_each_public_form_scores_the_right_image_and_a_shuffled_one_does_not(
    name: str, images: list[Image.Image], clip: clip_score.ClipScorer, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(PUBLIC_FORMS[name], encoding="utf-8")
    prompts = load_prompts(tmp_path / name)
    for shift, right in ((0, 4), (1, 0)):
        folder = tmp_path / f"shifted-{shift}"
        for number, prompt in enumerate(prompts):
            storage.save_image(folder / f"{prompt.id}-{prompt.seeds[0]}.png", images[(number + shift) % 4])
        assert num_right(clip, folder, tmp_path / name) == right


@pytest.mark.parametrize(
    "tool", ["A1111 PNG", "ComfyUI Flux", "InvokeAI", "kohya steps", "ai-toolkit", "Midjourney"]
)
def test_a_folder_of_each_tool_scores_the_right_image_and_a_shuffled_one_does_not(
    tool: str, images: list[Image.Image], clip: clip_score.ClipScorer, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for shift, right in ((0, 4), (1, 0)):
        folder = tmp_path / f"shifted-{shift}"
        shuffled = images[shift:] + images[:shift]
        (METADATA | NAMES)[tool](folder, list(zip(TEXTS, shuffled, strict=True)))
        assert num_right(clip, folder, tmp_path / "p.txt") == right


def test_samples_of_a_training_are_scored_step_by_step(
    images: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text(PUBLIC_FORMS["kohya.txt"], encoding="utf-8")
    for step, shown in ((500, images[1:] + images[:1]), (1000, images)):
        for index, image in enumerate(shown):
            storage.save_image(tmp_path / f"run/dog_{step:06d}_{index:02d}_20260101000000_7.png", image)
    storage.save_image(tmp_path / "run/dog_001500_00_20260101000000_7.png", images[0])
    command = ["eval", "score", str(tmp_path / "run"), "--prompts", str(tmp_path / "p.txt"), "--quiet"]
    assert main.main([*command, "--clip-model", "embedded"]) == 0
    evaluation = score_table.load_evaluation(tmp_path / "run-scores")
    assert [(variant.name, variant.step) for variant in evaluation.variants] == [
        ("step 500", 500),
        ("step 1000", 1000),
    ]
    early, late = (sum(variant.scores["clip_t"].values()) for variant in evaluation.variants)
    assert late > early + 0.2
    assert any("step 1500" in note for note in evaluation.notes)
    assert "step 1500" in capsys.readouterr().err


def test_a_folder_is_scored_without_a_prompt_file(images: list[Image.Image], tmp_path: Path) -> None:
    METADATA["SwarmUI"](tmp_path / "swarm", list(zip(TEXTS, images, strict=True)))
    command = ["eval", "score", str(tmp_path / "swarm"), "--clip-model", "embedded", "--quiet"]
    assert main.main(command) == 0
    evaluation = score_table.load_evaluation(tmp_path / "swarm-scores")
    assert sorted(prompt.prompt for prompt in evaluation.prompts) == sorted(TEXTS)
    assert any("SwarmUI (4)" in note for note in evaluation.notes)
