"""Image guidance for sampling: img2img, a ControlNet or an IP-Adapter of the base model.

The family still makes the call. Its pipeline is replaced by the related diffusers pipeline, whose call takes
the images too. The adapter under test is the same network, so its effect under control is visible.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.core.errors import ConfigError, first_line
from lorakit.core.storage import read_json

if TYPE_CHECKING:
    from PIL import Image

_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)


@dataclass(frozen=True)
class Control:
    """One control method; every prompt needs its own image.

    `scale` is the strength of img2img (1 keeps nothing of the image), or the weight of the network in
    `folder`.
    """

    type: str  # img2img, controlnet or ip-adapter
    scale: float
    folder: Path | None = None

    def attach(self, pipe: Any) -> ControlledPipeline:
        """Return the controlled variant of a loaded pipeline: it shares all components and loads the network.

        Raises ConfigError for a network that does not belong to this base model.
        """
        build = {"img2img": self._img2img, "controlnet": self._controlnet, "ip-adapter": self._ip_adapter}
        try:
            controlled, arguments = build[self.type](pipe)
        except _LOADING_ERRORS as error:
            raise ConfigError(
                f"{self.type} does not work with a {type(pipe).__name__}: {first_line(error)}",
                where=str(self.folder or f"--{self.type}"),
                remedy="use a network made for this base model, or sample without it",
            ) from error
        for name in ("lorakit_folder", "lorakit_settings"):  # set by our loader
            setattr(controlled, name, getattr(pipe, name, None))
        controlled.set_progress_bar_config(disable=True)
        return ControlledPipeline(controlled, arguments, self)

    def _img2img(self, pipe: Any) -> tuple[Any, dict[str, Any]]:
        """Return the pipeline and its further call arguments; the images are still None."""
        from diffusers import AutoPipelineForImage2Image

        return AutoPipelineForImage2Image.from_pipe(pipe), {"image": None, "strength": self.scale}

    def _controlnet(self, pipe: Any) -> tuple[Any, dict[str, Any]]:
        import diffusers

        folder = self._require_files("config.json")
        name = str(read_json(folder / "config.json", allow_infinity=True).get("_class_name", ""))
        if not name.endswith("ControlNetModel") or not hasattr(diffusers, name):
            raise ValueError(f"{name or 'config.json'} does not name a ControlNet of diffusers")
        denoiser = next(pipe.components[key] for key in ("unet", "transformer") if key in pipe.components)
        model = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
        model.to(denoiser.device, denoiser.dtype).eval()
        controlled = diffusers.AutoPipelineForText2Image.from_pipe(pipe, controlnet=model)
        accepted = inspect.signature(type(controlled).__call__).parameters
        image = "control_image" if "control_image" in accepted else "image"
        return controlled, {image: None, "controlnet_conditioning_scale": self.scale}

    def _ip_adapter(self, pipe: Any) -> tuple[Any, dict[str, Any]]:
        files = sorted(self._require_files("*.safetensors").glob("*.safetensors"))
        controlled = type(pipe).from_pipe(pipe)
        controlled.load_ip_adapter(
            str(self.folder),
            subfolder="",
            weight_name=files[0].name,
            image_encoder_folder="image_encoder",
            local_files_only=True,
        )
        controlled.set_ip_adapter_scale(self.scale)
        controlled.image_encoder.to(pipe.device, pipe.dtype)
        return controlled, {"ip_adapter_image": None}

    def _require_files(self, pattern: str) -> Path:
        if self.folder is None or not any(self.folder.glob(pattern)):
            raise ConfigError(f"the folder contains no {pattern}", where=f"--{self.type} {self.folder}")
        return self.folder


class ControlledPipeline:
    """A pipeline with image guidance; `set_images` sets the images of its next call.

    `one_image_per_call` is True for an IP-Adapter, which applies its list of images to every prompt of a
    batch.
    """

    def __init__(self, pipe: Any, arguments: dict[str, Any], control: Control) -> None:
        self.one_image_per_call = control.type == "ip-adapter"
        self._arguments = arguments
        # img2img starts from the noised image; latents would replace it.
        dropped = {"latents"} if control.type == "img2img" else set()
        original_call = type(pipe).__call__
        accepted = inspect.signature(original_call).parameters

        @functools.wraps(original_call)  # families read the signature of the call
        def call(self_pipe: Any, **call_arguments: Any) -> Any:
            merged = call_arguments | self._arguments
            kept = {name: value for name, value in merged.items() if name in accepted and name not in dropped}
            return original_call(self_pipe, **kept)

        pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {"__call__": call})
        self.pipe = pipe

    def set_images(self, images: Sequence[Image.Image], width: int, height: int) -> None:
        """Set the images of the next call, cropped around their centers to `width` x `height` pixels."""
        from PIL import ImageOps

        fitted = [ImageOps.fit(image.convert("RGB"), (width, height)) for image in images]
        name = next(name for name in self._arguments if "image" in name)
        self._arguments[name] = [fitted] if name == "ip_adapter_image" else fitted


def parse_control(
    img2img_strength: float | None, controlnet: str | None, ip_adapter: str | None
) -> Control | None:
    """Return the control method of the command-line options; at most one of the three may be set.

    `controlnet` and `ip_adapter` are FOLDER or FOLDER:SCALE. Raises ConfigError for a wrong value.
    """
    options = {"img2img-strength": img2img_strength, "controlnet": controlnet, "ip-adapter": ip_adapter}
    used = {name: value for name, value in options.items() if value is not None}
    if len(used) > 1:
        names = " and ".join(f"--{name}" for name in used)
        raise ConfigError(f"{names} cannot be combined", remedy="use one of them")
    if not used:
        return None
    ((name, value),) = used.items()
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ConfigError(f"{value} is not above 0 and at most 1", where=f"--{name}")
        return Control("img2img", value)
    folder, scale = Path(str(value)), 1.0
    head, colon, tail = str(value).rpartition(":")
    if colon and not folder.exists():
        try:
            folder, scale = Path(head), float(tail)
        except ValueError:
            raise ConfigError(f"{tail!r} is not a scale", where=f"--{name} {value}") from None
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=f"--{name} {value}")
    return Control(name, scale, folder)
