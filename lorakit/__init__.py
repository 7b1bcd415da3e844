"""lorakit: dataset preparation and LoRA fine-tuning for text-to-image models."""

__version__ = "0.1.0"
