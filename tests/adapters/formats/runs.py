"""Adapters like those of a finished run, with random weights instead of trained ones."""

from __future__ import annotations

import re

import torch

from lorakit import adapters
from lorakit.adapters import formats
from lorakit.core import storage
from lorakit.models import families
from tests import tiny

RANK, ALPHA = 4, 10.0
CAPTION = "a photo of a red circle"
CLIP = r".*self_attn\.(q|k|v|out)_proj"


def family_of(name):
    return families.detect_family(tiny.tiny_folder(name))


def train(name, path, *, targets=None, std=0.3, **entries):
    """Write a LoRA with random weights, as a run would; return the adapted pipeline.

    `entries` are added to its metadata.
    """
    family, pipe = family_of(name), tiny.build(name)
    model = family.denoiser(pipe)
    adapters.inject_adapter(model, rank=RANK, alpha=ALPHA, targets=targets or family.target_modules)
    generator = torch.Generator().manual_seed(11)
    for key, parameter in adapters.trainable_parameters(model):
        if key.endswith("lora_B.weight"):
            parameter.data.normal_(std=std, generator=generator)
    metadata = adapters.pack_metadata(run_metadata(name, pipe) | entries)
    storage.write_safetensors(
        path, adapters.adapter_state_dict({family.components.denoiser: model}), metadata
    )
    return pipe


def export_exactly(*arguments, **settings):
    """Export in float32, whose rounding is below the tolerance of the tests."""
    return formats.export_adapter(*arguments, **{"dtype": "fp32"} | settings)


def run_metadata(name, pipe):
    """Return the metadata that a run writes into its adapter."""
    return {
        "type": "lora",
        "rank": RANK,
        "alpha": ALPHA,
        "family": family_of(name).name,
        "pipeline": type(pipe).__name__,
        "base": "/home/alice/models/secret-base",
        "base_hash": "0" * 64,
        "resolution": 64,
        "trigger": "sks",
        "step": 300,
        "recipe_hash": "1" * 64,
    }


def peft_config(method, targets):
    """Return peft's configuration of a method, with an alpha that differs from the rank."""
    import peft

    common = {"r": RANK, "target_modules": targets}
    match method:
        case "lora":
            return peft.LoraConfig(lora_alpha=ALPHA, **common)
        case "rslora":
            return peft.LoraConfig(lora_alpha=ALPHA, use_rslora=True, **common)
        case "dora":
            return peft.LoraConfig(lora_alpha=ALPHA, use_dora=True, **common)
        case "loha":
            return peft.LoHaConfig(alpha=ALPHA, **common)
        case "lokr":
            return peft.LoKrConfig(alpha=ALPHA, decompose_factor=2, **common)
        case "lokr-dense":  # both factors are dense
            return peft.LoKrConfig(alpha=ALPHA, decompose_factor=8, **common | {"r": 100})
        case "oft":
            return peft.OFTConfig(r=0, oft_block_size=4, target_modules=targets)
    raise ValueError(method)


def train_method(name, path, method, *, targets=None, texts=()):
    """Write an adapter of any method for the denoiser and the text encoders `texts`, with random weights.

    Returns the difference that peft's merge adds to each weight, by `<component>.<module>`.
    """
    import peft
    from peft.utils import get_peft_model_state_dict

    family, pipe = family_of(name), tiny.build(name)
    generator = torch.Generator().manual_seed(5)
    tensors, expected = {}, {}
    target_modules = {family.components.denoiser: targets or family.target_modules}
    for component, endings in (target_modules | dict.fromkeys(texts, CLIP)).items():
        model = getattr(pipe, component)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        config = peft_config(method, endings)
        model = peft.inject_adapter_in_model(config, model)
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in parameter_name:
                parameter.data = parameter.data.normal_(std=0.15, generator=generator)
        peft_state = get_peft_model_state_dict(_Peft(model, config), adapter_name="default")
        tensors |= {f"{component}.{key}": value.clone() for key, value in peft_state.items()}
        for module_name, module in model.named_modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                stem = re.sub(r"^encoder\.layers", "text_model.encoder.layers", module_name)
                if method in ("dora", "oft"):  # they do not add to the weight, so compare the merged one
                    module.merge()
                    added = module.base_layer.weight - before[f"{module_name}.weight"]
                else:
                    added = module.get_delta_weight("default")
                expected[f"{component}.{stem}"] = added.detach()
    metadata = run_metadata(name, pipe) | {"type": method.split("-")[0]}
    if method == "lokr-dense":
        metadata["rank"] = 100
    storage.write_safetensors(path, tensors, adapters.pack_metadata(metadata))
    return expected


class _Peft:
    """The part of a PeftModel that peft's saving reads."""

    def __init__(self, model, config):
        self.peft_config, self.active_adapter, self.base_model = {"default": config}, "default", model
        self.state_dict, self.prefix = model.state_dict, None

    def named_modules(self):
        return self.base_model.named_modules()

    def modules(self):
        return self.base_model.modules()


def predict(name, pipe):
    family = family_of(name)
    shape = family.latent_shape(pipe, 64, 32)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    cond = family.collate(family.encode_text(tiny.tiny_pipeline(name), [CAPTION], (64, 32)))
    t = torch.tensor([300 if family.objective == "ddpm" else 300.0])
    with torch.no_grad():
        return family.predict(family.denoiser(pipe), noise, t, cond)
