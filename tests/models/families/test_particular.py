"""Behaviour of single families beyond the contract: guiders, quoted text, coarse tokens, lengths, sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models.families import detect_family, pipeline_folder
from lorakit.models.families.unpadded import TEXT_MASK, UnpaddedTextFamily
from tests import oracle, tiny
from tests.models.families.common import encoded, family_of, noise_for, two_timesteps

QUOTED = ['a sign that says "red"', "small", 'two signs, "blue" and "green"']


@pytest.mark.parametrize("name", ["hunyuan-image", "glm-image"])
def test_quoted_words_are_encoded_separately(name):
    """Also in a batch where only some captions quote text."""
    family, pipe, size = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name].sizes[0]
    noise, t = noise_for(name, rows=3), two_timesteps(family)[[0, 1, 0]]
    conds = encoded(name, QUOTED)
    with torch.no_grad():
        predictions = family.predict(family.denoiser(pipe), noise, t, family.collate(conds))
        for i, caption in enumerate(QUOTED):
            expected = oracle.prediction(name, pipe, caption, noise[i, None], t[i], *size)
            assert (predictions[i] - expected[0]).abs().max() <= 1e-5
        unquoted = encoded(name, [QUOTED[0].replace('"', "")])
        without = family.predict(family.denoiser(pipe), noise[:1], t[:1], family.collate(unquoted))
    assert (predictions[0] - without[0]).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [None, 4.0])
def test_the_guidance_of_hunyuan_image_is_its_components(scale):
    from diffusers import AdaptiveProjectedMixGuidance

    name = "hunyuan-image"
    family, pipe, size = family_of(name), tiny.build(name), tiny.ROWS[name].sizes[1]
    published = AdaptiveProjectedMixGuidance(guidance_scale=2.0)
    pipe.guider = published
    noise = noise_for(name, size)
    cond, negative = (family.collate(encoded(name, [caption], size)) for caption in ("small", ""))
    options = {
        "num_inference_steps": 8,
        "width": size[0],
        "height": size[1],
    }  # the first five have plain guidance
    ours = family.sample(pipe, cond, negative, noise, guidance_scale=scale, **options)[0]
    plain = family.sample(pipe, cond, negative, noise, guidance_scale=1.0, **options)[0]
    assert pipe.guider is published
    with pytest.raises(ValueError, match="needs negative embeddings"):
        family.sample(pipe, cond, None, noise, guidance_scale=scale, **options)
    pipe.guider = AdaptiveProjectedMixGuidance(guidance_scale=scale or 2.0)
    settings = {"width": size[0], "height": size[1], "num_inference_steps": 8}
    theirs = pipe(prompt="small", latents=noise.clone(), **settings)[0][0]
    assert ours.tobytes() == theirs.tobytes() != plain.tobytes()


def test_the_distilled_hunyuan_image_is_refused(tmp_path):
    shutil.copytree(tiny.tiny_folder("hunyuan-image"), tmp_path / "base")
    config = tmp_path / "base/transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_meanflow": True}))
    with pytest.raises(ConfigError, match="cannot be trained as a flow"):
        detect_family(tmp_path / "base").load(tmp_path / "base", dtype=torch.float32, only=())


def test_coarse_image_tokens_depend_on_caption_and_size():
    family, pipe = family_of("glm-image"), tiny.tiny_pipeline("glm-image")
    state = torch.get_rng_state()
    small, wide = encoded("glm-image", ["small"], (64, 64))[0], encoded("glm-image", ["small"], (96, 64))[0]
    assert torch.equal(state, torch.get_rng_state())
    assert [len(cond["prior_token_ids"]) for cond in (small, wide)] == [16, 24]
    again = encoded("glm-image", ["small"], (64, 64))[0]
    assert torch.equal(small["prior_token_ids"], again["prior_token_ids"])
    with pytest.raises(ConfigError, match="no size was given"):
        family.encode_text(pipe, ["small"])


@pytest.mark.parametrize("name", ["qwen-image-2.1", "kandinsky5", "flux3"])
def test_padding_would_count_as_text(name):
    """The reason for prediction by length: a longer caption in the batch would change a row."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(name, rows=2), two_timesteps(family)
    batch = family.collate(encoded(name, ["small", "a photo of a red circle " * 15]))
    assert isinstance(family, UnpaddedTextFamily)
    with torch.no_grad():
        grouped = family.predict(family.denoiser(pipe), noise, t, batch)
        padded = family._predict(family.denoiser(pipe), noise, t, batch)
    assert (grouped[0] - padded[0]).abs().max() > 1e-5


def test_each_group_has_one_combination_of_lengths():
    """Negatives have lengths too, one negative may serve all rows, and every row is in a group."""
    family = family_of("qwen-image-2.1")

    def batch(*lengths):
        return family.collate(
            [{"prompt_embeds": torch.ones(n, 2), TEXT_MASK: torch.ones(n, dtype=torch.bool)} for n in lengths]
        )

    groups = family._equal_length_groups(4, batch(3, 5, 3, 3), batch(1, 1, 2, 1))
    shapes = {
        tuple(group.rows.tolist()): [
            cond["prompt_embeds"].shape for cond in (group.cond, group.negative_cond)
        ]
        for group in groups
    }
    assert shapes == {
        (0, 3): [(2, 3, 2), (2, 1, 2)],
        (1,): [(1, 5, 2), (1, 1, 2)],
        (2,): [(1, 3, 2), (1, 2, 2)],
    }
    shared = family._equal_length_groups(2, batch(3, 5), batch(4))
    assert [group.negative_cond["prompt_embeds"].shape for group in shared] == [(1, 4, 2)] * 2


def test_kandinsky_samples_the_requested_size():
    name = "kandinsky5"
    family, pipe = family_of(name), tiny.build(name)
    pipe.resolutions = resolutions = [(1024, 1024)]
    cond = family.collate(encoded(name, ["small"], (48, 80)))
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "width": 48, "height": 80}
    assert family.sample(pipe, cond, None, noise_for(name, (48, 80)), **options)[0].size == (48, 80)
    assert pipe.resolutions is resolutions


def test_settings_in_an_index_are_not_components():
    """Krea 2 lists the layers that it reads beside its components, and the tiny one lists two of them."""
    classes = pipeline_folder.pipeline_components(tiny.tiny_folder("krea2"))
    assert sorted(classes) == ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]


def test_a_modular_model_may_lack_components(tmp_path):
    """A component that its index places in another model is absent, and loading it is an error."""
    shutil.copytree(tiny.tiny_folder("flux3"), tmp_path / "base")
    shutil.rmtree(tmp_path / "base/text_encoder")
    family = detect_family(tmp_path / "base")
    pipe = family.load(tmp_path / "base", dtype=torch.float32, only={"transformer", "scheduler"})
    assert [getattr(pipe, part) is None for part in ("transformer", "scheduler", "vae")] == [
        False,
        False,
        True,
    ]
    with pytest.raises(ConfigError, match="the model has no text_encoder"):
        family.load(tmp_path / "base", dtype=torch.float32, only={"text_encoder"})


@pytest.mark.parametrize("name", ["longcat-image", "longcat-image-edit"])
def test_positions_are_exact_in_half_precision(name, monkeypatch):
    """Positions after 512 tokens of text are not multiples of four, as bfloat16 would make them."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    network, seen = family.denoiser(pipe), []
    monkeypatch.setattr(
        network, "forward", lambda **inputs: seen.append(inputs) or (inputs["hidden_states"],)
    )
    noise, t, cond = noise_for(name), two_timesteps(family)[:1], family.collate(encoded(name)[:1])
    for dtype in (torch.float32, torch.bfloat16):
        family.predict(network, noise.to(dtype), t, {key: value.to(dtype) for key, value in cond.items()})
    assert torch.equal(seen[0]["img_ids"].double(), seen[1]["img_ids"].double())
    assert seen[0]["img_ids"][1].tolist() != seen[0]["img_ids"][0].tolist()
