"""What every family of models shares; a family itself is one small file that says what differs.

Text is encoded, and pictures are sampled, by the diffusers pipeline the model was published with. The one
thing that no pipeline offers is the bare denoiser call, `predict`, and tests hold it equal to the call that
the pipeline itself makes. torch and diffusers are imported when a model is touched, so that a family can be
found and described in milliseconds.
"""

from __future__ import annotations

import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorakit.families import folder as folders

if TYPE_CHECKING:
    import torch
    from PIL import Image

Cond = dict[str, "torch.Tensor"]
"""Text conditions by the pipeline's argument names: one sample has no batch dimension, `collate` adds it."""

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


class Family(ABC):
    """One family of models: everything the trainer, the cache and the sampler need to know about it."""

    name: ClassVar[str]
    title: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """diffusers classes, as `model_index.json` names them; never instantiated from anything but this list."""
    objective: ClassVar[str] = "flow"
    component: ClassVar[str] = "transformer"
    targets: ClassVar[str | list[str]] = ATTENTION
    """Default LoRA targets: module-name endings, or one regular expression for the whole path."""
    left_out: ClassVar[tuple[str, ...]] = ()
    """Components that neither training nor sampling needs; they are loaded only when `only` names them."""

    def describe(self) -> dict[str, Any]:
        """The row of `lorakit families`."""
        return {
            "name": self.name,
            "title": self.title,
            "pipelines": list(self.pipelines),
            "objective": self.objective,
            "component": self.component,
            "targets": self.targets,
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
        pipe = folders.load(Path(folder), self.pipelines, dtype=dtype, only=only, left_out=self.left_out)
        self._settle(pipe)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def _settle(self, pipe: Any) -> None:  # noqa: B027 - a hook, empty by default
        """Hook for a family whose pipeline and components disagree about a setting."""

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """The network that is trained."""
        module: torch.nn.Module = getattr(pipe, self.component)
        return module

    def encode(self, pipe: Any, captions: Sequence[str]) -> list[Cond]:
        """Encode captions as the pipeline does, guidance off; one Cond each, without batch dimension."""
        import torch

        if not captions:
            return []
        copy = list(captions)  # some pipelines change the list they are given
        with torch.no_grad():
            batch = self._encode(pipe, copy)
        return [{name: value[i].clone() for name, value in batch.items()} for i in range(len(captions))]

    @abstractmethod
    def _encode(self, pipe: Any, captions: list[str]) -> Cond:
        """Call `pipe.encode_prompt` for a batch and name what it returns."""

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """Stack conditions along a new batch dimension."""
        import torch

        return {name: torch.stack([cond[name] for cond in conds]) for name in conds[0]}

    @abstractmethod
    def predict(self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        """The model's prediction (B, C, H, W): noise or v for ddpm, noise - clean for flow.

        `noisy` (B, C, H, W) are normalised latents; `t` (B,) is in scheduler units: integer steps for ddpm,
        sigma * 1000 for flow.
        """

    def latent_shape(self, pipe: Any, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture's latents; the autoencoder itself need not be loaded."""
        from lorakit import vae

        return vae.latent_shape(*self._config(pipe, "vae"), width, height)

    @abstractmethod
    def size_step(self, pipe: Any) -> int:
        """Widths and heights in pixels must be multiples of this."""

    def sample(
        self,
        pipe: Any,
        cond: Cond,
        negative: Cond | None,
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

        model = self.denoiser(pipe)
        dtype, device = next(p for p in model.parameters() if p.is_floating_point()).dtype, noise.device
        accepted = inspect.signature(type(pipe).__call__).parameters
        scale = accepted["guidance_scale"].default if guidance is None else guidance
        arguments = dict(cond)
        if scale > 1 and "negative_prompt_embeds" in accepted:
            if negative is None:
                raise ValueError("guidance above 1 needs the negative condition: encode the empty caption")
            arguments |= {
                f"negative_{name}": v.expand(len(noise), *v.shape[1:]) for name, v in negative.items()
            }
        arguments = {name: value.to(device, dtype) for name, value in arguments.items()}
        generators = [torch.Generator(device).manual_seed(_fingerprint(row)) for row in noise]
        images: list[Image.Image] = pipe(
            **arguments,
            latents=noise.to(dtype),
            num_inference_steps=steps,
            guidance_scale=scale,
            width=width,
            height=height,
            generator=generators,
            output_type="pil",
        ).images
        return images

    def _config(self, pipe: Any, component: str) -> tuple[str, Mapping[str, Any]]:
        """Class name and configuration of a component, from the folder's JSON when it was not loaded."""
        module = getattr(pipe, component)
        if module is not None:
            return type(module).__name__, module.config
        return folders.component_config(pipe, component)


def _fingerprint(row: torch.Tensor) -> int:
    """A seed from a row of noise, for samplers that draw more noise on their way."""
    return zlib.crc32(row.detach().float().cpu().contiguous().numpy().tobytes())
