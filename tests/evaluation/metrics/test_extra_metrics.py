"""Further metrics with tiny models, each compared with its definition."""

from __future__ import annotations

import json
import math
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lorakit.core.errors import ConfigError, LorakitError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.metrics import vqa
from lorakit.evaluation.metrics.extra_metrics import load_prompt_scorer
from lorakit.models import base_model, chat_client, clip_score
from tests.network.servers import serving

WORDS = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "Yes", "No", "Does", "this", "figure", "show", "red"]
WORDS += ["circle", "?", "Please", "answer", "yes", "or", "no", ".", '"', "a", "blue", "ring"]
PROMPTS = [Prompt("a", "a red circle", "a red circle"), Prompt("b", "a blue ring", "a blue ring")]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in range(2)]


def tokenizer(folder: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast_tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    fast_tokenizer.save_pretrained(folder)
    return fast_tokenizer


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


def test_pickscore_is_the_scaled_cosine_of_its_clip(clip_folder, images):
    from transformers import AutoProcessor, CLIPModel

    scorer = load_prompt_scorer(f"pickscore={clip_folder}")
    model, processor = CLIPModel.from_pretrained(clip_folder), AutoProcessor.from_pretrained(clip_folder)
    texts = [p.score_text for p in PROMPTS]
    with torch.no_grad():
        logits = model(**processor(text=texts, images=images, return_tensors="pt")).logits_per_image
    scores = scorer.score(images, PROMPTS)
    assert scores == pytest.approx([float(logits[0, 0]), float(logits[1, 1])], rel=1e-5)
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)
    assert scorer.describe()["model"] == "tiny-pickscore"


def test_clipscore_hpsv2_and_a_second_clip_are_cosines_of_open_clip(images):
    clip = clip_score.ClipScorer.from_folder(base_model.EMBEDDED_CLIP)
    spec, texts = str(base_model.EMBEDDED_CLIP), [p.score_text for p in PROMPTS]
    cosine = clip.clip_t(images, texts)
    prefixed = clip.clip_t(images, [f"A photo depicts {text}" for text in texts])
    second = load_prompt_scorer(f"clip_t={spec}")
    assert second.name == "clip_t@clip"
    assert second.score(images, PROMPTS) == pytest.approx(cosine)
    assert load_prompt_scorer(f"hpsv2={spec}").score(images, PROMPTS) == pytest.approx(cosine)
    clipscore = load_prompt_scorer(f"clipscore={spec}")
    assert clipscore.score(images, PROMPTS) == pytest.approx(2.5 * np.maximum(prefixed, 0))
    assert "A photo depicts" in clipscore.describe()["metric"]


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory) -> Path:
    """A LLaVA: a CLIP image tower and a Llama."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    folder = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    text = {"model_type": "llama", "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision_config = {"model_type": "clip_vision_model", **vision()}
    torch.manual_seed(3)
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text,
        image_token_index=4,
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    chat_template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        images,
        tokenizer(folder),
        chat_template=chat_template,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def test_vqascore_is_the_probability_of_yes(vlm_folder, images):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    scorer = load_prompt_scorer(f"vqascore={vlm_folder}")
    model = LlavaForConditionalGeneration.from_pretrained(vlm_folder).eval()
    processor = AutoProcessor.from_pretrained(vlm_folder)
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        question = f'<image> Does this figure show "{prompt.score_text}"? Please answer yes or no.'
        inputs = processor(images=image, text=question, return_tensors="pt")
        with torch.no_grad():
            answers = F.softmax(model(**inputs).logits[0, -1], dim=-1)
        expected.append(float(answers[WORDS.index("Yes")]))
    assert scorer.score(images, PROMPTS) == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-6
    assert "Please answer yes or no" in scorer.describe()["metric"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    """A BLIP-2 with a T5: its encoder reads the question, its decoder starts the answer."""
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


def test_vqascore_of_an_encoder_and_decoder_is_the_first_word_of_the_answer(encoder_folder, images):
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(encoder_folder).eval()
    processor, expected = AutoProcessor.from_pretrained(encoder_folder), []
    for image, prompt in zip(images, PROMPTS, strict=True):
        question = f'Does this figure show "{prompt.score_text}"? Please answer yes or no.'
        inputs = processor(images=image, text=question, return_tensors="pt")
        with torch.no_grad():
            answers = model(**inputs, decoder_input_ids=torch.tensor([[1]])).logits[0, 0].softmax(-1)
        expected.append(float(answers[WORDS.index("Yes")]))
    assert load_prompt_scorer(f"vqascore={encoder_folder}").score(images, PROMPTS) == pytest.approx(expected)
    assert abs(expected[0] - expected[1]) > 1e-9


class VqaServer(BaseHTTPRequestHandler):
    """Answers with OpenAI's token probabilities for the model "open", and without them for others."""

    requests: list[dict] = []  # noqa: RUF012 - one server for each test

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append(body)
        tokens = [("Yes", 0.5), ("No", 0.2), (" Yes", 0.25), ("yes", 0.05)]
        tops = [{"token": token, "logprob": math.log(share)} for token, share in tokens]
        logprobs = {"content": [{"token": "Yes", "top_logprobs": tops}]} if body["model"] == "open" else None
        answer = json.dumps({"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_vqascore_of_a_server_sums_the_probabilities_of_yes(images):
    VqaServer.requests.clear()
    with serving(VqaServer) as address:
        scorer = load_prompt_scorer(f"vqascore={address}/v1#open")
        assert scorer.score(images[:1], PROMPTS[:1]) == pytest.approx([0.75])
        closed = load_prompt_scorer(f"vqascore={address}/v1#closed")
        with pytest.raises(LorakitError, match="returns no token probabilities"):
            closed.score(images[:1], PROMPTS[:1])
    body = VqaServer.requests[0]
    assert body["logprobs"] is True
    assert body["max_tokens"] == 1
    parts = body["messages"][0]["content"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert parts[1]["text"] == vqa.QUESTION.format(prompt="a red circle")


def test_a_server_that_cannot_be_reached_is_one_error(images, monkeypatch):
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (0.01,))
    scorer = load_prompt_scorer("vqascore=http://127.0.0.1:9/v1#model")
    with pytest.raises(LorakitError, match="cannot be reached"):
        scorer.score(images[:1], PROMPTS[:1])


def test_a_key_is_never_sent_unencrypted(monkeypatch):
    monkeypatch.setenv(vqa.KEY_VARIABLE, "secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        load_prompt_scorer("vqascore=http://example.org/v1#model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bleu", "no metric 'bleu'"),
        ("vqascore", "needs a model"),
        ("vqascore=ftp://x#y", "not a server's address"),
        ("vqascore=http://127.0.0.1:9/v1", "names no model"),
        ("hpsv2", "needs its weights"),
        ("clip_t=ViT-B-32", "neither a folder nor"),
        ("clipscore=ViT-B-32/nothing", "no weights 'nothing'"),
    ],
)
def test_a_metric_that_cannot_be_loaded_is_a_config_error(text, message):
    with pytest.raises(ConfigError, match=message):
        load_prompt_scorer(text)


def test_a_folder_without_a_model_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot load"):
        load_prompt_scorer(f"pickscore={tmp_path}")
