"""A training step compared with a bare one: forward, backward, clipping and optimizer on cached tensors.

The bare loop is written by hand: the network as diffusers loads it, a LoRA of peft, an optimizer of its own
over separate tensors (torch's fused AdamW, bitsandbytes' AdamW8bit). Both use the same latents, noise,
timesteps, text embeddings and adapter. A speed in float32 counts only if the losses are equal.
Times are user and system CPU seconds, because machines are shared; rounds are interleaved, medians compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, inject_adapter_in_model

from lorakit import adapters
from lorakit.config import recipe
from lorakit.core import rng
from lorakit.core.progress import Progress
from lorakit.data import batch_sampler
from lorakit.models import base_model
from lorakit.training import acceleration_plan, run_changes, run_plan, setup
from lorakit.training.held_out import DataSplit
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer
from tests import runs
from tests.benchmarks import bases

GOAL = 1.02  # ratio to the bare step in float32
BF16_GOALS = {"tiny-unet": 0.85, "unet-34m": 0.85, "tiny-dit": 0.70, "dit-36m": 0.70}
OPTIMIZERS = ("adamw", "adamw8bit")
RANK = 16
MAX_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Case:
    """One comparison: the floor computes in float32, lorakit in `precision`."""

    base: str
    optimizer: str = "adamw8bit"
    precision: str = "fp32"
    batch_size: int = 4
    checkpointing: float = 0.0

    @property
    def name(self) -> str:
        """The case in a few words."""
        words = [self.base, self.optimizer, self.precision, f"batch {self.batch_size}"]
        return ", ".join([*words, "checkpointing"] if self.checkpointing else words)

    @property
    def goal(self) -> float:
        """Highest ratio."""
        return GOAL if self.precision == "fp32" else BF16_GOALS[self.base]


def all_cases(names: Sequence[str] = bases.BASES) -> list[Case]:
    """Return the cases of a full benchmark."""
    cases = [
        Case(base, optimizer, precision, batch_size)
        for base, optimizer, precision, batch_size in itertools.product(
            names, OPTIMIZERS, ("fp32", "bf16"), (1, 4)
        )
    ]
    return cases + [Case(base, "adamw", "fp32", 4, 1.0) for base in names]


def cpu_seconds() -> float:
    """Return the user and system CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make_trainer(case: Case, folder: Path) -> Trainer:
    """Return a trainer on noise images of one shape."""
    data, out = folder / "data", folder / case.name.replace(", ", "-")
    if not data.exists():
        runs.make_dataset(data, 24)
    settings = {
        "train": {"steps": 10_000, "batch_size": case.batch_size, "precision": case.precision},
        "adapter": {"rank": RANK},
        "optimizer": {"name": case.optimizer},
        "memory": {"gradient_checkpointing": case.checkpointing, "quantize": "none"},
    }
    file = runs.make_recipe(folder / "recipe.json", bases.make_base(case.base, folder), data, out, **settings)
    loaded = recipe.load_recipe(file)
    plan = run_plan.plan_training(loaded, lambda text: None)
    # One shape, so that a step is one forward pass in both cases.
    square = [item for item in plan.items if item.bucket == (64, 64)]
    plan = dataclasses.replace(plan, items=square, split=DataSplit(square, []))
    accelerator = Accelerator(cpu=True)
    session = setup.build_session(loaded, plan, accelerator.device, main=True, wait_for_everyone=lambda: None)
    run = RunFolder(out)
    run_changes.start_or_resume(run, loaded, {**plan.input_hashes, "num_processes": 1})
    return Trainer(session, accelerator, run)


@dataclass(frozen=True)
class _PreparedStep:
    """Everything that a step needs, computed beforehand."""

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    cond: dict[str, torch.Tensor]


class BareLoop:
    """Steps without anything around them, on what `trainer` would train with."""

    def __init__(self, case: Case, trainer: Trainer, steps: int, dtype: torch.dtype = torch.float32) -> None:
        self.trainer, self.case, self.dtype = trainer, case, dtype
        self.steps = [self._prepare(number) for number in range(steps)]
        self.network = self._load_network()
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = self._build_optimizer(trainer.recipe.optimizer)

    def _load_network(self) -> Any:
        session = self.trainer.session
        trained: Any = session.denoiser
        folder = base_model.resolve_base(str(session.recipe.base))
        network_class: Any = next(c for c in type(trained).__mro__ if c.__module__.startswith("diffusers"))
        network = network_class.from_pretrained(folder / session.family.components.denoiser).train(False)
        network.requires_grad_(False)
        spec = next(iter(session.adapter_specs.values()))
        lora = LoraConfig(r=RANK, lora_alpha=spec.alpha, target_modules=list(spec.target_modules))
        network = inject_adapter_in_model(lora, network)
        with torch.no_grad():
            values = self.trainer.training_step.adapter_tensors()
            own = {
                name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad
            }
            assert len(own) == len(values), "the bare loop adapts other layers"
            for name, parameter in own.items():
                key = next(k for k in values if k.endswith(name.replace(".default", "")))
                parameter.copy_(values[key])
        if self.case.checkpointing:
            network.enable_gradient_checkpointing()
            network.train()
        return network.to(self.dtype)

    def _build_optimizer(self, config: recipe.OptimizerConfig) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {
            "lr": config.lr,
            "betas": (0.9, 0.999),
            "weight_decay": config.weight_decay,
        }
        if config.name == "adamw":
            return torch.optim.AdamW(self.parameters, **settings, fused=True)
        import bitsandbytes

        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            self.parameters, **settings, min_8bit_size=1
        )
        return optimizer

    def _prepare(self, number: int) -> _PreparedStep:
        session, seed = self.trainer.session, self.trainer.recipe.train.seed
        step = self.trainer.training_step
        samples = batch_sampler.step_samples(
            number,
            self.case.batch_size,
            session.train_set.caption_choices,
            seed,
            first_position=step.first_position,
        )
        samples = batch_sampler.micro_batches(samples, session.train_set.batch_shapes, self.case.batch_size)[
            0
        ]
        batch = session.train_set.batch(samples, torch.device("cpu"))
        shape = tuple(batch.latents.shape[1:])
        noise = torch.stack([rng.keyed_normal(shape, seed, "noise", sample.position) for sample in samples])
        u = torch.tensor([rng.keyed_uniform(seed, "time", sample.position) for sample in samples])
        noised = session.objective.add_noise(batch.latents, noise, u)
        cond = {
            name: value.to(self.dtype) if value.is_floating_point() else value
            for name, value in batch.cond.items()
        }
        return _PreparedStep(
            noised.noisy_latents.to(self.dtype), noised.timesteps, noised.target.float(), cond
        )

    def take_step(self, number: int) -> float:
        """Take a numbered step and return its loss."""
        step = self.steps[number]
        prediction = self.trainer.session.family.predict(
            self.network, step.noisy_latents, step.timesteps, step.cond
        )
        loss = torch.nn.functional.mse_loss(prediction.float(), step.target)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def lorakit_step(trainer: Trainer, progress: Progress) -> Callable[[int], float]:
    """Return a function that does all that the training loop does in a step, and returns its loss."""

    def take_step(number: int) -> float:
        result = trainer.training_step.run()
        trainer.log_results(progress, wait=False)
        trainer.run.heartbeat("train", number, progress.total, 0.0)
        return result.loss

    return take_step


@contextlib.contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def measure(case: Case, *, rounds: int, steps: int, folder: Path | None = None) -> dict[str, Any]:
    """Return one row: medians of `rounds` interleaved rounds of `steps` steps.

    Where lorakit computes in bfloat16, a bare loop that does so is measured too.
    """
    with _folder(folder) as root, contextlib.ExitStack() as stack:
        trainer = make_trainer(case, root)
        bare = BareLoop(case, trainer, rounds * steps + 1)
        progress = Progress("train", rounds * steps)
        contestants = {"lorakit": lorakit_step(trainer, progress), "bare_fp32": bare.take_step}
        if case.precision == "bf16":
            contestants["bare_bf16"] = BareLoop(case, trainer, rounds * steps + 1, torch.bfloat16).take_step
        stack.enter_context(acceleration_plan.accelerated(trainer))
        losses = {key: [take_step(0)] for key, take_step in contestants.items()}  # also the warm-up
        seconds: dict[str, list[float]] = {key: [] for key in contestants}
        for round_index in range(rounds):
            numbers = range(1 + round_index * steps, 1 + (round_index + 1) * steps)
            for key, take_step in contestants.items():
                start = cpu_seconds()
                losses[key] += [take_step(number) for number in numbers]
                seconds[key].append((cpu_seconds() - start) / steps)
        difference = max(abs(a - b) for a, b in zip(losses["lorakit"], losses["bare_fp32"], strict=True))
        if case.precision == "fp32":
            assert difference <= MAX_DIFFERENCE, f"not the same training: losses differ by {difference}"
        size = adapters.count_trainable(trainer.session.denoiser)
    row: dict[str, Any] = {"name": case.name}
    row |= {f"{key}_ms": round(1000 * statistics.median(values), 1) for key, values in seconds.items()}
    row |= {"ratio": _ratio(seconds, "bare_fp32"), "goal": case.goal}
    if "bare_bf16" in seconds:
        row["ratio_bare_bf16"] = _ratio(seconds, "bare_bf16")
    return row | {"loss_difference": difference, "modules": size.num_modules}


def _ratio(seconds: dict[str, list[float]], other: str) -> float:
    pairs = zip(seconds["lorakit"], seconds[other], strict=True)
    return round(statistics.median(own / value for own, value in pairs), 3)


def passes(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if all goals are met."""
    return all(row["ratio"] <= row["goal"] for row in rows)
