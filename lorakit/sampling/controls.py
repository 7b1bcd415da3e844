"""Sampling under control: a picture that each prompt starts from, or a ControlNet or IP-Adapter of the base.

The family still makes the call; here the pipeline is exchanged for its guided relative from diffusers, whose
call adds the pictures. The adapter under test is the same network, so its effect under control is seen.
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

_FAILURES = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError)


@dataclass(frozen=True)
class Control:
    """One kind of control; `scale` is img2img's strength (1 keeps nothing of the picture), or the weight of
    the network in `folder`. Every prompt needs its own `image`."""

    kind: str  # img2img, controlnet or ip-adapter
    scale: float
    folder: Path | None = None

    def attach(self, pipe: Any) -> ControlledPipeline:
        """The guided relative of a loaded pipeline; it shares all components, and loads the network."""
        try:
            made, arguments = {
                "img2img": self._img2img,
                "controlnet": self._controlnet,
                "ip-adapter": self._ip_adapter,
            }[self.kind](pipe)
        except _FAILURES as error:
            raise ConfigError(
                f"{self.kind} does not work with a {type(pipe).__name__}: {first_line(error)}",
                where=str(self.folder or f"--{self.kind}"),
                remedy="give a network made for this base, or sample without it",
            ) from error
        for name in ("lorakit_folder", "lorakit_settings"):  # what our loader noted
            setattr(made, name, getattr(pipe, name, None))
        made.set_progress_bar_config(disable=True)
        return ControlledPipeline(made, arguments, self)

    def _img2img(self, pipe: Any) -> tuple[Any, dict[str, Any]]:
        from diffusers import AutoPipelineForImage2Image

        return AutoPipelineForImage2Image.from_pipe(pipe), {"image": None, "strength": self.scale}

    def _controlnet(self, pipe: Any) -> tuple[Any, dict[str, Any]]:
        import diffusers

        folder = self._existing("config.json")
        name = str(read_json(folder / "config.json").get("_class_name", ""))
        if not name.endswith("ControlNetModel") or not hasattr(diffusers, name):
            raise ValueError(f"{name or 'its config'} is no ControlNet of diffusers")
        weight = next(pipe.components[part] for part in ("unet", "transformer") if part in pipe.components)
        model = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
        model.to(weight.device, weight.dtype).eval()
        made = diffusers.AutoPipelineForText2Image.from_pipe(pipe, controlnet=model)
        accepted = inspect.signature(type(made).__call__).parameters
        picture = "control_image" if "control_image" in accepted else "image"
        return made, {picture: None, "controlnet_conditioning_scale": self.scale}

    def _ip_adapter(self, pipe: Any) -> tuple[Any, dict[str, Any]]:
        files = sorted(self._existing("*.safetensors").glob("*.safetensors"))
        made = type(pipe).from_pipe(pipe)
        made.load_ip_adapter(
            str(self.folder),
            subfolder="",
            weight_name=files[0].name,
            image_encoder_folder="image_encoder",
            local_files_only=True,
        )
        made.set_ip_adapter_scale(self.scale)
        made.image_encoder.to(pipe.device, pipe.dtype)
        return made, {"ip_adapter_image": None}

    def _existing(self, pattern: str) -> Path:
        if self.folder is None or not any(self.folder.glob(pattern)):
            raise ConfigError(f"the folder holds no {pattern}", where=f"--{self.kind} {self.folder}")
        return self.folder


class ControlledPipeline:
    """A guided pipeline; `show` sets the pictures of the next call.

    `alone`: one picture a call, for an IP-Adapter's list of pictures is shown to every prompt of a batch.
    """

    def __init__(self, pipe: Any, arguments: dict[str, Any], guide: Control) -> None:
        self.alone = guide.kind == "ip-adapter"
        self._arguments = arguments
        # img2img begins with the noised picture; latents would take its place.
        dropped = {"latents"} if guide.kind == "img2img" else set()
        plain = type(pipe).__call__
        accepted = inspect.signature(plain).parameters

        @functools.wraps(plain)  # families read the call's signature
        def call(own: Any, **given: Any) -> Any:
            whole = given | self._arguments
            kept = {name: value for name, value in whole.items() if name in accepted and name not in dropped}
            return plain(own, **kept)

        pipe.__class__ = type(type(pipe).__name__, (type(pipe),), {"__call__": call})
        self.pipe = pipe

    def show(self, pictures: Sequence[Image.Image], width: int, height: int) -> None:
        """The pictures that guide the next batch, cropped in the middle to the size that is drawn."""
        from PIL import ImageOps

        fitted = [ImageOps.fit(picture.convert("RGB"), (width, height)) for picture in pictures]
        name = next(name for name in self._arguments if "image" in name)
        self._arguments[name] = [fitted] if name == "ip_adapter_image" else fitted


def parse_control(img2img: float | None, controlnet: str | None, ip_adapter: str | None) -> Control | None:
    """The guide that the options ask for: a strength, or FOLDER or FOLDER:SCALE; at most one of the three."""
    asked = {"img2img": img2img, "controlnet": controlnet, "ip-adapter": ip_adapter}
    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} at once", remedy="give one kind of control")
    if not given:
        return None
    ((kind, value),) = given.items()
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ConfigError(f"{value} is not above 0 and at most 1", where=f"--{kind}")
        return Control(kind, value)
    folder, scale = Path(str(value)), 1.0
    head, colon, tail = str(value).rpartition(":")
    if colon and not folder.exists():
        try:
            folder, scale = Path(head), float(tail)
        except ValueError:
            raise ConfigError(f"{tail!r} is not a scale", where=f"--{kind} {value}") from None
    if not folder.is_dir():
        raise ConfigError("there is no such folder", where=f"--{kind} {value}")
    return Control(kind, scale, folder)
