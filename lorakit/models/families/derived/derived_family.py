"""The family of a folder whose pipeline has no family file."""

from __future__ import annotations

import contextlib
import inspect
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import torch

from lorakit.core.errors import ConfigError
from lorakit.core.storage import read_json
from lorakit.models.base_model import MODEL_INDEX
from lorakit.models.families import pipeline_folder as folders
from lorakit.models.families.derived import checks, pipeline_calls
from lorakit.models.families.derived.pipeline_calls import UnsupportedPipeline
from lorakit.models.families.family import Conditioning, ConditioningTensors, Family, noise_seed
from lorakit.models.families.specs import ComponentSpec, LatentSpec, TextSpec

if TYPE_CHECKING:
    from PIL import Image

_DENOISERS = ("transformer", "unet")
_FIXED_ARGUMENTS = {
    "use_resolution_binning": False,
    "enable_prompt_rewrite": False,
    "use_pe": False,
    "output_type": "pil",
}
"""Arguments of every call, where the pipeline accepts them: sizes and captions stay unchanged."""
_GUIDANCE_OFF_VALUES = (1.0, 0.0)
"""Guidance scales that switch guidance off in one pipeline or another."""


def derive_family(folder: Path) -> Family:
    """Derive the family of one folder; ConfigError if its components make that impossible."""
    pipeline, classes = folders.pipeline_name(folder), folders.pipeline_components(folder)
    if not hasattr(diffusers, pipeline):
        raise unsupported_pipeline_error(pipeline, "the installed diffusers has no such pipeline")
    networks = [name for name in classes if classes[name].has_weights]
    denoisers = [name for name in networks if name.startswith(_DENOISERS)]
    if len(denoisers) != 1 or not {"vae", "scheduler"} <= classes.keys():
        raise unsupported_pipeline_error(
            pipeline, f"it needs one denoiser, a VAE and a scheduler, and has {', '.join(classes)}"
        )
    denoiser = denoisers[0]
    patch_size = read_json(folder / denoiser / "config.json", allow_infinity=True).get("patch_size")
    attributes = {
        "name": "derived",
        "title": f"{pipeline}, derived from its call",
        "pipelines": (pipeline,),
        "objective": _objective(
            pipeline, read_json(folder / "scheduler" / "scheduler_config.json", allow_infinity=True)
        ),
        "text_networks": tuple(name for name in networks if name not in (denoiser, "vae")),
        "components": ComponentSpec(
            denoiser=denoiser,
            # the pipeline reads their settings when it is built
            always_loaded=("vae", *(name for name in classes if name not in networks)),
        ),
        "text": TextSpec(
            component_prefixes=tuple(name for name in classes if name not in (denoiser, "vae", "scheduler"))
        ),
        "latents": LatentSpec(
            patch_size=1
            if denoiser == "unet"
            else math.lcm(2, patch_size if isinstance(patch_size, int) else 1),
            scheduler_shift=False,  # nothing is known about it
        ),
    }
    family: Family = type("Derived", (DerivedFamily,), attributes)()
    return family


def unsupported_pipeline_error(pipeline: str, reason: str) -> ConfigError:
    """Build the error for a pipeline that cannot be trained without a family file."""
    return ConfigError(
        f"there is no family for {pipeline}, and none can be derived from it: {reason}",
        where=MODEL_INDEX,
        remedy="see `lorakit families`; to add one, see lorakit/models/families/README.md",
    )


def _objective(pipeline: str, config: Mapping[str, Any]) -> str:
    name = str(config.get("_class_name"))
    flow = "FlowMatch" in name or config.get("prediction_type") == "flow_prediction"
    if flow and config.get("num_train_timesteps", 1000) != 1000:
        raise unsupported_pipeline_error(
            pipeline, f"its scheduler has {config['num_train_timesteps']} timesteps instead of 1000"
        )
    if not flow and "beta_schedule" not in config:
        raise unsupported_pipeline_error(pipeline, f"the training objective of its {name} is unknown")
    return "flow" if flow else "ddpm"


@dataclass(frozen=True)
class SchedulerInputs:
    """Tensors that a pipeline passes to its scheduler, in its own layout."""

    prediction: torch.Tensor
    latents: torch.Tensor


class DerivedFamily(Family):
    """A family derived from a pipeline's call, see the package; `derive_family` builds one per folder."""

    license = "see the model's page"
    text_networks: ClassVar[tuple[str, ...]]
    """Networks that only text encoding needs."""

    def __init__(self) -> None:
        # weak references, because a pipeline refers to its networks
        self._pipeline_of: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._guidance_off: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._meta_denoisers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._latent_orders: dict[tuple[int, ...], torch.Tensor] = {}

    def describe(self) -> dict[str, Any]:
        tested = "against its own pipeline, on the model itself, before it is trained"
        return super().describe() | {"tested": tested}

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """Return the network, by which `predict` finds the pipeline."""
        network = super().denoiser(pipe)
        self._pipeline_of[network] = weakref.ref(pipe)
        return network

    def size_multiple(self, pipe: Any) -> int:
        """Return the smallest multiple of the networks' own that the pipeline accepts."""
        minimum = super().size_multiple(pipe)
        for multiple in (minimum, 2 * minimum, 4 * minimum, 8 * minimum):
            width, height = 3 * multiple, 5 * multiple
            with self._refuse_unsupported():
                arguments = self._call_arguments(pipe, "", width, height, _GUIDANCE_OFF_VALUES[0])
                if pipeline_calls.accepts_arguments(pipe, arguments):
                    return multiple
        raise unsupported_pipeline_error(
            self.pipelines[0], f"it does not accept images of {width} x {height} pixels"
        )

    def encode_text(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        images: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """Record `encode_prompt` within the pipeline's call, without guidance and with the default scale."""
        if not captions:
            return []
        with torch.no_grad(), self._tracing(pipe) as tracer:
            if pipe not in self._guidance_off:
                guidance = tracer.guidance_off_value(_GUIDANCE_OFF_VALUES)
                tracer.check_replay(guidance)
                tracer.check_decoding(guidance)
                self._guidance_off[pipe] = guidance
            return [_record_text(tracer, caption, self._guidance_off[pipe]) for caption in captions]

    def _encode_prompt(self, pipe: Any, captions: list[str]) -> Conditioning:
        return self.encode_text(pipe, captions)[0]

    @contextlib.contextmanager
    def _tracing(self, pipe: Any) -> Iterator[checks.PipelineTracer]:
        """Yield a tracer of the pipeline, with a denoiser on the meta device if none is loaded."""
        name = self.components.denoiser
        network = getattr(pipe, name) or self._meta_denoisers.get(pipe)
        if network is None:
            config = self._component_config(pipe, name)
            network = checks.meta_denoiser(pipe, config.class_name, config.config)
            self._meta_denoisers[pipe] = network
        with self._refuse_unsupported(), pipeline_calls.patched_attributes(pipe, **{name: network}):
            multiple = self.size_multiple(pipe)
            yield checks.PipelineTracer(pipe, network, self.text_networks, self._call_arguments, multiple)

    @contextlib.contextmanager
    def _refuse_unsupported(self) -> Iterator[None]:
        """Turn errors of the pipeline's call into one ConfigError."""
        try:
            yield
        except (UnsupportedPipeline, AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            supported = not isinstance(error, UnsupportedPipeline)
            reason = f"{type(error).__name__}: {error}" if supported else str(error)
            raise unsupported_pipeline_error(self.pipelines[0], reason) from error

    def _call_arguments(
        self, pipe: Any, caption: str, width: int, height: int, guidance: float | None
    ) -> dict[str, Any]:
        """Return the arguments of a call; `guidance` None: the pipeline's default."""
        parameters = _call_parameters(pipe)
        arguments: dict[str, Any] = {"prompt": caption, "width": width, "height": height}
        if missing := [name for name in (*arguments, "num_inference_steps") if name not in parameters]:
            raise UnsupportedPipeline(f"its call has no argument {', '.join(missing)}")
        optional = _FIXED_ARGUMENTS | getattr(pipe, "lorakit_settings", {})
        if guidance is not None:
            optional |= {"guidance_scale": guidance, "true_cfg_scale": 1.0, "guidance_schedule": None}
        return arguments | {name: value for name, value in optional.items() if name in parameters}

    def collate(self, conds: Sequence[Conditioning], text_multiple: int = 1) -> Conditioning:
        """Keep rows separate, as `row/name`: the pipeline is called for each of them."""
        return {f"{row}/{name}": value for row, cond in enumerate(conds) for name, value in cond.items()}

    def predict(
        self, denoiser: Any, noisy_latents: torch.Tensor, timesteps: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        pipe = self._pipeline_of[denoiser]()
        rows = [
            self._predict(pipe, noisy_latents[row, None], timesteps[row], _select_row(cond, row))
            for row in range(len(noisy_latents))
        ]
        predictions = torch.cat(rows)
        needs_grad = torch.is_grad_enabled() and any(p.requires_grad for p in denoiser.parameters())
        if needs_grad and not predictions.requires_grad:
            raise unsupported_pipeline_error(self.pipelines[0], "no gradient passes through its call")
        return predictions

    def _predict(
        self, pipe: Any, noisy_latents: torch.Tensor, timestep: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """Predict for one row (1, C, H, W)."""
        with self._refuse_unsupported():
            order = self._latent_order(pipe, noisy_latents, timestep, cond)
            prediction = self._replay_call(pipe, noisy_latents, timestep, cond).prediction
            if prediction.numel() != noisy_latents.numel():
                raise UnsupportedPipeline(
                    f"it predicts {tuple(prediction.shape)} for latents {tuple(noisy_latents.shape[1:])}"
                )
        return prediction.flatten()[order].view_as(noisy_latents)

    def _replay_call(
        self, pipe: Any, noise: torch.Tensor, timestep: torch.Tensor, cond: Conditioning
    ) -> SchedulerInputs:
        """Call the pipeline with recorded text embeddings, up to its scheduler."""
        compression = self._spatial_compression(pipe)
        height, width = (compression * side for side in noise.shape[2:])
        arguments = self._call_arguments(pipe, "", width, height, float(cond["guidance_off"]))
        recorded = pipeline_calls.restore_nested(cond, "plain")
        with pipeline_calls.replay_encode_prompt(pipe, recorded, self.text_networks, noise):
            noise_fn = pipeline_calls.noise_in_pipeline_layout(noise)
            return SchedulerInputs(
                *pipeline_calls.call_until_intercepted(pipe, arguments, timestep, noise_fn)
            )

    def _latent_order(
        self, pipe: Any, noisy_latents: torch.Tensor, timestep: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        """Return the position of each latent in the tensor that the pipeline denoises.

        The positions themselves are sent through the call, in digits that half precision can represent.
        """
        key = tuple(noisy_latents.shape)
        if key in self._latent_orders:
            return self._latent_orders[key].to(noisy_latents.device)
        index = torch.arange(noisy_latents.numel(), device=noisy_latents.device)
        positions, power = torch.zeros_like(index), 1
        while power < len(index):
            digits = (index // power % 256).to(noisy_latents.dtype).view_as(noisy_latents)
            with (
                torch.no_grad(),
                pipeline_calls.count_denoiser_calls(getattr(pipe, self.components.denoiser)) as calls,
            ):
                latents = self._replay_call(pipe, digits, timestep, cond).latents
            if len(calls) != 1:
                raise UnsupportedPipeline(f"its network is called {len(calls)} times at each step")
            if latents.numel() != len(index):
                raise UnsupportedPipeline(f"it denoises {tuple(latents.shape)} for latents {key[1:]}")
            positions += latents.flatten().round().long() * power
            power *= 256
        if not torch.equal(positions.sort().values, index):
            raise UnsupportedPipeline("it changes the values of its noise, not only their order")
        self._latent_orders[key] = positions.argsort()
        return self._latent_orders[key]

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
        """Sample one image after the other, with the pipeline's default negative prompt."""
        if negative_cond and any(len(v) for n, v in negative_cond.items() if n.endswith("/caption")):
            raise ConfigError(
                f"negative prompts are not supported for {self.pipelines[0]}, which has no family file",
                where="negative",
                remedy="leave it out: the pipeline's default is used",
            )
        images = []
        for row in range(len(noise)):
            row_cond = _select_row(cond, row)
            guidance_off = float(row_cond["guidance_off"])
            plain = guidance_scale is not None and guidance_scale <= guidance_off
            arguments = self._call_arguments(pipe, "", width, height, guidance_off if plain else None)
            if guidance_scale is not None and not plain and "guidance_scale" in _call_parameters(pipe):
                arguments["guidance_scale"] = guidance_scale
            generator = torch.Generator(noise.device).manual_seed(noise_seed(noise[row]))
            recorded = pipeline_calls.restore_nested(row_cond, "plain" if plain else "guided")
            row_noise = noise[row, None].to(pipe.vae.dtype)
            with (
                pipeline_calls.replay_encode_prompt(pipe, recorded, self.text_networks, row_noise),
                pipeline_calls.fixed_noise(pipe, pipeline_calls.noise_in_pipeline_layout(row_noise)),
            ):
                output = pipe(**arguments, num_inference_steps=num_inference_steps, generator=generator)
            images.append(output[0][0])
        return images


def _call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def _record_text(tracer: checks.PipelineTracer, caption: str, guidance_off: float) -> Conditioning:
    """Record a caption's embeddings: for training, and for sampling with the pipeline's guidance."""
    return {
        "caption": torch.tensor(list(caption.encode()), dtype=torch.uint8),
        "guidance_off": torch.tensor(guidance_off),
        **pipeline_calls.flatten_nested(tracer.encode_prompt_outputs(caption, guidance_off), "plain"),
        **pipeline_calls.flatten_nested(tracer.encode_prompt_outputs(caption, None), "guided"),
    }


def _select_row(cond: Conditioning, row: int) -> Conditioning:
    prefix = f"{row}/"
    return {name.removeprefix(prefix): value for name, value in cond.items() if name.startswith(prefix)}
