"""Folders of images as other tools write them: names, metadata and files beside the images."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

Images = Sequence[tuple[str, Image.Image]]  # prompt, image
Writer = Callable[[Path, Images], None]
_USER_COMMENT, _EXIF_FOLDER = 0x9286, 0x8769


def save_png(path: Path, image: Image.Image, **texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name.replace("__", "-"), text)
    image.save(path, pnginfo=info)


def save_exif(path: Path, image: Image.Image, comment: bytes | None = None, **tags: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if comment is not None:
        exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = comment
    for tag, text in tags.items():
        exif[{"make": 0x010F, "model": 0x0110, "description": 0x010E}[tag]] = text
    image.save(path, exif=exif, quality=95)


def save_with_text(stem: Path, image: Image.Image, text: str) -> None:
    save_png(stem.with_suffix(".png"), image)
    stem.with_suffix(".txt").write_text(text, encoding="utf-8")


def infotext(prompt: str, seed: int) -> str:
    return (
        f"{prompt}, <lora:style:0.8> (masterpiece:1.2)\nNegative prompt: blurry, (bad:1.4)\n"
        f'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: {seed}, Size: 64x64, Lora hashes: "style: 1a2b"'
    )


def graph(prompt: str, seed: int) -> dict[str, Any]:
    """A workflow of ComfyUI for Flux: guider, two text encoders, and a text from two nodes."""
    half = prompt.rsplit(" ", 1)
    return {
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "ComfyUI"}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["13", 0], "vae": ["10", 0]}},
        "13": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["25", 0], "guider": ["22", 0], "latent_image": ["5", 0]},
        },
        "25": {"class_type": "RandomNoise", "inputs": {"noise_seed": seed}},
        "22": {"class_type": "BasicGuider", "inputs": {"model": ["12", 0], "conditioning": ["26", 0]}},
        "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
        "6": {
            "class_type": "CLIPTextEncodeFlux",
            "inputs": {"clip": ["11", 0], "clip_l": ["30", 0], "t5xxl": ["30", 0], "guidance": 3.5},
        },
        "30": {
            "class_type": "StringConcatenate",
            "inputs": {"string_a": half[0], "string_b": ["31", 0], "delimiter": " "},
        },
        "31": {"class_type": "PrimitiveString", "inputs": {"value": half[1]}},
        "40": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["11", 0], "text": "a green heart"}},
    }


def workflow(prompt: str, seed: int) -> dict[str, Any]:
    """The same as the editor of ComfyUI saves it, with a negative prompt before the positive one."""
    return {
        "nodes": [
            {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["a green heart"], "inputs": []},
            {"id": 6, "type": "CLIPTextEncode", "widgets_values": [prompt], "inputs": []},
            {
                "id": 3,
                "type": "KSampler",
                "widgets_values": [seed, "randomize", 20, 7, "euler", "normal", 1],
                "inputs": [{"name": "positive", "link": 4}, {"name": "negative", "link": 6},
                           {"name": "latent_image", "link": 9}],
            },
            {"id": 8, "type": "VAEDecode", "inputs": [{"name": "samples", "link": 7}]},
            {"id": 9, "type": "SaveImage", "inputs": [{"name": "images", "link": 8}]},
        ],
        "links": [[4, 6, 0, 3, 1, "CONDITIONING"], [6, 7, 0, 3, 2, "CONDITIONING"], [7, 3, 0, 8, 0, "LATENT"],
                  [8, 8, 0, 9, 0, "IMAGE"], [9, 5, 0, 3, 3, "LATENT"]],
    }  # fmt: skip


def sdxl(prompt: str, seed: int) -> dict[str, Any]:
    """SDXL with two samplers, a ControlNet and a prompt in two conditionings."""
    first, last = prompt.rsplit(" ", 1)
    return {
        "1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
        "3": {
            "class_type": "KSamplerAdvanced",
            "inputs": {"noise_seed": ["12", 0], "positive": ["5", 0], "negative": ["5", 1],
                       "latent_image": ["4", 0]},
        },
        "4": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["9", 0], "negative": ["9", 0],
                                                  "latent_image": ["13", 0]}},
        "5": {"class_type": "ControlNetApplyAdvanced",
              "inputs": {"positive": ["6", 0], "negative": ["9", 0]}},
        "6": {"class_type": "ConditioningConcat",
              "inputs": {"conditioning_to": ["7", 0], "conditioning_from": ["8", 0]}},
        "7": {"class_type": "CLIPTextEncodeSDXL",
              "inputs": {"text_g": first, "text_l": first, "clip": ["14", 0]}},
        "8": {"class_type": "CLIPTextEncode", "inputs": {"text": last, "clip": ["14", 0]}},
        "9": {"class_type": "CLIPTextEncode", "inputs": {"text": "a green heart", "clip": ["14", 0]}},
        "12": {"class_type": "Seed", "inputs": {"seed": seed}},
    }  # fmt: skip


def utf16(text: str, order: str = "be") -> bytes:
    return b"UNICODE\0" + text.encode(f"utf-16-{order}")


def _each(write: Callable[[Path, str, Image.Image, int], None]) -> Writer:
    """Return a writer of images in the reverse order, with the seeds 100, 101, ..."""

    def write_all(folder: Path, images: Images) -> None:
        for number, (prompt, image) in enumerate(reversed(images)):
            write(folder / f"{number:05d}", prompt, image, 100 + number)

    return write_all


def _json(**values: Any) -> str:
    return json.dumps(values)


METADATA: dict[str, Writer] = {
    "A1111 PNG": _each(
        lambda f, p, i, s: save_png(f.with_name(f"{f.name}-{s}.png"), i, parameters=infotext(p, s))
    ),
    "A1111 JPEG": _each(lambda f, p, i, s: save_exif(f.with_suffix(".jpg"), i, utf16(infotext(p, s)))),
    "Forge WebP": _each(lambda f, p, i, s: save_exif(f.with_suffix(".webp"), i, utf16(infotext(p, s), "le"))),
    "A1111 text file": _each(lambda f, p, i, s: save_with_text(f, i, infotext(p, s))),
    "ComfyUI Flux": _each(
        lambda f, p, i, s: save_png(f.with_name(f"ComfyUI_{f.name}_.png"), i, prompt=json.dumps(graph(p, s)))
    ),
    "ComfyUI SDXL": _each(
        lambda f, p, i, s: save_png(f.with_suffix(".png"), i, prompt=json.dumps(sdxl(p, s)))
    ),
    "ComfyUI workflow": _each(
        lambda f, p, i, s: save_png(f.with_suffix(".png"), i, workflow=json.dumps(workflow(p, s)))
    ),
    "ComfyUI WebP": _each(
        lambda f, p, i, s: save_exif(f.with_suffix(".webp"), i, make=f"prompt:{json.dumps(graph(p, s))}")
    ),
    "InvokeAI": _each(
        lambda f, p, i, s: save_png(
            f.with_suffix(".png"), i, invokeai_metadata=_json(positive_prompt=p, negative_prompt="x", seed=s)
        )
    ),
    "InvokeAI 2": _each(
        lambda f, p, i, s: save_png(f.with_suffix(".png"), i, Dream=f'"{p}" -s 50 -S {s} -W 512')
    ),
    "SwarmUI": _each(
        lambda f, p, i, s: save_png(
            f.with_suffix(".png"), i, parameters=_json(sui_image_params={"prompt": p, "seed": s})
        )
    ),
    "Fooocus": _each(
        lambda f, p, i, s: save_png(
            f.with_suffix(".png"), i, fooocus_scheme="fooocus", parameters=_json(prompt=p, seed=str(s))
        )
    ),
    "NovelAI": _each(
        lambda f, p, i, s: save_png(
            f.with_suffix(".png"), i, Description=p, Comment=_json(prompt=p, uc="x", seed=s)
        )
    ),
    "Midjourney metadata": _each(
        lambda f, p, i, s: save_png(
            f.with_suffix(".png"),
            i,
            Description=f"{p} --ar 3:2 --v 6 --seed {s} Job ID: 12345678-1234-1234-1234-123456789abc",
        )
    ),
    "own script": _each(lambda f, p, i, s: save_png(f.with_suffix(".png"), i, prompt=p, seed=str(s))),
}  # fmt: skip


def _numbered(name: str) -> Writer:
    """Return a writer of names with the number of the prompt, in an order that is not the prompts'."""

    def write_all(folder: Path, images: Images) -> None:
        for index, (_, image) in enumerate(images):
            save_png(
                folder / name.format(index=index, time=20260101000000 - index, ms=1700000000000 - index),
                image,
            )

    return write_all


def _worded(name: str) -> Writer:
    def write_all(folder: Path, images: Images) -> None:
        for number, (prompt, image) in enumerate(reversed(images)):
            words = prompt.replace(" ", "_")
            uuid = f"{number:08x}-1234-1234-1234-123456789abc"
            save_png(
                folder / name.format(words=words, cut=words[:18], prompt=prompt, uuid=uuid, number=number),
                image,
            )

    return write_all


NAMES: dict[str, Writer] = {
    "kohya epochs": _numbered("name_e000001_{index:02d}_{time}.png"),
    "kohya short date": _numbered("name_e000001_{index:02d}_20260101.png"),
    "kohya steps": _numbered("000500_{index:02d}_{time}_42.png"),
    "ai-toolkit": _numbered("{ms}__000000500_{index}.png"),
    "GenEval": _numbered("{index:05d}/samples/0000.png"),
    "OneTrainer": _numbered("{index} - x/2026-01-01_00-00-00-training-sample-500-1-0.png"),
    "Midjourney": _worded("some_user_{words}_{uuid}.png"),
    "Midjourney cut": _worded("some_user_{cut}_{uuid}_0.png"),
    "T2I-CompBench": _worded("{prompt}_{number:06d}.png"),
    "A1111 with the prompt": _worded("{number:05d}-123-{prompt}.png"),
}
