"""CLIP scores compared with plain open_clip, on a tiny random model in open_clip's own format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from lorakit.core.errors import ConfigError
from lorakit.models import clip_weights
from lorakit.models.clip_score import ClipScorer
from lorakit.models.judge_files import JudgeFiles

CONTEXT = 16
LONG = "a very long caption about a dog that goes on and on, far beyond what this small model can read"
TEXTS = ["a red dog", "a blue cat", "two small green birds"]
MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash", "interpolation": "bicubic"}


def save_clip(folder: Path, model_cfg: dict[str, Any], state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    torch.nn.init.normal_(model.positional_embedding, std=0.5)  # so that the position of a token matters
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny", MODEL, model.state_dict())


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ClipScorer:
    return ClipScorer.from_folder(folder)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (64, 36), (20, 50)]  # width, height
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def plain_cosines(folder: Path, images: list[Image.Image], texts: list[str], **options: Any) -> np.ndarray:
    """Compute CLIP-T as open_clip's own README does."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", **options)
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        a = F.normalize(model.encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
        b = F.normalize(model.encode_text(tokens), dim=-1)
    return (a * b).sum(-1).numpy()


def test_clip_t_equals_plain_open_clip(folder: Path, images: list[Image.Image]) -> None:
    expected = plain_cosines(folder, images, TEXTS)
    scores = ClipScorer.from_folder(folder, resize="squash").clip_t(images, TEXTS)  # the folder's own way
    assert np.ptp(expected) > 1e-3  # different enough to reveal an error
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_resize_modes_are_those_of_open_clip(folder: Path, images: list[Image.Image], resize: Any) -> None:
    scorer = ClipScorer.from_folder(folder, resize=resize)
    expected = plain_cosines(folder, images, TEXTS, image_resize_mode=resize)
    np.testing.assert_allclose(scorer.clip_t(images, TEXTS), expected, atol=1e-6)
    assert scorer.describe()["resize"] == resize


def test_padding_keeps_the_whole_image_between_bars_of_the_mean_color(
    folder: Path, images: list[Image.Image]
) -> None:
    scorer = ClipScorer.from_folder(folder, resize="pad")
    padded = scorer.preprocess(images[1])  # 64 x 36 into 32 x 32: bars of 7 rows above and below
    assert padded.shape == (3, 32, 32)
    assert padded[:, :7].abs().max() < 0.02  # the mean is zero after normalization
    assert padded[:, -7:].abs().max() < 0.02
    assert padded[:, 8:24].abs().amax((0, 2)).min() > 0.5
    assert scorer.describe()["resize"] == "pad"


def test_what_is_not_square_is_padded_by_default_and_squares_are_the_same_in_every_way(
    folder: Path, scorer: ClipScorer, images: list[Image.Image]
) -> None:
    assert scorer.describe()["resize"] == "pad"
    square = [images[0], images[1].crop((0, 0, 36, 36)), images[2].resize((100, 100))]
    for resize in ("pad", "squash", "shortest"):
        other = ClipScorer.from_folder(folder, resize=resize)  # type: ignore[arg-type]
        torch.testing.assert_close(
            other.image_features(square), scorer.image_features(square), rtol=0, atol=0
        )
    assert (other.image_features(images[1:]) - scorer.image_features(images[1:])).abs().max() > 1e-3


def test_features_are_unit_float32_and_independent_of_the_batch(
    scorer: ClipScorer, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_images, of_texts = scorer.image_features(images), scorer.text_features([*TEXTS, TEXTS[0]])
    for features in (of_images, of_texts):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    torch.testing.assert_close(of_texts[3], of_texts[0])
    monkeypatch.setattr("lorakit.models.clip_score.BATCH", 1)
    torch.testing.assert_close(scorer.image_features(images), of_images, atol=1e-6, rtol=0)
    torch.testing.assert_close(scorer.text_features(TEXTS), of_texts[:3], atol=1e-6, rtol=0)
    assert scorer.image_features([]).numel() == scorer.text_features([]).numel() == 0


def test_other_color_modes_score_like_their_rgb(scorer: ClipScorer, images: list[Image.Image]) -> None:
    gray = images[1].convert("L")
    np.testing.assert_allclose(
        scorer.clip_t([gray], ["a"]), scorer.clip_t([gray.convert("RGB")], ["a"]), atol=1e-7
    )


def test_a_sentence_that_is_too_long_keeps_its_end_token_and_is_listed(folder: Path) -> None:
    scorer = ClipScorer.from_folder(folder)
    assert scorer.describe()["truncated_texts"] == []
    exact = "dog " * (CONTEXT - 2)  # one token each, and room for start and end: fits exactly
    long = exact + "dog"
    ids = scorer.tokenizer([long])[0]
    end = scorer.tokenizer.eot_token_id
    assert ids[-1] == end
    assert (ids == end).sum() == 1
    truncated, fitting, _ = scorer.text_features([long, exact, "a dog"])
    assert scorer.describe()["truncated_texts"] == [long]
    assert scorer.describe()["texts_by_sentence"] == []
    torch.testing.assert_close(truncated, fitting)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (LONG, [LONG.split(", ")[0] + ",", LONG.split(", ")[1]]),
        (
            "A red dog runs over the wide green field. A blue cat sleeps on the old warm wall!",
            ["A red dog runs over the wide green field.", "A blue cat sleeps on the old warm wall!"],
        ),
        ("red, dog, field, sun, sky, tree, bird, cat, wall", None),
    ],
)
def test_a_long_text_scores_the_mean_of_its_parts_cosines(
    text: str, parts: list[str] | None, folder: Path, images: list[Image.Image]
) -> None:
    scorer = ClipScorer.from_folder(folder)
    score = scorer.clip_t(images[:1], [text])[0]
    assert scorer.describe()["texts_by_sentence"] == [text]
    assert scorer.describe()["truncated_texts"] == []
    own = scorer.parts[text]
    assert own == (parts or own)
    assert " ".join(own) == text  # nothing is lost
    assert all(scorer.fits(part) for part in own)
    assert len(own) == 2  # as few parts as fit
    expected = np.mean([scorer.clip_t(images[:1], [part])[0] for part in own])
    assert score == pytest.approx(expected, abs=1e-7)
    assert scorer.clip_t(images[:1], [own[0]])[0] != pytest.approx(expected, abs=1e-4)


def test_nearest_text_selects_from_each_images_own_options(
    scorer: ClipScorer, images: list[Image.Image]
) -> None:
    options = [["a red dog", "a blue cat"], ["one"], ["a blue cat", "a red dog", "a green tree"]]
    features = scorer.image_features(images)
    expected = [int((scorer.text_features(o) @ features[i]).argmax()) for i, o in enumerate(options)]
    indices = scorer.nearest_text(images, options)
    assert indices.tolist() == expected
    swapped = scorer.nearest_text(images, [list(reversed(o)) for o in options])
    assert swapped.tolist() == [len(o) - 1 - e for o, e in zip(options, expected, strict=True)]


def test_describe_records_all_that_scores_depend_on(folder: Path) -> None:
    description = ClipScorer.from_folder(folder, dtype=torch.bfloat16, resize="pad").describe()
    assert json.loads(json.dumps(description)) == description
    assert description["model"] == folder.name
    assert description["dtype"] == "bfloat16"
    assert description["context_length"] == CONTEXT
    assert description["input_size"] in (32, [32, 32])
    assert len(description["weights_sha256"]) == 64
    assert str(folder.parent) not in json.dumps(description)  # results are shared, without paths of a machine


def test_bfloat16_is_close_to_float32(folder: Path, scorer: ClipScorer, images: list[Image.Image]) -> None:
    rounded = ClipScorer.from_folder(folder, dtype=torch.bfloat16).clip_t(images, TEXTS)
    np.testing.assert_allclose(rounded, scorer.clip_t(images, TEXTS), atol=0.02)
    assert rounded.dtype == np.float64


def test_the_embedded_layout_with_its_own_tokenizer(tmp_path: Path, images: list[Image.Image]) -> None:
    from tests.pretraining import clip
    from tests.pretraining.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = clip.build_clip(len(tokenizer)).eval()
    clip.export_clip(model, tokenizer, tmp_path / "clip")
    scorer = ClipScorer.from_folder(tmp_path / "clip")
    texts = ["a large red heart on a blue background", "a small green ring", "a striped circle"]
    stored, own_tokenizer = clip.load_clip(tmp_path / "clip")
    with torch.no_grad():
        expected = clip.encode_texts(stored, clip.tokenize(own_tokenizer, texts))
    torch.testing.assert_close(scorer.text_features(texts), expected, atol=1e-5, rtol=0)
    assert scorer.describe()["truncated_texts"] == []
    assert scorer.clip_t(images, texts).shape == (3,)
    scorer.text_features(["red heart " * 40])
    assert len(scorer.describe()["truncated_texts"]) == 1


@pytest.mark.parametrize("suffix", [None, ".bin"])
def test_missing_weights_are_an_error(folder: Path, tmp_path: Path, suffix: str | None) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    if suffix:
        (bare / f"open_clip_model{suffix}").write_bytes(b"a pickle would be opened here")
    with pytest.raises(ConfigError, match="safetensors") as caught:
        ClipScorer.from_folder(bare)
    assert str(bare) in str(caught.value)


def test_weights_of_another_shape_are_an_error(folder: Path, tmp_path: Path) -> None:
    wider = {**MODEL, "embed_dim": 32}
    torch.manual_seed(0)
    state = open_clip.CLIP(**MODEL).state_dict()
    with pytest.raises(ConfigError, match="cannot load CLIP"):
        ClipScorer.from_folder(save_clip(tmp_path / "wrong", wider, state))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ClipScorer("ViT-L-99"), "open_clip has no model 'ViT-L-99'"),
        (lambda: ClipScorer("ViT-L-14", "opanai"), "openai"),
        (lambda: ClipScorer("ViT-L-14", "missing.safetensors"), "no weights 'missing.safetensors'"),
        (lambda: ClipScorer("ViT-L-14", None), "no weights None"),
        (lambda: ClipScorer(resize="crop"), "unknown resize 'crop'"),  # type: ignore[arg-type]
        (lambda: ClipScorer(dtype=torch.float64), "float64"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(build: Callable[[], ClipScorer], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert words in str(caught.value)


def test_openai_weights_run_with_the_activation_of_their_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """open_clip builds "ViT-L-14" with GELU, and with OpenAI's QuickGELU weights it only warns."""
    arguments: dict[str, Any] = {}

    def create(name: str, weights: str, **options: Any) -> None:
        arguments.update(options, weights=weights)
        raise RuntimeError("no network")

    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(b"weights")
    specs: list[str] = []

    def resolve(spec: str, patterns: object, where: str) -> JudgeFiles:
        specs.append(spec)
        return JudgeFiles(tmp_path, spec, "18d05354", "ab12")

    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setattr(clip_weights, "resolve_judge", resolve)
    with pytest.raises(ConfigError, match="no network"):
        ClipScorer()
    assert specs == ["timm/vit_large_patch14_clip_224.openai"]  # the pinned files, not open_clip's download
    assert arguments["weights"] == str(weights)
    assert arguments["force_preprocess_cfg"]["std"] == open_clip.OPENAI_DATASET_STD
    assert arguments["force_quick_gelu"] is True
    assert arguments["require_pretrained"] is True
    with pytest.raises(ConfigError, match="no network"):
        ClipScorer("ViT-B-32", "laion2b_s34b_b79k")
    assert arguments["force_quick_gelu"] is False
    assert arguments["weights"] == "laion2b_s34b_b79k"
    assert len(specs) == 1


def test_mismatched_lengths_are_refused(scorer: ClipScorer, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="3 images but 1 texts"):
        scorer.clip_t(images, ["a"])
    with pytest.raises(ValueError, match="at least one option"):
        scorer.nearest_text(images, [["a"], ["b"], []])
