"""Every entry of every list of modules matches something that is trained, or is refused with a name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn

from lorakit import adapters
from lorakit.adapters import planning, target_patterns
from lorakit.config.recipe import AdapterConfig, parse_recipe
from lorakit.core.errors import ConfigError
from lorakit.models import families
from tests import tiny

UNET, DIT, EXPERTS = "sd15", "sd3", "wan-2.2"
SIBLINGS = {"transformer": ["transformer_2"], "transformer_2": ["transformer"]}


def spec(base: str, component: str | None = None, **settings: Any) -> tuple[adapters.AdapterSpec, str]:
    """The adapter of one network of a tiny base model, and the log."""
    family, lines = families.detect_family(tiny.tiny_folder(base)), []
    component = component or family.components.denoiser
    planned = adapters.denoiser_adapter_spec(
        getattr(tiny.tiny_pipeline(base), component),
        AdapterConfig(**settings),
        family.target_modules,
        component=component,
        siblings=SIBLINGS[component] if base == EXPERTS else (),
        log=lines.append,
    )
    return planned, "\n".join(lines)


def refusal(base: str, component: str | None = None, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        spec(base, component, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("base", "targets", "entry", "nearest"),
    [
        (UNET, ["to_q", "to_kk"], "to_kk", "to_k"),
        (UNET, ["to_q", "attn1.to_qq"], "attn1.to_qq", "attn1.to_q"),
        (DIT, ["to_q", "add_q_prj"], "add_q_prj", "add_q_proj"),
        (DIT, ["re:.*to_z", "to_q"], "re:.*to_z", "whole name"),
        (EXPERTS, ["to_q", "ffn.net.0.projj"], "ffn.net.0.projj", "proj"),
        (UNET, ["to_q", "norm1"], "norm1", "LayerNorm"),
        (UNET, ["to_q", "attn1"], "attn1", "several layers"),
        (UNET, ["to_q", "text_encoder.q_proj"], "text_encoder.q_proj", "adapter.text_encoder"),
    ],
)
def test_a_target_that_matches_nothing_is_refused_with_the_nearest_name(base, targets, entry, nearest):
    message = refusal(base, targets=targets)
    assert repr(entry) in message
    assert "where: adapter.targets" in message
    assert nearest in message.replace(repr(entry), "")


@pytest.mark.parametrize(
    ("base", "entry", "usual"),
    [
        (UNET, "to_out", ["to_out.0"]),
        (DIT, "to_out", ["to_out.0"]),
        (UNET, "attn.to_q", ["to_q"]),
        (UNET, "q_proj", ["to_q"]),
        (DIT, "attn.k_proj", ["to_k"]),
        (UNET, "ff.net.0", ["ff.net.0.proj"]),
        (UNET, ".*to_q$", ["to_q"]),
        (UNET, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
         ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]),
        (DIT, "transformer.transformer_blocks.0.attn.to_q.weight", ["transformer_blocks.0.attn.to_q"]),
        (UNET, "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
         ["mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"]),
    ],
)  # fmt: skip
def test_a_common_other_spelling_trains_the_same_modules_and_is_logged(base, entry, usual):
    planned, log = spec(base, targets=[entry])
    expected, _ = spec(base, targets=usual)
    assert planned.target_modules == expected.target_modules != ()
    assert f"{entry} {len(planned.target_modules)} (read as " in log


def test_the_usual_list_of_papers_trains_all_attention_layers():
    planned, log = spec(UNET, targets=["to_q", "to_k", "to_v", "to_out"])
    assert planned.target_modules == spec(UNET)[0].target_modules
    assert len(planned.target_modules) == 32
    assert "to_q 8, to_k 8, to_v 8, to_out 8 (read as to_out.0)" in log


@pytest.mark.parametrize(
    ("base", "blocks", "reason"),
    [
        (UNET, ["mid_block", "down_blocks.7"], r"write down_blocks|blocks are 0 to 1"),
        (DIT, ["transformer_blocks.0-99"], r"write transformer_blocks\.0-1"),
        (DIT, ["transformer_blocks.1-0"], r"write transformer_blocks\.0-1"),
        (UNET, ["midblock"], "did you mean 'mid_block'"),
        (UNET, ["down_blocks.1"], "has none of the targets"),
        (EXPERTS, ["blocks.0", "blocks.2-5"], "beyond the last block"),
    ],
)
def test_a_block_without_target_modules_or_beyond_the_last_is_refused(base, blocks, reason):
    message = refusal(base, blocks=blocks)
    assert "adapter.blocks" in message
    assert re.search(reason, message)


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        (UNET, {"targets": ["to_q", "time_embedding.linear_1"], "blocks": ["mid_block"]}),
        (UNET, {"targets": ["to_q", "conv_in"], "blocks": ["up_blocks"]}),
        (DIT, {"targets": ["to_q", "re:context_embedder"], "blocks": ["transformer_blocks.0"]}),
    ],
)
def test_a_target_outside_of_the_blocks_is_refused(base, settings):
    message = refusal(base, **settings)
    assert settings["targets"][1] in message
    assert "in none of adapter.blocks" in message


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("entry", ["to_vv", "to_v", "re:.*attn3.*"])
def test_a_pattern_for_modules_that_are_not_trained_is_refused(key, entry):
    message = refusal(UNET, targets=["to_q", "to_k"], **{key: {"to_q": 2, entry: 3}})
    assert f"adapter.{key}" in message
    assert repr(entry) in message


def test_patterns_accept_the_spellings_of_targets_and_name_what_has_no_effect():
    planned, log = spec(UNET, rank_pattern={"to_out": 2, "unet.mid_block.attentions.0.proj_in": 3},
                        targets=["to_out", "proj_in"])  # fmt: skip
    assert planned.rank_pattern["mid_block.attentions.0.proj_in"] == 3
    assert list(planned.rank_pattern.values()).count(2) == 8
    assert "to_out 8 (read as to_out.0)" in log
    _, log = spec(UNET, rank_pattern={"to_q": 2, "attn1.to_q": 3})
    assert "attn1.to_q has no effect" in log


def test_convolutions_are_adapted_in_blocks_that_have_nothing_else():
    planned, _ = spec(UNET, conv_rank=2, blocks=["down_blocks.1"])
    assert planned.target_modules
    assert set(planned.rank_pattern) == set(planned.target_modules)
    assert "no convolutions" in refusal(DIT, conv_rank=2)
    planned, log = spec(UNET, blocks=["down_blocks.0-1"])
    assert "no target module in down_blocks.1" in log
    assert planned.target_modules


@pytest.mark.parametrize("component", ["transformer", "transformer_2"])
def test_each_expert_needs_every_entry_that_does_not_name_the_other(component):
    assert f"the {component} matches 'to_zz'" in refusal(EXPERTS, component, targets=["to_q", "to_zz"])
    only_first = "transformer.blocks.0.attn1.to_k"
    planned, _ = spec(EXPERTS, component, targets=["to_q", only_first])
    assert ("blocks.0.attn1.to_k" in planned.target_modules) is (component == "transformer")
    foreign = ["to_q", "unet.blocks.0.attn1.to_k"]
    assert "unet.blocks" in refusal(EXPERTS, component, targets=foreign)


def test_a_plan_refuses_an_entry_in_any_expert_and_logs_both(tmp_path):
    folder = tiny.tiny_folder(EXPERTS)
    family, lines = families.detect_family(folder), []
    tree = {"base": str(folder), "dataset": "d", "out": "o", "adapter": {"targets": ["to_q", "to_k"]}}
    planned = planning.plan_adapters(parse_recipe(tree), family, folder, lines.append)
    assert all(network.device.type == "meta" for network in planned.networks.values())
    assert [line for line in lines if "to_q 4" in line] == lines
    assert len(lines) == 2
    tree["adapter"]["targets"].append("to_zz")
    with pytest.raises(ConfigError, match="to_zz"):
        planning.plan_adapters(parse_recipe(tree), family, folder, lines.append)


@pytest.mark.parametrize("targets", [["to_q", "to_z"], ["to_z"], ["re:z", "to_q"]])
def test_injecting_with_a_list_refuses_an_entry_that_matches_nothing(targets):
    network = nn.ModuleDict({"to_q": nn.Linear(2, 2), "to_k": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=re.escape(next(entry for entry in targets if "z" in entry))):
        adapters.inject_adapter(network, rank=1, alpha=1, targets=targets)


@pytest.mark.parametrize(("settings", "warned"), [({"rank": 64}, True), ({"rank": 4}, False),
                                                  ({"rank_pattern": {"to_q": 99}}, True)])  # fmt: skip
def test_a_rank_above_the_sides_of_a_weight_is_a_warning(settings, warned):
    _, log = spec(UNET, **settings)
    assert ("warning: the rank is larger than" in log) is warned


def test_a_single_layer_inside_a_module_is_the_module():
    block = nn.ModuleDict({"to_out": nn.ModuleList([nn.Linear(2, 2), nn.Dropout()]), "to_q": nn.Linear(2, 2)})
    adapted = target_patterns.AdaptedNetwork(nn.ModuleDict({"a": block}))
    layers = target_patterns.layer_names(adapted.network)
    (match,) = target_patterns.match_entries(["to_out"], layers, adapted, "adapter.targets")
    assert match.modules == ("a.to_out.0",)
