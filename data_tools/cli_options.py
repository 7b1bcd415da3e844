"""Options of the `lorakit data` commands by section, and the option objects that they become.

The name of an option is the name of the field that it sets. Loads nothing heavy until a command runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorakit.core.command_line import FILE, FOLDER, POSITIVE, add_options, option

if TYPE_CHECKING:
    from data_tools.assign_buckets import BucketOptions
    from data_tools.captions.generate import CaptioningOptions
    from data_tools.options import PrepareOptions

T = TypeVar("T")
Values = dict[str, Any]
_DEVICE = "Device of the model, such as cuda or cpu; by default a GPU if there is one."


def _parse_resolutions(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, ...]:
    try:
        sizes = {int(part) for part in text.split(",")} if text else set()
    except ValueError:
        sizes = {0}
    if not all(size > 0 for size in sizes):
        raise click.BadParameter(f"{text!r} is not a list of sizes such as 512,768,1024", ctx, param)
    return tuple(sorted(sizes))


_IMAGES = "Images"
decoding_options = add_options(
    option("--background", default="white", metavar="COLOR", section=_IMAGES,
           help="Color behind transparent pixels."),
    option("--first-frame", is_flag=True, section=_IMAGES,
           help="Use the first frame of animated images, which are excluded otherwise."),
    option("--videos", is_flag=True, section=_IMAGES,
           help="Also use videos, for base models that generate video."),
    option("--max-pixels", type=POSITIVE, metavar="N", section=_IMAGES,
           help="Exclude images with more pixels than this."),
    option("--min-side", type=POSITIVE, default=16, metavar="PX", section=_IMAGES,
           help="Exclude images with a side shorter than this."),
    option("--max-aspect-ratio", type=float, default=8.0, metavar="RATIO", section=_IMAGES,
           help="Exclude images with a larger ratio of the long to the short side."),
    option("--workers", type=POSITIVE, metavar="N", section=_IMAGES,
           help="Number of processes; by default one for each processor core."),
    option("--rescan", is_flag=True, section=_IMAGES,
           help="Measure all images again, not only new and changed ones."),
    option("--verify", is_flag=True, section=_IMAGES,
           help="Read every file to find changes; otherwise only files whose size or times have changed."),
    option("--alpha-mask", is_flag=True, section=_IMAGES,
           help="Use transparency as a mask: with masked loss, transparent pixels do not count."),
)  # fmt: skip

_CAPTIONS = "Captions"
caption_options = add_options(
    option("--class-noun", metavar="NOUN", section=_CAPTIONS, help="What the images show, such as dog."),
    option("--trigger", metavar="WORD", section=_CAPTIONS,
           help="Word that will stand for the subject in prompts, such as sks."),
    option("--caption-template", metavar="TEXT", section=_CAPTIONS,
           help='Caption of images that have none; by default "a photo of {trigger} {class_noun}".'),
    option("--caption-from-folder", is_flag=True, section=_CAPTIONS,
           help="Use the name of an image's folder as its caption, before the template."),
    option("--caption-from-image", is_flag=True, section=_CAPTIONS,
           help="Use the description inside an image file (EXIF, XMP, IPTC, PNG text), before its folder."),
    option("--overwrite-captions", is_flag=True, section=_CAPTIONS,
           help="Replace existing captions in the manifest by the template, or by the folder's name with "
           "--caption-from-folder; caption files are not changed."),
    option("--allow-missing-captions", is_flag=True, section=_CAPTIONS,
           help="Accept images without a caption."),
    option("--caption-encoding", default="utf-8", metavar="NAME", section=_CAPTIONS,
           help="Text encoding of the caption files that are neither UTF-8 nor UTF-16."),
    option("--caption-extension", metavar="EXT", section=_CAPTIONS,
           help="Read caption files with this end of their names only, such as .txt or _caption.txt."),
    option("--caption-column", "caption_columns", multiple=True, metavar="NAME", section=_CAPTIONS,
           help="Read captions from this column of tables or key of JSON files only; repeat for several."),
    option("--caption-lines", type=click.Choice(["auto", "join", "tags", "captions"]), default="auto",
           section=_CAPTIONS,
           help="Meaning of the lines of a caption file: parts of one caption (join), tags, or a caption "
           "each (captions); by default the lines themselves decide."),
)  # fmt: skip

_EDITS = "Caption edits"
caption_edit_options = add_options(
    option("--caption-edit", "caption_edits", multiple=True, metavar="EDIT", section=_EDITS,
           help="Edit captions; repeat for several edits, applied in order: strip-preamble (remove "
           "\"the image shows\"), trigger=sks (in front), fill-trigger=sks (for [trigger]), prefix=TEXT, "
           "suffix=TEXT, replace=/A/B/, alias=a:b, drop=a,b (remove tags), dedupe (remove repeated tags), "
           "shuffle=N (shuffle the tags after the first N), max-sentences=N, max-words=N. `none` restores "
           "the original captions."),
    option("--base", metavar="BASE", section=_EDITS,
           help="Warn about captions that are too long for this base model's text encoders."),
)  # fmt: skip

_MODEL = "Captions by a model"
captioner_options = add_options(
    option("--model", metavar="MODEL", section=_MODEL,
           help="Folder or hub id of an image-to-text model or a WD tagger."),
    option("--server", metavar="URL", section=_MODEL,
           help="OpenAI-compatible server, such as http://127.0.0.1:8000/v1."),
    option("--api-key-env", default="LORAKIT_CAPTION_API_KEY", metavar="NAME", section=_MODEL,
           help="Environment variable that holds the server's API key."),
    option("--prompt", "prompts", multiple=True, metavar="TEXT", section=_MODEL,
           help="Instruction for the model; repeat for several captions of each image."),
    option("--captions-per-prompt", type=POSITIVE, default=1, metavar="N", section=_MODEL,
           help="Number of captions for each prompt."),
    option("--append", is_flag=True, section=_MODEL,
           help="Keep the captions of images that have some, and add the model's as another one."),
    option("--regenerate", is_flag=True, section=_MODEL,
           help="Ask again for images that this model has captioned before."),
    option("--max-tokens", type=POSITIVE, default=300, metavar="N", section=_MODEL,
           help="Length limit of a caption."),
    option("--temperature", type=float, metavar="T", section=_MODEL,
           help="Sampling temperature; by default 0 (the most likely caption), or 0.7 with several "
           "captions for each prompt."),
    option("--concurrency", type=POSITIVE, metavar="N", section=_MODEL,
           help="Images captioned at the same time; by default 4 requests to a server, and as many images as "
           "its memory takes for a model that runs here."),
    option("--timeout", type=float, default=120.0, metavar="SECONDS", section=_MODEL,
           help="Time limit of one answer of the server."),
    option("--max-side", type=POSITIVE, default=1024, metavar="PX", section=_MODEL,
           help="Downscale images with a longer side to this before captioning."),
    option("--threshold", type=float, default=0.35, metavar="P", section=_MODEL,
           help="Minimum probability of a tag (taggers)."),
    option("--character-threshold", type=float, default=0.85, metavar="P", section=_MODEL,
           help="Minimum probability of the name of a character (taggers)."),
    option("--device", metavar="NAME", section=_MODEL, help=_DEVICE),
)  # fmt: skip

_BUCKETS = "Resolution, buckets and crops"
bucket_options = add_options(
    option("--resolution", type=POSITIVE, default=1024, metavar="PX", section=_BUCKETS,
           help="Side of a square training image; other shapes have about the same area."),
    option("--resolutions", callback=_parse_resolutions, metavar="PX,PX", section=_BUCKETS,
           help="Several training resolutions; each image gets the largest that needs no upscaling."),
    option("--upscale", is_flag=True, section=_BUCKETS,
           help="Upscale images that are smaller than the lowest of several resolutions; they are excluded "
           "otherwise."),
    option("--size-multiple", type=POSITIVE, default=16, metavar="PX", section=_BUCKETS,
           help="Sides of buckets are multiples of this."),
    option("--bucket-mode", type=click.Choice(["auto", "native", "square", "kohya"]), default="auto",
           section=_BUCKETS,
           help="Choice of bucket sizes: auto (few, fitted to the images), native (the nearest for each "
           "image), square (one), kohya (its list)."),
    option("--batch-size", type=POSITIVE, default=1, metavar="N", section=_BUCKETS,
           help="Batch size of the training; buckets are chosen so that batches are full."),
    option("--crop", type=click.Choice(["center", "saliency", "face"]), default="center", section=_BUCKETS,
           help="Part of the image that the crop keeps."),
)  # fmt: skip

mask_options = add_options(
    option("--model", required=True, metavar="MODEL", help="Folder or hub id of a CLIPSeg or SAM 3 model."),
    option("--prompt", required=True, metavar="WORD", help="What the mask covers, such as dog."),
    option("--threshold", type=float, default=0.4, metavar="P",
           help="Minimum probability of a pixel of the mask."),
    option("--dilate", type=float, default=0.01, metavar="SHARE",
           help="Widen the mask by this share of the image's longer side."),
    option("--regenerate", is_flag=True, help="Also replace masks that were generated before."),
    option("--device", metavar="NAME", help=_DEVICE),
)  # fmt: skip

control_options = add_options(
    option("--type", "type", required=True, metavar="TYPE",
           help="Conditioning image to make: canny (edges), depth, pose (skeletons in the colors of "
           "OpenPose), softedge, or mask (for inpainting)."),
    option("--model", metavar="MODEL",
           help="Folder or hub id of a model of depth or of human poses; ONNX file of DexiNed (softedge)."),
    option("--detector", metavar="MODEL",
           help="Folder or hub id of an object detector that finds the persons (pose); without one, the "
           "whole image is one person."),
    option("--low-threshold", type=POSITIVE, default=100, metavar="N",
           help="Gradient from which a pixel may continue an edge (canny), as in cv2.Canny."),
    option("--high-threshold", type=POSITIVE, default=200, metavar="N",
           help="Gradient from which a pixel starts an edge (canny), as in cv2.Canny."),
    option("--seed", type=int, default=0, metavar="N", help="Seed of the random masks (mask)."),
    option("--regenerate", is_flag=True, help="Also replace images that were generated before."),
    option("--device", metavar="NAME", help=_DEVICE),
)  # fmt: skip

_COLUMNS = "Columns of tables, and extensions in webdatasets"
import_options = add_options(
    option("--caption-column", "captions", multiple=True, metavar="COLUMN", section=_COLUMNS,
           help="Column of captions; repeat for several captions of each image. COLUMN.KEY is a text in an "
           "object. By default all columns that are named like captions, or the instruction of an edit."),
    option("--image-column", "images", multiple=True, metavar="COLUMN", section=_COLUMNS,
           help="Column of the images to train on; with --target-column, of the images before the edit."),
    option("--target-column", "target", metavar="COLUMN", section=_COLUMNS,
           help="Column of the edited images, which are trained on."),
    option("--control-column", "controls", multiple=True, metavar="COLUMN", section=_COLUMNS,
           help="Column of conditioning images, such as edges or poses."),
    option("--mask-column", "mask", metavar="COLUMN", section=_COLUMNS, help="Column of masks."),
    option("--split", "splits", multiple=True, metavar="NAME",
           help="Import only this split, such as train; repeat for several. By default all are imported, a "
           "folder for each."),
    option("--follow-links", is_flag=True,
           help="Also import files outside the source that links in it lead to."),
    option("--short-side", type=POSITIVE, metavar="PX",
           help="Downscale JPEG and PNG images whose shorter side is larger."),
)  # fmt: skip

export_options = add_options(
    option("--to", "format", required=True, help="Format to write.",
           type=click.Choice(["imagefolder", "kohya", "onetrainer", "ai-toolkit", "webdataset", "parquet",
                              "zip"])),
    option("--out", required=True, type=FILE, metavar="PATH", help="New folder, or the zip file."),
    option("--folder-name", metavar="TEXT",
           help="Name of the image folders after their number of repeats (kohya, onetrainer, ai-toolkit)."),
    option("--metadata-format", type=click.Choice(["jsonl", "csv", "parquet", "kohya"]), default="jsonl",
           help="Format of the metadata file."),
    option("--shard-size-mb", type=POSITIVE, default=256, metavar="MB",
           help="Size of one tar or parquet file."),
)  # fmt: skip

crop_file_options = add_options(
    option("--crops", "crops_file", type=FILE, metavar="FILE",
           help='Crops set by hand, JSON lines such as {"file_name": "a.jpg", "crop": [left, top, right, '
           "bottom]}."),
    option("--preview", type=FOLDER, metavar="DIR",
           help="Write each training image, cropped and resized, to this folder."),
)  # fmt: skip


def out_option(*, create: bool = True) -> Callable[[Any], Any]:
    """Add `--out`: the command's function gets the dataset folder instead of the folder of images.

    Without `create` it is not created.
    """

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def run(folder: Path, out: Path | None, **values: Any) -> Any:
            from data_tools.out_folder import open_out_folder

            return function(open_out_folder(folder, out, create=create), **values)

        text = "Write manifest, report and generated files to this folder; for images that are read-only."
        return option("--out", type=FOLDER, metavar="DIR", help=text)(run)

    return decorate


def ray_option(text: str) -> Callable[[Any], Any]:
    """Return the option `--ray`; `text` says what Ray does."""
    where = "on this machine, or on the cluster at ADDRESS."
    return option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]", help=f"{text} {where}")


def pick_fields(kind: type[T], values: Values) -> T:
    """Return an options dataclass from the values that carry the names of its fields."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in names if name in values})


def parse_bucket_options(values: Values) -> BucketOptions:
    """Return the options of `bucket_options`; of several resolutions the largest is the main one."""
    from data_tools.assign_buckets import BucketOptions

    resolutions = values["resolutions"]
    return pick_fields(BucketOptions, values | {"resolution": max(resolutions, default=values["resolution"])})


def parse_prepare_options(values: Values, *, quiet: bool) -> PrepareOptions:
    """Return the options of a command that scans, captions or prepares; those it does not have are the
    defaults."""
    from data_tools.options import PrepareOptions
    from lorakit.imaging import decode

    changes: Values = {
        "background": decode.parse_color(values["background"]),
        "max_pixels": values["max_pixels"] or decode.MAX_PIXELS,
        "quiet": quiet,
    }
    if "resolutions" in values:
        changes["resolution"] = max(values["resolutions"], default=values["resolution"])
    if "caption_edits" in values:
        edits = values["caption_edits"]
        changes["caption_edits"] = () if edits == ("none",) else edits or None
    if values.get("model") or values.get("server"):
        changes |= _captioner_fields(values)
    return pick_fields(PrepareOptions, values | changes)


def _captioner_fields(values: Values) -> Values:
    from data_tools.captioners import CaptionerOptions
    from data_tools.captions.generate import CaptioningOptions

    temperature = values["temperature"]
    if temperature is None:  # several captions of one prompt must differ
        temperature = 0.7 if values["captions_per_prompt"] > 1 else 0.0
    policy = "overwrite" if values["overwrite_captions"] else "append" if values["append"] else "missing"
    captioning: CaptioningOptions = pick_fields(CaptioningOptions, values | {"write_policy": policy})
    return {
        "captioner": pick_fields(CaptionerOptions, values | {"temperature": temperature}),
        "captioning": captioning,
        "overwrite_captions": False,  # the model replaces the captions, not a template
    }
