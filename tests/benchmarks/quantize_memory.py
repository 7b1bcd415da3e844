"""Peak host memory and time of loading a quantized network from its files, in a process of its own.

`python -m tests.benchmarks.quantize_memory [--gigabytes 2] [--quantize int8] ...` writes a random Flux-shaped
transformer tensor by tensor, quantizes it in a new process, and loads it again in a third one. Peaks are
those of the resident memory above what the imports need; pages of memory-mapped files count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lorakit.core import storage
from lorakit.core.tensor_files import TensorLayout, write_in_parts
from lorakit.models import base_model
from lorakit.models.families.pipeline_folder import ComponentClass
from lorakit.models.memory.quantized_layers import LAYERS, QuantizedLinear

MIB = 2**20
_WIDTH, _HEADS = 2048, 16  # a single-stream block of this width has 12 * width^2 weights in its linear layers


def write_network(folder: Path, num_bytes: int, dtype: torch.dtype = torch.bfloat16, shards: int = 2) -> None:
    """Write `folder/transformer` with random weights of about `num_bytes`, one tensor at a time."""
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    width = _WIDTH if num_bytes > 256 * MIB else 256
    per_block = 2 * 12 * width * width * 1.3  # its modulation too
    config = {
        "num_layers": 1,
        "num_single_layers": max(1, round(num_bytes / per_block)),
        "attention_head_dim": width // _HEADS,
        "num_attention_heads": _HEADS,
        "joint_attention_dim": 128,
        "pooled_projection_dim": 64,
        "in_channels": 16,
        "axes_dims_rope": [width // _HEADS // 8 * 2, width // _HEADS // 8 * 3, width // _HEADS // 8 * 3],
    }
    with init_empty_weights():
        network = FluxTransformer2DModel(**config)
    path = storage.make_dir(folder / "transformer")
    network.save_config(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    names, weight_map = list(shapes), {}
    for shard in range(shards):
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        layouts = {name: TensorLayout(shapes[name], dtype) for name in own}
        write_in_parts(path / file, layouts, _random_tensors(layouts), {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    storage.write_json(path / "diffusion_pytorch_model.safetensors.index.json", index)


def _random_tensors(layouts: dict[str, TensorLayout]) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, layout in layouts.items():
        yield name, (0.02 * torch.randn(layout.shape, generator=generator)).to(layout.dtype)


def load_and_measure(folder: Path, quantization: str) -> dict[str, Any]:
    """Load the network of `folder` and return bytes and seconds; in a fresh process."""
    import bitsandbytes  # noqa: F401 - its memory is not the network's
    import diffusers  # noqa: F401
    from diffusers import FluxTransformer2DModel  # noqa: F401

    from lorakit.models.quantized_network import QuantizedLoader

    LAYERS[quantization].encode(torch.ones(64, 64))  # libraries allocate at their first call
    base_model.component_hashes(folder)
    component = ComponentClass("diffusers", "FluxTransformer2DModel")
    loader = QuantizedLoader(folder, quantization, torch.bfloat16, torch.device("cpu"))
    _reset_peak()
    before, start = _resident_bytes("VmRSS"), time.perf_counter()
    network = loader(folder / "transformer", component, torch.bfloat16)
    seconds, peak = time.perf_counter() - start, _resident_bytes("VmHWM") - before
    tensors = [*network.parameters(), *network.buffers()]
    layers = [module for module in network.modules() if isinstance(module, QuantizedLinear)]
    size = sum(tensor.nbytes for tensor in tensors)
    # read every page once, as a forward pass does
    checksum = sum(int(layer.weight.view(torch.uint8).flatten()[::1024].sum()) for layer in layers)
    return {
        "quantized_bytes": size,
        "peak_bytes": peak,
        "peak_with_all_pages_bytes": _resident_bytes("VmHWM") - before,
        "seconds": round(seconds, 2),
        "layers": len(layers),
        "checksum": checksum,
    }


def _resident_bytes(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def measure(folder: Path, quantization: str, cache: Path) -> dict[str, Any]:
    """Return what `load_and_measure` returns in a new process."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.quantize_memory",
        "--load",
        str(folder),
        "--quantize",
        quantization,
    ]
    environment = os.environ | {base_model.CACHE_VARIABLE: str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Print one line for each quantization and start: the first, and one that finds the store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--quantize", nargs="+", default=list(LAYERS))
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_and_measure(options.load, options.quantize[0])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        write_network(folder, int(options.gigabytes * 1e9))
        print(
            f"{'':5} {'start':7} {'network':>8} {'quantized':>9} {'peak':>8} {'above':>8} {'seconds':>8}  MiB"
        )
        size = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
        for quantization in options.quantize:
            for start in ("first", "later"):
                result = measure(folder, quantization, Path(scratch) / "cache")
                peak = result["peak_with_all_pages_bytes"]
                values = (size, result["quantized_bytes"], peak, peak - result["quantized_bytes"])
                numbers = " ".join(f"{value / MIB:8.0f}" for value in values)
                print(f"{quantization:5} {start:7} {numbers} {result['seconds']:8.1f}", flush=True)


if __name__ == "__main__":
    main()
