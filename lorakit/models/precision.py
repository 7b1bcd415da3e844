"""The choice of `train.precision: auto`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrecisionChoice:
    """A value of `train.precision`, and the reason for it."""

    value: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the choice as plain values."""
        return {"value": self.value, "reason": self.reason}


def automatic_precision(platform: str, preferred: str) -> PrecisionChoice:
    """Return the precision for a device: half precision on a GPU, fp32 on a CPU.

    `platform` is the type of torch's device, `preferred` the precision that the device computes fastest.
    Speeds are not measured for it: the choice would differ between starts.
    """
    if platform == "cpu":
        return PrecisionChoice("fp32", "on a CPU bf16 is faster only with instructions for it")
    reasons = {
        "bf16": "the GPU computes in it",
        "fp16": "the GPU has no bf16; the loss is scaled",
        "fp32": "no half precision of this device is known",
    }
    return PrecisionChoice(preferred, reasons[preferred])
