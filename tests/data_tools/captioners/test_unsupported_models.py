"""Tests of models that cannot caption here: the message says what they are, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.captioners import CaptionerOptions, load_captioner
from lorakit.core.errors import ConfigError

BLIP = {"model_type": "blip", "architectures": ["BlipForImageTextRetrieval"]}
QWEN = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
# The files of a folder, words of the message, words of the remedy.
FOLDERS = {
    "GGUF": ({"qwen2-vl-Q4.gguf": b"GGUF", "mmproj.gguf": b"GGUF"}, "GGUF", "--server"),
    "GGUF beside a config": ({"config.json": QWEN, "model.gguf": b"GGUF"}, "GGUF", "--server"),
    "pickles": ({"config.json": QWEN, "pytorch_model.bin": b"x"}, "only *.bin", "save_pretrained"),
    "the old layout of BLIP": ({"model_base_caption.pth": b"x"}, "pickle", "safetensors"),
    "checkpoints": ({"last.ckpt": b"x"}, "pickle", "never loaded"),
    "an adapter": (
        {
            "adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen2-VL"},
            "adapter_model.safetensors": b"",
        },
        "an adapter of Qwen/Qwen2-VL",
        "merge",
    ),
    "an adapter with a config": ({"config.json": QWEN, "adapter_config.json": {}}, "adapter", "merge"),
    "a diffusion model": ({"model_index.json": {}}, "generates images", "image-to-text"),
    "other ONNX files": ({"encoder_model.onnx": b"x"}, "without selected_tags.csv", "safetensors"),
    "Keras": ({"model.h5": b"x", "tags.txt": b"x"}, "Keras", "WD tagger v3"),
    "TensorFlow": ({"saved_model.pb": b"x", "selected_tags.csv": b"x"}, "TensorFlow", "WD tagger v3"),
    "CLIP-interrogator": (
        {"config.json": {"model_type": "clip"}, "model.safetensors": b""},
        "compares images with texts",
        "blip-image-captioning",
    ),
    "a text model": (
        {"config.json": {"model_type": "llama"}, "model.safetensors": b""},
        "reads text only",
        "use",
    ),
    "an image classifier": (
        {"config.json": {"model_type": "vit"}, "model.safetensors": b""},
        "classifies images",
        "WD tagger",
    ),
    "code of its own": (
        {
            "config.json": {"model_type": "moondream1", "auto_map": {"AutoModel": "x.Y"}},
            "model.safetensors": b"",
        },
        "code of its own",
        "--server",
    ),
    "BLIP for retrieval": ({"config.json": BLIP, "model.safetensors": b""}, "another task", "captioning"),
    "a part of the weights": (
        {"config.json": QWEN, "model.safetensors.index.json": INDEX, "model-00001-of-00002.safetensors": b""},
        "not complete: 1 files are missing, for example model-00002",
        "again",
    ),
    "pointers of Git LFS": ({"config.json": QWEN, "model.safetensors": LFS}, "Git LFS", "git lfs pull"),
    "no weights": ({"config.json": QWEN}, "no safetensors weights", "again"),
    "photos": ({"a.jpg": b"x"}, "no config.json, but a.jpg", "give a folder or hub id"),
    "nothing": ({}, "but nothing", "give a folder or hub id"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_captioner_is_explained(tmp_path: Path, name: str) -> None:
    files, words, remedy = FOLDERS[name]
    for file, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / file).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_captioner(CaptionerOptions(model=str(tmp_path)))
    assert words in caught.value.message
    assert remedy in str(caught.value.remedy)
    assert "check the path" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "words", "remedy"),
    [
        ("joy.gguf", "GGUF", "--server"),
        ("blip.pth", "pickle", "never loaded"),
        ("model.safetensors", "one file of weights", "give its folder"),
        ("tagger.onnx", "ONNX", "model.onnx"),
        ("deepdanbooru.h5", "Keras", "WD tagger"),
        ("model.zip", "an archive", "unpack"),
        ("notes.txt", "a file, not a model's folder", "give a folder"),
    ],
)
def test_a_file_instead_of_a_folder_is_explained(tmp_path: Path, file: str, words: str, remedy: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        load_captioner(CaptionerOptions(model=str(tmp_path / file)))
    assert words in caught.value.message
    assert remedy in str(caught.value.remedy)
