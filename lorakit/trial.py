"""Try an adapter out: pictures from prompts, and the base against the adapter from the same noise."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorakit import adapter, bases, evaluate, prompts, recipe, sample, score, storage
from lorakit.errors import ConfigError
from lorakit.families import Family, find
from lorakit.rundir import RunFolder

if TYPE_CHECKING:
    from lorakit.report import Html

DEFAULT_CLIP = "ViT-L-14/openai"


@dataclass(frozen=True)
class Options:
    """How to sample; None means the pipeline's guidance, and the adapter's resolution."""

    steps: int = 20
    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    quiet: bool = False


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`640x512` as (640, 512)."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"{text!r} is not a size", where="--size", remedy="for instance 1024x768")
    return int(width), int(height)


def parse_adapter(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH; a run's folder stands for its finished adapter."""
    path, strength = Path(text), 1.0
    head, colon, tail = text.rpartition(":")
    if colon and not path.exists():
        try:
            path, strength = Path(head), float(tail)
        except ValueError:
            raise ConfigError(f"{tail!r} is not a strength", where=f"--adapter {text}") from None
    return adapter.file_of(path), strength


class Painter:
    """A loaded base with, perhaps, an adapter, ready to draw."""

    def __init__(self, base: str, adapter_file: Path | None = None, strength: float = 1.0) -> None:
        self.folder = bases.resolve(base)
        self.family: Family = find(self.folder)
        facts = adapter.read_metadata(adapter_file) if adapter_file else {}
        if facts and facts["base_hash"] != bases.content_hash(self.folder):
            raise ConfigError(
                "the adapter was trained on another base",
                where=str(adapter_file),
                remedy=f"use the base {facts['base']!r} it was trained on",
            )
        self.facts: dict[str, Any] = facts
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.pipe = self.family.load(self.folder, dtype=dtype, device=self.device)
        if adapter_file:
            adapter.load(self.denoiser, self.family.component, adapter_file, strength)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that draws."""
        return self.family.denoiser(self.pipe)

    def settings(self, options: Options) -> sample.Settings:
        """Complete the options: without a size, the adapter's resolution or 1024."""
        side = int(self.facts.get("resolution", 1024))
        width, height = options.size or (side, side)
        step = self.family.size_step(self.pipe)
        if width % step or height % step:
            raise ConfigError(f"{width}x{height} does not suit this base", remedy=f"use multiples of {step}")
        return sample.Settings(width, height, options.steps, options.guidance, options.batch)

    def draw(self, wanted: Sequence[prompts.Prompt], options: Options, label: str) -> list[prompts.Shot]:
        """Every seed of every prompt."""
        encoded = sample.encode(self.family, self.pipe, wanted)
        settings = self.settings(options)
        return sample.sample(self.family, self.pipe, encoded, settings, label=label, quiet=options.quiet)


def sample_to(out: Path, base: str, given: str | None, prompt_file: Path, options: Options) -> list[Path]:
    """`lorakit sample`: write the pictures of a prompt file and samples.json."""
    wanted = prompts.load(prompt_file)
    file, strength = parse_adapter(given) if given else (None, 1.0)
    painter = Painter(base, file, strength)
    return sample.save(out, painter.draw(wanted, options, "samples"))


def scorer(base: str, clip: str | None) -> score.ClipScorer:
    """The CLIP to score with: the embedded one for embedded bases, else ViT-L-14, else what `clip` names."""
    if clip is None and bases.is_embedded(base):
        return score.ClipScorer.local(bases.EMBEDDED_CLIP)
    name = clip or DEFAULT_CLIP
    if Path(name).is_dir():
        return score.ClipScorer.local(name)
    model, _, pretrained = name.partition("/")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return score.ClipScorer(model, pretrained or None, device=device)


def evaluate_run(
    run: Path,
    *,
    prompt_file: Path | None = None,
    clip: str | None = None,
    options: Options | None = None,
    words: Collection[str] = (),
    extra: Sequence[Html] = (),
    title: str | None = None,
) -> tuple[evaluate.Comparison, Path]:
    """Sample base and finished adapter with the same noise, score both, write RUN/eval; returns the report's
    path.

    `words` are alternatives among which CLIP picks the one of each prompt's `score_text`.
    """
    made = recipe.load(run / "recipe.yaml")
    file, _ = parse_adapter(str(run))
    prompt_file = prompt_file or made.samples.prompts
    if prompt_file is None:
        raise ConfigError("the run has no prompts", where=str(run), remedy="give --prompts FILE")
    wanted = prompts.load(prompt_file)
    judge = scorer(made.base, clip)
    options = options or Options(made.samples.steps, made.samples.guidance)
    painter = Painter(made.base, file)
    with adapter.switched_off(painter.denoiser):
        before = painter.draw(wanted, options, "before")
    after = painter.draw(wanted, options, "after")
    for name, samples in (("before", before), ("after", after)):
        sample.save(run / "eval" / name, samples)
    alternatives = evaluate.word_alternatives(wanted, list(words)) if words else None
    comparison = evaluate.compare(before, after, judge, alternatives=alternatives)
    report = evaluate.write_report(
        run / "eval",
        comparison,
        title=title or f"{run.name}: before and after",
        facts=_facts(run, made, painter),
        metrics=RunFolder(run).metrics(),
        extra=extra,
    )
    return comparison, report


def _facts(run: Path, made: recipe.Recipe, painter: Painter) -> list[tuple[str, str]]:
    modules, numbers = adapter.count(painter.denoiser)
    optimizer = made.optimizer
    record = storage.read_json(run / "run.json")
    size = (run / "adapter.safetensors").stat().st_size
    return [
        ("Base", f"{painter.facts['base']} ({painter.family.title})"),
        (
            "Adapter",
            f"rank {made.adapter.rank}, alpha {made.adapter.alpha:g}, {modules} modules, {numbers:,} numbers",
        ),
        (
            "Training",
            f"{made.train.steps} steps of {made.effective_batch}, {optimizer.name}, lr {optimizer.lr:g}",
        ),
        ("Data", f"{record.get('images', '?')} images at resolution {made.resolution}"),
        ("File", f"{size / 2**20:.1f} MiB"),
    ]
