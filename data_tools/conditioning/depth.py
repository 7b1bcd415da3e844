"""Depth maps by a model of transformers."""

from __future__ import annotations

from typing import Any

from PIL import Image

from data_tools.captioners import ModelFolder

_ROLE = "depth model"
_METRIC_TYPES = ("zoedepth", "depth_pro", "glpn")  # their predictions are distances


class DepthEstimator:
    """A depth estimator. Near is bright, as published control networks expect it."""

    def __init__(self, model: ModelFolder, device: str | None) -> None:
        import transformers

        from lorakit.models.device import default_device

        self.device = device or default_device().type
        self.processor: Any = model.load_pretrained(transformers.AutoImageProcessor, _ROLE)
        model_class = transformers.AutoModelForDepthEstimation
        network: Any = model.load_pretrained(model_class, _ROLE, use_safetensors=True)
        self.model: Any = network.eval().requires_grad_(False).to(self.device)
        config = network.config
        stated_type = getattr(config, "depth_estimation_type", None)
        self.gives_distances = stated_type == "metric" or config.model_type in _METRIC_TYPES

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the depth map, RGB, of the image's size, stretched over all levels."""
        import torch

        inputs = self.processor(images=image, return_tensors="pt").to(self.device)
        size = image.height, image.width
        with torch.inference_mode():
            outputs = self.model(**inputs)
        (result,) = self.processor.post_process_depth_estimation(outputs, target_sizes=[size])
        depth = result["predicted_depth"].float()
        if self.gives_distances:
            depth = 1 / depth.clamp(min=1e-3)
        low, high = depth.min(), depth.max()
        gray = (depth - low) / (high - low).clamp(min=torch.finfo(depth.dtype).tiny) * 255
        return Image.fromarray(gray.round().clamp(0, 255).to(torch.uint8).cpu().numpy()).convert("RGB")
