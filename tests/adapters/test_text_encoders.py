"""Text encoders with adapters, and new words, from a run to the programs that read them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.tools import merge
from lorakit.cli import main
from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import LorakitError
from lorakit.data import prompts
from lorakit.evaluation.validation_loss import ValidationLoss
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from tests import runs, tiny

WORD = {"token": "sks", "init": "a red", "vectors": 2, "lr": 0.05}
CAPTION = "a sks picture of a ring"
CASES = {
    "encoders": {"adapter": {"text_encoder": True, "text_encoder_lr": 2e-3}},
    "word": {"adapter": {"type": "none"}, "embedding": WORD},
    "both": {"adapter": {"text_encoder": True, "type": "dora"}, "embedding": WORD},
}

KEYS = [("encoders", "sdxl"), ("word", "sd15"), ("both", "sd15"), ("word", "sdxl")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 2)


def written(case: str, base: str, data: Path, out: Path) -> Path:
    prompts = storage.write_jsonl(
        out.parent / "prompts.jsonl", [{"id": "a", "prompt": CAPTION, "seeds": [0]}]
    )
    tree = {
        "adapter": {"rank": 4, "alpha": 8, "targets": ["attn2.to_v"]} | CASES[case]["adapter"],
        "embedding": CASES[case].get("embedding"),
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 4, "batch_size": 1, "save_every": 2, "precision": "fp32"},
        "samples": {"prompts": str(prompts), "every": 4, "steps": 1, "guidance": 1.0},
        "export": ["comfyui", "diffusers"],
    }
    return runs.make_recipe(out.parent / f"{out.name}.json", tiny.tiny_folder(base), data, out, **tree)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs by (case, base); the one that is compared with a whole one was killed once."""
    made = {}
    for case, base in KEYS:
        recipe = written(case, base, data, tmp_path_factory.mktemp("runs") / "run")
        if case == "both":
            with runs.killed_at(3):
                runs.train(recipe)
        made[case, base] = runs.train(recipe)
    return made


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_every_encoder_learns(key, finished):
    case, base = key
    tensors = storage.read_safetensors(finished[key] / "adapter.safetensors")
    encoders = {"sd15": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}[base]
    assert {name.split(".")[0] for name in tensors} == {*encoders, *([] if case == "word" else ["unet"])}
    for name, value in tensors.items():
        assert value.any(), name
        if name.endswith(".learned"):
            known = getattr(tiny.tiny_pipeline(base), name.split(".")[0]).get_input_embeddings().weight
            assert len(value) == 2
            assert (torch.cdist(value, known).min(1).values > 0.01).all()


@pytest.mark.parametrize("key", [("both", "sd15")], ids="-".join)
def test_killed_and_gone_on_with_it_ends_in_the_same_bytes(key, data, finished, tmp_path):
    whole = runs.train(written(*key, data, tmp_path / "whole"))
    for name in ("adapter.safetensors", "checkpoints/step-00000004/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (finished[key] / name).read_bytes()
    assert (whole / "samples/step-00000004/a-0.png").read_bytes() != (
        whole / "samples/step-00000000/a-0.png"
    ).read_bytes()


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_diffusers_reads_text_as_the_run_ended_it(key, finished):
    _, base = key
    run = finished[key]
    painter = SamplingPipeline(str(tiny.tiny_folder(base)), run / "adapter.safetensors")
    pipe = tiny.build(base)
    plain = painter.family.encode(pipe, [CAPTION])[0]
    word = run / "exports" / "sks.safetensors"
    if word.exists():
        _load_word(pipe, base, word)
    exports = sorted((run / "exports").glob("adapter-*.safetensors"))
    for file in [f for f in exports if "diffusers" in f.name] or exports:
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    told = painter.family.encode(pipe, [CAPTION])[0]
    ours = painter.family.encode(painter.pipe, [CAPTION])[0]
    for name in told:
        assert torch.allclose(told[name], ours[name], atol=1e-5), name
        assert (told[name] - plain[name]).abs().max() > 1e-3, name


def _load_word(pipe, base: str, file: Path) -> None:
    """As the documentation of diffusers says."""
    tensors = storage.read_safetensors(file)
    if base == "sd15":
        pipe.load_textual_inversion(str(file.parent), weight_name=file.name, token="sks")
        return
    pairs = {"clip_l": (pipe.text_encoder, pipe.tokenizer), "clip_g": (pipe.text_encoder_2, pipe.tokenizer_2)}
    pipe.tokenizer_2 = None
    for name, (encoder, tokenizer) in pairs.items():
        own = copy.deepcopy(tokenizer)
        pipe.load_textual_inversion(tensors[name], token="sks", text_encoder=encoder, tokenizer=own)
        encoder.eos_token_id = own.eos_token_id
        setattr(pipe, "tokenizer" if name == "clip_l" else "tokenizer_2", own)


def test_a_painter_goes_back_to_the_base_and_on_to_a_checkpoint(finished, tmp_path):
    run = finished["both", "sd15"]
    painter = SamplingPipeline(str(tiny.tiny_folder("sd15")), run / "adapter.safetensors")
    wanted = prompts.load_prompts(run.parent / "prompts.jsonl")
    options = SamplingOptions(steps=1, guidance=1.0, size=(64, 64), quiet=True)

    def picture() -> bytes:
        return painter.draw(wanted, options, "x")[0].image.tobytes()

    trained = picture()
    with painter.without_adapter():
        base = picture()
    assert base != trained == picture()
    plain = SamplingPipeline(str(tiny.tiny_folder("sd15")))
    ring = [replace(wanted[0], prompt="a ring")]
    with painter.without_adapter():
        assert painter.draw(ring, options, "x")[0].image == plain.draw(ring, options, "x")[0].image
    painter.swap(run / "checkpoints/step-00000002/adapter.safetensors")
    assert picture() not in (base, trained)
    painter.swap(run / "adapter.safetensors", 0.0)
    assert picture() == base


@pytest.mark.parametrize(("case", "base", "strength"), [("both", "sd15", 0.5), ("word", "sdxl", 1.0)])
def test_a_word_is_merged_into_the_base(case, base, strength, finished, tmp_path, capsys):
    """The merged folder alone, in diffusers, reads the word as the base with the run's file does."""
    folder, file = tiny.tiny_folder(base), finished[case, base] / "adapter.safetensors"
    assert main.main(["merge", str(folder), f"{file}:{strength}", "--out", str(tmp_path / "merged")]) == 0
    assert "the word sks added" in capsys.readouterr().out
    ours = SamplingPipeline(str(folder), file, strength)
    merged = type(tiny.build(base)).from_pretrained(str(tmp_path / "merged"))
    for text in (CAPTION, "a ring"):
        told = ours.family.encode(merged, [text])[0]
        for name, value in ours.family.encode(ours.pipe, [text])[0].items():
            assert (told[name] - value).abs().max() <= 1e-5 * value.abs().max(), (text, name)


def test_two_words_are_merged_and_one_twice_is_refused(finished, tmp_path):
    base = tiny.tiny_folder("sd15")
    first = formats.read_adapter_file(finished["word", "sd15"] / "adapter.safetensors", word_alone=True)
    new = {"embedding": first.facts["embedding"] | {"token": "blorp"}}
    second = replace(first, facts=first.facts | new, words={"text_encoder": first.words["text_encoder"] + 1})
    with pytest.raises(LorakitError, match="two adapters bring the word 'sks'"):
        merge.merge_into_base(base, [(first, 1.0), (first, 0.5)], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge.merge_into_base(base, [(first, 1.0), (second, 1.0)], tmp_path / "merged")
    merged = type(tiny.build("sd15")).from_pretrained(str(tmp_path / "merged"))
    table = merged.text_encoder.get_input_embeddings().weight
    for token, adapter in (("sks", first), ("blorp", second)):
        ids = merged.tokenizer.convert_tokens_to_ids([token, f"{token}_1"])
        assert torch.equal(table[ids], adapter.words["text_encoder"])
        assert merged.tokenizer.tokenize(f"a {token} dog").count(token) == 1


def test_the_command_line_draws_and_exports_a_word(finished, tmp_path, capsys):
    run = finished["word", "sd15"]
    command = ["sample", str(tiny.tiny_folder("sd15")), "--adapter", str(run), "--steps", "1", "--quiet"]
    command += ["--prompts", str(run.parent / "prompts.jsonl"), "--size", "64x64", "--out", str(tmp_path)]
    assert main.main(command) == 0
    assert (tmp_path / "a-0.png").is_file()
    adapters = {"adapter-comfyui", "adapter-a1111", "adapter-diffusers"}
    for key, files in {("word", "sd15"): {"sks"}, ("both", "sd15"): {"sks", *adapters}}.items():
        out, own = tmp_path / key[0], finished[key] / "exports"
        for _ in range(2):  # the same again is no conflict
            assert main.main(["export", str(finished[key]), "--out", str(out)]) == 0
        assert {file.stem for file in out.iterdir()} == files
        assert (out / "sks.safetensors").read_bytes() == (own / "sks.safetensors").read_bytes()
    storage.write_safetensors(tmp_path / "word/sks.safetensors", {"emb_params": torch.ones(2, 32)})
    capsys.readouterr()
    assert main.main(["export", str(run), "--out", str(tmp_path / "word")]) == 2
    assert "another word's file has this name" in capsys.readouterr().err


def test_what_has_no_place_for_a_word_says_so(finished, tmp_path, capsys):
    both, word = (str(finished[case, "sd15"] / "adapter.safetensors") for case in ("both", "word"))
    out = str(tmp_path / "a.safetensors")
    base = str(tiny.tiny_folder("sd15"))
    assert main.main(["convert", both, out, "--to", "diffusers", "--base", base]) == 0
    assert "the new word sks is not in it" in capsys.readouterr().err
    assert main.main(["convert", word, str(tmp_path / "b.safetensors"), "--to", "kohya"]) == 2
    assert "a new word and no adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "changes", "said"),
    [
        ("sd3-no-t5", {"adapter": {"text_encoder": True}}, "are not trained"),
        ("sd15", {"embedding": WORD | {"token": "dog"}}, "no caption has the new word 'dog'"),
        ("sd15", {"embedding": WORD | {"token": "a dog"}}, "embedding.token"),
        ("sd15", {"adapter": {"type": "none"}}, "trains nothing"),
        ("sd15", {"adapter": {"text_encoder_lr": 1e-3}}, "no text_encoder_lr"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_start(base, changes, said, data, tmp_path):
    recipe = runs.make_recipe(
        tmp_path / "r.json", tiny.tiny_folder(base), data, tmp_path / "out", **json.loads(json.dumps(changes))
    )
    with pytest.raises(LorakitError) as caught:
        runs.train(recipe)
    assert said in str(caught.value)


def test_no_condition_of_a_trained_encoder_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    recipe = written("encoders", "sd15", data, tmp_path / "run")
    run = runs.train(recipe, "train.steps=1", "validate.fraction=0.5", "export=[]")
    assert not [file for file in (tmp_path / "cache/text").rglob("*.safetensors")]
    painter = SamplingPipeline(str(tiny.tiny_folder("sd15")), run / "adapter.safetensors")
    held = ValidationLoss(recipes.load_recipe(run / "recipe.yaml"), painter)
    trained = held.losses()
    with painter.without_adapter():
        assert held.losses() != trained
    assert not [file for file in (tmp_path / "cache/text").rglob("*.safetensors")]
