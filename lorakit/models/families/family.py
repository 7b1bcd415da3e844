"""What every family of models shares; a family itself is one small file that says what differs.

Text is encoded, and pictures are sampled, by the diffusers pipeline the model was published with. The one
thing that no pipeline offers is the bare denoiser call, `predict`, and tests hold it equal to the call that
the pipeline itself makes. torch and diffusers are imported when a model is touched, so that a family can be
found and described in milliseconds.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.core.errors import ConfigError
from lorakit.models.families import pipeline_folder as folders

if TYPE_CHECKING:
    import torch
    from PIL import Image

Conditioning = dict[str, "torch.Tensor"]
"""Text conditions of one sample, without batch dimension; `collate` adds it. Where the pipeline takes them
as they are, their names are its arguments; else `_arguments` translates."""

ConditioningTensors = Mapping[str, "torch.Tensor"]
"""Pictures that a sample comes with, uint8 (N, channels, H, W), cropped and resized as what is drawn:
`source` (what is edited), `control`, both RGB, and `mask` (N, 1, H, W), 255 where it is painted."""

ATTENTION_TARGETS = [
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
]
NO_SHIFT: Mapping[str, Any] = {"shift_factor": None}
"""For `vae_settings` of a pipeline that decodes without a shift, whatever its autoencoder says."""


class Family(ABC):
    """One family of models: everything the trainer, the cache and the sampler need to know about it."""

    name: ClassVar[str]
    title: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """diffusers classes, as `model_index.json` names them; never instantiated from anything but this list."""
    objective: ClassVar[str] = "flow"
    component: ClassVar[str] = "transformer"
    targets: ClassVar[str | list[str]] = ATTENTION_TARGETS
    """Default LoRA targets: module-name endings, or one regular expression for the whole path."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Components that neither training nor sampling needs; they are loaded only when `only` names them."""
    always: ClassVar[tuple[str, ...]] = ()
    """Small components without which the pipeline cannot be built, or draws otherwise; loaded with any."""
    drawn_with: ClassVar[tuple[str, ...]] = ()
    """Networks that samples need besides the one that is trained and the autoencoder."""
    text_parts: ClassVar[tuple[str, ...]] = ("text_", "tokenizer", "processor")
    """How the names of the components begin that `encode` needs."""
    text_encoders: ClassVar[tuple[str, ...]] = ()
    """CLIP text encoders that can be trained; where there are none, text is frozen."""
    unread_layers: ClassVar[Mapping[str, int]] = {}
    """How many last layers of a text encoder no condition comes from."""
    rank16: ClassVar[str] = ""
    """Numbers in the default adapter of rank 16 on published bases."""
    licence: ClassVar[str] = ""
    """Of the weights most people start from; several licences are told apart by model."""
    guidance: ClassVar[str] = "guidance_scale"
    """The pipeline's argument for classifier-free guidance, if its call has one."""
    unguided: ClassVar[float] = 1.0
    """Its value that switches guidance off; above it the pipeline wants a negative, if it takes one."""
    call: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of every call of the pipeline, such as a prompt rewriter switched off."""
    vae_settings: ClassVar[Mapping[str, Any]] = {}
    """What the pipeline assumes of its autoencoder, where the autoencoder's configuration says otherwise."""
    patch: ClassVar[int] = 1
    """Latent positions per side of one token."""
    own_shift: ClassVar[bool] = False
    """Whether the pipeline shifts noise levels by a rule of its own, not by its scheduler's configuration."""
    clips: ClassVar[bool] = False
    """Whether samples are clips: latents then are (C, F, H, W), and a picture is a clip of one frame."""
    fps: ClassVar[float] = 0.0
    """Of clips: the frames a second that the base makes."""
    experts: ClassVar[tuple[str, ...]] = ()
    """Networks that are trained beside `component`, in models that have them."""
    sized: ClassVar[bool] = False
    """Whether a condition belongs to one size of picture: `encode` must be told which."""
    takes: ClassVar[tuple[str, ...]] = ()
    """The kinds of `Pictures` that the network sees beside the noise; `conditioned.py` tells how."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Those of them without which it predicts nothing."""
    several: ClassVar[bool] = False
    """Whether there may be more than one source."""
    widens: ClassVar[tuple[str, ...]] = ()
    """Pipelines without pictures whose network `load` widens for them, where a dataset has them."""
    fills: ClassVar[bool] = False
    """Whether the source, where no other is given, is the picture itself: a part of it is painted anew."""
    reads: ClassVar[bool] = False
    """Whether the text encoder sees the source too: a caption's condition belongs to a picture."""

    def describe(self) -> dict[str, Any]:
        """The row of `lorakit families`."""
        return {
            "name": self.name,
            "title": self.title,
            "pipelines": list(self.pipelines),
            "objective": self.objective,
            "component": self.component,
            "targets": self.targets,
            "rank16": self.rank16,
            "licence": self.licence,
            "tested": "equal to its pipeline on tiny random weights; not run on published weights",
        }

    def load(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        only: Collection[str] | None = None,
    ) -> Any:
        """Load a local diffusers folder as its pipeline: frozen, in evaluation mode, no foreign code run.

        `only` names the components wanted (say `{"vae"}`); the others are None. All models share `dtype`.
        Raises ConfigError for a folder that is missing, incomplete, pickled or of another family.
        """
        pipe = folders.load_pipeline(
            Path(folder),
            self.pipelines,
            dtype=dtype,
            only=only,
            left_out=self.left_out,
            always=self.always,
        )
        self._settle(pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def _settle(self, pipe: Any) -> None:
        """Hook for a family whose pipeline and components disagree about a setting."""
        if pipe.vae is not None and self.vae_settings:
            pipe.vae.register_to_config(**self.vae_settings)

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """The network that is trained."""
        module: torch.nn.Module = getattr(pipe, self.component)
        return module

    def trained_parts(self, folder: str | Path) -> set[str]:
        """The components of a model that `denoiser` needs."""
        present = folders.pipeline_components(Path(folder))
        return {self.component, *(part for part in self.experts if part in present)}

    def recompute(self, denoiser: Any) -> None:
        """From now on keep no activations inside blocks, but compute them again in the backward pass."""
        from torch.utils.checkpoint import checkpoint

        # diffusers' own function takes no keywords, which some of its networks pass
        denoiser.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=False))

    def encode(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        pictures: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Encode captions without gradients, each as a tensor of its own: see `encode_live`."""
        import torch

        with torch.no_grad():
            return self.encode_live(pipe, captions, size, pictures)

    def encode_live(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        pictures: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Encode captions as the pipeline does, guidance off; one Cond each, without batch dimension.

        One at a time, so that a caption's condition does not depend on how long its neighbours are. `size`
        (width, height) in pixels of the picture matters to families that are `sized`, `pictures` (all the
        captions are of the same) to those that `reads`.
        """
        with self._described(pipe):
            batches = [self._encode(pipe, [caption]) for caption in captions]
        return [{name: value[0].clone() for name, value in batch.items()} for batch in batches]

    @contextlib.contextmanager
    def _described(self, pipe: Any) -> Iterator[None]:
        """Some pipelines ask the denoiser's settings while they encode text, and it may not be loaded."""
        if getattr(pipe, self.component) is not None:
            yield
            return
        settings = SimpleNamespace(**self._config(pipe, self.component)[1])
        pipe.__dict__[self.component] = SimpleNamespace(config=settings, dtype=pipe.text_encoder.dtype)
        try:
            yield
        finally:
            pipe.__dict__[self.component] = None

    def condition(self, pipe: Any, pictures: ConditioningTensors) -> Conditioning:
        """What `predict` is told of the pictures of one sample; nothing in most families."""
        return {}

    @abstractmethod
    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        """Call `pipe.encode_prompt` for a list of one caption and name what it returns."""

    def collate(self, conds: Sequence[Conditioning]) -> Conditioning:
        """Stack conditions along a new batch dimension, shorter ones filled up with zeros at the end."""
        from torch.nn.utils.rnn import pad_sequence

        return {name: pad_sequence([cond[name] for cond in conds], batch_first=True) for name in conds[0]}

    @abstractmethod
    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """The model's prediction (B, C, H, W): noise or v for ddpm, noise - clean for flow.

        `noisy` (B, C, H, W) are normalised latents; `t` (B,) is in scheduler units: integer steps for ddpm,
        sigma * 1000 for flow.
        """

    def latent_shape(self, pipe: Any, width: int, height: int) -> tuple[int, ...]:
        """(C, H, W) of a picture's latents; the autoencoder itself need not be loaded.

        Raises ConfigError for sizes that the autoencoder or the network cannot take.
        """
        from lorakit.models import vae

        kind, settings = self._config(pipe, "vae")
        shape, most = vae.latent_shape(kind, settings, width, height), self._largest(pipe)
        if most is not None and max(shape[1:]) > most:
            raise ConfigError(
                f"{width} x {height} pixels are more than the base has positions for",
                remedy=f"use at most {most * vae.spatial_compression(kind, settings)} pixels a side",
            )
        return shape

    def _largest(self, pipe: Any) -> int | None:
        """Latents per side that the network can place; None for any number."""
        return None

    @property
    def token_side(self) -> int | None:
        """Latents per side of what the scheduler's shift by resolution counts; None where it has no say."""
        return None if self.own_shift else self.patch

    def size_step(self, pipe: Any) -> int:
        """Widths and heights in pixels must be multiples of this."""
        from lorakit.models import vae

        # a U-Net halves at every level, and would interpolate its skips where that does not come out even
        levels = len(self._config(pipe, self.component)[1].get("down_block_types", [""]))
        return vae.spatial_compression(*self._config(pipe, "vae")) * self.patch * 2 ** (levels - 1)

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative: Conditioning | None,
        noise: torch.Tensor,
        *,
        steps: int,
        guidance: float | None,
        width: int,
        height: int,
    ) -> list[Image.Image]:
        """Draw one picture for each row of `noise` (B, C, H, W), standard normal in `latent_shape`'s layout.

        `cond` and `negative` are collated; a negative of one row serves the whole batch. `guidance` None: the
        pipeline's default. The same row gives the same picture in any batch, with any sampler.
        """
        import torch

        model: Any = self.denoiser(pipe)
        # not that of just any weight: some networks keep a few in float32
        dtype, device = model.dtype, noise.device
        accepted = inspect.signature(type(pipe).__call__).parameters
        scale = guidance
        if scale is None:
            scale = accepted[self.guidance].default if self.guidance else self.unguided
        if not self._wants_negative(pipe, scale):
            negative = None
        elif negative is None:
            raise ValueError(
                f"guidance above {self.unguided:g} needs the negative condition: encode the empty caption"
            )
        else:
            negative = {name: value.expand(len(noise), *value.shape[1:]) for name, value in negative.items()}
        settings = {
            "latents": self._pack(noise.to(dtype)),
            "num_inference_steps": steps,
            "width": width,
            "height": height,
            "generator": [torch.Generator(device).manual_seed(noise_seed(row)) for row in noise],
            "output_type": "pil",
            **({self.guidance: scale} if self.guidance else {}),
            **self._extent(pipe, noise),
        }
        against = None if negative is None else _cast(negative, device, dtype)
        return self._run(pipe, _cast(cond, device, dtype), against, settings | dict(self.call))

    def _run(
        self, pipe: Any, cond: Conditioning, negative: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Call the pipeline with conditions of as many rows as there are pictures."""
        arguments = self._arguments(pipe, cond)
        if negative is not None:
            opposed = self._arguments(pipe, negative)
            arguments |= {f"negative_{name}": value for name, value in opposed.items()}
        images: list[Image.Image] = pipe(**arguments, **settings)[0]
        return images

    def _extent(self, pipe: Any, noise: torch.Tensor) -> dict[str, Any]:
        """Arguments of the pipeline's call that depend on the noise's shape."""
        return {}

    def _arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Collated conditions as the pipeline's call takes them: other names, lists, other axes."""
        return dict(cond)

    def _wants_negative(self, pipe: Any, scale: float) -> bool:
        """Whether a call with this guidance takes negative conditions."""
        accepted = inspect.signature(type(pipe).__call__).parameters
        return scale > self.unguided and any(name.startswith("negative_prompt_embeds") for name in accepted)

    def _pack(self, noise: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, H, W) as the pipeline takes them in `latents=`."""
        return noise

    def _config(self, pipe: Any, component: str) -> tuple[str, Mapping[str, Any]]:
        """Class name and configuration of a component, from the folder's JSON when it was not loaded."""
        module = getattr(pipe, component)
        if module is not None:
            return type(module).__name__, module.config
        return folders.read_component_config(pipe, component)


def _cast(cond: Conditioning, device: torch.device, dtype: torch.dtype) -> Conditioning:
    """Numbers in the model's precision; masks and tokens keep their type."""
    return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in cond.items()}


def noise_seed(row: torch.Tensor) -> int:
    """A seed from a row of noise, for samplers that draw more noise on their way."""
    return zlib.crc32(row.detach().float().cpu().contiguous().numpy().tobytes())
