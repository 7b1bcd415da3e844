"""From a folder of photos to an exported adapter: `python examples/train_on_photos.py PHOTOS [OUT]`.

The cells (`# %%`) can be run one by one in an editor, as in a notebook.
"""

# %% Settings
from __future__ import annotations

import sys
from pathlib import Path

import lorakit

RECIPE = Path(__file__).with_name("tiny.yaml")
PROMPTS = Path(__file__).with_name("prompts.jsonl")


# %% Train and use the adapter
def main(photos: Path, out: Path) -> None:
    dataset = lorakit.prepare(photos, resolution=64, class_noun="dog", trigger="sks")
    print(f"{len(dataset.kept)} photos are used; see {photos / 'report.html'}")
    for finding in dataset.findings:
        print(f"  {finding}")

    run = lorakit.train(RECIPE, dataset=photos, out=out)  # resumes if it was interrupted
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    print(f"{run}: loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")

    result = lorakit.evaluate(run, prompts=PROMPTS)
    best = result.best or run.checkpoints[-1]  # None if no checkpoint can be recommended
    print(f"step {best.step}: {result.selection.reason}; see {result.report}")

    adapter = lorakit.Adapter.load(best)
    print(f"{adapter}: {adapter.num_parameters:,} parameters in {len(adapter.deltas)} modules")
    for file in best.export("comfyui"):
        print(f"for ComfyUI: {file}")

    pipe = lorakit.load_pipeline(run.recipe.base, adapter=best, strength=0.8)
    (image,) = lorakit.sample(pipe, ["a photo of sks dog"], seeds=[0], num_inference_steps=4)
    image.save(out / "sample.png")
    print(f"{image.width} x {image.height} sample: {out / 'sample.png'}")


# %% Command line
if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/dog"))
