"""The parts that all model families share; a family itself is one small file that says what differs.

Text is encoded, and images are sampled, by the diffusers pipeline that the model was published with. The one
thing that no pipeline offers is the bare denoiser call, `predict`; the tests hold it equal to the call that
the pipeline makes. torch and diffusers are imported only when a model is used, so that families are found and
described in milliseconds.
"""

from __future__ import annotations

import contextlib
import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.core.errors import ConfigError
from lorakit.models.families import pipeline_folder as folders
from lorakit.models.families.packing import pad_text
from lorakit.models.families.pipeline_folder import ComponentConfig, NetworkLoader
from lorakit.models.families.specs import CallSpec, ComponentSpec, ConditioningSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    import torch
    from PIL import Image

Conditioning = dict[str, "torch.Tensor"]
"""Text embeddings and conditioning latents of one sample, without batch dimension; `collate` adds it. Their
names are arguments of the pipeline's call where it accepts them unchanged; else `_text_arguments` translates
them."""

ConditioningTensors = Mapping[str, "torch.Tensor"]
"""Conditioning images of one sample by kind, uint8 (N, channels, H, W), cropped and resized as the image
itself: `source` and `control` in RGB, `mask` (N, 1, H, W) with 255 where the image is filled."""

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


class Family(ABC):
    """One family of models: everything that the trainer, the caches and the sampler need to know about it."""

    name: ClassVar[str]
    """Recorded in adapter files: it never changes."""
    title: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """diffusers classes, as `model_index.json` names them; no other class is ever built."""
    license: ClassVar[str] = ""
    """License of the weights that most people start from; licenses that differ between models name them."""
    rank16_parameters: ClassVar[str] = ""
    """Number of parameters of the default adapter of rank 16 on published base models."""
    objective: ClassVar[str] = "flow"
    target_modules: ClassVar[str | list[str]] = ATTENTION_TARGETS
    """Default LoRA targets: module-name endings, or one regular expression for the whole path."""
    fps: ClassVar[float] = 0.0
    """Frames per second that a video model generates; 0 for image models."""
    components: ClassVar[ComponentSpec] = ComponentSpec()
    text: ClassVar[TextSpec] = TextSpec()
    call: ClassVar[CallSpec] = CallSpec()
    latents: ClassVar[LatentSpec] = LatentSpec()
    conditioning: ClassVar[ConditioningSpec] = ConditioningSpec()

    @property
    def is_video(self) -> bool:
        """True if samples are videos: latents then are (C, F, H, W), and an image is a video of one frame."""
        return self.fps > 0

    def describe(self) -> dict[str, Any]:
        """Return the row of `lorakit families`."""
        return {
            "name": self.name,
            "title": self.title,
            "pipelines": list(self.pipelines),
            "objective": self.objective,
            "component": self.components.denoiser,
            "targets": self.target_modules,
            "rank16_parameters": self.rank16_parameters,
            "license": self.license,
            "tested": "equal to its pipeline on tiny random weights; not run on published weights",
        }

    def load(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        only: Collection[str] | None = None,
        loaders: Mapping[str, NetworkLoader] | None = None,
    ) -> Any:
        """Load a local diffusers folder as its pipeline: frozen, in evaluation mode, without foreign code.

        `only` names the components to load (such as `{"vae"}`); the others are None. All networks get
        `dtype`; those of components in `loaders` are loaded by these. Raises ConfigError for a folder that is
        missing, incomplete, pickled or of another family.
        """
        pipe = folders.load_pipeline(
            Path(folder),
            self.pipelines,
            dtype=dtype,
            only=only,
            optional=self.components.optional,
            always_loaded=self.components.always_loaded,
            loaders=loaders,
        )
        self._configure_pipeline(pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def _configure_pipeline(self, pipe: Any) -> None:
        """Hook for a family whose pipeline and components disagree about a setting."""
        if pipe.vae is not None and self.latents.vae_overrides:
            pipe.vae.register_to_config(**self.latents.vae_overrides)

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """Return the network that is trained."""
        module: torch.nn.Module = getattr(pipe, self.components.denoiser)
        return module

    def meta_network(self, folder: str | Path, component: str) -> torch.nn.Module:
        """Build a component as `load` does, but without weights (on the meta device): its modules and shapes
        are known before gigabytes are read."""
        return folders.build_meta_network(folder, component)

    def denoiser_components(self, folder: str | Path) -> set[str]:
        """Return the names of the components that `denoiser` needs."""
        present = folders.pipeline_components(Path(folder))
        return {self.components.denoiser, *(name for name in self.components.experts if name in present)}

    def encode_text(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        images: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Encode captions without gradients, each into tensors of its own: see `encode_text_with_grad`."""
        import torch

        with torch.no_grad():
            return self.encode_text_with_grad(pipe, captions, size, images)

    def encode_text_with_grad(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        images: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Encode captions as the pipeline does with guidance off, one `Conditioning` each.

        One caption at a time, so that its embeddings do not depend on the length of the others. The image's
        `size` (width, height) in pixels matters only where `text.depends_on_size`, the conditioning `images`
        (the same for all captions) only where `conditioning.read_by_text_encoder`.
        """
        with self._with_denoiser_config(pipe):
            batches = [self._encode_prompt(pipe, [caption]) for caption in captions]
        return [
            self._cut_padding({name: value[0] for name, value in batch.items()}, self.text.masks)
            for batch in batches
        ]

    @staticmethod
    def _cut_padding(cond: Conditioning, masks: Mapping[str, Sequence[str]]) -> Conditioning:
        """Return tensors of their own, without the positions at the end that a mask (L,) hides."""
        lengths: dict[str, int] = {}
        for mask, embeds in masks.items():
            kept = cond[mask].nonzero()
            length = int(kept[-1]) + 1 if len(kept) else 1  # no network takes a text without any token
            lengths |= dict.fromkeys((mask, *embeds), length)
        return {name: value[: lengths.get(name)].clone() for name, value in cond.items()}

    def encode_texts_together(self, pipe: Any, captions: Sequence[str]) -> list[Conditioning]:
        """Encode captions in one call, without gradients.

        Only for pipelines that pad every caption to one length; others would pad to the longest of these.
        """
        import torch

        with torch.no_grad(), self._with_denoiser_config(pipe):
            batch = self._encode_prompt(pipe, list(captions))
        return [{name: value[row].clone() for name, value in batch.items()} for row in range(len(captions))]

    @contextlib.contextmanager
    def _with_denoiser_config(self, pipe: Any) -> Iterator[None]:
        """Give the pipeline a denoiser's configuration while it encodes text: some pipelines read it."""
        name = self.components.denoiser
        if getattr(pipe, name) is not None:
            yield
            return
        config = SimpleNamespace(**self._component_config(pipe, name).config)
        pipe.__dict__[name] = SimpleNamespace(config=config, dtype=pipe.text_encoder.dtype)
        try:
            yield
        finally:
            pipe.__dict__[name] = None

    def encode_conditioning(self, pipe: Any, images: ConditioningTensors, frames: int = 1) -> Conditioning:
        """Encode one sample's conditioning images for `predict`; `frames` is the sample's length."""
        return {}

    @abstractmethod
    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        """Call `pipe.encode_prompt` for a list of one caption and name the tensors that it returns."""

    def collate(self, conds: Sequence[Conditioning], text_multiple: int = 1) -> Conditioning:
        """Stack the tensors along a new batch dimension, shorter ones padded with zeros at the end.

        Texts with a mask get a length that is a multiple of `text_multiple`, so that there are fewer shapes.
        """
        from torch.nn.utils.rnn import pad_sequence

        batch = {name: pad_sequence([cond[name] for cond in conds], batch_first=True) for name in conds[0]}
        for name in self._masked_names:
            length = -(-batch[name].shape[1] // text_multiple) * text_multiple
            batch[name] = pad_text(batch[name], length)
        return batch

    @property
    def _masked_names(self) -> set[str]:
        return {name for mask, embeds in self.text.masks.items() for name in (mask, *embeds)}

    @abstractmethod
    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """Return the model's prediction (B, C, H, W): noise or v for ddpm, noise - clean for flow.

        `noisy_latents` (B, C, H, W) are normalized; `timesteps` (B,) are in scheduler units: integer steps
        for ddpm, sigma * 1000 for flow.
        """

    def latent_shape(self, pipe: Any, width: int, height: int) -> tuple[int, ...]:
        """Return the shape (C, H, W) of an image's latents; the VAE itself need not be loaded.

        Raises ConfigError for sizes in pixels that the VAE or the denoiser does not support.
        """
        from lorakit.models import vae

        config = self._component_config(pipe, "vae")
        shape = vae.latent_shape(config.class_name, config.config, width, height)
        max_side = self._max_latent_side(pipe)
        if max_side is not None and max(shape[1:]) > max_side:
            raise ConfigError(
                f"{width} x {height} pixels are more than the base model has positions for",
                remedy=f"use at most {max_side * self._spatial_compression(pipe)} pixels per side",
            )
        return shape

    def _max_latent_side(self, pipe: Any) -> int | None:
        """Return the most latents per side that the denoiser has positions for; None if there is no limit."""
        return None

    def _spatial_compression(self, pipe: Any) -> int:
        """Return the pixels per side of one latent."""
        from lorakit.models import vae

        config = self._component_config(pipe, "vae")
        return vae.spatial_compression(config.class_name, config.config)

    @property
    def shift_patch_size(self) -> int | None:
        """Latents per side of a token as the scheduler's shift by resolution counts them; None without it."""
        return self.latents.patch_size if self.latents.scheduler_shift else None

    def size_multiple(self, pipe: Any) -> int:
        """Return the number of pixels that widths and heights must be multiples of."""
        # a U-Net halves at every level, and would interpolate its skips where that leaves a remainder
        config = self._component_config(pipe, self.components.denoiser).config
        levels = len(config.get("down_block_types", [""]))
        return self._spatial_compression(pipe) * self.latents.patch_size * 2 ** (levels - 1)

    def native_side(self, pipe: Any) -> int | None:
        """Return the side in pixels of the square images that the base model says it generates, or None."""
        config = self._component_config(pipe, self.components.denoiser).config
        side = config.get("sample_size") or getattr(pipe, "default_sample_size", None)
        return side * self._spatial_compression(pipe) if isinstance(side, int) else None

    def sample(
        self,
        pipe: Any,
        cond: Conditioning,
        negative_cond: Conditioning | None,
        noise: torch.Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float | None,
        width: int,
        height: int,
    ) -> list[Image.Image]:
        """Sample one image for each row of `noise` (B, C, H, W), standard normal in `latent_shape`'s layout.

        `cond` and `negative_cond` are collated; a negative of one row serves the whole batch. Without a
        `guidance_scale` the pipeline's default applies. A row gives the same image in any batch, with any
        sampler. Raises ValueError if guidance is on and the negative that it needs is None.
        """
        import torch

        model: Any = self.denoiser(pipe)
        # not the dtype of an arbitrary weight: some networks keep a few in float32
        dtype, device = model.dtype, noise.device
        argument, scale = self.call.guidance_argument, self.resolve_guidance(pipe, guidance_scale)
        if not self._uses_negative(pipe, scale):
            negative_cond = None
        elif negative_cond is None:
            raise ValueError(
                f"a guidance scale above {self.call.guidance_off:g} needs negative embeddings:"
                " encode the negative prompt, which may be empty"
            )
        else:
            negative_cond = {
                name: value.expand(len(noise), *value.shape[1:]) for name, value in negative_cond.items()
            }
            negative_cond = _cast(negative_cond, device, dtype)
            cond, negative_cond = self._pad_alike(cond, negative_cond)
        settings = {
            "latents": self._pack_latents(noise.to(dtype)),
            "num_inference_steps": num_inference_steps,
            "width": width,
            "height": height,
            "generator": [torch.Generator(device).manual_seed(noise_seed(row)) for row in noise],
            "output_type": "pil",
            **({argument: scale} if argument else {}),
            **self._shape_arguments(pipe, noise),
            **self.call.extra_arguments,
        }
        return self._call_pipeline(pipe, _cast(cond, device, dtype), negative_cond, settings)

    def resolve_guidance(self, pipe: Any, guidance_scale: float | None) -> float:
        """Return the guidance scale of a call; without one it is the pipeline's default."""
        if guidance_scale is None and (name := self.call.guidance_argument):
            return inspect.signature(type(pipe).__call__).parameters[name].default
        return self.call.guidance_off if guidance_scale is None else guidance_scale

    def _pad_alike(self, cond: Conditioning, negative: Conditioning) -> tuple[Conditioning, Conditioning]:
        """Pad the texts of caption and negative to one length, as pipelines put them into one batch."""
        lengths = {name: max(cond[name].shape[1], negative[name].shape[1]) for name in self._masked_names}
        first, second = (
            each | {name: pad_text(each[name], length) for name, length in lengths.items()}
            for each in (cond, negative)
        )
        return first, second

    def _call_pipeline(
        self, pipe: Any, cond: Conditioning, negative_cond: Conditioning | None, settings: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Call the pipeline with `cond` of as many rows as there are images to sample."""
        arguments = self._text_arguments(pipe, cond)
        if negative_cond is not None:
            negative_arguments = self._text_arguments(pipe, negative_cond)
            arguments |= {f"negative_{name}": value for name, value in negative_arguments.items()}
        images: list[Image.Image] = pipe(**arguments, **settings)[0]
        return images

    def _shape_arguments(self, pipe: Any, noise: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that depend on the noise's shape."""
        return {}

    def _text_arguments(self, pipe: Any, cond: Conditioning) -> dict[str, Any]:
        """Return `cond` as arguments of the pipeline's call: other names, lists, other axes."""
        return dict(cond)

    def _uses_negative(self, pipe: Any, scale: float) -> bool:
        """Return True if a call with this guidance scale needs negative text embeddings."""
        parameters = inspect.signature(type(pipe).__call__).parameters
        has_argument = any(name.startswith("negative_prompt_embeds") for name in parameters)
        return scale > self.call.guidance_off and has_argument

    def _pack_latents(self, noise: torch.Tensor) -> torch.Tensor:
        """Return latents (B, C, H, W) in the layout of the pipeline's `latents=`."""
        return noise

    def _component_config(self, pipe: Any, component: str) -> ComponentConfig:
        """Return a component's class and configuration, from the folder's JSON if it was not loaded."""
        module = getattr(pipe, component)
        if module is not None:
            return ComponentConfig(type(module).__name__, module.config)
        return folders.read_component_config(pipe, component)


def _cast(cond: Conditioning, device: torch.device, dtype: torch.dtype) -> Conditioning:
    """Move `cond` to a device: numbers in the model's dtype, masks and tokens in their own."""
    return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in cond.items()}


def noise_seed(row: torch.Tensor) -> int:
    """Derive a seed from a row of noise, for samplers that use more noise in later steps."""
    return zlib.crc32(row.detach().float().cpu().contiguous().numpy().tobytes())
