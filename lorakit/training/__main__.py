"""Run `accelerate launch -m lorakit.training RECIPE [key=value ...]`."""

import sys

from lorakit.training.train import main

if __name__ == "__main__":
    sys.exit(main())
