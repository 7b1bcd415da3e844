"""All that a user can choose when a dataset is prepared."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_tools.assign_buckets import BucketOptions
from data_tools.captioners import CaptionerOptions
from data_tools.captions.collect import CaptionOptions
from data_tools.captions.generate import CaptioningOptions
from data_tools.scan import ScanOptions
from lorakit.imaging import decode
from lorakit.imaging.color import Color
from lorakit.models import base_model


@dataclass(frozen=True)
class PrepareOptions:
    """All options of `lorakit data prepare`; see `ScanOptions`, `CaptionOptions` and `BucketOptions`.

    With a `captioner`, a model captions what nobody has. `base` names the model whose tokenizers count the
    captions' tokens. `alpha_mask` makes transparency a mask, `clips` takes films too.
    """

    resolution: int = 1024
    step: int = 16
    batch: int = 1
    mode: str = "auto"
    tiers: tuple[int, ...] = ()
    upscale: bool = False
    crop: str = "centre"
    class_noun: str | None = None
    trigger: str | None = None
    folder_names: bool = False
    overwrite_captions: bool = False
    allow_missing_captions: bool = False
    caption_encoding: str = "utf-8"
    caption_suffix: str | None = None
    edits: tuple[str, ...] | None = None
    captioner: CaptionerOptions | None = None
    describe: CaptioningOptions = field(default_factory=CaptioningOptions)
    base: str | None = None
    alpha_mask: bool = False
    clips: bool = False
    background: Color = decode.WHITE
    first_frame: bool = False
    max_pixels: int = decode.MAX_PIXELS
    min_side: int = 16
    max_aspect: float = 8.0
    workers: int | None = None
    fresh: bool = False
    report: bool = True
    quiet: bool = False  # no progress; prepare itself prints nothing else

    def check(self) -> None:
        """Raise `ConfigError` for options that cannot work, before any file is read."""
        self.scan().check()
        self.bucket().check()
        self.captions().check()
        if self.captioner is not None:
            self.captioner.check()
            self.describe.check()
        if self.base is not None:
            base_model.resolve_base(self.base)

    def scan(self) -> ScanOptions:
        """The part that concerns decoding."""
        return ScanOptions(
            background=self.background,
            max_pixels=self.max_pixels,
            first_frame=self.first_frame,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
            workers=self.workers,
            fresh=self.fresh,
            quiet=self.quiet,
        )

    def captions(self) -> CaptionOptions:
        """The part that concerns captions."""
        return CaptionOptions(
            class_noun=self.class_noun,
            trigger=self.trigger,
            folder_names=self.folder_names,
            overwrite=self.overwrite_captions,
            allow_missing=self.allow_missing_captions,
            encoding=self.caption_encoding,
            suffix=self.caption_suffix,
            edits=self.edits,
        )

    def bucket(self) -> BucketOptions:
        """The part that concerns shapes."""
        return BucketOptions(
            self.resolution, self.step, self.batch, self.mode, self.tiers, self.upscale, self.crop
        )
