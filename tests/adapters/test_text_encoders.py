"""Trained text encoders and new tokens, from a run to the programs that read them."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.tools import merge
from lorakit.adapters.tools.weighted import WeightedAdapter
from lorakit.cli import main
from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import LorakitError
from lorakit.data import prompts
from lorakit.evaluation.validation_loss import RunValidation
from lorakit.sampling.pipeline import SamplingOptions, SamplingPipeline
from tests import runs, tiny

TOKEN = {"token": "sks", "initializer_token": "a red", "num_vectors": 2, "lr": 0.05}
CAPTION = "a sks picture of a ring"
CASES = {
    "encoders": {"adapter": {"text_encoder": True, "text_encoder_lr": 2e-3}},
    "token": {"adapter": {"type": "none"}, "textual_inversion": TOKEN},
    "both": {"adapter": {"text_encoder": True, "type": "dora"}, "textual_inversion": TOKEN},
}

KEYS = [("encoders", "sdxl"), ("token", "sd15"), ("both", "sd15"), ("token", "sdxl")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 2)


def written(case: str, base: str, data: Path, out: Path) -> Path:
    prompts = storage.write_jsonl(
        out.parent / "prompts.jsonl", [{"id": "a", "prompt": CAPTION, "seeds": [0]}]
    )
    targets = {} if case == "token" else {"targets": ["attn2.to_v"]}
    tree = {
        "adapter": {"rank": 4, "alpha": 8} | targets | CASES[case]["adapter"],
        "textual_inversion": CASES[case].get("textual_inversion"),
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "train": {"steps": 4, "batch_size": 1, "save_every": 2, "precision": "fp32"},
        "samples": {"prompts": str(prompts), "every": 4, "num_inference_steps": 1, "guidance_scale": 1.0},
        "export": ["comfyui", "diffusers"],
    }
    return runs.make_recipe(out.parent / f"{out.name}.json", tiny.tiny_folder(base), data, out, **tree)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs by (case, base); the one that is compared with an uninterrupted run was killed once."""
    finished_runs = {}
    for case, base in KEYS:
        recipe = written(case, base, data, tmp_path_factory.mktemp("runs") / "run")
        if case == "both":
            with runs.killed_at(3):
                runs.train(recipe)
        finished_runs[case, base] = runs.train(recipe)
    return finished_runs


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_every_text_encoder_is_trained(key, finished):
    case, base = key
    tensors = storage.read_safetensors(finished[key] / "adapter.safetensors")
    encoders = {"sd15": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}[base]
    assert {name.split(".")[0] for name in tensors} == {*encoders, *([] if case == "token" else ["unet"])}
    for name, value in tensors.items():
        assert value.any(), name
        if name.endswith(".learned"):
            known = getattr(tiny.tiny_pipeline(base), name.split(".")[0]).get_input_embeddings().weight
            assert len(value) == 2
            assert (torch.cdist(value, known).min(1).values > 0.01).all()


@pytest.mark.parametrize("key", [("both", "sd15")], ids="-".join)
def test_a_resumed_run_ends_in_the_same_bytes(key, data, finished, tmp_path):
    whole = runs.train(written(*key, data, tmp_path / "whole"))
    for name in ("adapter.safetensors", "checkpoints/step-00000004/optimizer.safetensors"):
        assert (whole / name).read_bytes() == (finished[key] / name).read_bytes()
    assert (whole / "samples/step-00000004/a-0.png").read_bytes() != (
        whole / "samples/step-00000000/a-0.png"
    ).read_bytes()


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_diffusers_encodes_text_as_at_the_end_of_the_run(key, finished, tmp_path):
    _, base = key
    run = finished[key]
    sampler = SamplingPipeline(str(tiny.tiny_folder(base)), run / "adapter.safetensors")
    pipe = tiny.build(base)
    plain = sampler.family.encode_text(pipe, [CAPTION])[0]
    embedding_file = run / "exports" / "sks.safetensors"
    if embedding_file.exists():
        _load_embedding(pipe, base, embedding_file)
    if list((run / "exports").glob("adapter-*.safetensors")):
        exported = formats.export_adapter(
            run / "adapter.safetensors", "diffusers", tmp_path, base=tiny.tiny_folder(base), dtype="fp32"
        )
        for file in [one.path for one in exported if one.layout != "textual_inversion"]:
            pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    theirs = sampler.family.encode_text(pipe, [CAPTION])[0]
    ours = sampler.family.encode_text(sampler.pipe, [CAPTION])[0]
    for name in theirs:
        assert torch.allclose(theirs[name], ours[name], atol=1e-5), name
        assert (theirs[name] - plain[name]).abs().max() > 1e-3, name


def _load_embedding(pipe, base: str, file: Path) -> None:
    """Load the vectors of a token as the documentation of diffusers describes."""
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


def test_a_sampling_pipeline_disables_and_replaces_its_adapter(finished, tmp_path):
    run = finished["both", "sd15"]
    sampler = SamplingPipeline(str(tiny.tiny_folder("sd15")), run / "adapter.safetensors")
    run_prompts = prompts.load_prompts(run.parent / "prompts.jsonl")
    options = SamplingOptions(num_inference_steps=1, guidance_scale=1.0, size=(64, 64), quiet=True)

    def image() -> bytes:
        return sampler.sample(run_prompts, options, "x")[0].image.tobytes()

    trained = image()
    with sampler.adapter_disabled():
        base = image()
    assert base != trained == image()
    plain = SamplingPipeline(str(tiny.tiny_folder("sd15")))
    ring = [replace(run_prompts[0], prompt="a ring")]
    with sampler.adapter_disabled():
        assert sampler.sample(ring, options, "x")[0].image == plain.sample(ring, options, "x")[0].image
    sampler.load_adapter(run / "checkpoints/step-00000002/adapter.safetensors")
    assert image() not in (base, trained)
    sampler.load_adapter(run / "adapter.safetensors", 0.0)
    assert image() == base


@pytest.mark.parametrize(("case", "base", "strength"), [("both", "sd15", 0.5), ("token", "sdxl", 1.0)])
def test_a_new_token_is_merged_into_the_base_model(case, base, strength, finished, tmp_path, capsys):
    """diffusers encodes text with the merged folder as the base model with the run's adapter does."""
    folder, file = tiny.tiny_folder(base), finished[case, base] / "adapter.safetensors"
    assert main.main(["merge", str(folder), f"{file}:{strength}", "--out", str(tmp_path / "merged")]) == 0
    assert "token sks added" in capsys.readouterr().out
    ours = SamplingPipeline(str(folder), file, strength)
    merged = type(tiny.build(base)).from_pretrained(str(tmp_path / "merged"))
    for text in (CAPTION, "a ring"):
        theirs = ours.family.encode_text(merged, [text])[0]
        for name, value in ours.family.encode_text(ours.pipe, [text])[0].items():
            assert (theirs[name] - value).abs().max() <= 1e-5 * value.abs().max(), (text, name)


def test_two_new_tokens_are_merged_and_the_same_token_twice_is_refused(finished, tmp_path):
    base = tiny.tiny_folder("sd15")
    first = formats.read_adapter_file(
        finished["token", "sd15"] / "adapter.safetensors", allow_embedding_only=True
    )
    entries = first.lorakit_metadata["textual_inversion"] | {"token": "blorp"}
    second = replace(
        first,
        lorakit_metadata=first.lorakit_metadata | {"textual_inversion": entries},
        embeddings={"text_encoder": first.embeddings["text_encoder"] + 1},
    )
    twice = [WeightedAdapter(first, 1.0), WeightedAdapter(first, 0.5)]
    with pytest.raises(LorakitError, match="two adapters have the new token 'sks'"):
        merge.merge_into_base(base, twice, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge.merge_into_base(base, [WeightedAdapter(first), WeightedAdapter(second)], tmp_path / "merged")
    merged = type(tiny.build("sd15")).from_pretrained(str(tmp_path / "merged"))
    table = merged.text_encoder.get_input_embeddings().weight
    for token, adapter in (("sks", first), ("blorp", second)):
        ids = merged.tokenizer.convert_tokens_to_ids([token, f"{token}_1"])
        assert torch.equal(table[ids], adapter.embeddings["text_encoder"])
        assert merged.tokenizer.tokenize(f"a {token} dog").count(token) == 1


def test_the_commands_sample_with_and_export_a_new_token(finished, tmp_path, capsys):
    run = finished["token", "sd15"]
    command = ["sample", str(tiny.tiny_folder("sd15")), "--adapter", str(run), "--quiet"]
    command += ["--num-inference-steps", "1", "--size", "64x64", "--out", str(tmp_path)]
    command += ["--prompts", str(run.parent / "prompts.jsonl")]
    assert main.main(command) == 0
    assert (tmp_path / "a-0.png").is_file()
    adapters = {"adapter-comfyui", "adapter-a1111", "adapter-diffusers"}
    for key, files in {("token", "sd15"): {"sks"}, ("both", "sd15"): {"sks", *adapters}}.items():
        out, own = tmp_path / key[0], finished[key] / "exports"
        for _ in range(2):  # writing the same file again is allowed
            assert main.main(["export", str(finished[key]), "--out", str(out), "--no-card"]) == 0
        assert {file.stem for file in out.iterdir()} == files
        assert (out / "sks.safetensors").read_bytes() == (own / "sks.safetensors").read_bytes()
    storage.write_safetensors(tmp_path / "token/sks.safetensors", {"emb_params": torch.ones(2, 32)})
    capsys.readouterr()
    assert main.main(["export", str(run), "--out", str(tmp_path / "token")]) == 2
    assert "the file of another token has this name" in capsys.readouterr().err


def test_converting_writes_a_new_token_beside_the_adapter_or_is_refused(finished, tmp_path, capsys):
    both, token_only = (str(finished[case, "sd15"] / "adapter.safetensors") for case in ("both", "token"))
    out = str(tmp_path / "a.safetensors")
    base = str(tiny.tiny_folder("sd15"))
    assert main.main(["convert", both, out, "--to", "diffusers", "--base", base]) == 0
    assert f"the new token is in {tmp_path / 'sks.safetensors'}" in capsys.readouterr().out
    exported = finished["both", "sd15"] / "exports/sks.safetensors"
    assert (tmp_path / "sks.safetensors").read_bytes() == exported.read_bytes()
    assert main.main(["convert", token_only, str(tmp_path / "b.safetensors"), "--to", "kohya"]) == 2
    assert "the vectors of a new token and no adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "changes", "text"),
    [
        ("sd3-no-t5", {"adapter": {"text_encoder": True}}, "cannot be trained"),
        ("sd15", {"textual_inversion": TOKEN | {"token": "dog"}}, "no caption contains the new token 'dog'"),
        ("sd15", {"textual_inversion": TOKEN | {"token": "a dog"}}, "textual_inversion.token"),
        ("sd15", {"adapter": {"type": "none"}}, "trains nothing"),
        ("sd15", {"adapter": {"text_encoder_lr": 1e-3}}, "text_encoder_lr has no effect"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused_before_the_run(base, changes, text, data, tmp_path):
    recipe = runs.make_recipe(
        tmp_path / "r.json", tiny.tiny_folder(base), data, tmp_path / "out", **json.loads(json.dumps(changes))
    )
    with pytest.raises(LorakitError) as caught:
        runs.train(recipe)
    assert text in str(caught.value)


def test_text_embeddings_of_a_trained_encoder_are_not_cached(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
    recipe = written("encoders", "sd15", data, tmp_path / "run")
    run = runs.train(recipe, "train.steps=1", "validate.fraction=0.5", "export=[]")
    assert not [file for file in (tmp_path / "cache/text").rglob("*.safetensors")]
    sampler = SamplingPipeline(str(tiny.tiny_folder("sd15")), run / "adapter.safetensors")
    validation = RunValidation(recipes.load_recipe(run / "recipe.yaml"), sampler)
    trained = validation.image_losses()
    with sampler.adapter_disabled():
        assert validation.image_losses() != trained
    assert not [file for file in (tmp_path / "cache/text").rglob("*.safetensors")]
