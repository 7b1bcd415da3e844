"""The record of a generated image: prompt, seed, settings, hashes; as text inside PNG and WebP files.

Three texts are written. `parameters` is the infotext of A1111, which web interfaces and galleries show;
`lorakit` is the whole record as JSON; the XMP packet has the IPTC's digital source type, which says that the
image is AI-generated. Nothing in them depends on time or machine: equal runs write equal files. They name no
folder and no file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorakit.core.version import __version__

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

SAMPLES_FILE = "samples.json"
"""List of the samples in a folder. It is written last: where it exists, all images do."""
INFOTEXT_KEY, RECORD_KEY, XMP_KEY = "parameters", "lorakit", "XML:com.adobe.xmp"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for media that a trained model generated."""
_SHORT_HASH = 10  # hex digits by which galleries look up models
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_DESCRIPTION_TAG, _SOFTWARE_TAG, _EXIF_FOLDER, _USER_COMMENT_TAG = 0x010E, 0x0131, 0x8769, 0x9286


@dataclass(frozen=True)
class AdapterUse:
    """An adapter of an image: the hash of its file, or the run and step of a training that goes on."""

    sha256: str | None = None
    strength: float = 1.0
    recipe_hash: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class ImageProvenance:
    """Everything that an image was generated from. `sampler` is A1111's name for it, where it has one."""

    prompt: str
    negative: str
    seed: int
    num_inference_steps: int
    guidance_scale: float | None
    width: int
    height: int
    sampler: str
    family: str
    base_hash: str
    base: str | None = None
    """The public name of the base model; None for a local folder."""
    adapters: tuple[AdapterUse, ...] = ()
    num_frames: int = 1
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """Plain values, without those that are not known."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        values["adapters"] = [
            {name: value for name, value in asdict(use).items() if value is not None} for use in self.adapters
        ]
        return values | {"digital_source_type": DIGITAL_SOURCE_TYPE}

    def to_text(self) -> str:
        """Return the record as JSON in one line."""
        return json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False)

    def infotext(self) -> str:
        """Return the record as A1111 writes it: prompt, negative prompt, settings."""
        settings: dict[str, Any] = {"Steps": self.num_inference_steps, "Sampler": self.sampler}
        if self.guidance_scale is not None:
            settings["CFG scale"] = f"{self.guidance_scale:g}"
        settings |= {"Seed": self.seed, "Size": f"{self.width}x{self.height}"}
        settings["Model hash"] = self.base_hash[:_SHORT_HASH]
        if self.base:
            settings["Model"] = _quoted(self.base)
        settings["Version"] = f"lorakit {self.version}"
        hashes = {"model": self.base_hash[:_SHORT_HASH]}
        for number, use in enumerate(self.adapters, 1):
            if use.sha256:
                hashes[f"lora:adapter-{number}"] = use.sha256[:_SHORT_HASH]
        settings["Hashes"] = json.dumps(hashes)
        lines = [self.prompt, *([f"Negative prompt: {self.negative}"] if self.negative else [])]
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text


def png_info(record: ImageProvenance | None, texts: Mapping[str, str] | None = None) -> PngInfo:
    """Return the texts of a PNG: those of a record, and others by key."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if record is not None:
        _add_text(info, INFOTEXT_KEY, record.infotext())
        _add_text(info, RECORD_KEY, record.to_text())
        info.add_itxt(XMP_KEY, _XMP)
    for key, text in (texts or {}).items():
        _add_text(info, key, text)
    return info


def _add_text(info: PngInfo, key: str, text: str) -> None:
    """Add a text in the encoding that each reader understands: Latin-1 if possible, else UTF-8."""
    text = text.replace("\0", "")
    try:
        text.encode("latin-1")
        info.add_text(key, text)
    except UnicodeEncodeError:
        info.add_itxt(key, text.encode("utf-8", "replace").decode("utf-8"))


def webp_options(record: ImageProvenance | None) -> dict[str, bytes]:
    """Return the options of Pillow's WebP writer that store a record: EXIF as A1111 has it, and XMP."""
    if record is None:
        return {}
    from PIL import Image

    exif = Image.Exif()
    exif[_DESCRIPTION_TAG] = json.dumps(record.to_json(), sort_keys=True)  # ASCII
    exif[_SOFTWARE_TAG] = f"lorakit {record.version}"
    comment = b"UNICODE\0" + record.infotext().encode("utf-16-be", "replace")
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT_TAG] = comment
    return {"exif": exif.tobytes(), "xmp": _XMP.encode()}
