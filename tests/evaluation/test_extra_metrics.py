"""Further scores on tiny models built from configurations, each against its definition."""

from __future__ import annotations

import json
import math
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from lorakit.core.errors import ConfigError, LorakitError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.metrics import ocr, vqa
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.models import base_model, clip_score
from tests.network.servers import serving

WORDS = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "Yes", "No", "Does", "this", "figure", "show", "red"]
WORDS += ["circle", "?", "Please", "answer", "yes", "or", "no", ".", '"', "a", "blue", "ring"]
PROMPTS = [Prompt("a", "a red circle", "a red circle"), Prompt("b", "a blue ring", "a blue ring")]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in range(2)]


def tokenizer(folder: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made.save_pretrained(folder)
    return made


def vision(side: int = 32) -> dict[str, int]:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**sizes, "image_size": side, "patch_size": 16, "projection_dim": 8}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIP of transformers, as PickScore is published."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("pick") / "tiny-pickscore"
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(WORDS), "max_position_embeddings": 24, "eos_token_id": 3}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision(), projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer(folder)).save_pretrained(folder)
    return folder


def test_pickscore_is_the_scaled_cosine_of_its_clip(clip_folder, pictures):
    from transformers import AutoProcessor, CLIPModel

    extra = load_prompt_scorer(f"pickscore={clip_folder}")
    model, processor = CLIPModel.from_pretrained(clip_folder), AutoProcessor.from_pretrained(clip_folder)
    texts = [p.score_text for p in PROMPTS]
    with torch.no_grad():
        logits = model(**processor(text=texts, images=pictures, return_tensors="pt")).logits_per_image
    found = extra.score(pictures, PROMPTS)
    assert found == pytest.approx([float(logits[0, 0]), float(logits[1, 1])], rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-3)
    assert extra.describe()["model"] == "tiny-pickscore"


def test_clipscore_hpsv2_and_a_second_clip_are_cosines_of_open_clip(pictures):
    clip = clip_score.ClipScorer.local(base_model.EMBEDDED_CLIP)
    spec, texts = str(base_model.EMBEDDED_CLIP), [p.score_text for p in PROMPTS]
    cosine = clip.clip_t(pictures, texts)
    prefixed = clip.clip_t(pictures, [f"A photo depicts {text}" for text in texts])
    second = load_prompt_scorer(f"clip={spec}")
    assert second.name == "clip_t@clip"
    assert second.score(pictures, PROMPTS) == pytest.approx(cosine)
    assert load_prompt_scorer(f"hpsv2={spec}").score(pictures, PROMPTS) == pytest.approx(cosine)
    found = load_prompt_scorer(f"clipscore={spec}")
    assert found.score(pictures, PROMPTS) == pytest.approx(2.5 * np.maximum(prefixed, 0))
    assert "A photo depicts" in found.describe()["metric"]


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory) -> Path:
    """A LLaVA: a CLIP that looks, and a Llama that answers."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    folder = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    text = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    seen = {"model_type": "clip_vision_model", **vision()}
    torch.manual_seed(3)
    config = LlavaConfig(
        vision_config=seen, text_config=text, image_token_index=4, vision_feature_select_strategy="default"
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    talk = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        images,
        tokenizer(folder),
        chat_template=talk,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def test_vqascore_is_the_probability_of_yes(vlm_folder, pictures):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    extra = load_prompt_scorer(f"vqascore={vlm_folder}")
    model = LlavaForConditionalGeneration.from_pretrained(vlm_folder).eval()
    processor = AutoProcessor.from_pretrained(vlm_folder)
    expected = []
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        asked = f'<image> Does this figure show "{prompt.score_text}"? Please answer yes or no.'
        given = processor(images=picture, text=asked, return_tensors="pt")
        with torch.no_grad():
            answers = F.softmax(model(**given).logits[0, -1], dim=-1)
        expected.append(float(answers[WORDS.index("Yes")]))
    assert extra.score(pictures, PROMPTS) == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-6
    assert "Please answer yes or no" in extra.describe()["metric"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    """A BLIP-2 whose T5 answers: its encoder reads the question, its decoder begins the answer."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    folder = tmp_path_factory.mktemp("encoder") / "tiny-blip2"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "t5", "vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32}
    text |= {"num_layers": 2, "num_heads": 2, "decoder_start_token_id": 1, "pad_token_id": 1}
    queries = sizes | {"encoder_hidden_size": 16, "vocab_size": len(WORDS)}
    config = Blip2Config(
        vision_config=vision(),
        qformer_config=queries,
        text_config=text,
        num_query_tokens=4,
        image_token_index=4,
    )
    torch.manual_seed(4)
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, tokenizer(folder), num_query_tokens=4).save_pretrained(folder)
    return folder


def test_vqascore_of_an_encoder_and_decoder_is_the_first_word_of_the_answer(encoder_folder, pictures):
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(encoder_folder).eval()
    processor, expected = AutoProcessor.from_pretrained(encoder_folder), []
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        asked = f'Does this figure show "{prompt.score_text}"? Please answer yes or no.'
        given = processor(images=picture, text=asked, return_tensors="pt")
        with torch.no_grad():
            answers = model(**given, decoder_input_ids=torch.tensor([[1]])).logits[0, 0].softmax(-1)
        expected.append(float(answers[WORDS.index("Yes")]))
    assert load_prompt_scorer(f"vqascore={encoder_folder}").score(pictures, PROMPTS) == pytest.approx(
        expected
    )
    assert abs(expected[0] - expected[1]) > 1e-9


class Answering(BaseHTTPRequestHandler):
    """Tells token probabilities as OpenAI's protocol has them, or not, by the model asked for."""

    asked: list[dict] = []  # noqa: RUF012 - one server a test

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        tokens = [("Yes", 0.5), ("No", 0.2), (" Yes", 0.25), ("yes", 0.05)]
        tops = [{"token": token, "logprob": math.log(share)} for token, share in tokens]
        told = {"content": [{"token": "Yes", "top_logprobs": tops}]} if body["model"] == "open" else None
        answer = json.dumps({"choices": [{"message": {"content": "Yes"}, "logprobs": told}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_vqascore_of_a_server_sums_what_it_tells(pictures):
    Answering.asked.clear()
    with serving(Answering) as address:
        extra = load_prompt_scorer(f"vqascore={address}/v1#open")
        assert extra.score(pictures[:1], PROMPTS[:1]) == pytest.approx([0.75])
        silent = load_prompt_scorer(f"vqascore={address}/v1#closed")
        with pytest.raises(LorakitError, match="does not tell the probabilities"):
            silent.score(pictures[:1], PROMPTS[:1])
    body = Answering.asked[0]
    assert body["logprobs"] is True
    assert body["max_tokens"] == 1
    parts = body["messages"][0]["content"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert parts[1]["text"] == vqa.QUESTION.format(prompt="a red circle")


def test_a_server_that_is_not_there_is_one_error(pictures):
    extra = load_prompt_scorer("vqascore=http://127.0.0.1:9/v1#model")
    with pytest.raises(LorakitError, match="did not answer"):
        extra.score(pictures[:1], PROMPTS[:1])


def test_a_key_is_never_sent_unencrypted(monkeypatch):
    monkeypatch.setenv(vqa.KEY_VARIABLE, "secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        load_prompt_scorer("vqascore=http://example.org/v1#model")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bleu", "no score 'bleu'"),
        ("vqascore", "needs a model"),
        ("vqascore=ftp://x#y", "no server"),
        ("vqascore=http://127.0.0.1:9/v1", "no server with a model"),
        ("hpsv2", "needs its weights"),
        ("clip=ViT-B-32", "neither a folder nor"),
        ("clipscore=ViT-B-32/nothing", "no weights 'nothing'"),
    ],
)
def test_what_cannot_be_loaded_is_one_error(text, said):
    with pytest.raises(ConfigError, match=said):
        load_prompt_scorer(text)


def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(ConfigError, match="cannot load"):
        load_prompt_scorer(f"pickscore={tmp_path}")


# ---- text in pictures ----


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "OPEN late"', "OPEN late"),
        ("a shop called “Rosa” beside „Blau“", "Rosa Blau"),
        ("it's a dog's dinner", ""),
        ('two: "one" and "two"', "one two"),
    ],
)
def test_what_a_prompt_quotes(prompt, text):
    assert ocr.quoted_text(prompt) == text


def edit_distance(a: str, b: str) -> int:
    """The textbook recursion, for short texts."""
    if not a or not b:
        return len(a) + len(b)
    same = edit_distance(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(same, edit_distance(a[:-1], b) + 1, edit_distance(a, b[:-1]) + 1)


@pytest.mark.parametrize(
    ("wanted", "read"),
    [("OPEN", "open"), ("OPEN", "xx 0PEN yy"), ("cafe", "c fe"), ("abc", ""), ("ab", "ba")],
)
def test_accuracy_is_the_best_edit_distance_over_all_places(wanted, read):
    target, found = wanted.casefold(), " ".join(read.casefold().split())
    spans = [found[i:j] for i in range(len(found) + 1) for j in range(i, min(len(found), i + 6) + 1)]
    expected = 1 - min(edit_distance(target, span) for span in spans) / len(target)
    assert ocr.text_accuracy(wanted, read) == pytest.approx(expected)


@pytest.mark.skipif(shutil.which(ocr.TESSERACT) is None, reason="Tesseract is not installed")
def test_a_picture_with_the_text_scores_high_and_another_low():
    def sign(text: str) -> Image.Image:
        picture = Image.new("RGB", (512, 256), "white")
        ImageDraw.Draw(picture).text((60, 80), text, fill="black", font=ImageFont.load_default(90))
        return picture

    extra = load_prompt_scorer("ocr")
    prompts = [Prompt(n, f'a sign "{t}"', "x") for n, t in (("a", "OPEN"), ("b", "OPEN"))]
    plain = Prompt("c", "a sign", "x")
    values = extra.score([sign("OPEN"), sign("KLTZ"), sign("OPEN")], [*prompts, plain])
    assert values[0] == pytest.approx(1.0)
    assert values[1] < 0.6
    assert math.isnan(values[2])
    assert extra.describe()["engine"].startswith("tesseract")


@pytest.mark.skipif(shutil.which(ocr.TESSERACT) is not None, reason="Tesseract is installed")
def test_without_an_engine_it_says_how_to_get_one():
    with pytest.raises(ConfigError, match="no OCR engine") as caught:
        load_prompt_scorer("ocr")
    assert "apt-get" in str(caught.value)
