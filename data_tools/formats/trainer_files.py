"""Files of an export for another trainer, so that it trains on what lorakit would train on.

The file of an image is unchanged, unless the trainer would read it wrongly: another file type, a rotation by
EXIF, a color profile, transparency. Then it is written upright in sRGB. Captions are one line each.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from data_tools.findings import pluralize
from data_tools.formats import DatasetFile, RenamedRecord, read_verified_bytes
from data_tools.formats.folders import unwritten_tags
from data_tools.formats.left_out import LeftOut
from data_tools.formats.resize_on_import import JPEG_QUALITY
from data_tools.formats.row_files import caption_files
from data_tools.formats.trainers import CONVERSION_NOTES, MASKS, Trainer, conversion_reason
from lorakit.core import checksums, dataset_paths
from lorakit.imaging import decode, masks, signatures
from lorakit.manifest import Record


@dataclass
class TrainerExport:
    """The files of an export for a trainer; `records` are those of its manifest after all files were read."""

    folder: Path
    pairs: Sequence[RenamedRecord]
    trainer: Trainer
    left_out: LeftOut
    records: list[Record] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)
    num_variants: int = 0
    num_white_masks: int = 0

    def files(self) -> Iterator[DatasetFile]:
        """Yield images, captions, masks and conditioning images."""
        self.num_variants = sum(len(pair.new.captions) > 1 for pair in self.pairs)
        masked = {PurePosixPath(pair.new.file).parent for pair in self.pairs if pair.new.mask}
        for pair in self.pairs:
            image, record = self._image(pair)
            yield image
            yield from self._caption(pair)
            mask_file, record = self._mask(pair, record, masked)
            yield from mask_file
            conditioning = self._conditioning(pair)
            yield from conditioning
            hashes = [checksums.sha256_bytes(file.data) for file in conditioning]
            images = zip(record.conditioning_images, hashes, strict=True)
            controls = tuple(replace(one, sha256=digest) for one, digest in images)
            self.records.append(replace(record, conditioning_images=controls))

    def notes(self) -> list[str]:
        """Return what was changed for the trainer, and what its settings must be."""
        name = self.trainer.name
        lines = [
            f"{pluralize(number, 'image')} with {reason}: upright in sRGB, as {name} would read it wrongly"
            for reason, number in self.converted.items()
        ]
        if self.num_white_masks:
            images = pluralize(self.num_white_masks, "image")
            lines.append(f"{images} without a mask: a white one, because {name} needs one for each")
        return lines

    def _image(self, pair: RenamedRecord) -> tuple[DatasetFile, Record]:
        old, new = pair
        data = read_verified_bytes(self.folder, old)
        reason = self._conversion_reason(pair)
        if reason is None:
            return DatasetFile(new.file, data, keep_name=True), new
        self.converted[reason] = self.converted.get(reason, 0) + 1
        image = decode.read_record_image(self.folder, old)
        data = _encoded(image, PurePosixPath(new.file).suffix)
        info = decode.inspect_image(
            decode.open_source(
                data, where=new.file, background=decode.WHITE, max_pixels=decode.MAX_PIXELS, first_frame=False
            )
        )
        notes = tuple(note for note in new.notes if note.partition(":")[0] not in CONVERSION_NOTES)
        digest = checksums.sha256_bytes(data)
        changes = {"sha256": digest, "content_hash": info.content_hash, "notes": notes}
        record = replace(new, **changes, background=None, first_frame=False)  # type: ignore[arg-type]
        return DatasetFile(new.file, data, keep_name=True), record

    def _conversion_reason(self, pair: RenamedRecord) -> str | None:
        """Return why the image is not written as it is stored, or None."""
        old_suffix, suffix = (PurePosixPath(record.file).suffix.lower() for record in pair)
        is_known = old_suffix in (*self.trainer.suffixes, suffix, "")
        if reason := conversion_reason(pair.old, self.trainer):
            return reason
        return None if is_known or suffix != ".png" or self._is_png(pair) else f"the type {old_suffix}"

    def _is_png(self, pair: RenamedRecord) -> bool:
        with open(dataset_paths.file_path(self.folder, pair.old.file), "rb") as file:
            return signatures.image_suffix(file.read(16)) == ".png"

    def _caption(self, pair: RenamedRecord) -> Iterator[DatasetFile]:
        texts = [caption.text for caption in pair.new.captions]
        name = self.trainer.name
        if len(texts) > 1 and not self.trainer.caption_lines:
            lost = [f"{pair.old.file}: {text}" for text in texts[1:]]
            self.left_out.add("caption", f"{name} reads one caption of an image", *lost)
            yield from caption_files(str(PurePosixPath(pair.new.file).with_suffix("")), texts)  # a.json
            texts = texts[:1]
        if unwritten_tags(pair.new):
            reason = f"tags that are not in the caption, which is all that {name} reads"
            self.left_out.add("image's tags", reason, pair.old.file)
        if self.trainer.name == "sd-scripts" and self.num_variants:
            texts = [text.replace("{", "{{").replace("}", "}}") for text in texts]
        if texts:
            stem = PurePosixPath(pair.new.file).with_suffix(".txt")
            yield DatasetFile(str(stem), ("\n".join(texts) + "\n" * (len(texts) > 1)).encode("utf-8"))

    def _mask(
        self, pair: RenamedRecord, record: Record, masked: set[PurePosixPath]
    ) -> tuple[list[DatasetFile], Record]:
        """Return the mask as PNG in the size and orientation of the image's file."""
        if pair.new.mask is None:
            parent = PurePosixPath(pair.new.file).parent
            if not self.trainer.all_or_none or parent not in masked:
                return [], record
            self.num_white_masks += 1
            name = f"{MASKS}/{PurePosixPath(pair.new.file).with_suffix('.png')}"
            return [DatasetFile(name, _png(Image.new("L", pair.old.size, 255)))], record
        mask = masks.read_record_mask(self.folder, pair.old)
        assert mask is not None  # it has a name
        source = "alpha" if pair.old.mask == pair.old.file else pair.old.mask_source
        changed = replace(record, mask_source="file" if source == "alpha" else source, mask_orientation=1)
        return [DatasetFile(pair.new.mask, _png(mask), keep_name=True)], changed

    def _conditioning(self, pair: RenamedRecord) -> list[DatasetFile]:
        """Return the conditioning images as PNG, in the size of the image."""
        names = {image.sha256 + image.type: image.file for image in pair.old.conditioning_images}
        files = []
        for image in pair.new.conditioning_images:
            path = dataset_paths.file_path(self.folder, names[image.sha256 + image.type])
            pixels = decode.decode_image(path)
            if pixels.size != pair.old.size and self.trainer.all_or_none:
                pixels = pixels.resize(pair.old.size, Image.Resampling.LANCZOS)
            files.append(DatasetFile(image.file, _png(pixels), keep_name=True))
        return files


def _encoded(image: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix.lower() in (".jpg", ".jpeg"):
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        kind = {".webp": "WEBP", ".bmp": "BMP"}.get(suffix.lower(), "PNG")
        image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
