"""Whether a pipeline can be followed by probing: each check names what it found instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lorakit.models import vae
from lorakit.models.families.derived import pipeline_calls
from lorakit.models.families.derived.pipeline_calls import UnsupportedPipeline

CAPTIONS = ("a photo of a red circle", "a small dog")
CallArguments = Callable[[Any, str, int, int, float | None], Mapping[str, Any]]
"""(pipeline, caption, width, height, guidance or None for the pipeline's own) -> arguments of a call."""


class PipelineTracer:
    """One pipeline with its text encoders, at two sizes of picture; its network need not be loaded."""

    def __init__(
        self, pipe: Any, network: Any, encoders: Sequence[str], arguments: CallArguments, step: int
    ) -> None:
        self.pipe, self.network, self.encoders, self.arguments = pipe, network, encoders, arguments
        self.sizes = [(2 * step, 3 * step), (3 * step, 2 * step)]
        self.device = next(p.device for name in encoders for p in getattr(pipe, name).parameters())
        self.dtype = getattr(pipe, encoders[0]).dtype

    def conditions(self, caption: str, guidance: float | None, size: int = 0) -> list[Any]:
        """What `encode_prompt` returns within the pipeline's call."""
        with pipeline_calls.record_encode_prompt(self.pipe) as made:
            self.inputs(caption, guidance, size)
        if not made:
            raise UnsupportedPipeline("its call does not use encode_prompt")
        return made

    def inputs(
        self, caption: str, guidance: float | None, size: int = 0, time: float = 500.0, sign: float = 1.0
    ) -> tuple[Any, ...]:
        """What the pipeline hands to its network."""
        width, height = self.sizes[size]
        noise = sign * self._noise(width, height)
        t = self._time(time)
        with pipeline_calls.intercept_denoiser(self.network):
            asked = self.arguments(self.pipe, caption, width, height, guidance)
            return pipeline_calls.call_until_intercepted(
                self.pipe, asked, t, pipeline_calls.noise_in_pipeline_layout(noise)
            )

    def _time(self, time: float) -> torch.Tensor:
        whole = hasattr(self.pipe.scheduler, "alphas_cumprod")
        return torch.tensor(int(time) if whole else time, device=self.device)

    def _noise(self, width: int, height: int) -> torch.Tensor:
        """Numbers of which none is zero."""
        shape = vae.latent_shape(type(self.pipe.vae).__name__, self.pipe.vae.config, width, height)
        steps = torch.linspace(0.1, 2.0, shape[0] * shape[1] * shape[2], device=self.device)
        return steps.view(1, *shape)

    def unguided(self, values: Sequence[float]) -> float:
        """The guidance with which the network sees the noise once, and the least text is encoded."""
        fitting, seen = {}, 0.0
        for value in values:
            first, second = (self.inputs(CAPTIONS[0], value, sign=sign) for sign in (1.0, -1.0))
            pairs = zip(
                pipeline_calls.nested_tensors(first), pipeline_calls.nested_tensors(second), strict=True
            )
            changed = sum(int((a != b).sum()) for a, b in pairs)
            seen = changed / self._noise(*self.sizes[0]).numel()
            if seen == 1:
                # a pipeline that calls its network for the negative apart encodes it apart
                fitting[value] = len(self.conditions(CAPTIONS[0], value))
        if not fitting:
            raise UnsupportedPipeline(
                f"with guidance switched off, its network sees the noise {seen:g} times"
            )
        return min(fitting, key=lambda value: fitting[value])

    def check_replay(self, guidance: float) -> None:
        """Recorded conditions give what the text itself gives, at another size and time, without the text
        encoders."""
        made = {caption: self.conditions(caption, guidance) for caption in CAPTIONS}
        like = torch.zeros(0, dtype=self.dtype, device=self.device)
        seen = []
        for caption, size, time in ((0, 0, 500.0), (1, 1, 500.0), (0, 1, 20.0)):
            text = CAPTIONS[caption]
            expected = self.inputs(text, guidance, size, time)
            with pipeline_calls.replay_encode_prompt(self.pipe, made[text], self.encoders, like):
                found = self.inputs("", guidance, size, time)
            if not _same_inputs(expected, found):
                raise UnsupportedPipeline(
                    "its network's inputs depend on the text by more than encode_prompt returns"
                )
            seen.append(expected)
        others = {
            "text": self.inputs(CAPTIONS[1], guidance),
            "time": self.inputs(CAPTIONS[0], guidance, time=20),
        }
        for what, other in others.items():
            if _same_inputs(seen[0], other):
                raise UnsupportedPipeline(f"its network does not see the {what}")

    def check_decoding(self, guidance: float) -> None:
        """The pipeline undoes what `vae` does to an autoencoder's latents."""
        width, height = self.sizes[0]
        latents = self._noise(width, height)
        arguments = self.arguments(self.pipe, CAPTIONS[0], width, height, guidance)
        made = self.conditions(CAPTIONS[0], guidance)

        def decode(raw: torch.Tensor, *_: Any, **__: Any) -> Any:
            raise pipeline_calls.Intercepted(raw)

        raws = []
        with pipeline_calls.patched_attributes(self.pipe.vae, decode=decode):
            like = torch.zeros(0, dtype=self.dtype, device=self.device)
            with pipeline_calls.replay_encode_prompt(self.pipe, made, self.encoders, like):
                raws.append(
                    pipeline_calls.call_until_intercepted(
                        self.pipe, arguments, None, pipeline_calls.noise_in_pipeline_layout(latents)
                    )[0]
                )
            try:
                vae.decode_latents(self.pipe.vae, latents)
            except pipeline_calls.Intercepted as handed:
                raws.append(handed.args[0])
        theirs, ours = (raw.float() for raw in raws)
        tolerance = 2 * torch.finfo(self.dtype).eps * ours.abs().max()
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > tolerance:
            raise UnsupportedPipeline("it decodes latents otherwise than its autoencoder's settings say")


def _same_inputs(first: Any, second: Any) -> bool:
    ours, theirs = pipeline_calls.nested_tensors(first), pipeline_calls.nested_tensors(second)
    if len(ours) != len(theirs) or pipeline_calls.without_tensors(first) != pipeline_calls.without_tensors(
        second
    ):
        return False
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def meta_denoiser(pipe: Any, kind: str, config: Mapping[str, Any]) -> Any:
    """A network without memory, that can be asked about itself and claims to be where the pipeline is."""
    import diffusers

    own, device = getattr(diffusers, kind), pipe.vae.device
    with torch.device("meta"):
        network = own.from_config(config)
    torch.nn.Module.to(network, pipe.vae.dtype)  # the class's own would warn of what has no numbers anyway
    network.__class__ = type(own.__name__, (own,), {"device": property(lambda _: device)})
    return network.eval()
