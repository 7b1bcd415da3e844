"""Options of dataset preparation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from data_tools.assign_buckets import BucketOptions
from data_tools.captioners import CaptionerOptions
from data_tools.captions.collect import CaptionOptions
from data_tools.captions.generate import CaptioningOptions
from data_tools.scan import ScanOptions
from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean
from lorakit.imaging import crops, decode
from lorakit.imaging.color import Color
from lorakit.models import base_model


@dataclass(frozen=True)
class PrepareOptions:
    """All options of `lorakit data prepare`; see `ScanOptions`, `CaptionOptions` and `BucketOptions`.

    With a `captioner`, a model captions the images that have no caption; `captioning` says how. `base` is the
    base model whose tokenizers count the captions' tokens. With `alpha_mask`, transparency is used as the
    mask; with `videos`, videos are used too.
    """

    resolution: int = 1024
    size_multiple: int = 16
    batch_size: int = 1
    bucket_mode: str = "auto"
    resolutions: tuple[int, ...] = ()
    upscale: bool = False
    crop: str = crops.CENTER
    class_noun: str | None = None
    trigger: str | None = None
    caption_template: str | None = None
    caption_from_folder: bool = False
    caption_from_image: bool = False
    overwrite_captions: bool = False
    allow_missing_captions: bool = False
    caption_encoding: str = "utf-8"
    caption_extension: str | None = None
    caption_lines: str = "auto"
    caption_columns: tuple[str, ...] = ()
    caption_edits: tuple[str, ...] | None = None
    captioner: CaptionerOptions | None = None
    captioning: CaptioningOptions = field(default_factory=CaptioningOptions)
    base: str | None = None
    alpha_mask: bool = False
    videos: bool = False
    background: Color = decode.WHITE
    first_frame: bool = False
    max_pixels: int = decode.MAX_PIXELS
    min_side: int = 16
    max_aspect_ratio: float = 8.0
    workers: int | None = None
    rescan: bool = False
    verify: bool = False
    report: bool = True
    quiet: bool = False  # show no progress; prepare prints nothing else

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> PrepareOptions:
        """Return the options of these fields. Raises ConfigError for an unknown name."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise ConfigError(f"unknown option {name!r}{did_you_mean(name, names)}", where="prepare")
        return cls(**values)

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any file is read."""
        self.scan_options().check()
        self.bucket_options().check()
        self.caption_options().check()
        if self.captioner is not None:
            self.captioner.check()
            self.captioning.check()
        if self.base is not None:
            base_model.resolve_base(self.base)

    def scan_options(self) -> ScanOptions:
        """Return the options of decoding."""
        return ScanOptions(
            background=self.background,
            max_pixels=self.max_pixels,
            first_frame=self.first_frame,
            min_side=self.min_side,
            max_aspect_ratio=self.max_aspect_ratio,
            workers=self.workers,
            rescan=self.rescan,
            verify=self.verify,
            quiet=self.quiet,
        )

    def caption_options(self) -> CaptionOptions:
        """Return the options of captions."""
        return CaptionOptions(
            class_noun=self.class_noun,
            trigger=self.trigger,
            template=self.caption_template,
            caption_from_folder=self.caption_from_folder,
            caption_from_image=self.caption_from_image,
            overwrite_captions=self.overwrite_captions,
            allow_missing_captions=self.allow_missing_captions,
            caption_encoding=self.caption_encoding,
            caption_extension=self.caption_extension,
            caption_lines=self.caption_lines,
            caption_columns=self.caption_columns,
            caption_edits=self.caption_edits,
        )

    def bucket_options(self) -> BucketOptions:
        """Return the options of buckets and crops."""
        return BucketOptions(
            self.resolution,
            self.size_multiple,
            self.batch_size,
            self.bucket_mode,
            self.resolutions,
            self.upscale,
            self.crop,
        )
