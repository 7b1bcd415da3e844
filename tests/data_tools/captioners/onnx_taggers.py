"""A tiny WD tagger in ONNX."""

from __future__ import annotations

from pathlib import Path

from tests.tiny.onnx_files import node, tensor, write_onnx

TAGS = "tag_id,name,category,count\n0,blue_sky,0,1\n1,green,0,1\n2,red,4,1\n"
SIDE = 4


def onnx_tagger(folder: Path, *, batch: int | str = "N", channels_last: bool = True) -> Path:
    """A tagger with three tags, whose probabilities are the means of the channels over 255."""
    folder.mkdir(exist_ok=True)
    (folder / "selected_tags.csv").write_text(TAGS)
    pixels = SIDE * SIDE
    weights = [float(i % 3 == c) / (255 * pixels) for i in range(3 * pixels) for c in range(3)]
    nodes = [node("Flatten", ["x"], "flat", axis=1), node("MatMul", ["flat", "w"], "y")]
    shape = [batch, SIDE, SIDE, 3] if channels_last else [batch, 3, SIDE, SIDE]
    write_onnx(folder / "model.onnx", nodes, [tensor("w", [3 * pixels, 3], weights)], shape, [batch, 3])
    return folder
