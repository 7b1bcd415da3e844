"""CPU seconds from the command to the first step: lorakit, and other trainers by the path of a script.

All train on the same base and images. A process is stopped when its first step is over, which its output or
its files tell; CPU seconds are those of the command and all processes below it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lorakit.core import storage
from lorakit.models import base_model
from tests import runs
from tests.benchmarks import bases

GOAL = 0.6  # of the CPU seconds of diffusers' script
FINISHED_SECONDS, HELP_SECONDS = 2.0, 0.06
SIDE, BATCH_SIZE, NUM_IMAGES = 64, 4, 24
LORAKIT = [sys.executable, "-m", "lorakit"]
KOHYA_LAUNCH = Path(__file__).with_name("kohya_launch.py")


@dataclass(frozen=True)
class Contestant:
    """A command that trains, and how its first step shows: a file with content, or a text in its output."""

    name: str
    command: Sequence[str]
    out: Path
    file: str = ""
    text: bytes = b""

    def is_past_first_step(self, output: Path) -> bool:
        """Return True after the first step."""
        if self.file:
            file = self.out / self.file
            return file.exists() and file.stat().st_size > 0
        return self.text in output.read_bytes()


def make_data(folder: Path) -> tuple[Path, Path]:
    """Return the same images as a dataset of lorakit and as a folder with metadata.jsonl."""
    data, others = folder / "data", folder / "images"
    if not data.exists():
        runs.make_dataset(data, NUM_IMAGES)
        rows = []
        for number in range(NUM_IMAGES):
            others.mkdir(exist_ok=True)
            shutil.copy(data / f"{number}.png", others)
            rows.append({"file_name": f"{number}.png", "text": f"a sks picture number {number}"})
        storage.write_jsonl(others / "metadata.jsonl", rows)
    return data, others


def lorakit(folder: Path, base: Path | str, data: Path, steps: int = 1, **train: Any) -> Contestant:
    """Return lorakit's command, with a new run."""
    out = folder / f"lorakit-{steps}"
    settings = {"steps": steps, "batch_size": BATCH_SIZE, "precision": "fp32", "save_every": 10_000} | train
    file = runs.make_recipe(
        folder / f"lorakit-{steps}.yaml",
        base,
        data,
        out,
        resolution=SIDE,
        adapter={"rank": 4, "alpha": 4},
        optimizer={"name": "adamw8bit", "lr": 1e-4},
        train=settings,
        validate={"fraction": 0},
    )
    return Contestant("lorakit", [*LORAKIT, "train", str(file), "--fresh"], out, file="metrics.jsonl")


def interpreter(script: Path) -> str:
    """Return the Python of the virtual environment in a folder of a script, else the one that runs this."""
    for folder in script.resolve().parents:
        for name in ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe"):
            if (folder / name).exists():
                return str(folder / name)
    return sys.executable


def diffusers_script(
    folder: Path, base: Path | str, images: Path, script: Path, steps: int = 1
) -> Contestant:
    """Return the command of diffusers' text-to-image LoRA example, `script`."""
    out = folder / f"diffusers-{steps}"
    arguments = {
        "pretrained_model_name_or_path": base,
        "train_data_dir": images,
        "output_dir": out,
        "cache_dir": folder / "datasets",
        "resolution": SIDE,
        "train_batch_size": BATCH_SIZE,
        "max_train_steps": steps,
        "rank": 4,
        "seed": 0,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    command = [interpreter(script), str(script), *words, "--use_8bit_adam"]
    return Contestant("diffusers script", command, out, text=f"| 1/{steps} ".encode())


def kohya_script(folder: Path, base: Path | str, images: Path, script: Path, steps: int = 1) -> Contestant:
    """Return the command of kohya's `train_network.py`, `script`, with its caches of latents."""
    out, source = folder / f"kohya-{steps}", folder / "kohya-images" / "1_sks"
    if not source.exists():
        shutil.copytree(images, source, ignore=shutil.ignore_patterns("*.jsonl"))
        for row in storage.read_jsonl(images / "metadata.jsonl"):
            storage.write_text((source / row["file_name"]).with_suffix(".txt"), row["text"])
    arguments = {
        "pretrained_model_name_or_path": base,
        "train_data_dir": source.parent,
        "output_dir": out,
        "output_name": "lora",
        "resolution": f"{SIDE},{SIDE}",
        "train_batch_size": BATCH_SIZE,
        "max_train_steps": steps,
        "network_module": "networks.lora",
        "network_dim": 4,
        "caption_extension": ".txt",
        "tokenizer_cache_dir": _kohya_tokenizer(folder, base).parent,
        "optimizer_type": "AdamW8bit",
        "seed": 0,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    options = ["--cache_latents", "--network_train_unet_only"]
    launch = [str(KOHYA_LAUNCH), str(Path(base) / "unet" / "config.json"), str(script)]
    command = [interpreter(script), *launch, *words, *options]
    return Contestant("kohya script", command, out, text=f"| 1/{steps} ".encode())


def _kohya_tokenizer(folder: Path, base: Path | str) -> Path:
    """Return the base's tokenizer under the name that kohya's script looks for before it goes to the hub.

    Older versions of transformers, which it needs, read vocabulary and merges from files of their own.
    """
    target = folder / "kohya-tokenizers" / "openai_clip-vit-large-patch14"
    if not target.exists():
        shutil.copytree(Path(base) / "tokenizer", target)
        model = storage.read_json(target / "tokenizer.json")["model"]
        storage.write_json(target / "vocab.json", model["vocab"])
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        storage.write_text(target / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    return target


def peers(
    folder: Path, base: Path | str, images: Path, paths: Mapping[str, Path | None], steps: int = 1
) -> list[Contestant]:
    """Return the other trainers of which there is a script."""
    base = base_model.resolve_base(str(base))
    makers: dict[str, Callable[..., Contestant]] = {"diffusers": diffusers_script, "kohya": kohya_script}
    return [makers[name](folder, base, images, path, steps) for name, path in paths.items() if path]


def run_to_first_step(contestant: Contestant, folder: Path, limit: float = 300.0) -> dict[str, float]:
    """Run a command to its first step; return its CPU seconds, seconds and peak memory in MB."""
    shutil.rmtree(contestant.out, ignore_errors=True)
    output = folder / "output.txt"
    with open(output, "wb") as file:
        start = time.monotonic()
        process = subprocess.Popen(
            contestant.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
    watched, peak, used = psutil.Process(process.pid), 0, 0.0
    try:
        while True:
            used = max(used, _cpu_seconds(watched))
            peak = max(peak, _resident_bytes(watched))
            if contestant.is_past_first_step(output):
                break
            if process.poll() is not None or time.monotonic() - start > limit:
                raise RuntimeError(f"{contestant.name} took no step:\n{output.read_text()[-2000:]}")
            time.sleep(0.02)
        used = max(used, _cpu_seconds(watched))
        return {"cpu_seconds": used, "seconds": time.monotonic() - start, "peak_mb": peak / 1e6}
    finally:
        for one in _family(watched)[::-1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def environment() -> dict[str, str]:
    """Return the variables of a contestant's process: one thread, nothing from the network."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def _cpu_seconds(process: psutil.Process) -> float:
    total = 0.0
    for one in _family(process):
        try:
            times = one.cpu_times()
            total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def _resident_bytes(process: psutil.Process) -> int:
    total = 0
    for one in _family(process):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def measure_command(command: Sequence[str]) -> dict[str, float]:
    """Run a command to its end; return its CPU seconds and seconds."""
    before, start = os.times(), time.monotonic()
    finished = subprocess.run(command, capture_output=True, env=environment(), stdin=subprocess.DEVNULL)
    if finished.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{finished.stderr.decode(errors='replace')[-2000:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_seconds": used, "seconds": time.monotonic() - start}


def measure(
    folder: Path, paths: Mapping[str, Path | None], *, base: str = "unet-34m", rounds: int = 3
) -> list[dict[str, Any]]:
    """Return a row for each trainer (medians of interleaved rounds), a finished run, and `--help`."""
    data, images = make_data(folder)
    spec = bases.make_base(base, folder)
    contestants = [lorakit(folder, spec, data), *peers(folder, spec, images, paths)]
    measured: dict[str, list[dict[str, float]]] = {one.name: [] for one in contestants}
    for number in range(rounds + 1):
        for one in contestants:
            figures = run_to_first_step(one, folder)
            if number:  # the first one fills caches
                measured[one.name].append(figures)
    rows: list[dict[str, Any]] = []
    for name, figures_of in measured.items():
        median = {key: round(statistics.median(f[key] for f in figures_of), 3) for key in figures_of[0]}
        rows.append({"name": name, "base": base, **median})
    script = next((row for row in rows if row["name"] == "diffusers script"), None)
    if script:
        rows[0] |= {"ratio": round(rows[0]["cpu_seconds"] / script["cpu_seconds"], 3), "goal": GOAL}
    return [*rows, *measure_answers(folder)]


def measure_answers(folder: Path) -> list[dict[str, Any]]:
    """Measure commands that need no torch: a finished run asked to train again, and `--help`."""
    data, _ = make_data(folder)
    one = lorakit(folder, "tiny-dit", data, steps=2)
    train = [word for word in one.command if word != "--fresh"]
    subprocess.run(one.command, check=True, capture_output=True, env=environment())
    rows: list[dict[str, Any]] = []
    for name, command, goal in (
        ("a finished run", train, FINISHED_SECONDS),
        ("--help", [*LORAKIT, "--help"], HELP_SECONDS),
    ):
        figures = [measure_command(command) for _ in range(3)]
        median = {key: round(statistics.median(f[key] for f in figures), 3) for key in figures[0]}
        rows.append({"name": name, **median, "goal": goal})
    return rows


def passes(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if all goals are met."""
    return all(
        row.get("ratio", row["cpu_seconds"]) <= row["goal"] for row in rows if row.get("goal") is not None
    )
