"""From a folder of photos to an exported adapter: `python examples/train_on_photos.py PHOTOS [OUT]`."""

from __future__ import annotations

import sys
from pathlib import Path

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit.adapters.formats import read_adapter_file
from lorakit.config import recipe
from lorakit.training.train import train_recipe


def main(photos: Path, out: Path) -> None:
    prepared = prepare_dataset(
        photos, PrepareOptions(resolution=64, batch=2, class_noun="dog", trigger="sks")
    )
    print(f"{len(prepared.kept)} photos are used; see {photos / 'report.html'}")

    made = recipe.load_recipe(Path(__file__).with_name("tiny.yaml"), [f"dataset={photos}", f"out={out}"])
    run = train_recipe(made)  # goes on where it stopped, if it was stopped

    (exported,) = (run.path / "exports").glob("*.safetensors")
    strongest = max(
        read_adapter_file(exported).changes.items(), key=lambda item: item[1].up.norm() * item[1].down.norm()
    )
    print(f"{exported} changes {len(read_adapter_file(exported).changes)} modules, {strongest[0]} the most")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/dog"))
