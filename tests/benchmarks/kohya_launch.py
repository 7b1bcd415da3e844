"""Start kohya's training script on a smaller U-Net: by itself it builds that of Stable Diffusion 1.5.

`PYTHON kohya_launch.py UNET_CONFIG SCRIPT ARGUMENTS`, in the environment of that script, without lorakit.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Set the widths of the blocks, then run the script as if it had been started itself."""
    config, script = Path(sys.argv[1]), sys.argv[2]
    sys.path.insert(0, str(Path(script).parent))
    network: Any = importlib.import_module("library.original_unet")
    widths = tuple(json.loads(config.read_text(encoding="utf-8"))["block_out_channels"])
    network.BLOCK_OUT_CHANNELS = widths
    network.TIMESTEP_INPUT_DIM, network.TIME_EMBED_DIM = widths[0], 4 * widths[0]
    sys.argv = sys.argv[2:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
