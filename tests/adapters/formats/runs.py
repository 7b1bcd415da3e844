"""Adapters as a finished run leaves them, random instead of trained."""

from __future__ import annotations

import re

import torch

from lorakit import adapters
from lorakit.core import storage
from lorakit.models import families
from tests import tiny

RANK, ALPHA = 4, 10.0
CAPTION = "a photo of a red circle"
CLIP = r".*self_attn\.(q|k|v|out)_proj"


def family_of(name):
    return families.detect_family(tiny.tiny_folder(name))


def train(name, path, *, targets=None, std=0.3, **facts):
    """An adapter as a run leaves it, random instead of trained; returns the adapted pipeline."""
    family, pipe = family_of(name), tiny.build(name)
    model = family.denoiser(pipe)
    adapters.inject_adapter(model, rank=RANK, alpha=ALPHA, targets=targets or family.targets)
    generator = torch.Generator().manual_seed(11)
    for key, parameter in adapters.trainable_parameters(model):
        if key.endswith("lora_B.weight"):
            parameter.data.normal_(std=std, generator=generator)
    metadata = adapters.pack_metadata(record(name, pipe) | facts)
    storage.write_safetensors(path, adapters.state(model, family.component), metadata)
    return pipe


def record(name, pipe):
    """What a run writes into its adapter."""
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
        "steps": 300,
        "recipe_hash": "1" * 64,
    }


def peft_config(kind, targets):
    """peft's configuration of each kind of adapter, alpha other than rank."""
    import peft

    common = {"r": RANK, "target_modules": targets}
    match kind:
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
        case "lokr-whole":  # both factors undecomposed
            return peft.LoKrConfig(alpha=ALPHA, decompose_factor=8, **common | {"r": 100})
        case "oft":
            return peft.OFTConfig(r=0, oft_block_size=4, target_modules=targets)
    raise ValueError(kind)


def train_kind(name, path, kind, *, targets=None, texts=()):
    """An adapter of any kind in the denoiser, and as LoRA in the text encoders; returns what peft's merge
    adds to each weight, by `<component>.<module>`."""
    import peft
    from peft.utils import get_peft_model_state_dict

    family, pipe = family_of(name), tiny.build(name)
    generator = torch.Generator().manual_seed(5)
    tensors, expected = {}, {}
    parts = {family.component: (kind, targets or family.targets)} | {text: (kind, CLIP) for text in texts}
    for component, (form, chosen) in parts.items():
        model = getattr(pipe, component)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        config = peft_config(form, chosen)
        model = peft.inject_adapter_in_model(config, model)
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in parameter_name:
                parameter.data = parameter.data.normal_(std=0.15, generator=generator)
        peft_state = get_peft_model_state_dict(_Peft(model, config), adapter_name="default")
        tensors |= {f"{component}.{key}": value.clone() for key, value in peft_state.items()}
        for module_name, module in model.named_modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                stem = re.sub(r"^encoder\.layers", "text_model.encoder.layers", module_name)
                if form in ("dora", "oft"):  # their change is not added, so it can only be seen in the sum
                    module.merge()
                    added = module.base_layer.weight - before[f"{module_name}.weight"]
                else:
                    added = module.get_delta_weight("default")
                expected[f"{component}.{stem}"] = added.detach()
    facts = record(name, pipe) | {"type": kind.split("-")[0]}
    if kind == "lokr-whole":
        facts["rank"] = 100
    storage.write_safetensors(path, tensors, adapters.pack_metadata(facts))
    return expected


class _Peft:
    """As much of a PeftModel as its saving looks at."""

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
    cond = family.collate(family.encode(tiny.tiny_pipeline(name), [CAPTION], (64, 32)))
    t = torch.tensor([300 if family.objective == "ddpm" else 300.0])
    with torch.no_grad():
        return family.predict(family.denoiser(pipe), noise, t, cond)
