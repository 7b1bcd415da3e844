"""The rules by which sd-scripts ("kohya") and musubi-tuner read adapters, to train them further.

sd-scripts of February 2026, musubi-tuner of June 2026: underscored names of the published network, LoRA
with an alpha for each module.
"""

from __future__ import annotations

from dataclasses import replace

from lorakit.adapters.formats.consumers import ends
from lorakit.adapters.formats.consumers.rules import Consumer, LoaderRule, Names, Spelling


def _trainer(names: Names = Names.NATIVE, texts: int = 0) -> LoaderRule:
    component = "unet" if names in (Names.UNET, Names.LDM) else "transformer"
    prefixes = ("lora_te_",) if texts == 1 and component == "unet" else ("lora_te1_", "lora_te2_")[:texts]
    components = ("text_encoder", "text_encoder_2")[:texts]
    return LoaderRule(
        ("kohya",),
        (
            Spelling("lora_unet_", names, "_", component=component),
            *(
                Spelling(prefix, Names.CLIP, "_", component=part)
                for prefix, part in zip(prefixes, components, strict=True)
            ),
        ),
        ends.KOHYA,
        text_encoders=components,
    )


# its U-Net has the published names, and our kohya layout those of diffusers, which every other program reads
_SDXL = replace(_trainer(Names.LDM, 2), layouts=())
KOHYA = Consumer(
    "kohya",
    "sd-scripts",
    "February 2026",
    {
        "sd15": _trainer(Names.UNET, 1),
        "sd15-inpaint": _trainer(Names.UNET, 1),
        "sdxl": _SDXL,
        "sdxl-inpaint": _SDXL,
        "sd3": _trainer(texts=2),
        "flux1": _trainer(texts=1),
        "chroma": _trainer(),
        "lumina2": _trainer(),
        "hunyuan-image": _trainer(),
        "anima": _trainer(),
    },
)
MUSUBI = Consumer(
    "musubi",
    "musubi-tuner",
    "June 2026",
    dict.fromkeys(
        (
            "wan",
            "wan-i2v",
            "flux1-kontext",
            "flux2",
            "qwen-image",
            "qwen-image-edit",
            "qwen-image-edit-plus",
            "z-image",
            "kandinsky5",
            "krea2",
            "ideogram4",
        ),
        _trainer(),
    )
    | dict.fromkeys(("hunyuan-video", "hunyuan-video-1.5"), _trainer(Names.HUNYUAN)),
)
