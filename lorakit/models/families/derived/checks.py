"""Checks whether a family can be derived from a pipeline; each failure states its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorakit.models import vae
from lorakit.models.families.derived import pipeline_calls
from lorakit.models.families.derived.pipeline_calls import UnsupportedPipeline

CAPTIONS = ("a photo of a red circle", "a small dog")
CallArguments = Callable[[Any, str, int, int, float | None], Mapping[str, Any]]
"""(pipeline, caption, width, height, guidance scale or None for the default) -> arguments of a call."""


class PipelineTracer:
    """Calls one pipeline with its text encoders at two image sizes; its network need not be loaded."""

    def __init__(
        self,
        pipe: Any,
        network: Any,
        text_networks: Sequence[str],
        call_arguments: CallArguments,
        size_multiple: int,
    ) -> None:
        self.pipe, self.network = pipe, network
        self.text_networks, self.call_arguments = text_networks, call_arguments
        self.sizes = [(2 * size_multiple, 3 * size_multiple), (3 * size_multiple, 2 * size_multiple)]
        self.device = next(p.device for name in text_networks for p in getattr(pipe, name).parameters())
        self.dtype = getattr(pipe, text_networks[0]).dtype

    def encode_prompt_outputs(self, caption: str, guidance: float | None, size: int = 0) -> list[Any]:
        """Return all outputs of `encode_prompt` within one call of the pipeline."""
        with pipeline_calls.record_encode_prompt(self.pipe) as outputs:
            self.denoiser_inputs(caption, guidance, size)
        if not outputs:
            raise UnsupportedPipeline("its call does not use encode_prompt")
        return outputs

    def denoiser_inputs(
        self, caption: str, guidance: float | None, size: int = 0, timestep: float = 500.0, sign: float = 1.0
    ) -> tuple[Any, ...]:
        """Return the arguments that the pipeline passes to its network."""
        width, height = self.sizes[size]
        noise = sign * self._noise(width, height)
        with pipeline_calls.intercept_denoiser(self.network):
            arguments = self.call_arguments(self.pipe, caption, width, height, guidance)
            return pipeline_calls.call_until_intercepted(
                self.pipe,
                arguments,
                self._timestep(timestep),
                pipeline_calls.noise_in_pipeline_layout(noise),
            )

    def _timestep(self, timestep: float) -> torch.Tensor:
        is_integer = hasattr(self.pipe.scheduler, "alphas_cumprod")
        return torch.tensor(int(timestep) if is_integer else timestep, device=self.device)

    def _noise(self, width: int, height: int) -> torch.Tensor:
        """Return latents (1, C, H, W) without zeros."""
        shape = vae.latent_shape(type(self.pipe.vae).__name__, self.pipe.vae.config, width, height)
        numbers = torch.linspace(0.1, 2.0, shape[0] * shape[1] * shape[2], device=self.device)
        return numbers.view(1, *shape)

    def guidance_off_value(self, candidates: Sequence[float]) -> float:
        """Return the guidance scale for which the network gets the noise once, and the least text is
        encoded."""
        text_calls, copies = {}, 0.0
        for value in candidates:
            first, second = (self.denoiser_inputs(CAPTIONS[0], value, sign=sign) for sign in (1.0, -1.0))
            pairs = zip(
                pipeline_calls.nested_tensors(first), pipeline_calls.nested_tensors(second), strict=True
            )
            changed = sum(int((a != b).sum()) for a, b in pairs)
            copies = changed / self._noise(*self.sizes[0]).numel()
            if copies == 1:
                # a pipeline with a separate call of its network for the negative also encodes it separately
                text_calls[value] = len(self.encode_prompt_outputs(CAPTIONS[0], value))
        if not text_calls:
            raise UnsupportedPipeline(
                f"with guidance switched off, its network gets the noise {copies:g} times"
            )
        return min(text_calls, key=lambda value: text_calls[value])

    def check_replay(self, guidance: float) -> None:
        """Check that recorded text embeddings can replace the text encoders, at another size and timestep."""
        recorded = {caption: self.encode_prompt_outputs(caption, guidance) for caption in CAPTIONS}
        like = torch.zeros(0, dtype=self.dtype, device=self.device)
        inputs = []
        for caption, size, timestep in ((0, 0, 500.0), (1, 1, 500.0), (0, 1, 20.0)):
            text = CAPTIONS[caption]
            expected = self.denoiser_inputs(text, guidance, size, timestep)
            with pipeline_calls.replay_encode_prompt(self.pipe, recorded[text], self.text_networks, like):
                replayed = self.denoiser_inputs("", guidance, size, timestep)
            if not _same_inputs(expected, replayed):
                raise UnsupportedPipeline(
                    "its network's inputs depend on more of the text than encode_prompt returns"
                )
            inputs.append(expected)
        others = {
            "text": self.denoiser_inputs(CAPTIONS[1], guidance),
            "timestep": self.denoiser_inputs(CAPTIONS[0], guidance, timestep=20),
        }
        for name, other in others.items():
            if _same_inputs(inputs[0], other):
                raise UnsupportedPipeline(f"its network does not get the {name}")

    def check_decoding(self, guidance: float) -> None:
        """Check that the pipeline decodes latents as `vae.decode_latents` does."""
        width, height = self.sizes[0]
        latents = self._noise(width, height)
        arguments = self.call_arguments(self.pipe, CAPTIONS[0], width, height, guidance)
        recorded = self.encode_prompt_outputs(CAPTIONS[0], guidance)

        def decode(raw: torch.Tensor, *_: Any, **__: Any) -> Any:
            raise pipeline_calls.Intercepted(raw)

        raws = []
        with pipeline_calls.patched_attributes(self.pipe.vae, decode=decode):
            like = torch.zeros(0, dtype=self.dtype, device=self.device)
            with pipeline_calls.replay_encode_prompt(self.pipe, recorded, self.text_networks, like):
                raws.append(
                    pipeline_calls.call_until_intercepted(
                        self.pipe, arguments, None, pipeline_calls.noise_in_pipeline_layout(latents)
                    )[0]
                )
            try:
                vae.decode_latents(self.pipe.vae, latents)
            except pipeline_calls.Intercepted as intercepted:
                raws.append(intercepted.args[0])
        theirs, ours = (raw.float() for raw in raws)
        tolerance = 2 * torch.finfo(self.dtype).eps * ours.abs().max()
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > tolerance:
            raise UnsupportedPipeline("it does not decode latents as its VAE's configuration says")


def _same_inputs(first: Any, second: Any) -> bool:
    ours, theirs = pipeline_calls.nested_tensors(first), pipeline_calls.nested_tensors(second)
    if len(ours) != len(theirs) or pipeline_calls.without_tensors(first) != pipeline_calls.without_tensors(
        second
    ):
        return False
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def meta_denoiser(pipe: Any, class_name: str, config: Mapping[str, Any]) -> Any:
    """Build a denoiser on the meta device that needs no memory and reports the pipeline's device."""
    import diffusers

    network_class, device = getattr(diffusers, class_name), pipe.vae.device
    with torch.device("meta"):
        network = network_class.from_config(config)
    torch.nn.Module.to(network, pipe.vae.dtype)  # the class's own `to` would warn about meta tensors
    network.__class__ = type(network_class.__name__, (network_class,), {"device": property(lambda _: device)})
    return network.eval()
