"""The subject of an image cut out by a mask, so that fidelity compares subjects and not backgrounds.

The mask of a sample comes from a model that the user names; that of a reference from the dataset's manifest,
if it has one there, else from the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lorakit.core.errors import ConfigError
from lorakit.evaluation.metrics.image_encoders import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder
from lorakit.models.judge_files import JudgeFiles, resolve_judge
from lorakit.models.model_file import ModelFile
from lorakit.models.text_segmentation import SEGMENTER_FILES, TextSegmenter

if TYPE_CHECKING:
    from PIL import Image

THRESHOLD = 0.5  # probability from which a pixel is the subject's
LEAST_SHARE = 0.005  # of the image's area: a smaller mask is noise, the subject is not there
MARGIN = 0.05  # of the box around the subject, on each side
DEFAULT_SIDE = 320  # input of a file that does not state its size; that of U2-Net
_OPTION = "--mask-model"


class MaskModel(Protocol):
    """A model that gives each pixel the probability that it is the subject's."""

    def probabilities(self, image: Image.Image, noun: str | None) -> NDArray[np.float32]:
        """Return probabilities (height, width) of the image's size; `noun` names the subject."""
        ...

    def describe(self) -> dict[str, Any]: ...


class NounMaskModel:
    """CLIPSeg or SAM 3: the subject is what its class noun names."""

    def __init__(self, files: JudgeFiles, device: str) -> None:
        self.files, self.segmenter = files, TextSegmenter(files.folder, files.name, device)

    def probabilities(self, image: Image.Image, noun: str | None) -> NDArray[np.float32]:
        """Return the probability of each pixel; ConfigError without a class noun."""
        if not noun:
            remedy = "set class_noun in the recipe's dataset, or --class-noun; or use a model file"
            message = "this mask model needs to know what the subject is"
            raise ConfigError(message, where=f"{_OPTION} {self.files.name}", remedy=remedy)
        return self.segmenter.probability_map(image, noun)

    def describe(self) -> dict[str, Any]:
        return self.files.describe()


class FileMaskModel:
    """A model of salient objects in one file (U2-Net, BiRefNet and others): its first output is the map.

    Its input has ImageNet's mean and deviation. Values outside 0 to 1 are logits.
    """

    def __init__(self, file: str, device: str) -> None:
        self.model = ModelFile(file, _OPTION, device)
        self.side = self.model.side or DEFAULT_SIDE

    def probabilities(self, image: Image.Image, noun: str | None) -> NDArray[np.float32]:
        """Return the probability of each pixel; the model finds the subject without its name."""
        from torchvision.transforms import functional

        small = functional.resize(image, [self.side, self.side])
        pixels = functional.normalize(functional.to_tensor(small), list(IMAGENET_MEAN), list(IMAGENET_STD))
        outputs = self.model(pixels[None])
        values = torch.from_numpy(outputs[0]).float() if outputs else torch.empty(0)
        if values.numel() == 0 or values.ndim < 2:
            remedy = "use a model whose first output is a map of the subject"
            raise ConfigError("the model gives no map", where=self.model.where, remedy=remedy)
        values = values.reshape(-1, *values.shape[-2:])[-1:]  # of several channels the last is the foreground
        if values.min() < 0 or values.max() > 1:
            values = values.sigmoid()
        size = image.height, image.width
        whole = torch.nn.functional.interpolate(values[None], size, mode="bilinear", align_corners=False)
        result: NDArray[np.float32] = whole[0, 0].numpy()
        return result

    def describe(self) -> dict[str, Any]:
        return self.model.describe() | {"input_size": self.side}


def load_mask_model(spec: str, device: str) -> MaskModel:
    """Load a mask model: a TorchScript or ONNX file, or a folder or hub id of CLIPSeg or SAM 3."""
    if Path(spec).is_file() or Path(spec).suffix.lower() in (".onnx", ".pt", ".pth", ".ts"):
        return FileMaskModel(spec, device)
    if not Path(spec).is_dir() and (spec.count("/") != 1 or spec.startswith((".", "/", "~"))):
        remedy = "use a TorchScript or ONNX file, or a folder or hub id of CLIPSeg or SAM 3"
        raise ConfigError("the mask model does not exist", where=f"{_OPTION} {spec}", remedy=remedy)
    return NounMaskModel(resolve_judge(spec, SEGMENTER_FILES, _OPTION), device)


class MaskedEncoder:
    """An image encoder of the subject alone. A feature more than the encoder's says if it was found: 1 or 0.

    An image without the subject is encoded whole: a low fidelity is then right, and leaving it out would
    reward the generator.
    """

    def __init__(self, encoder: ImageEncoder, model: MaskModel, noun: str | None) -> None:
        self.encoder, self.model, self.noun = encoder, model, noun

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Return unit vectors and the flag (N, D + 1)."""
        cut_outs, flags = [], []
        for image in (one.convert("RGB") for one in images):
            selected = self.model.probabilities(image, self.noun) >= THRESHOLD
            flags.append(float(selected.mean() >= LEAST_SHARE))
            cut_outs.append(cut_out(image, selected))
        features = self.encoder.image_features(cut_outs)
        return torch.cat([features, torch.tensor(flags).reshape(-1, 1)], 1)

    def describe(self) -> dict[str, Any]:
        """Return the settings that the features depend on, as JSON."""
        own = {"mask_model": self.model.describe(), "noun": self.noun, "threshold": THRESHOLD}
        return self.encoder.describe() | own | {"margin": MARGIN}


def cut_out(image: Image.Image, selected: NDArray[np.bool_]) -> Image.Image:
    """Return the subject on gray, cropped to the box around it with a margin; without a subject the image."""
    from PIL import Image as images

    if selected.mean() < LEAST_SHARE:
        return image
    rows, columns = np.flatnonzero(selected.any(1)), np.flatnonzero(selected.any(0))
    margin = round(MARGIN * max(np.ptp(rows), np.ptp(columns)))
    top, bottom = max(rows[0] - margin, 0), min(rows[-1] + 1 + margin, image.height)
    left, right = max(columns[0] - margin, 0), min(columns[-1] + 1 + margin, image.width)
    gray = images.new("RGB", image.size, tuple(round(255 * value) for value in IMAGENET_MEAN))
    mask = images.fromarray(selected.astype(np.uint8) * 255)
    return images.composite(image, gray, mask).crop((int(left), int(top), int(right), int(bottom)))
