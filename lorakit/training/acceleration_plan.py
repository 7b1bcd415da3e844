"""Acceleration of a run: decided in its first session, recorded in run.json, and kept when it is resumed.

Compiled blocks and other kernels round in another way. A run that changed them on the way would not end in
the same bytes, so they are chosen once for a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapters import text_encoders
from lorakit.config.recipe import Recipe
from lorakit.core.errors import ConfigError
from lorakit.models import device as devices
from lorakit.models import memory
from lorakit.models.acceleration import compiled, kernels, packed_convolutions
from lorakit.models.acceleration.compiled import CompiledBlocks
from lorakit.models.acceleration.cuda_graphs import GraphedNetwork
from lorakit.models.acceleration.kernels import Measurement
from lorakit.models.acceleration.settings import FIXED_TEXT_MULTIPLE, AccelerationSettings, Kernels
from lorakit.models.families.unpadded import TEXT_MASK
from lorakit.models.memory import MemorySettings, sharding
from lorakit.models.memory.blocks import repeated_blocks

if TYPE_CHECKING:
    from lorakit.training.trainer import Trainer

MAX_SHAPES = 8  # more than these are too many to compile and to record by themselves
MIN_STEPS = 500  # a compilation takes as long as some hundred steps save


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run that decide its acceleration."""

    device: torch.device
    steps: int
    """Steps that are left."""
    num_shapes: int
    """Shapes of latents, times the sizes that a forward pass may have."""
    text_varies: bool
    """True if each length of a caption is a shape of its own."""
    trains_text: bool
    num_blocks: int
    memory: MemorySettings = field(default_factory=MemorySettings)

    @property
    def too_many_shapes(self) -> str | None:
        """The reason if there are too many shapes; None if there are not."""
        if self.text_varies:
            return "captions of each length are a shape of their own with this base model"
        if self.num_shapes > MAX_SHAPES:
            return f"there may be {self.num_shapes} shapes of batches, more than {MAX_SHAPES}"
        return None


@dataclass(frozen=True)
class Decision:
    """The acceleration of a run, a line about each part that stays off, and what was measured."""

    settings: AccelerationSettings
    reasons: tuple[str, ...] = ()
    measured: tuple[Measurement, ...] = ()


def decide(recipe: Recipe, facts: RunFacts) -> Decision:
    """Decide everything but the kernels. Raises ConfigError for what the recipe asks for and cannot have."""
    compile_reason = _why_not_compile(recipe, facts)
    graph_reason = _why_no_graph(recipe, facts)
    settings = AccelerationSettings(
        compile=compile_reason is None,
        cuda_graph=graph_reason is None,
        text_multiple=1 if facts.device.type == "cpu" and compile_reason is not None else FIXED_TEXT_MULTIPLE,
    )
    reasons = {"blocks are not compiled": compile_reason, "no CUDA graphs": graph_reason}
    return Decision(settings, tuple(f"{what}: {why}" for what, why in reasons.items() if why))


def _why_not_compile(recipe: Recipe, facts: RunFacts) -> str | None:
    """Return why blocks are not compiled, empty if nobody expects it; None if they are."""
    setting = recipe.train.compile
    if setting is False or (setting == "auto" and facts.device.type not in ("cuda", "xpu")):
        return ""
    problem = compiled.compile_problem(facts.device)
    if problem is None and not facts.num_blocks:
        problem = "this base model has no repeated blocks"
    if setting is True:
        if problem:
            raise _refusal("train.compile", "blocks cannot be compiled", problem)
        return None
    if problem is None and facts.steps < MIN_STEPS:
        problem = f"fewer than {MIN_STEPS} steps are left"
    return problem or facts.too_many_shapes


def _why_no_graph(recipe: Recipe, facts: RunFacts) -> str | None:
    """Return why passes are not recorded, empty if nobody expects it; None if they are."""
    setting, moves = recipe.train.cuda_graph, facts.memory
    if setting is False or (setting == "auto" and facts.device.type != "cuda"):
        return ""
    problem = None
    if facts.device.type != "cuda":
        problem = f"this device ({facts.device.type}) has none"
    elif moves.stream or moves.offload_activations or moves.offload_modulation:
        problem = "weights or activations wait in host memory"
    elif facts.trains_text:
        problem = "text encoders are trained"
    if setting is True:
        if problem:
            raise _refusal("train.cuda_graph", "CUDA graphs cannot be used", problem)
        return None
    return problem or facts.too_many_shapes


def _refusal(key: str, what: str, problem: str) -> ConfigError:
    return ConfigError(f"{what}: {problem}", where=key, remedy=f"set {key}=false")


def measures_kernels(recipe: Recipe, device: torch.device) -> bool:
    """Return True if a run chooses its kernels by measurement.

    On a CPU only if the recipe asks for it: times vary with other programs, and so would the results of two
    equal runs.
    """
    if recipe.train.kernels != "auto":
        return recipe.train.kernels == "measure"
    return device.type != "cpu" and not recipe.train.deterministic


class Acceleration:
    """The acceleration in force on a trainer: kernels everywhere, the rest inside its training steps."""

    def __init__(self, trainer: Trainer, settings: AccelerationSettings) -> None:
        step = trainer.training_step
        self._loss = step.loss
        self.compiled = CompiledBlocks(trainer.session.denoiser) if settings.compile else None
        self.graphs: GraphedNetwork | None = None
        if settings.cuda_graph:
            self.graphs = GraphedNetwork(
                step.loss.network,
                [parameter for _, parameter in step.parameters.named],
                step.parameters.add_gradients,
                step.parameters.mark_active,
                lambda reason: trainer.log(f"a shape of batches runs without a CUDA graph: {reason}"),
                max_shapes=MAX_SHAPES,
            )

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Use compiled blocks and graphs within the block."""
        network = self._loss.network
        with self.compiled.active() if self.compiled else contextlib.nullcontext():
            self._loss.network = self.graphs or network
            try:
                yield
            except (RuntimeError, MemoryError) as error:
                if self.graphs and memory.is_out_of_memory(error):
                    self.graphs.forget()
                raise
            finally:
                self._loss.network = network


@contextlib.contextmanager
def accelerated(trainer: Trainer) -> Iterator[AccelerationSettings]:
    """Decide and record the acceleration of a run, or take up its record, and use it within the block."""
    decision = _agreed_decision(trainer)
    settings, session = decision.settings, trainer.session
    for line in (*_description(decision), *decision.reasons):
        trainer.log(line)
    sets = [data for data in (session.train_set, session.class_image_set) if data]
    acceleration = Acceleration(trainer, settings)
    with kernels.kernels_in_force(settings.kernels, session.denoiser), _packed(trainer, settings):
        for data in sets:
            data.text_multiple = settings.text_multiple
        trainer.training_step.acceleration = acceleration.in_step
        try:
            yield settings
        finally:
            trainer.training_step.acceleration = contextlib.nullcontext
            for data in sets:
                data.text_multiple = 1


@contextlib.contextmanager
def _packed(trainer: Trainer, settings: AccelerationSettings) -> Iterator[None]:
    """Arrange the weights of frozen convolutions once within the block; this changes no bit."""
    session = trainer.session
    if settings.compile or session.memory_settings.stream or sharding.is_sharded(session.denoiser):
        yield
        return
    with packed_convolutions.packed_convolutions(session.denoiser) as count:
        if count:
            trainer.log(f"the weights of {count} convolutions are arranged for this processor once")
        yield


def _description(decision: Decision) -> Iterator[str]:
    settings = decision.settings
    parts = ["compiled blocks (the first step of each shape takes longer)"] if settings.compile else []
    parts += ["CUDA graphs"] if settings.cuda_graph else []
    parts += [str(settings.kernels)] if settings.kernels != Kernels() else []
    if parts:
        yield f"acceleration: {'; '.join(parts)}"
    for measurement in decision.measured:
        time = measurement.problem or f"{measurement.seconds:.4g} s a step"
        yield f"  measured {measurement.kernels}: {time}"


def _request(trainer: Trainer) -> dict[str, Any]:
    """Return what a record is valid for: the recipe's wishes, the device and torch."""
    train, device = trainer.recipe.train, trainer.session.device
    wishes = {"compile": train.compile, "cuda_graph": train.cuda_graph, "kernels": train.kernels}
    return {**wishes, "device": devices.device_name(device), "torch": torch.__version__}


def _recorded(trainer: Trainer) -> Decision | None:
    """Return the recorded decision; None for a new run, and for one that continues on another device."""
    record = trainer.run.record().get("acceleration")
    if not isinstance(record, Mapping) or record.get("request") != _request(trainer):
        return None
    try:
        return Decision(AccelerationSettings.from_json(record["settings"]), tuple(record.get("reasons", ())))
    except (KeyError, TypeError):  # another version wrote it
        return None


def _agreed_decision(trainer: Trainer) -> Decision:
    """Return the decision of the main process, recorded or new; the others get it, and read no record: it may
    be written at that moment."""
    messages: list[Any] = [None]
    if trainer.is_main_process:
        decision = _recorded(trainer) or _decide_now(trainer)
        messages = [{"settings": decision.settings.to_json()}]
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(messages)
    if trainer.is_main_process:
        return decision
    return Decision(AccelerationSettings.from_json(messages[0]["settings"]))


def _decide_now(trainer: Trainer) -> Decision:
    """Decide, and record it."""
    if sharding.is_sharded(trainer.session.denoiser):  # passes are exchanges, of all processes at once
        reason = "a base model divided among processes is not compiled, recorded or measured"
        decision = Decision(AccelerationSettings(), (reason,))
    else:
        decision = _measured(trainer, decide(trainer.recipe, _facts(trainer)))
    values = {"settings": decision.settings.to_json(), "reasons": list(decision.reasons)}
    measured = [measurement.to_json() for measurement in decision.measured]
    record = {"request": _request(trainer), **values, "measured": measured}
    trainer.run.update_record(acceleration=record)
    return decision


def _measured(trainer: Trainer, decision: Decision) -> Decision:
    recipe, session = trainer.recipe, trainer.session
    if not measures_kernels(recipe, session.device):
        return decision
    trainer.log("measuring the kernels of this device with training steps")
    chosen, measured = kernels.choose_kernels(
        trainer.training_step.try_largest_batch,
        session.denoiser,
        session.device,
        precision=recipe.train.precision,
        movable=not session.memory_settings.stream,
    )
    settings = AccelerationSettings(**{**vars(decision.settings), "kernels": chosen})
    return Decision(settings, decision.reasons, tuple(measured))


def _facts(trainer: Trainer) -> RunFacts:
    session, train = trainer.session, trainer.recipe.train
    sets = [data for data in (session.train_set, session.class_image_set) if data]
    shapes = {shape for data in sets for shape in data.batch_shapes}
    sample = session.train_set.sample_as_written(0, 0)
    cond = session.train_set.batch([sample], torch.device("cpu")).cond
    return RunFacts(
        device=session.device,
        steps=train.steps - trainer.state.step,
        num_shapes=len(shapes) * (train.batch_size if len(shapes) > 1 else 1),
        text_varies=TEXT_MASK in cond,
        trains_text=text_encoders.trains_text(trainer.recipe),
        num_blocks=len(repeated_blocks(session.denoiser)),
        memory=session.memory_settings,
    )
