"""What single families do besides the contract: guiders, quoted text, coarse pictures, lengths, sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lorakit.core.errors import ConfigError
from lorakit.models.families import detect_family, pipeline_folder
from lorakit.models.families.by_length import TEXT_MASK, UnpaddedTextFamily
from tests import oracle, tiny
from tests.models.families.common import encoded, family_of, noise_for, times

QUOTED = ['a sign that says "red"', "small", 'two signs, "blue" and "green"']


@pytest.mark.parametrize("name", ["hunyuan-image", "glm-image"])
def test_what_a_caption_quotes_is_read_apart(name):
    """Some captions of a batch quote text and some do not, and each row is what it is alone."""
    family, pipe, size = family_of(name), tiny.tiny_pipeline(name), tiny.ROWS[name].sizes[0]
    noise, t = noise_for(name, rows=3), times(family)[[0, 1, 0]]
    conds = encoded(name, QUOTED)
    with torch.no_grad():
        made = family.predict(family.denoiser(pipe), noise, t, family.collate(conds))
        for i, caption in enumerate(QUOTED):
            expected = oracle.prediction(name, pipe, caption, noise[i, None], t[i], *size)
            assert (made[i] - expected[0]).abs().max() <= 1e-5
        unquoted = encoded(name, [QUOTED[0].replace('"', "")])
        without = family.predict(family.denoiser(pipe), noise[:1], t[:1], family.collate(unquoted))
    assert (made[0] - without[0]).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [None, 4.0])
def test_hunyuan_image_is_guided_by_its_component(scale):
    from diffusers import AdaptiveProjectedMixGuidance

    name = "hunyuan-image"
    family, pipe, size = family_of(name), tiny.build(name), tiny.ROWS[name].sizes[1]
    published = AdaptiveProjectedMixGuidance(guidance_scale=2.0)
    pipe.guider = published
    noise = noise_for(name, size)
    cond, negative = (family.collate(encoded(name, [caption], size)) for caption in ("small", ""))
    options = {"steps": 8, "width": size[0], "height": size[1]}  # more than the five it guides plainly
    ours = family.sample(pipe, cond, negative, noise, guidance=scale, **options)[0]
    plain = family.sample(pipe, cond, negative, noise, guidance=1.0, **options)[0]
    assert pipe.guider is published
    with pytest.raises(ValueError, match="needs the negative condition"):
        family.sample(pipe, cond, None, noise, guidance=scale, **options)
    pipe.guider = AdaptiveProjectedMixGuidance(guidance_scale=scale or 2.0)
    settings = {"width": size[0], "height": size[1], "num_inference_steps": 8}
    theirs = pipe(prompt="small", latents=noise.clone(), **settings)[0][0]
    assert ours.tobytes() == theirs.tobytes() != plain.tobytes()


def test_the_distilled_hunyuan_image_is_refused(tmp_path):
    shutil.copytree(tiny.tiny_folder("hunyuan-image"), tmp_path / "base")
    config = tmp_path / "base/transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_meanflow": True}))
    with pytest.raises(ConfigError, match="jumps between times"):
        detect_family(tmp_path / "base").load(tmp_path / "base", dtype=torch.float32, only=())


def test_a_coarse_picture_belongs_to_a_caption_and_a_size():
    family, pipe = family_of("glm-image"), tiny.tiny_pipeline("glm-image")
    state = torch.get_rng_state()
    small, wide = encoded("glm-image", ["small"], (64, 64))[0], encoded("glm-image", ["small"], (96, 64))[0]
    assert torch.equal(state, torch.get_rng_state())
    assert [len(cond["prior_token_ids"]) for cond in (small, wide)] == [16, 24]
    again = encoded("glm-image", ["small"], (64, 64))[0]
    assert torch.equal(small["prior_token_ids"], again["prior_token_ids"])
    with pytest.raises(ConfigError, match="none was given"):
        family.encode(pipe, ["small"])


@pytest.mark.parametrize("name", ["qwen-image-2.1", "kandinsky5", "flux3"])
def test_padding_would_be_read_as_text(name):
    """Why these families predict by length: a longer neighbour in the batch would change a row."""
    family, pipe = family_of(name), tiny.tiny_pipeline(name)
    noise, t = noise_for(name, rows=2), times(family)
    batch = family.collate(encoded(name, ["small", "a photo of a red circle " * 15]))
    assert isinstance(family, UnpaddedTextFamily)
    with torch.no_grad():
        grouped = family.predict(family.denoiser(pipe), noise, t, batch)
        padded = family._predict(family.denoiser(pipe), noise, t, batch)
    assert (grouped[0] - padded[0]).abs().max() > 1e-5


def test_groups_hold_one_combination_of_lengths():
    """Negatives have lengths too, one negative may serve all rows, and no row is lost."""
    family = family_of("qwen-image-2.1")

    def batch(*lengths):
        return family.collate(
            [{"prompt_embeds": torch.ones(n, 2), TEXT_MASK: torch.ones(n, dtype=torch.bool)} for n in lengths]
        )

    groups = {
        tuple(rows.tolist()): conds
        for rows, *conds in family._groups(4, batch(3, 5, 3, 3), batch(1, 1, 2, 1))
    }
    assert {rows: [c["prompt_embeds"].shape for c in conds] for rows, conds in groups.items()} == {
        (0, 3): [(2, 3, 2), (2, 1, 2)],
        (1,): [(1, 5, 2), (1, 1, 2)],
        (2,): [(1, 3, 2), (1, 2, 2)],
    }
    shared = [conds for _, *conds in family._groups(2, batch(3, 5), batch(4))]
    assert [conds[1]["prompt_embeds"].shape for conds in shared] == [(1, 4, 2)] * 2


def test_kandinsky_draws_the_size_it_is_asked_for():
    name = "kandinsky5"
    family, pipe = family_of(name), tiny.build(name)
    pipe.resolutions = known = [(1024, 1024)]
    cond = family.collate(encoded(name, ["small"], (48, 80)))
    options = {"steps": 1, "guidance": 1.0, "width": 48, "height": 80}
    assert family.sample(pipe, cond, None, noise_for(name, (48, 80)), **options)[0].size == (48, 80)
    assert pipe.resolutions is known


def test_settings_in_an_index_are_no_components():
    """Krea 2 lists the layers it reads beside its components, and the tiny one lists two of them."""
    parts = pipeline_folder.pipeline_components(tiny.tiny_folder("krea2"))
    assert sorted(parts) == ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"]


def test_a_modular_model_may_lack_parts(tmp_path):
    """A component that its index places in another model is absent here, and asking for it is an error."""
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
