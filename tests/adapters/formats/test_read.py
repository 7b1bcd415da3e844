"""Files in the layouts of other trainers, built by their rules, read into the right delta weights."""

from __future__ import annotations

import pytest
import torch

from lorakit.adapters import formats
from lorakit.adapters.formats import DoraDelta, LoraDelta, export, layouts, module_names, native_names
from lorakit.core import storage
from lorakit.core.errors import DataError
from tests import tiny


def written(tmp_path, tensors, **metadata):
    path = tmp_path / "theirs.safetensors"
    storage.write_safetensors(path, tensors, {"format": "pt", **metadata})
    return path


def lora_factors(stem, height, width, *, up="lora_B.weight", down="lora_A.weight", rank=2):
    return {f"{stem}.{up}": torch.randn(height, rank), f"{stem}.{down}": torch.randn(rank, width)}


def product(tensors, stem):
    return tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]


@pytest.mark.parametrize(
    ("family", "theirs", "ours"),
    [
        ("flux1", "img_in", "x_embedder"),
        ("flux1", "guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
        ("flux2", "double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear"),
        ("sd3", "joint_blocks.1.x_block.adaLN_modulation.1", "transformer_blocks.1.norm1.linear"),
        ("sd3", "y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
        ("pixart-sigma", "t_block.1", "adaln_single.linear"),
        ("krea2", "txtfusion.refiner_blocks.3.attn.wo", "text_fusion.refiner_blocks.3.attn.to_out.0"),
        ("wan", "blocks.7.cross_attn.k_img", "blocks.7.attn2.add_k_proj"),
        ("wan", "blocks.7.ffn.2", "blocks.7.ffn.net.2"),
        ("ltx-video", "patchify_proj", "proj_in"),
    ],
)
def test_a_native_module_is_resolved_with_every_prefix(family, theirs, ours):
    for stem in (
        theirs,
        f"diffusion_model.{theirs}",
        f"lora_unet_{theirs.replace('.', '_')}",
        f"lora_transformer_{ours.replace('.', '_')}",
        f"transformer.{ours}",
    ):
        assert module_names.resolve_key(stem, family) == [f"transformer.{ours}"]
    assert native_names.native_module(family, ours) == native_names.NativeModule(theirs, [ours])


@pytest.mark.parametrize(
    ("stem", "family", "module"),
    [
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "sdxl", "text_encoder"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", "sdxl", "text_encoder_2"),
        ("text_encoders.clip_l.transformer.encoder.layers.0.mlp.fc1", "flux1", "text_encoder"),
        ("lora_te1_encoder_layers_0_mlp_fc1", "flux1", "text_encoder"),
    ],
)
def test_keys_of_text_encoders_are_resolved(stem, family, module):
    assert module_names.resolve_key(stem, family) == [f"{module}.text_model.encoder.layers.0.mlp.fc1"]
    t5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    component_by_family = {"flux1": "text_encoder_2", "sd3": "text_encoder_3"}
    for name, component in component_by_family.items():
        assert module_names.resolve_key(t5, name) == [f"{component}.encoder.block.0.layer.0.SelfAttention.q"]


@pytest.mark.parametrize(
    "stem", ["diffusion_model.joint_blocks.0.x_block.other", "lora_unet_double_blocks_0_img_attn_other"]
)
def test_a_native_name_without_a_row_is_refused(stem, tmp_path):
    known = "diffusion_model.joint_blocks.0.x_block.attn.proj"
    with pytest.raises(DataError, match=f"unknown key: {stem}"):
        formats.read_adapter_file(
            written(tmp_path, lora_factors(known, 8, 8) | lora_factors(stem, 8, 8)), "sd3"
        )


def test_scale_and_shift_of_the_last_modulation_are_swapped(tmp_path):
    """The published networks store the shift first, diffusers the scale."""
    last, inner = (
        "joint_blocks.1.context_block.adaLN_modulation.1",
        "joint_blocks.0.x_block.adaLN_modulation.1",
    )
    tensors = {}
    for stem, height in ((last, 16), (inner, 48), ("final_layer.adaLN_modulation.1", 16)):
        tensors |= lora_factors(f"diffusion_model.{stem}", height, 8)
    found = formats.read_adapter_file(written(tmp_path, tensors), "sd3").deltas
    swapped = {
        "transformer_blocks.1.norm1_context.linear": last,
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    for module, stem in swapped.items():
        theirs = product(tensors, f"diffusion_model.{stem}")
        assert torch.allclose(found[f"transformer.{module}"].dense(), torch.cat([theirs[8:], theirs[:8]]))
    same = found["transformer.transformer_blocks.0.norm1.linear"].dense()
    assert torch.allclose(same, product(tensors, f"diffusion_model.{inner}"))
    back = layouts.write_native(found, "sd3")
    assert back.keys() == tensors.keys()
    for stem in (last, inner):
        again = product(back, f"diffusion_model.{stem}")
        assert torch.allclose(again, product(tensors, f"diffusion_model.{stem}"), atol=1e-6)


def test_dora_of_a_swapped_modulation_becomes_a_lora():
    """ComfyUI and Forge swap the halves of its delta weight, but not those of its magnitudes."""
    base = torch.randn(16, 8)
    dora = DoraDelta(LoraDelta(torch.randn(2, 8), torch.randn(16, 2)), 1 + torch.rand(16, 1))
    source = formats.LoadedAdapter(
        {f"transformer.{m}": dora for m in ("norm_out.linear", "x_embedder")}, "diffusers"
    )

    class Base:
        def read_weight(self, module):
            return base

    plans = export._group_plans(source, ("comfyui", "diffusers"), export._Conversion("flux1", Base()))
    methods = {plan.consumers: [delta.method for delta in plan.deltas.values()] for plan in plans}
    assert methods == {("comfyui",): ["lora", "dora"], ("diffusers",): ["dora", "dora"]}
    lora = plans[0].deltas["transformer.norm_out.linear"]
    assert torch.allclose(lora.dense(), dora.dense(base), atol=1e-4)


@pytest.mark.parametrize(("height", "family"), [(9, "flux2"), (7, "flux1")])
def test_the_height_of_single_blocks_distinguishes_flux_2_from_flux_1(height, family, tmp_path):
    tensors = lora_factors("diffusion_model.double_blocks.0.img_attn.qkv", 24, 8)
    tensors |= lora_factors("diffusion_model.single_blocks.30.linear1", 8 * height, 8)
    assert formats.read_adapter_file(written(tmp_path, tensors)).possible_families[0] == family


@pytest.mark.parametrize(
    ("family", "first", "second", "width"),
    [
        ("pixart-sigma", "transformer_blocks.0.attn1", "transformer_blocks.0.attn2", 1152),
        ("ltx-video", "transformer_blocks.0.attn1", "transformer_blocks.0.attn2", 2048),
        ("wan", "blocks.0.attn1", "blocks.0.attn2", 1536),
        ("wan", "blocks.0.attn1", "blocks.39.attn2", 5120),
        ("hunyuan-dit", "blocks.0.attn1", "blocks.0.attn2", 1408),
        ("hunyuan-video", "transformer_blocks.0.attn", "single_transformer_blocks.39.attn", 3072),
        ("hunyuan-image", "transformer_blocks.0.attn", "single_transformer_blocks.39.attn", 3584),
        ("flux1", "transformer_blocks.0.norm1", "single_transformer_blocks.37.norm", 3072),
    ],
)
def test_width_and_depth_distinguish_families_of_the_same_names(family, first, second, width, tmp_path):
    tensors = {}
    for stem in (first, second):
        tensors |= lora_factors(f"transformer.{stem}.{'linear' if 'norm' in stem else 'to_q'}", width, width)
    assert formats.read_adapter_file(written(tmp_path, tensors)).possible_families[0] == family


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ("diffusion_model.blocks.0.self_attn.q diffusion_model.blocks.0.cross_attn.k_img", "wan-i2v"),
        ("lora_unet_blocks_0_self_attn_q lora_unet_blocks_0_cross_attn_v_img", "wan-i2v"),
        ("transformer.blocks.0.attn1.to_q transformer.blocks.0.attn2.add_k_proj", "wan-i2v"),
        ("diffusion_model.blocks.0.self_attn.q diffusion_model.blocks.0.cross_attn.k", "wan"),
    ],
)
def test_layers_for_the_image_distinguish_wan_from_image_to_video(names, family, tmp_path):
    tensors = {key: value for name in names.split() for key, value in lora_factors(name, 1536, 1536).items()}
    assert formats.read_adapter_file(written(tmp_path, tensors)).possible_families == (family,)


def test_the_angles_of_scaled_oft_are_divided(tmp_path):
    """OneTrainer's marker means that the angles are divided by 2 sqrt(block size - 1)."""
    angles = 0.3 * torch.randn(2, 6)  # two blocks of 4
    stem = "transformer.transformer_blocks.0.attn.to_q"
    marked = {f"{stem}.oft_R.weight": angles, f"{stem}.oft_R.scaled_oft": torch.tensor(True)}
    (scaled,) = formats.read_adapter_file(written(tmp_path, marked), "sd3").deltas.values()
    plain = {f"{stem}.oft_R.weight": angles / (2 * 3**0.5)}
    (same,) = formats.read_adapter_file(written(tmp_path, plain), "sd3").deltas.values()
    base = torch.randn(8, 8)
    assert torch.allclose(scaled.dense(base), same.dense(base), atol=1e-6)
    assert float(scaled.dense(base).norm()) > 0.1


@pytest.mark.parametrize("onetrainer", [False, True])
def test_onetrainers_oft_rotates_kernels_the_other_way(onetrainer, tmp_path):
    """Its forward pass rotates the kernel of a convolution by the transpose of peft's rotation."""
    angles, base = 0.03 * torch.randn(3, 6), torch.randn(5, 3, 2, 2)  # three blocks of 4
    linear = "unet.mid_block.attentions.0.proj_in"
    tensors = {"unet.conv_in.oft_R.weight": angles, f"{linear}.oft_R.weight": angles.clone()}
    metadata = {"ot_revision": "0"} if onetrainer else {}
    found = formats.read_adapter_file(written(tmp_path, tensors, **metadata), "sdxl").deltas
    row, column = torch.triu_indices(4, 4, 1)
    skew = torch.zeros(3, 4, 4)
    skew[:, row, column] = angles
    skew = skew - skew.mT
    rotation = torch.linalg.solve(torch.eye(4) - skew, torch.eye(4) + skew)  # the limit of the series
    blocks = base.reshape(5, 3, 4)
    rotated = torch.einsum("ork,rkc->orc" if onetrainer else "orc,rkc->ork", blocks, rotation).reshape(
        base.shape
    )
    assert torch.allclose(found["unet.conv_in"].dense(base) + base, rotated, atol=1e-3)
    flat = found[linear].dense(base.flatten(1)) + base.flatten(1)
    assert torch.allclose(flat.reshape(5, 3, 4), torch.einsum("orc,rkc->ork", blocks, rotation), atol=1e-3)


@pytest.mark.parametrize(
    ("part", "method"),
    [({"dora_scale": torch.ones(1, 8)}, "dora"), ({"oft_blocks": torch.zeros(4, 6, 6)}, "oft")],
)
def test_a_method_that_cannot_be_split_in_a_fused_layer_is_refused(part, method, tmp_path):
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = lora_factors(stem, 24, 8) if method == "dora" else {}
    tensors |= {f"{stem}.{name}": value for name, value in part.items()}
    with pytest.raises(DataError, match=rf"{method} of a fused layer(.|\n)*img_attn\.qkv(.|\n)*diffusers"):
        formats.read_adapter_file(written(tmp_path, tensors), "flux1")
    by_output = lora_factors(stem, 24, 8) | {f"{stem}.dora_scale": torch.ones(24, 1)}
    assert len(formats.read_adapter_file(written(tmp_path, by_output), "flux1").deltas) == 3


def test_lycoris_oft_is_bounded_and_rescaled(tmp_path):
    """Alpha times the number of outputs bounds the angle, and `rescale` multiplies the rotated outputs."""
    stem, blocks = "lycoris_mid_block_attentions_0_proj_in", torch.randn(2, 4, 4)
    factors, base = 1 + torch.rand(8, 1), torch.randn(8, 8)
    tensors = {f"{stem}.oft_blocks": blocks, f"{stem}.alpha": torch.tensor(0.1), f"{stem}.rescale": factors}
    (delta,) = formats.read_adapter_file(written(tmp_path, tensors), "sd15").deltas.values()
    skew = blocks - blocks.mT
    skew = skew * min(1.0, 0.1 * 8 / float(skew.norm()))
    rotations = [torch.linalg.inv(torch.eye(4) - s).T @ (torch.eye(4) + s).T for s in skew]
    rotated = torch.cat([rotation @ base[4 * n : 4 * n + 4] for n, rotation in enumerate(rotations)])
    assert torch.allclose(delta.dense(base), factors * rotated - base, atol=1e-5)
    with pytest.raises(DataError, match="BOFT"):
        formats.read_adapter_file(written(tmp_path, {f"{stem}.oft_blocks": torch.randn(3, 2, 4, 4)}), "sd15")


def test_lycoris_dora_of_a_flattened_convolution_is_read(tmp_path):
    """LyCORIS flattens the LoHa of a convolution, but its magnitudes have the axes of the kernel."""
    stem, base = "lycoris_mid_block_resnets_0_conv1", torch.randn(6, 4, 3, 3)
    tensors = {f"{stem}.hada_w{n}_a": torch.randn(6, 2) for n in (1, 2)}
    tensors |= {f"{stem}.hada_w{n}_b": torch.randn(2, 36) for n in (1, 2)}
    added = torch.ones(6, 36)
    for number in (1, 2):
        added = added * (tensors[f"{stem}.hada_w{number}_a"] @ tensors[f"{stem}.hada_w{number}_b"])
    magnitude = 1 + torch.rand(6, 1, 1, 1)
    (delta,) = formats.read_adapter_file(
        written(tmp_path, tensors | {f"{stem}.dora_scale": magnitude}), "sd15"
    ).deltas.values()
    merged = base + added.reshape(base.shape)
    expected = magnitude * merged / merged.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert torch.allclose(delta.dense(base), expected - base, atol=1e-5)


def test_dora_with_the_short_key_magnitude_is_read(tmp_path):
    """DoRA of ai-toolkit: one number for each output, divided by the norm of the changed weight."""
    stem, base = "transformer.transformer_blocks.0.attn.to_q", torch.randn(8, 8)
    tensors = lora_factors(stem, 8, 8)
    magnitude = 1 + torch.rand(8)
    path = written(tmp_path, tensors | {f"{stem}.magnitude": magnitude})
    (delta,) = formats.read_adapter_file(path, "flux1").deltas.values()
    merged = base + product(tensors, stem)
    expected = merged * (magnitude / merged.norm(dim=1))[:, None] - base
    assert torch.allclose(delta.dense(base), expected, atol=1e-5)


def test_every_native_row_names_each_module_once():
    """A wrong row would change one module twice or none; the tables contain all modules of tiny networks."""
    for family, rows in native_names.NATIVE_NAMES.items():
        theirs = [row.native for row in rows]
        ours = [module for row in rows for module in row.members]
        assert len(set(theirs)) == len(theirs), family
        assert len(set(ours)) == len(ours), family
    for name, family in (("flux1-dev", "flux1"), ("sd3", "sd3")):
        model = tiny.tiny_pipeline(name).transformer
        linear = [path for path, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
        unmapped = {path for path in linear if native_names.native_module(family, path) is None}
        assert unmapped <= {"context_embedder"}
        deltas = {f"transformer.{path}": _ones(model.get_submodule(path)) for path in linear}
        back = {}
        for key in layouts.write_native(deltas, family):
            for module in module_names.resolve_key(key.rsplit(".", 2)[0], family):
                back[module] = True
        assert back.keys() == deltas.keys()


def _ones(layer):
    return LoraDelta(torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))
