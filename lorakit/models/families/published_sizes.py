"""Published models that a device can train, estimated from the sizes of their denoisers.

The rule for memory: a model fits if its frozen denoiser takes at most half of the memory, and if main memory
holds it in full while it is loaded. The other half is for activations (with gradient checkpointing), the
adapter with its optimizer, and the VAE. The rule for time: one image costs a forward pass and, with a frozen
base, about as much again for the backward pass; gradient checkpointing computes the forward pass once more.
The tests compare the table with the published networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GIB = 2**30
USABLE_SHARE = 0.5
LOADING_SHARE = 0.9  # of main memory, which holds the whole denoiser before it is quantized and moved
PRACTICAL_STEP_SECONDS = 5.0  # with four images a step, 1500 steps take about eight hours
NF4_BYTES, INT8_BYTES = 0.5 + 1 / 64, 1.0
MEMORY_RULE = (
    "a model fits if its frozen denoiser takes at most half of the memory, and main memory holds it in full"
    " while it is loaded"
)
TIME_RULE = (
    "a step with one image costs 2 forward passes at the measured speed, 3 with gradient checkpointing"
)


@dataclass(frozen=True)
class PublishedModel:
    """A published base model with a built-in recipe."""

    title: str
    recipe: str
    parameters: float
    """Billions of parameters of the denoiser; of all experts that are loaded."""
    quantizable: float
    """Billions of parameters in the layers that `memory.quantize` quantizes."""
    resolution: int
    teraflops: float
    """10^12 operations of a forward pass for one image at this resolution. U-Nets: counted. Transformers: two
    operations for each parameter and image token."""

    def weight_bytes(self, quantize: str | None, itemsize: int) -> float:
        """Return the bytes of the denoiser's weights; those not quantized have `itemsize` bytes."""
        each = {None: float(itemsize), "int8": INT8_BYTES, "nf4": NF4_BYTES}[quantize]
        kept = self.parameters - self.quantizable
        return 1e9 * (kept * itemsize + self.quantizable * each)


PUBLISHED_MODELS = (
    PublishedModel("Stable Diffusion 1.5", "sd15", 0.860, 0.242, 512, 0.80),
    PublishedModel("Stable Diffusion XL", "sdxl", 2.567, 2.208, 1024, 6.76),
    PublishedModel("Sana 1.6B", "sana", 1.604, 0.803, 1024, 3.3),
    PublishedModel("Stable Diffusion 3.5 Medium", "sd35", 2.028, 2.008, 1024, 16.6),
    PublishedModel("Flux.2 klein 4B", "flux2-klein", 3.876, 3.681, 768, 17.9),
    PublishedModel("Z-Image", "z-image", 6.155, 6.142, 1024, 50.4),
    PublishedModel("Chroma", "chroma", 8.900, 8.607, 1024, 72.9),
    PublishedModel("Flux.1 dev", "flux1-dev", 11.901, 11.834, 1024, 97.5),
    PublishedModel("Krea 2", "krea2", 12.820, 12.499, 1024, 105.0),
    PublishedModel("Wan 2.1 14B, 17 frames", "wan", 14.288, 14.051, 480, 128.6),
    PublishedModel("Qwen-Image", "qwen-image", 20.430, 20.384, 1024, 167.4),
)


@dataclass(frozen=True)
class Outlook:
    """Answer to the question if a device can train a model, by the rules of this module."""

    model: PublishedModel
    fits: bool
    quantize: str | None
    """The quantization with which it fits, if it fits only so."""
    weight_gib: float
    """Size of the denoiser with this quantization; of nf4 if nothing fits."""
    shortage: str | None
    """Memory that it needs, if it does not fit."""
    step_seconds: float | None
    """None if the speed was not measured, or the model does not fit."""
    is_practical: bool
    """True if it fits and a run ends within hours; unless the speed was measured, True for every GPU."""

    def to_json(self) -> dict[str, Any]:
        """Return the outlook as plain values."""
        return {
            "model": self.model.title,
            "recipe": self.model.recipe,
            "resolution": self.model.resolution,
            "fits": self.fits,
            "quantize": self.quantize,
            "shortage": self.shortage,
            "denoiser_gib": round(self.weight_gib, 1),
            "step_seconds": None if self.step_seconds is None else float(f"{self.step_seconds:.2g}"),
            "practical": self.is_practical,
        }


def training_outlook(
    device_type: str,
    memory_bytes: int,
    main_memory_bytes: int,
    weight_dtype: torch.dtype,
    teraflops_per_second: float | None,
) -> list[Outlook]:
    """Return for each published model whether and how fast a device with this memory trains it."""
    passes = 2 if device_type == "cpu" else 3  # gradient checkpointing is automatic on a GPU only
    outlooks = []
    for model in PUBLISHED_MODELS:
        sizes = {q: model.weight_bytes(q, weight_dtype.itemsize) for q in (None, "nf4")}
        loads = sizes[None] <= LOADING_SHARE * main_memory_bytes
        suitable = [q for q, size in sizes.items() if loads and size <= USABLE_SHARE * memory_bytes]
        shortage = None
        if not loads:
            shortage = f"needs {sizes[None] / LOADING_SHARE / GIB:.0f} GiB of main memory"
        elif not suitable:
            shortage = f"needs {sizes['nf4'] / USABLE_SHARE / GIB:.0f} GiB"
        quantize = suitable[0] if suitable else "nf4"
        seconds = None
        if suitable and teraflops_per_second:
            seconds = passes * model.teraflops / teraflops_per_second
        fast = device_type != "cpu" if seconds is None else seconds <= PRACTICAL_STEP_SECONDS
        size = sizes[quantize] / GIB
        practical = bool(suitable) and fast
        outlooks.append(Outlook(model, bool(suitable), quantize, size, shortage, seconds, practical))
    return outlooks
