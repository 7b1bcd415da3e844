"""The sampling pipeline: a base model with an adapter, as `lorakit sample` and evaluations use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from lorakit import adapters
from lorakit.adapters import text_encoders
from lorakit.adapters.sources import AdapterSource, parse_adapter_source
from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.progress import print_line
from lorakit.data import conditioning
from lorakit.data.prompts import Prompt, Sample, load_prompts
from lorakit.imaging.provenance import AdapterUse
from lorakit.models import base_model, loading, schedulers
from lorakit.models import device as devices
from lorakit.models.families import Family
from lorakit.models.families.pipeline_folder import pipeline_components
from lorakit.models.memory import MemorySettings, Quantization, placement
from lorakit.sampling import controls, generate, prompt_settings, saved_samples
from lorakit.sampling.adapter_arguments import find_family, read_adapters

DEFAULT_RESOLUTION = 1024  # of a base model without an adapter
T = TypeVar("T")


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling options; None: the pipeline's own guidance and sampler, the adapter's resolution and frames.

    `size` is (width, height). `quantize` ("nf4", "int8", "none") applies to the base model; None: as in the
    training run, otherwise not quantized. `stream` is the share of the denoiser's blocks that stay in host
    memory; None: as in the training run, otherwise 0. `provenance` decides what files say about their origin.
    """

    num_inference_steps: int = 20
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None
    batch_size: int = 8
    quiet: bool = False
    sampler: str | None = None
    control: controls.Control | None = None
    num_frames: int | None = None
    quantize: str | None = None
    stream: float | None = None
    provenance: saved_samples.ProvenanceMode = "text"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse `640x512` as (640, 512)."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"{text!r} is not a size", where="--size", remedy="write it as 1024x768")
    return int(width), int(height)


def complete_settings(
    family: Family, pipe: Any, adapter_metadata: Mapping[str, Any], options: SamplingOptions
) -> generate.SamplingSettings:
    """Complete the options: without a size, the adapter's resolution or `DEFAULT_RESOLUTION`.

    Raises ConfigError for a size, sampler or number of frames that the base model does not support.
    """
    side = int(adapter_metadata.get("resolution", DEFAULT_RESOLUTION))
    width, height = options.size or (side, side)
    multiple = family.size_multiple(pipe)
    if width % multiple or height % multiple:
        raise ConfigError(
            f"this base model cannot generate {width}x{height} pixels", remedy=f"use multiples of {multiple}"
        )
    if options.sampler:
        schedulers.check_sampler(family.objective, options.sampler)
    num_frames = options.num_frames or int(adapter_metadata.get("frames", 1))
    if num_frames > 1 and not family.is_video:
        raise ConfigError(f"{family.title} generates images, not videos", where="--frames")
    return generate.SamplingSettings(
        width,
        height,
        options.num_inference_steps,
        options.guidance_scale,
        options.batch_size,
        options.sampler,
        num_frames,
    )


class SamplingPipeline:
    """A loaded base model, with an adapter or the sum of several; quantized by `quantize` ("nf4", "int8").

    Adapters may be of any origin, and trained on another base model of the family: `notes` has a line about
    each difference, which is also printed. Raises ConfigError if family, modules or shapes do not fit.

    Text encoders other than CLIP may be larger than all other components together. They are loaded when there
    is text to encode, and released afterwards, unless `keep_text_encoders`. The share `stream` of the
    denoiser's blocks stays in host memory.
    """

    def __init__(
        self,
        base: str,
        adapter: Path | Sequence[AdapterSource] | None = None,
        strength: float = 1.0,
        *,
        quantize: Quantization | None = None,
        stream: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
        keep_text_encoders: bool = False,
    ) -> None:
        self.base_folder, self.quantize = base_model.resolve_base(base), quantize
        sources = [AdapterSource(adapter, strength)] if isinstance(adapter, Path) else list(adapter or ())
        self.family: Family = find_family(self.base_folder, sources)
        read = read_adapters(self.base_folder, self.family, sources)
        self.adapter_metadata, self.notes = read.metadata, list(read.notes)
        for note in self.notes:
            print_line(note)
        self.device = torch.device(device or devices.default_device())
        self.dtype = dtype or devices.inference_dtype(self.device)
        settings = MemorySettings(quantize=quantize, stream=stream)
        self._has_text_encoders = keep_text_encoders or bool(self.family.text.trainable_encoders)
        self.pipe = loading.load_components(
            self.family,
            self.base_folder,
            None if self._has_text_encoders else self._components_without_text(),
            dtype=self.dtype,
            device=self.device,
            settings=settings,
            compute_dtype=compute_dtype,
        )
        self._encoded: dict[tuple[Any, ...], generate.EncodedPrompts] = {}
        self._controlled: dict[controls.Control, controls.ControlledPipeline] = {}
        read.inject(self.family, self.pipe, self.networks)
        for network in self.networks.values():
            adapters.cast_adapter(network, compute_dtype or self.dtype)
        if stream:
            placement.place(self.denoiser, settings, self.device)

    def _components_without_text(self) -> set[str]:
        """Return the names of the components that sampling needs once the text is encoded."""
        components = set(pipeline_components(self.base_folder)) - set(self.family.components.optional)
        return components - loading.text_components(self.family, self.base_folder)

    def run_with_text_encoders(self, work: Callable[[Any], T]) -> T:
        """Return what `work` returns for a pipeline that can encode text."""
        if self._has_text_encoders:
            return work(self.pipe)
        return loading.run_with_text_encoders(
            self.family, self.base_folder, work, dtype=self.dtype, device=self.device, log=print_line
        )

    @property
    def denoiser(self) -> torch.nn.Module:
        """The denoiser of the base model."""
        return self.family.denoiser(self.pipe)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """All networks that may have an adapter: the denoiser first, then text encoders."""
        return text_encoders.adaptable_networks(self.family, self.pipe)

    @property
    def adapts_text_encoders(self) -> bool:
        """True if the adapter changes text embeddings, so that they must be computed for each checkpoint."""
        encoders = self.family.text.trainable_encoders
        return any(adapters.trainable_parameters(self.networks[name]) for name in encoders)

    @contextlib.contextmanager
    def adapter_disabled(self) -> Iterator[None]:
        """Sample without the adapter inside this context."""
        with adapters.adapters_disabled(*self.networks.values()):
            self._clear_text_embeddings()
            yield
        self._clear_text_embeddings()

    def _clear_text_embeddings(self) -> None:
        if self.adapts_text_encoders:
            self._encoded.clear()

    def load_adapter(self, file: Path, strength: float = 1.0) -> None:
        """Replace the adapter by another checkpoint of the same run, at the given strength."""
        tensors = storage.read_safetensors(file)
        adapters.load_adapter_state_dict(self.networks, tensors, str(file))
        for network in self.networks.values():
            adapters.set_adapter_strength(network, strength)
        self._clear_text_embeddings()

    def settings(self, options: SamplingOptions) -> generate.SamplingSettings:
        """Complete the options: see `complete_settings`."""
        return complete_settings(self.family, self.pipe, self.adapter_metadata, options)

    def make_recorder(
        self, options: SamplingOptions, base: str, uses: Sequence[AdapterUse]
    ) -> saved_samples.SampleRecorder | None:
        """Return the recorder of what the images of this pipeline are generated from, as the options ask."""
        settings = self.settings(options)
        return saved_samples.make_recorder(
            options.provenance, self.family, self.pipe, settings, base=base, adapters=uses
        )

    def sample(self, prompts: Sequence[Prompt], options: SamplingOptions, label: str) -> list[Sample]:
        """Sample every seed of every prompt; `label` names the progress bar."""
        return [sample for batch in self.sample_batches(prompts, options, label) for sample in batch]

    def sample_batches(
        self,
        prompts: Sequence[Prompt],
        options: SamplingOptions,
        label: str,
        completed: Collection[tuple[str, int]] = (),
    ) -> Iterator[list[Sample]]:
        """Sample every seed of every prompt but the `completed`, batch by batch: see `sample_batches`."""
        if options.control and options.control not in self._controlled:
            self._controlled[options.control] = options.control.attach(self.pipe)
        settings = self.settings(options)
        resolved = self.resolve_sizes(prompts, settings)
        return generate.sample_batches(
            self.family,
            self.pipe,
            self._encode(resolved, settings),
            settings,
            completed=completed,
            controlled=self._controlled[options.control] if options.control else None,
            label=label,
            quiet=options.quiet,
        )

    def resolve_sizes(self, prompts: Sequence[Prompt], settings: generate.SamplingSettings) -> list[Prompt]:
        """Return the prompts with sizes that the base model generates; a line says once what is rounded."""
        resolved, notes = prompt_settings.resolve_sizes(self.family, self.pipe, prompts, settings)
        for note in notes:
            if note not in self.notes:
                self.notes.append(note)
                print_line(note)
        return resolved

    def _encode_new(
        self, prompts: list[Prompt], settings: generate.SamplingSettings
    ) -> generate.EncodedPrompts:
        """Encode prompts, those that overflow in half precision in float32."""
        encoded = self.run_with_text_encoders(
            lambda pipe: generate.encode_prompts(self.family, pipe, prompts, settings)
        )
        overflowing = [number for number in range(len(prompts)) if not encoded.is_finite(number)]
        if not overflowing or self._has_text_encoders or self.dtype == torch.float32:
            return encoded
        again = loading.run_with_text_encoders(
            self.family,
            self.base_folder,
            lambda pipe: generate.encode_prompts(
                self.family, pipe, [prompts[n] for n in overflowing], settings
            ),
            dtype=torch.float32,
            device=self.device,
            log=print_line,
        )
        for number, positive, negative in zip(overflowing, again.positive, again.negative, strict=True):
            encoded.positive[number], encoded.negative[number] = positive, negative
        return encoded

    def _encode(
        self, prompts: Sequence[Prompt], settings: generate.SamplingSettings
    ) -> generate.EncodedPrompts:
        """Encode the prompts; each is encoded once, however often it is sampled."""
        conditioning.check_prompt_conditioning(self.family, prompts)
        keys = [(p.prompt, p.negative, settings.for_prompt(p).size, p.images, p.mask) for p in prompts]
        new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._encoded}
        if new:
            encoded = self._encode_new(list(new.values()), settings)
            rows = zip(new, encoded.prompts, encoded.positive, encoded.negative, strict=True)
            for key, prompt, positive, negative in rows:
                self._encoded[key] = generate.EncodedPrompts([prompt], [positive], [negative])
        stored = [self._encoded[key] for key in keys]
        return generate.EncodedPrompts(
            list(prompts), [one.positive[0] for one in stored], [one.negative[0] for one in stored]
        )


def resolve_quantization(options: SamplingOptions, trained: str | None = None) -> Quantization | None:
    """Return the quantization of a sampling pipeline: that of the options, otherwise that of the run."""
    quantize = options.quantize or trained
    return None if quantize in (None, "none") else cast(Quantization, quantize)


def sample_to_folder(
    out: Path, base: str, adapter: str | Sequence[str] | None, prompt_file: Path, options: SamplingOptions
) -> list[Path]:
    """Sample a prompt file into a folder, for `lorakit sample`; adapters are PATH or RUN@STEP, and :STRENGTH.

    Several adapters add up; a line says which checkpoint of a run is used, and why. Returns the paths of the
    images; see `saved_samples.save_samples` for the other files.
    """
    prompts = load_prompts(prompt_file)
    saved_samples.check_mode(options.provenance)
    texts = [adapter] if isinstance(adapter, str) else adapter or ()
    sources = [parse_adapter_source(text).print_line() for text in texts]
    pipeline = SamplingPipeline(
        base, sources, quantize=resolve_quantization(options), stream=options.stream or 0.0
    )
    samples = pipeline.sample(prompts, options, "samples")
    recorder = pipeline.make_recorder(options, base, saved_samples.adapter_uses(sources))
    return saved_samples.save_samples(out, samples, pipeline.family.fps, recorder)
