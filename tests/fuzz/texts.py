"""Mutated text inputs: recipes, prompt files, captions, tables, manifests, and the JSON of a run."""

from __future__ import annotations

import random
from typing import Any

import yaml

from lorakit import manifest
from tests.fuzz.mutate import TEXTS, Pairs, Raw, change_text, change_tree, dump, value

Files = dict[str, bytes]
_HASH = "0" * 64
RECIPE: dict[str, Any] = {
    "base": "tiny-dit",
    "dataset": "data",
    "out": "out",
    "resolution": 64,
    "trigger": "sks",
    "class_noun": "dog",
    "adapter": {
        "type": "lora",
        "rank": 4,
        "alpha": 4,
        "targets": ["to_q", "re:.*to_k"],
        "rank_pattern": {"to_q": 2},
    },
    "optimizer": {"name": "adamw", "lr": 1e-4, "schedule": "constant", "warmup": 0},
    "train": {"steps": 10, "batch_size": 1, "accumulate": 1, "seed": 0, "save_every": 5, "precision": "bf16"},
    "objective": {"timesteps": "auto", "huber": {"c": 0.1}, "masked_loss": {}},
    "memory": {"quantize": "nf4", "gradient_checkpointing": 1},
    "samples": {"prompts": "prompts.jsonl", "every": 250},
    "validate": {"fraction": 0.1, "every": 250},
    "export": ["comfyui"],
}
_YAML_SNIPPETS = (
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n",
    "x: !!python/object/apply:os.system ['touch owned']\n",
    "? [a, b]\n: c\n",
    "<<: {base: x}\n",
    "base: !!binary aGVsbG8=\n",
    "--- 1\n--- 2\n",
    "%YAML 9.9\n---\n",
    "base: 'x\n",
    "a: b: c\n",
    "\tbase: x\n",
    "- " * 3000 + "x\n",
    "{" * 5000,
    "a: " + "[" * 900 + "\n",
    "? " * 2000,
    "base: |\n" + "  x\n" * 3000,
    "# " + "x" * 300_000,
)
PROMPTS: list[dict[str, Any]] = [
    {
        "id": "a",
        "prompt": "a photo of sks dog",
        "score_text": "a photo of a dog",
        "seeds": [0, 1],
        "kind": "subject",
    },
    {"prompt": "a cat --n bad --w 512 --h 512 --d 7 --l 5 --s 20", "negative": "blurry"},
    {"id": "c", "prompt": "a [trigger] {a|b} (x:1.2) <lora:y:1>", "image": "a.png"},
]
ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "text": "a dog, sitting"},
    {
        "file_name": "b.png",
        "text": "=a cat",
        "mask_file_name": "a.png",
        "source_file_name": ["a.png", "b.png"],
    },
]
_PARTIPROMPTS = 'Prompt\tCategory\tChallenge\tNote\na dog\tAnimals\tBasic\t\na "cat\tAnimals\tBasic\tx\n'
_DREAMBOOTH = "prompt_list = [\n'a {0} {1} in snow'.format(unique_token, class_token),\n]\n" * 2


def recipe(rng: random.Random) -> Files:
    """Return a recipe as block or flow YAML."""
    if rng.random() < 0.15:
        return {"recipe.yaml": change_text(rng, rng.choice(_YAML_SNIPPETS) + "base: x\ndataset: y\nout: z\n")}
    tree = change_tree(rng, RECIPE)
    if rng.random() < 0.5 and not _is_raw(tree):
        text = yaml.safe_dump(_plain(tree), sort_keys=False, allow_unicode=True)
        return {"recipe.yaml": change_text(rng, text)}
    return {"recipe.yaml": change_text(rng, dump(tree))}


def override(rng: random.Random) -> Files:
    """Return overrides of a recipe, one a line."""
    sections = [key for key, item in RECIPE.items() if isinstance(item, dict)]
    section = rng.choice(sections)
    key = rng.choice(
        [*RECIPE, *(f"{section}.{name}" for name in RECIPE[section]), "dataset.0.folder", *TEXTS]
    )
    text = rng.choice([dump(value(rng)), *TEXTS, *_YAML_SNIPPETS])
    return {"override.txt": f"{key}={text}".encode("utf-8", "surrogatepass")}


def prompts(rng: random.Random) -> Files:
    """Return a prompt file in one of its forms."""
    form = rng.choice((".jsonl", ".jsonl", ".yaml", ".tsv", ".txt"))
    rows = [change_tree(rng, row) if rng.random() < 0.5 else row for row in PROMPTS]
    if form == ".jsonl":
        text = "\n".join(map(dump, rows)) + "\n"
    elif form == ".yaml" and rng.random() < 0.7:
        text = dump(rows)
    elif form == ".yaml":
        text = "".join(f"- {rng.choice(TEXTS)}\n" for _ in range(3)) + rng.choice(_YAML_SNIPPETS)
    elif form == ".tsv":
        text = _PARTIPROMPTS + "\t".join(rng.choice(TEXTS) for _ in range(4))
    else:
        text = rng.choice((_DREAMBOOTH, "a dog\na cat\n")) + rng.choice(TEXTS) + " --n " + rng.choice(TEXTS)
    return {f"prompts{form}": change_text(rng, text)}


def captions(rng: random.Random) -> Files:
    """Return the captions of a dataset folder: sidecar files, metadata, kohya's JSON."""
    form = rng.randrange(5)
    if form == 0:
        rows = [change_tree(rng, row) if rng.random() < 0.5 else row for row in ROWS]
        return {"metadata.jsonl": change_text(rng, "\n".join(map(dump, rows)) + "\n")}
    if form == 1:
        cells = [["file_name", "text"], ["a.png", "a dog"], ["b.png", '"a, cat"']]
        for _ in range(rng.randrange(3)):
            rng.choice(cells).append(rng.choice(TEXTS))
        return {"metadata.csv": change_text(rng, "\n".join(",".join(row) for row in cells) + "\n")}
    if form == 2:
        tree = {"/x/data/a.png": {"caption": "a dog", "tags": "dog, red"}, "b": {"caption": "a cat"}}
        return {"meta_cap.json": change_text(rng, dump(change_tree(rng, tree)))}
    if form == 3:
        tree = {"caption": "a dog", "tags": ["dog", "red"], "captions": ["a dog", "the dog"]}
        return {"a.json": change_text(rng, dump(change_tree(rng, tree))), "b.txt": b"a cat"}
    return {
        f"a{rng.choice(('.txt', '.caption'))}": change_text(rng, rng.choice(TEXTS) + "\n" + rng.choice(TEXTS))
    }


def dataset_manifest(rng: random.Random) -> Files:
    """Return a manifest, sometimes with a metadata.jsonl beside it."""
    tree = manifest.record_to_json(
        manifest.Record(
            "a.png", _HASH, _HASH, 8, 8, (manifest.Caption("a dog", "file"),), ("dog",), crop=(0, 0, 8, 8)
        )
    )
    tree["conditioning_images"] = [
        {"type": "source", "file": "b.png", "sha256": _HASH, "width": 8, "height": 8, "origin": "file"}
    ]
    tree = {key: list(item) if isinstance(item, tuple) else item for key, item in tree.items()}
    lines = [dump(change_tree(rng, tree) if rng.random() < 0.7 else tree)]
    lines += [dump(tree | {"file": rng.choice(TEXTS)})] if rng.random() < 0.4 else []
    files = {"manifest.jsonl": change_text(rng, "\n".join(lines) + "\n")}
    if rng.random() < 0.3:
        files["metadata.jsonl"] = change_text(rng, dump(change_tree(rng, ROWS[0])) + "\n")
    return files


def run_files(rng: random.Random) -> Files:
    """Return the JSON of a run with one file mutated."""
    record = {
        "settings": {"train.steps": 10, "train.batch_size": 1, "train.accumulate": 1, "optimizer.lr": 1e-4},
        "inputs": {"dataset": _HASH, "base": {"unet": _HASH}, "num_processes": 1},
        "versions": {"lorakit": "1", "torch": "2"},
        "machine": {"platform": "x"},
        "status": "done",
        "changes": [{"step": 5, "run_hash": _HASH, "differences": ["x"]}],
        "checkpoint_step": 5,
        "exported_for": ["comfyui"],
    }
    metrics = [{"step": n, "loss": 0.5, "grad_norm": 1.0, "lr": 1e-4} for n in range(4)]
    heartbeat = {"phase": "train", "step": 3, "total_steps": 10, "seconds_left": 4, "pid": 1}
    state = {"format_version": 1, "step": 5, "run_hash": _HASH, "state": {"skipped_steps": 0}}
    checksums = {
        "state.json": {"size": 1, "sha256": _HASH},
        "adapter.safetensors": {"size": 2, "sha256": _HASH},
    }
    trees: dict[str, Any] = {
        "run.json": record,
        "heartbeat.json": heartbeat,
        "checkpoints/step-00000005/state.json": state,
        "checkpoints/step-00000005/files.json": checksums,
    }
    name = rng.choice((*trees, "metrics.jsonl", "recipe.yaml"))
    files = {file: dump(tree).encode() for file, tree in trees.items()}
    files["recipe.yaml"] = recipe(rng)["recipe.yaml"] if name == "recipe.yaml" else dump(RECIPE).encode()
    lines = [dump(change_tree(rng, row)) if rng.random() < 0.3 else dump(row) for row in metrics]
    files["metrics.jsonl"] = change_text(rng, "\n".join(lines) + "\n")
    if name in trees:
        files[name] = change_text(rng, dump(change_tree(rng, trees[name])))
    return files


def _is_raw(tree: Any) -> bool:
    if isinstance(tree, Raw | Pairs):
        return True
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return any(map(_is_raw, children)) or (isinstance(tree, str) and "\ud800" in tree)


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {str(key).replace("\ud800", "?"): _plain(item) for key, item in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, list) else tree
