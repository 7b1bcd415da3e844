"""Captioners that run here: tiny models of the real classes, with random weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data_tools.captioners import CaptionerOptions, CaptionFailure, CaptionRequest, load_captioner
from data_tools.captioners.captioner import CHAT_PROMPT
from data_tools.captions.generate import CaptioningOptions
from data_tools.prepare import PrepareOptions, caption_dataset
from lorakit.core.errors import ConfigError
from tests.data_tools.folders import fill, photo
from tests.tiny import parts

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL: a chat model."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    tokenizer = parts.qwen_tokenizer(*parts.VISION_TOKENS)
    tokenizer.chat_template = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = parts.qwen25_vl(tokenizer)
    for parameter in model.parameters():  # or tiny random weights would hardly depend on the image
        parameter.data.mul_(4)
    images = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=CHAT)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLIP: a model whose prompt is the start of the caption, or empty."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("models") / "tiny-blip"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *["a", "photo", "of", "red", "blue", "green", "dog", "cat", "wall", "on", "the"],
    ]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": len(words),
        "bos_token_id": 2,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "eos_token_id": 3,
    }
    config = BlipConfig(
        text_config=small | text | {"encoder_hidden_size": 16, "max_position_embeddings": 64},
        vision_config=small | {"image_size": 32, "patch_size": 16},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def images(count: int) -> list[Image.Image]:
    return [photo(seed, (64, 48)) for seed in range(count)]


def asks(captioner: Any, count: int = 2) -> list[CaptionRequest]:
    return [CaptionRequest(image, captioner.prompts[0], seed) for seed, image in enumerate(images(count))]


def test_a_chat_model_answers_through_its_template(chat_model: Path) -> None:
    captioner = load_captioner(CaptionerOptions(model=str(chat_model), max_tokens=8))
    assert captioner.name == "tiny-chat"
    assert captioner.prompts == (CHAT_PROMPT,)
    answers = captioner.caption(asks(captioner))
    assert len(answers) == 2
    assert all(answer.text and answer.truncated for answer in answers)  # random weights find no end
    assert not any("assistant" in answer.text or "Describe" in answer.text for answer in answers)
    assert captioner.caption(asks(captioner)) == answers


def test_a_batch_gives_the_same_captions_as_single_images(chat_model: Path) -> None:
    captioner = load_captioner(CaptionerOptions(model=str(chat_model), max_tokens=6, concurrency=3))
    questions = [CaptionRequest(p, f"what is {'very ' * n}red?") for n, p in enumerate(images(3))]
    together = captioner.caption(questions)
    assert together == [answer for question in questions for answer in captioner.caption([question])]
    assert len({answer.text for answer in together}) > 1


def test_sampled_answers_depend_only_on_the_seed(chat_model: Path) -> None:
    captioner = load_captioner(CaptionerOptions(model=str(chat_model), max_tokens=6, temperature=1.0))
    image = images(1)[0]
    state = torch.random.get_rng_state()
    first = captioner.caption([CaptionRequest(image, "what?", seed) for seed in (1, 2)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first[0] != first[1]
    assert captioner.caption([CaptionRequest(image, "what?", 2)]) == [first[1]]


def test_a_model_without_a_template_takes_plain_text(plain_model: Path) -> None:
    captioner = load_captioner(CaptionerOptions(model=str(plain_model), max_tokens=5))
    assert captioner.prompts == ("",)
    (bare,) = captioner.caption([CaptionRequest(images(1)[0], "")])
    (begun,) = captioner.caption([CaptionRequest(images(1)[0], "a photo of")])
    assert bare.text
    assert begun.text
    assert not bare.text.startswith("[")


def test_a_truncated_answer_is_noted_in_the_manifest(chat_model: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": None, "b.png": None}, size=(64, 48))
    options = PrepareOptions(
        quiet=True,
        captioner=CaptionerOptions(model=str(chat_model), max_tokens=6),
        captioning=CaptioningOptions(prompts=("what?",)),
    )
    result = caption_dataset(folder, options)
    # Random weights never end a sentence, and so each answer is truncated, which is noted.
    notes = [note for record in result.records for note in record.notes]
    assert [note.partition(" ")[0] for note in notes] == ["caption_failed:"] * 2
    assert all("truncated" in note or "empty" in note or "no words" in note for note in notes)


def test_an_unsuitable_model_is_refused_before_anything_loads(tmp_path: Path) -> None:
    def folder(name: str, config: dict[str, object] | None, *, weights: bool = True) -> str:
        made = tmp_path / name
        made.mkdir()
        if config is not None:
            (made / "config.json").write_text(json.dumps(config))
        if weights:
            (made / "model.safetensors").write_bytes(b"")
        return str(made)

    for given, words in (
        (folder("bare", None), "no config.json"),
        (folder("text", {"model_type": "bert"}), "is not an image-text-to-text model"),
        (
            folder("own", {"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}}),
            "is not an image-text-to-text model",
        ),
        (folder("pickled", {"model_type": "blip"}, weights=False), "no safetensors"),
        (folder("odd", {"kind": "?"}), "neither a transformers model"),
        (str(tmp_path / "absent"), "the model does not exist"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            load_captioner(CaptionerOptions(model=given))
        assert caught.value.remedy


# ---- taggers -----------------------------------------------------------------------------------------------

TAGS = [
    ("general", 9),
    ("1girl", 0),
    ("long_hair", 0),
    ("^_^", 0),
    ("some_one", 4),
    ("x_x", 0),
    ("red", 0),
    ("blue", 0),
]


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer of timm with a list of tags."""
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / "tiny-tagger"
    folder.mkdir()
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(TAGS), **shape)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": len(TAGS),
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": len(TAGS),
        },
        "model_args": shape,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "selected_tags.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows([number, name, category, 1] for number, (name, category) in enumerate(TAGS))
    return folder


def test_tags_are_sorted_by_probability_with_characters_first(tagger: Path) -> None:
    captioner = load_captioner(CaptionerOptions(model=str(tagger), threshold=0.0, character_threshold=0.0))
    (answer,) = captioner.caption(asks(captioner, 1))
    assert answer.tags[0] == "some one"
    assert set(answer.tags) == {
        "1girl",
        "long hair",
        "^_^",
        "some one",
        "x_x",
        "red",
        "blue",
    }  # and no rating
    assert answer.text == ", ".join(answer.tags)
    captioner.thresholds = {0: 0.5, 4: 2.0}  # type: ignore[attr-defined]
    (fewer,) = captioner.caption(asks(captioner, 1))
    assert set(fewer.tags) < set(answer.tags)
    assert captioner.prompts == ("general>=0 character>=0",)


def test_a_tagger_gets_a_white_square_in_blue_green_red_order(tagger: Path) -> None:
    """The scores equal those of the model for a square padded by hand, with channels blue, green, red."""
    import timm

    captioner = load_captioner(CaptionerOptions(model=str(tagger), threshold=0.0))
    image = Image.new("RGB", (64, 32), (250, 20, 10))
    seen: list[torch.Tensor] = []
    captioner.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))  # type: ignore[attr-defined]
    captioner.caption([CaptionRequest(image, "")])
    (pixels,) = seen
    assert pixels.shape == (1, 3, 32, 32)
    red, blue = (250 / 255 - 0.5) / 0.5, (10 / 255 - 0.5) / 0.5
    assert pixels[0, :, 16, 16].tolist() == pytest.approx([blue, (20 / 255 - 0.5) / 0.5, red], abs=1e-3)
    assert pixels[0, :, 2, 16].tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    reference = timm.create_model(f"local-dir:{tagger}", pretrained=True).eval()
    with torch.no_grad():
        scores = reference(pixels).sigmoid()[0]
    (answer,) = captioner.caption([CaptionRequest(image, "")])
    general = [(float(scores[i]), name) for i, (name, category) in enumerate(TAGS) if category == 0]
    likeliest = [
        name.replace("_", " ") if len(name) > 3 else name for _, name in sorted(general, reverse=True)
    ]
    assert [tag for tag in answer.tags if tag != "some one"] == likeliest


def test_tags_reach_the_manifest(tagger: Path, tmp_path: Path) -> None:
    folder = fill(tmp_path, {"a.png": None}, size=(64, 48))
    captioner = CaptionerOptions(model=str(tagger), threshold=0.0, character_threshold=1.0)
    options = PrepareOptions(quiet=True, captioner=captioner, caption_edits=("drop=1girl", "trigger=sks"))
    (record,) = caption_dataset(folder, options).records
    assert set(record.tags) == {"1girl", "long hair", "^_^", "x_x", "red", "blue"}
    assert record.caption.startswith("sks, ")
    assert "1girl" not in record.caption
    assert record.captions[0].model == "tiny-tagger"


def test_a_tagger_with_a_wrong_list_of_tags_is_refused(tagger: Path, tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(tagger, tmp_path / "broken"))
    lines = (broken / "selected_tags.csv").read_text().splitlines()
    (broken / "selected_tags.csv").write_text("\n".join(lines[:-1]))
    captioner = load_captioner(CaptionerOptions(model=str(broken)))
    with pytest.raises(CaptionFailure, match="8 classes") as caught:
        captioner.caption(asks(captioner, 1))
    assert caught.value.fatal
    (broken / "selected_tags.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="unreadable"):
        load_captioner(CaptionerOptions(model=str(broken)))
    (broken / "selected_tags.csv").unlink()
    with pytest.raises(ConfigError, match=r"no selected_tags\.csv"):
        load_captioner(CaptionerOptions(model=str(broken)))
