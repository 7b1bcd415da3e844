"""Pipelines of diffusers that are variants of a family's own: for another task, or another way of sampling.

`own_pipeline` names the family's own pipeline where its network gets the same inputs, so that the folder is
trained as that family; `refuse_variant` refuses the others by the name of their family. A class that the
tables below do not list (of another version of diffusers) is a variant only if its name and its network are
those of a family's pipeline, and is then refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lorakit.core.errors import ConfigError
from lorakit.core.storage import read_json
from lorakit.models.base_model import MODEL_INDEX


class _Components(Protocol):
    @property
    def denoiser(self) -> str: ...


class KnownFamily(Protocol):
    """The attributes of a family that its variants are compared with."""

    @property
    def name(self) -> str:
        """Its name in adapters."""

    @property
    def title(self) -> str:
        """Its name in messages."""

    @property
    def pipelines(self) -> Sequence[str]:
        """Its pipeline classes."""

    @property
    def components(self) -> _Components:
        """The components of its pipelines."""


_SAME_NETWORK = {
    "StableDiffusion": "Img2Img PAG PAGImg2Img SAG Panorama AttendAndExcite ModelEditing Paradigms",
    "StableDiffusionXL": "Img2Img PAG PAGImg2Img",
    "StableDiffusion3": "Img2Img Inpaint PAG PAGImg2Img",
    "Flux": "Img2Img Inpaint",
    "FluxControl": "Img2Img Inpaint",
    "FluxKontext": "Inpaint",
    "Flux2Klein": "Inpaint",
    "QwenImage": "Img2Img Inpaint",
    "QwenImageEdit": "Inpaint",
    "Chroma": "Img2Img Inpaint",
    "ZImage": "Img2Img Inpaint",
    "Kolors": "Img2Img PAG",
    "HunyuanDiT": "PAG",
    "PixArtSigma": "PAG",
    "Sana": "PAG",
    "Wan": "VideoToVideo",
    "CogVideoX": "VideoToVideo",
}
"""Stem of a family's own pipeline -> words that follow it in variants whose network gets the same inputs."""

_OWN_PIPELINES = {
    f"{stem}{word}Pipeline": f"{stem}Pipeline"
    for stem, words in _SAME_NETWORK.items()
    for word in words.split()
} | {
    "StableDiffusionPAGInpaintPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPAGInpaintPipeline": "StableDiffusionXLInpaintPipeline",
}

_MODULAR = "it is a chain of modular blocks"
_IMAGE_INPUT = "its network gets an image besides the text"
_VIDEO_INPUT = "its network gets an image or a video besides the text"
_MORE_NETWORKS = "it needs a further network beside the family's own"
_DISTILLED = "its network was distilled to few steps by another objective"
_ANOTHER_SAMPLER = "it loads other components than the family's own pipeline"

_OTHER_INPUTS: Mapping[str, tuple[str, str]] = {
    "BriaFiboEditPipeline": ("BriaFiboPipeline", _IMAGE_INPUT),
    "Flux2KleinKVPipeline": ("Flux2KleinPipeline", "its network keeps keys and values of reference images"),
    "FluxPriorReduxPipeline": ("FluxPipeline", "it only turns images into embeddings, and generates none"),
    "VisualClozePipeline": ("FluxFillPipeline", "its network gets a grid of example images"),
    "VisualClozeGenerationPipeline": ("FluxFillPipeline", "its network gets a grid of example images"),
    "QwenImageLayeredPipeline": (
        "QwenImagePipeline",
        "its network predicts several layers at once",
    ),
    "ZImageOmniPipeline": ("ZImagePipeline", _IMAGE_INPUT),
    "HunyuanImageRefinerPipeline": ("HunyuanImagePipeline", _IMAGE_INPUT),
    "Kandinsky5I2IPipeline": ("Kandinsky5T2IPipeline", _IMAGE_INPUT),
    "Kandinsky5I2VPipeline": ("Kandinsky5T2IPipeline", _VIDEO_INPUT),
    "Kandinsky5T2VPipeline": ("Kandinsky5T2IPipeline", "it generates videos, which the family cannot"),
    "HunyuanSkyreelsImageToVideoPipeline": ("HunyuanVideoPipeline", _VIDEO_INPUT),
    "HunyuanVideoFramepackPipeline": ("HunyuanVideoPipeline", _VIDEO_INPUT),
    "LucyEditPipeline": ("WanPipeline", _VIDEO_INPUT),
    "WanAnimatePipeline": ("WanPipeline", _VIDEO_INPUT),
    "WanVACEPipeline": ("WanPipeline", _VIDEO_INPUT),
    "LTXI2VLongMultiPromptPipeline": ("LTXPipeline", _VIDEO_INPUT),
    "LTXLatentUpsamplePipeline": ("LTXPipeline", "it only enlarges latents"),
    "LTX2LatentUpsamplePipeline": ("LTX2Pipeline", "it only enlarges latents"),
    "LTX2VideoDiffusionDecodePipeline": ("LTX2Pipeline", "it only decodes latents"),
    "LTX2DFRPipeline": ("LTX2Pipeline", _VIDEO_INPUT),
    "LTX2DFRTemporalRefinePipeline": ("LTX2Pipeline", _VIDEO_INPUT),
    "LTX2HDRPipeline": ("LTX2Pipeline", _VIDEO_INPUT),
    "LTX2InContextPipeline": ("LTX2Pipeline", _VIDEO_INPUT),
    "SanaSprintPipeline": ("SanaPipeline", _DISTILLED),
    "SanaSprintImg2ImgPipeline": ("SanaPipeline", _DISTILLED),
    "LatentConsistencyModelPipeline": ("StableDiffusionPipeline", _DISTILLED),
    "LatentConsistencyModelImg2ImgPipeline": ("StableDiffusionPipeline", _DISTILLED),
    "AnimateDiffSDXLPipeline": ("StableDiffusionXLPipeline", _MORE_NETWORKS),
    "TextToVideoZeroSDXLPipeline": ("StableDiffusionXLPipeline", _ANOTHER_SAMPLER),
    "LEditsPPPipelineStableDiffusionXL": ("StableDiffusionXLPipeline", _ANOTHER_SAMPLER),
    "StableDiffusionXLAdapterPipeline": ("StableDiffusionXLPipeline", _MORE_NETWORKS),
    "StableDiffusionXLInstructPix2PixPipeline": ("StableDiffusionXLPipeline", _IMAGE_INPUT),
    "PaintByExamplePipeline": ("StableDiffusionInpaintPipeline", "its network gets an image instead of text"),
    **dict.fromkeys(
        (
            "AnimateDiffControlNetPipeline",
            "AnimateDiffPAGPipeline",
            "AnimateDiffPipeline",
            "AnimateDiffSparseControlNetPipeline",
            "AnimateDiffVideoToVideoControlNetPipeline",
            "AnimateDiffVideoToVideoPipeline",
            "PIAPipeline",
            "StableDiffusionAdapterPipeline",
        ),
        ("StableDiffusionPipeline", _MORE_NETWORKS),
    ),
    **dict.fromkeys(
        (
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionImageVariationPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionLatentUpscalePipeline",
            "StableDiffusionUpscalePipeline",
            "StableDiffusionGLIGENPipeline",
            "StableDiffusionGLIGENTextImagePipeline",
            "StableUnCLIPImg2ImgPipeline",
            "StableUnCLIPPipeline",
        ),
        ("StableDiffusionPipeline", "its network gets an image, or places of objects, besides the text"),
    ),
    **dict.fromkeys(
        (
            "CycleDiffusionPipeline",
            "LEditsPPPipelineStableDiffusion",
            "SemanticStableDiffusionPipeline",
            "StableDiffusionDiffEditPipeline",
            "StableDiffusionInpaintPipelineLegacy",
            "StableDiffusionLDM3DPipeline",
            "StableDiffusionPipelineSafe",
            "StableDiffusionPix2PixZeroPipeline",
            "TextToVideoZeroPipeline",
        ),
        ("StableDiffusionPipeline", _ANOTHER_SAMPLER),
    ),
    **dict.fromkeys(
        (
            "OnnxStableDiffusionImg2ImgPipeline",
            "OnnxStableDiffusionInpaintPipeline",
            "OnnxStableDiffusionInpaintPipelineLegacy",
            "OnnxStableDiffusionPipeline",
            "OnnxStableDiffusionUpscalePipeline",
            "StableDiffusionOnnxPipeline",
        ),
        ("StableDiffusionPipeline", "its networks are ONNX files, which cannot be trained"),
    ),
    **dict.fromkeys(
        (
            "Wan22Image2VideoModularPipeline",
            "Wan22ModularPipeline",
            "Wan22VaceModularPipeline",
            "WanAnimate2DistilledModularPipeline",
            "WanAnimate2ModularPipeline",
            "WanImage2VideoModularPipeline",
        ),
        ("WanPipeline", _MODULAR),
    ),
    "Flux2KleinBaseModularPipeline": ("Flux2KleinPipeline", _MODULAR),
    "Krea2TurboModularPipeline": ("Krea2Pipeline", _MODULAR),
    "QwenImage21TurboModularPipeline": ("QwenImage21Pipeline", _MODULAR),
    "QwenImageLayeredModularPipeline": ("QwenImagePipeline", _MODULAR),
    "Flux3DistilledModularPipeline": ("Flux3ModularPipeline", _DISTILLED),
}
"""Variant -> (the family's own pipeline, the reason why it cannot be trained as that family)."""

_TASK_WORDS = (
    "Img2Img|Inpainting|Inpaint|ImageToVideo|Image2Video|VideoToVideo|ControlNet|FunControl|Control|Union|XS|PAG"
    "|Layered|Condition|Modular"
)
_LAST_TASK = re.compile(rf"^(\w+?)(?:{_TASK_WORDS})(?=Pipeline$)")


def own_pipeline(pipeline: str) -> str:
    """Return the family's own pipeline for a variant whose network gets the same inputs; else `pipeline`."""
    return _OWN_PIPELINES.get(pipeline, pipeline)


def check_variant(folder: Path, index: Mapping[str, Any]) -> None:
    """Raise ConfigError for a folder whose network gets other inputs than its pipeline's name says.

    `index` is its model_index.json.
    """
    name = str(index.get("_class_name"))
    if index.get("requires_aesthetics_score") and name.startswith("StableDiffusionXL"):
        raise ConfigError(
            "the model is the SDXL refiner, which was trained on the lowest 200 of 1000 noise levels only:"
            " lorakit cannot limit training to these yet",
            where=str(folder / MODEL_INDEX),
            remedy="use a base model whose model_index.json names StableDiffusionXLPipeline",
        )
    if own_pipeline(name) == name or "Inpaint" in own_pipeline(name):
        return  # families for inpainting check their own channels
    for config_file in (folder / denoiser / "config.json" for denoiser in ("transformer", "unet")):
        config = read_json(config_file, allow_infinity=True) if config_file.is_file() else {}
        channels, expected = config.get("in_channels"), config.get("out_channels")
        if isinstance(channels, int) and isinstance(expected, int) and channels != expected:
            raise ConfigError(
                f"the network of this {name} has {channels} input channels instead of {expected}:"
                " it was trained with other inputs",
                where=str(config_file),
                remedy=f"use a base model whose model_index.json names {own_pipeline(name)}",
            )


def variant_owner(pipeline: str, families: Sequence[KnownFamily]) -> tuple[KnownFamily, str, str] | None:
    """Return the family of a variant that cannot be trained, its own pipeline and the reason; or None."""
    owners = {name: family for family in families for name in family.pipelines}
    if pipeline in _OTHER_INPUTS:
        plain, reason = _OTHER_INPUTS[pipeline]
        return (owners[plain], plain, reason) if plain in owners else None
    for plain in _shorter_names(pipeline):
        if plain in owners and ("Modular" in pipeline or _same_network(pipeline, plain, owners[plain])):
            return owners[plain], plain, _MODULAR if "Modular" in pipeline else "it is for another task"
    return None


def _shorter_names(pipeline: str) -> Iterator[str]:
    """Yield the name without its last word for a task, without the last two, and so on."""
    shorter = _LAST_TASK.sub(r"\1", pipeline)
    while shorter != pipeline:
        yield shorter
        pipeline, shorter = shorter, _LAST_TASK.sub(r"\1", shorter)


def _same_network(pipeline: str, plain: str, family: KnownFamily) -> bool:
    """Return True if both pipelines state the same class of denoiser."""
    import diffusers

    annotations = []
    for name in (pipeline, plain):
        parameters = inspect.signature(getattr(diffusers, name, object)).parameters
        network = parameters.get(family.components.denoiser)
        annotation = getattr(network, "annotation", None)
        annotations.append(set(re.findall(r"\w+Model\b", str(annotation))))
    return bool(annotations[0] & annotations[1])


def refuse_variant(pipeline: str, families: Sequence[KnownFamily]) -> None:
    """Raise ConfigError for a variant of a family's pipeline that cannot be trained as that family."""
    owner = variant_owner(pipeline, families)
    if owner is None:
        return
    family, plain, reason = owner
    raise ConfigError(
        f"{pipeline} is a variant of {family.title} that cannot be trained: {reason}",
        where=MODEL_INDEX,
        remedy=f"use a base model of the family {family.name}, whose model_index.json names {plain}",
    )
