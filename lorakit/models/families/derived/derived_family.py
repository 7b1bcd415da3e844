"""The family of a folder whose pipeline has no file of its own."""

from __future__ import annotations

import contextlib
import inspect
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
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

if TYPE_CHECKING:
    from PIL import Image

_DENOISERS = ("transformer", "unet")
_FIXED_ARGUMENTS = {
    "use_resolution_binning": False,
    "enable_prompt_rewrite": False,
    "use_pe": False,
    "output_type": "pil",
}
"""Arguments of every call, where the pipeline takes them: sizes and captions as they are."""
_GUIDANCE_OFF_VALUES = (1.0, 0.0)
"""Values that switch guidance off in one pipeline or another."""


def derive_family(folder: Path) -> Family:
    """The family of one folder; ConfigError when its parts rule it out."""
    kind, parts = folders.pipeline_name(folder), folders.pipeline_components(folder)
    if not hasattr(diffusers, kind):
        raise unsupported_pipeline_error(kind, "the installed diffusers has no such pipeline")
    networks = [name for name in parts if folders.has_weights(parts[name])]
    denoisers = [name for name in networks if name.startswith(_DENOISERS)]
    if len(denoisers) != 1 or not {"vae", "scheduler"} <= parts.keys():
        raise unsupported_pipeline_error(
            kind, f"it has no single denoiser, autoencoder and scheduler, but {', '.join(parts)}"
        )
    side = read_json(folder / denoisers[0] / "config.json").get("patch_size")
    settings = {
        "name": "derived",
        "title": f"{kind}, derived by probing",
        "pipelines": (kind,),
        "component": denoisers[0],
        "objective": _objective(kind, read_json(folder / "scheduler" / "scheduler_config.json")),
        "encoders": tuple(name for name in networks if name not in (denoisers[0], "vae")),
        "text_parts": tuple(name for name in parts if name not in (denoisers[0], "vae", "scheduler")),
        # what the pipeline asks for its settings when it is made
        "always": ("vae", *(name for name in parts if name not in networks)),
        "own_shift": True,  # for all that is known
        "patch": 1 if denoisers[0] == "unet" else math.lcm(2, side if isinstance(side, int) else 1),
    }
    made: Family = type("Derived", (DerivedFamily,), settings)()
    return made


def unsupported_pipeline_error(kind: str, reason: str) -> ConfigError:
    """Why a pipeline cannot be trained without a family of its own."""
    return ConfigError(
        f"no family for {kind}, and none can be derived from it: {reason}",
        where=MODEL_INDEX,
        remedy="see `lorakit families`; to add one, see lorakit/models/families/README.md",
    )


def _objective(kind: str, config: Mapping[str, Any]) -> str:
    name = str(config.get("_class_name"))
    flow = "FlowMatch" in name or config.get("prediction_type") == "flow_prediction"
    if flow and config.get("num_train_timesteps", 1000) != 1000:
        raise unsupported_pipeline_error(
            kind, f"its flow has {config['num_train_timesteps']} times instead of 1000"
        )
    if not flow and "beta_schedule" not in config:
        raise unsupported_pipeline_error(kind, f"what is trained with a {name} is not known")
    return "flow" if flow else "ddpm"


class DerivedFamily(Family):
    """See the package; `derive` makes one for each folder."""

    licence = "see the model's page"
    encoders: ClassVar[tuple[str, ...]]
    """Networks that nothing but text needs."""

    def __init__(self) -> None:
        # pipelines hold their networks, and must not be held by them in turn
        self._pipes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._unguided: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        self._outlines: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._orders: dict[tuple[int, ...], torch.Tensor] = {}

    def describe(self) -> dict[str, Any]:
        tested = "against its own pipeline, on the model itself, before it is trained"
        return super().describe() | {"tested": tested}

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """The network; `predict`, which is handed it alone, finds the pipeline by it."""
        network = super().denoiser(pipe)
        self._pipes[network] = weakref.ref(pipe)
        return network

    def size_step(self, pipe: Any) -> int:
        """The smallest fit multiple of what the networks need."""
        least = super().size_step(pipe)
        for step in (least, 2 * least, 4 * least, 8 * least):
            with self._refusing():
                if pipeline_calls.accepts_arguments(
                    pipe, self._asked(pipe, "", 3 * step, 5 * step, _GUIDANCE_OFF_VALUES[0])
                ):
                    return step
        raise unsupported_pipeline_error(
            self.pipelines[0], f"it takes no pictures of {3 * step} x {5 * step} pixels"
        )

    def encode(
        self,
        pipe: Any,
        captions: Sequence[str],
        size: tuple[int, int] | None = None,
        pictures: ConditioningTensors | None = None,
    ) -> list[Conditioning]:
        """What `encode_prompt` returns within the pipeline's call, without guidance and with its own."""
        if not captions:
            return []
        with torch.no_grad(), self._following(pipe) as follower:
            if pipe not in self._unguided:
                off = follower.unguided(_GUIDANCE_OFF_VALUES)
                follower.check_replay(off)
                follower.check_decoding(off)
                self._unguided[pipe] = off
            return [_condition(follower, caption, self._unguided[pipe]) for caption in captions]

    def _encode(self, pipe: Any, captions: list[str]) -> Conditioning:
        return self.encode(pipe, captions)[0]

    @contextlib.contextmanager
    def _following(self, pipe: Any) -> Iterator[checks.PipelineTracer]:
        """A follower of the pipeline; what it cannot follow is a refusal."""
        network = getattr(pipe, self.component) or self._outlines.get(pipe)
        if network is None:
            network = checks.meta_denoiser(pipe, *self._config(pipe, self.component))
            self._outlines[pipe] = network
        with self._refusing(), pipeline_calls.patched_attributes(pipe, **{self.component: network}):
            yield checks.PipelineTracer(pipe, network, self.encoders, self._asked, self.size_step(pipe))

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (UnsupportedPipeline, AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            told = (
                str(error) if isinstance(error, UnsupportedPipeline) else f"{type(error).__name__}: {error}"
            )
            raise unsupported_pipeline_error(self.pipelines[0], told) from error

    def _asked(
        self, pipe: Any, caption: str, width: int, height: int, guidance: float | None
    ) -> dict[str, Any]:
        """Arguments of a call; `guidance` None: the pipeline's own."""
        accepted = inspect.signature(type(pipe).__call__).parameters
        given: dict[str, Any] = {"prompt": caption, "width": width, "height": height}
        if missing := [name for name in (*given, "num_inference_steps") if name not in accepted]:
            raise UnsupportedPipeline(f"its call takes no {', '.join(missing)}")
        wanted = _FIXED_ARGUMENTS | getattr(pipe, "lorakit_settings", {})
        given |= {name: value for name, value in wanted.items() if name in accepted}
        if guidance is not None:
            off = {"guidance_scale": guidance, "true_cfg_scale": 1.0, "guidance_schedule": None}
            given |= {name: value for name, value in off.items() if name in accepted}
        return given

    def collate(self, conds: Sequence[Conditioning]) -> Conditioning:
        """Rows stay apart: the pipeline is called for each of them."""
        return {f"{row}/{name}": value for row, cond in enumerate(conds) for name, value in cond.items()}

    def predict(
        self, denoiser: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> torch.Tensor:
        pipe = self._pipes[denoiser]()
        rows = [self._predict(pipe, noisy[i, None], t[i], _row(cond, i)) for i in range(len(noisy))]
        made = torch.cat(rows)
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in denoiser.parameters())
        if learning and not made.requires_grad:
            raise unsupported_pipeline_error(self.pipelines[0], "no gradient passes through its call")
        return made

    def _predict(self, pipe: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        with self._refusing():
            order = self._order(pipe, noisy, t, cond)
            output, _ = self._replayed(pipe, noisy, t, cond)
            if output.numel() != noisy.numel():
                raise UnsupportedPipeline(
                    f"it predicts {tuple(output.shape)} for latents {tuple(noisy.shape[1:])}"
                )
        return output.flatten()[order].view_as(noisy)

    def _replayed(
        self, pipe: Any, noise: torch.Tensor, t: torch.Tensor, cond: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(prediction, latents) as the pipeline hands them to its scheduler."""
        width, height = self._pixels(pipe, noise)
        arguments = self._asked(pipe, "", width, height, float(cond["unguided"]))
        with pipeline_calls.replay_encode_prompt(
            pipe, pipeline_calls.restore_nested(cond, "plain"), self.encoders, noise
        ):
            output, sample = pipeline_calls.call_until_intercepted(
                pipe, arguments, t, pipeline_calls.noise_in_pipeline_layout(noise)
            )
        return output, sample

    def _pixels(self, pipe: Any, noise: torch.Tensor) -> tuple[int, int]:
        from lorakit.models import vae

        height, width = (
            vae.spatial_compression(*self._config(pipe, "vae")) * side for side in noise.shape[2:]
        )
        return width, height

    def _order(self, pipe: Any, noisy: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Where each number of the latents stands in what the pipeline loops over.

        Found by sending the numbers' places through, in digits that half precision can hold.
        """
        key = tuple(noisy.shape)
        if key in self._orders:
            return self._orders[key].to(noisy.device)
        index = torch.arange(noisy.numel(), device=noisy.device)
        places, power = torch.zeros_like(index), 1
        while power < len(index):
            digits = (index // power % 256).to(noisy.dtype).view_as(noisy)
            with torch.no_grad(), pipeline_calls.count_denoiser_calls(getattr(pipe, self.component)) as calls:
                _, sample = self._replayed(pipe, digits, t, cond)
            if len(calls) != 1:
                raise UnsupportedPipeline(f"its network is called {len(calls)} times at each step")
            if sample.numel() != len(index):
                raise UnsupportedPipeline(f"its loop is over {tuple(sample.shape)}, with latents {key[1:]}")
            places += sample.flatten().round().long() * power
            power *= 256
        if not torch.equal(places.sort().values, index):
            raise UnsupportedPipeline("it does more to its noise than to reorder it")
        self._orders[key] = places.argsort()
        return self._orders[key]

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
        """One picture after the other; against the pipeline's own negative."""
        if negative is not None and any(len(v) for n, v in negative.items() if n.endswith("/caption")):
            raise ConfigError(
                f"{self.pipelines[0]} is not known well enough to draw with a negative prompt",
                where="negative",
                remedy="leave it out: the pipeline's own is used",
            )
        pictures = []
        for row in range(len(noise)):
            own = _row(cond, row)
            plain = guidance is not None and guidance <= float(own["unguided"])
            asked = self._asked(pipe, "", width, height, float(own["unguided"]) if plain else None)
            if guidance is not None and not plain and "guidance_scale" in _accepted(pipe):
                asked["guidance_scale"] = guidance
            generator = torch.Generator(noise.device).manual_seed(noise_seed(noise[row]))
            made = pipeline_calls.restore_nested(own, "plain" if plain else "guided")
            one = noise[row, None].to(pipe.vae.dtype)
            with (
                pipeline_calls.replay_encode_prompt(pipe, made, self.encoders, one),
                pipeline_calls.fixed_noise(pipe, pipeline_calls.noise_in_pipeline_layout(one)),
            ):
                drawn = pipe(**asked, num_inference_steps=steps, generator=generator)
            pictures.append(drawn[0][0])
        return pictures


def _accepted(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters


def _condition(follower: checks.PipelineTracer, caption: str, unguided: float) -> Conditioning:
    """What a caption comes to: for training, and for drawing with the pipeline's own guidance."""
    return {
        "caption": torch.tensor(list(caption.encode()), dtype=torch.uint8),
        "unguided": torch.tensor(unguided),
        **pipeline_calls.flatten_nested(follower.conditions(caption, unguided), "plain"),
        **pipeline_calls.flatten_nested(follower.conditions(caption, None), "guided"),
    }


def _row(cond: Conditioning, row: int) -> Conditioning:
    prefix = f"{row}/"
    return {name.removeprefix(prefix): value for name, value in cond.items() if name.startswith(prefix)}
