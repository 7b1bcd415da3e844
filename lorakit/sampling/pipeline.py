"""A base with an adapter, ready to draw: `lorakit sample`, and what evaluations draw with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.data import conditioning, prompts
from lorakit.models import base_model, loading, schedulers
from lorakit.models.families import Family, family_for_adapter
from lorakit.models.families.pipeline_folder import pipeline_components
from lorakit.sampling import controls, generate

T = TypeVar("T")


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample; None means the pipeline's own guidance and sampler, and the adapter's resolution.

    `quantize` (`nf4`, `int8`, `none`) is how the base is held; None: as the run was trained, else whole.
    """

    steps: int = 20
    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    quiet: bool = False
    sampler: str | None = None
    guide: controls.Control | None = None
    frames: int | None = None
    quantize: str | None = None


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`640x512` as (640, 512)."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"{text!r} is not a size", where="--size", remedy="for instance 1024x768")
    return int(width), int(height)


def parse_adapter_argument(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH; a run's folder stands for its finished adapter."""
    path, strength = Path(text), 1.0
    head, colon, tail = text.rpartition(":")
    if colon and not path.exists():
        try:
            path, strength = Path(head), float(tail)
        except ValueError:
            raise ConfigError(f"{tail!r} is not a strength", where=f"--adapter {text}") from None
    return adapters.resolve_adapter_file(path), strength


class SamplingPipeline:
    """A loaded base with, perhaps, an adapter, ready to draw; `quantize` ("nf4", "int8") makes it smaller.

    Text encoders that are no CLIP, and may be larger than all the rest, are loaded when there is something to
    encode, and only for that.
    """

    def __init__(
        self,
        base: str,
        adapter_file: Path | None = None,
        strength: float = 1.0,
        *,
        quantize: str | None = None,
    ) -> None:
        self.folder, self.quantize = base_model.resolve_base(base), quantize
        self.facts: dict[str, Any] = self._checked(adapter_file) if adapter_file else {}
        self.family: Family = family_for_adapter(self.folder, self.facts.get("family"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.pipe = loading.load_components(
            self.family,
            self.folder,
            None if self.family.text_encoders else self._silent_parts(),
            dtype=self.dtype,
            device=self.device,
            kind=quantize,
        )
        self._encoded: dict[tuple[Any, ...], generate.EncodedPrompts] = {}
        self._guided: dict[controls.Control, controls.ControlledPipeline] = {}
        if adapter_file:
            text_encoders.add_saved_token(self.family, self.pipe, self.facts)
            adapters.load_adapter(self.networks, adapter_file, strength)

    def _silent_parts(self) -> set[str]:
        """What draws, given conditions."""
        parts = set(pipeline_components(self.folder)) - set(self.family.left_out)
        return parts - loading.text_components(self.family, self.folder)

    def with_text(self, work: Callable[[Any], T]) -> T:
        """What `work` makes of a pipeline that encodes text."""
        if self.family.text_encoders:
            return work(self.pipe)
        return loading.run_with_text_encoders(
            self.family, self.folder, work, dtype=self.dtype, device=self.device, say=_say
        )

    def _checked(self, file: Path) -> dict[str, Any]:
        """The facts of an adapter file, which must have been trained on this base."""
        facts = adapters.read_adapter_metadata(file)
        if facts["base_hash"] != base_model.base_hash(self.folder):
            raise ConfigError(
                "the adapter was trained on another base",
                where=str(file),
                remedy=f"use the base it was trained on, with hash {facts['base_hash'][:12]}...",
            )
        return facts

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that draws."""
        return self.family.denoiser(self.pipe)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """All that may carry an adapter: the denoiser first, then text encoders."""
        return text_encoders.adaptable_networks(self.family, self.pipe)

    @property
    def speaks_otherwise(self) -> bool:
        """Whether the adapter changes what texts mean, so that their conditions must not be kept."""
        return any(adapters.trainable_parameters(self.networks[name]) for name in self.family.text_encoders)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base, for a while."""
        with adapters.adapters_disabled(*self.networks.values()):
            self._forget_texts()
            yield
        self._forget_texts()

    def _forget_texts(self) -> None:
        if self.speaks_otherwise:
            self._encoded.clear()

    def swap(self, file: Path, strength: float = 1.0) -> None:
        """Another checkpoint of the same run in place of the adapter that was loaded, at some strength."""
        self._checked(file)
        tensors = storage.read_safetensors(file)
        adapters.load_adapter_state_dict(self.networks, tensors, str(file))
        for network in self.networks.values():
            adapters.set_adapter_strength(network, strength)
        self._forget_texts()

    def settings(self, options: SamplingOptions) -> generate.SamplingSettings:
        """Complete the options: without a size, the adapter's resolution or 1024."""
        side = int(self.facts.get("resolution", 1024))
        width, height = options.size or (side, side)
        step = self.family.size_step(self.pipe)
        if width % step or height % step:
            raise ConfigError(f"{width}x{height} does not suit this base", remedy=f"use multiples of {step}")
        if options.sampler:
            schedulers.check_sampler(self.family.objective, options.sampler)
        frames = options.frames or int(self.facts.get("frames", 1))
        if frames > 1 and not self.family.clips:
            raise ConfigError(f"{self.family.title} makes pictures, not clips", where="--frames")
        return generate.SamplingSettings(
            width, height, options.steps, options.guidance, options.batch, options.sampler, frames
        )

    def draw(
        self, wanted: Sequence[prompts.Prompt], options: SamplingOptions, label: str
    ) -> list[prompts.Sample]:
        """Every seed of every prompt."""
        return [shot for batch in self.batches(wanted, options, label) for shot in batch]

    def batches(
        self,
        wanted: Sequence[prompts.Prompt],
        options: SamplingOptions,
        label: str,
        done: Collection[tuple[str, int]] = (),
    ) -> Iterator[list[prompts.Sample]]:
        """Every seed of every prompt but those `done`, batch by batch; each prompt is encoded once."""
        if options.guide and options.guide not in self._guided:
            self._guided[options.guide] = options.guide.attach(self.pipe)
        settings = self.settings(options)
        return generate.sample_batches(
            self.family,
            self.pipe,
            self._encode(wanted, (settings.width, settings.height)),
            settings,
            done=done,
            guided=self._guided[options.guide] if options.guide else None,
            label=label,
            quiet=options.quiet,
        )

    def _encode(self, wanted: Sequence[prompts.Prompt], size: tuple[int, int]) -> generate.EncodedPrompts:
        """The prompts' conditions; texts that were met before are not encoded again."""
        conditioning.check_prompt_conditioning(self.family, wanted)
        keys = [(p.prompt, p.negative, size, p.image, p.further, p.mask) for p in wanted]
        new = {key: prompt for key, prompt in zip(keys, wanted, strict=True) if key not in self._encoded}
        if new:
            fresh = self.with_text(
                lambda pipe: generate.encode_prompts(self.family, pipe, list(new.values()), size)
            )
            for key, prompt, yes, no in zip(new, fresh.prompts, fresh.positive, fresh.negative, strict=True):
                self._encoded[key] = generate.EncodedPrompts([prompt], [yes], [no])
        known = [self._encoded[key] for key in keys]
        return generate.EncodedPrompts(
            list(wanted), [one.positive[0] for one in known], [one.negative[0] for one in known]
        )


def resolve_quantization(options: SamplingOptions, trained: str | None = None) -> str | None:
    """The `quantize` of a painter: what the options say, else how the run was trained."""
    return None if options.quantize == "none" else options.quantize or trained


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def sample_to_folder(
    out: Path, base: str, given: str | None, prompt_file: Path, options: SamplingOptions
) -> list[Path]:
    """`lorakit sample`: write the pictures of a prompt file and samples.json."""
    wanted = prompts.load_prompts(prompt_file)
    file, strength = parse_adapter_argument(given) if given else (None, 1.0)
    painter = SamplingPipeline(base, file, strength, quantize=resolve_quantization(options))
    return generate.save_samples(out, painter.draw(wanted, options, "samples"), painter.family.fps)
