"""Caches are addressed by content: no stale, damaged or non-finite entry is ever returned."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import manifest
from lorakit.core import file_hashes, storage
from lorakit.core.errors import DataError, DiskError, NumericError
from lorakit.data import caches, tensor_cache, tensor_shards
from lorakit.data.items import DatasetItem, check_unchanged
from lorakit.models import base_model, families
from tests import runs

SQUARE = (64, 64)
DOG = caches.TextRequest("a dog", SQUARE)
BASE = base_model.EMBEDDED_FOLDER / "tiny-unet"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return families.detect_family(BASE).load(
        BASE, dtype=torch.float32, only={"vae", "text_encoder", "tokenizer"}
    )


def latents(data: Path, store: Path) -> caches.LatentCache:
    return caches.LatentCache(BASE, store)


def items_of(data: Path) -> list[DatasetItem]:
    return runs.load_items(data)


def test_an_edited_image_of_the_same_file_size_and_time_is_refused_and_encoded_again(tmp_path, pipe):
    data, store = runs.make_dataset(tmp_path / "data", 2), tmp_path / "cache"
    for record in manifest.load_manifest(
        data
    ):  # BMP, where all images of one size have the same number of bytes
        Image.open(data / record.file).save(data / f"{record.file}.bmp")
        storage.write_text(data / f"{record.file}.txt", record.caption)
        (data / record.file).unlink()
    options = PrepareOptions(resolution=64, report=False)
    prepare_dataset(data, options)
    before = items_of(data)
    latents(data, store).fill(before, pipe, quiet=True)
    file = data / before[0].record.file
    stat = file.stat()
    pixels = np.asarray(Image.open(file)).copy()
    pixels[:8, :8] = 255 - pixels[:8, :8]
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)

    with pytest.raises(DataError, match="changed") as caught:
        check_unchanged(data, [item.record for item in before])
    assert str(file) in str(caught.value)
    prepare_dataset(data, options)
    after = items_of(data)
    fresh = latents(data, store)
    assert fresh.missing(after) == [after[0]]
    fresh.fill([after[0]], pipe, quiet=True)
    assert not torch.equal(fresh[after[0]], latents(data, store)[before[0]])


def test_another_crop_or_size_has_other_latents(tmp_path):
    item = items_of(runs.make_dataset(tmp_path, 1))[0]
    other = [dataclasses.replace(item, crop=(0, 0, 32, 32)), dataclasses.replace(item, bucket=(64, 96))]
    assert len({latents(tmp_path, tmp_path).key(i) for i in (item, *other)}) == 3


def test_an_edited_caption_is_encoded_again(tmp_path, pipe):
    family = families.detect_family(BASE)
    text = caches.TextCache(family, BASE, torch.float32, tmp_path)
    text.fill([DOG], pipe, quiet=True)
    others = [caches.TextRequest(caption, SQUARE) for caption in ("a dog.", "A dog")]
    assert text.missing([caches.TextRequest("a dog", (64, 96))]) == []  # independent of the image size here
    assert caches.TextCache(family, BASE, torch.float32, tmp_path).missing([DOG, *others]) == others


def changed(folder: Path, part: str) -> Path:
    """A copy of the base with one number of one component changed."""
    base = Path(shutil.copytree(BASE, folder / part.replace("/", "-")))
    file = base / part
    if file.suffix == ".json":
        tree = json.loads(file.read_text())
        file.write_text(json.dumps(tree | {"changed": True}))
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    return base


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "latents"),
        ("vae/config.json", "latents"),
        ("text_encoder/model.safetensors", "text"),
        ("tokenizer/tokenizer_config.json", "text"),
        ("unet/diffusion_pytorch_model.safetensors", None),
    ],
)
def test_another_model_has_its_own_entries(part, kind, tmp_path, pipe):
    data, store = runs.make_dataset(tmp_path / "data", 1), tmp_path / "cache"
    family, items = families.detect_family(BASE), items_of(data)
    latents(data, store).fill(items, pipe, quiet=True)
    caches.TextCache(family, BASE, torch.float32, store).fill([DOG], pipe, quiet=True)
    other = changed(tmp_path, part)
    assert bool(caches.LatentCache(other, store).missing(items)) == (kind == "latents")
    text = caches.TextCache(family, other, torch.float32, store)
    assert bool(text.missing([DOG])) == (kind == "text")
    assert caches.TextCache(family, BASE, torch.bfloat16, store).missing([DOG])  # another dtype
    assert not caches.TextCache(family, BASE, torch.float32, store).missing([DOG])


KEY, OTHER_KEY = (tensor_cache.cache_key(content_hash=name) for name in "ab")


def stored(folder: Path) -> tensor_cache.TensorCache:
    """A store with two entries in one shard."""
    store = tensor_cache.TensorCache("latents", folder)
    with store.writing():
        store.put(KEY, {"latents": torch.arange(12.0)}, "a.png")
        store.put(OTHER_KEY, {"latents": torch.ones(3)}, "b.png")
    return store


@pytest.mark.parametrize("damage", ["cut", "zero", "empty", "header", "folder"])
def test_a_damaged_shard_counts_as_missing_and_is_named(tmp_path, damage, capsys):
    store = stored(tmp_path)
    (path,) = store.files()
    data = path.read_bytes()
    path.unlink()  # what is mapped stays readable
    if damage == "folder":
        path.mkdir()
    else:
        header = data[:20] + b"\xff" + data[21:]
        kinds = {"cut": data[:-8], "zero": bytes(len(data)), "empty": b"", "header": header}
        path.write_bytes(kinds[damage])
    assert torch.equal(store.get(KEY)["latents"], torch.arange(12.0))  # this process has it open
    fresh = tensor_cache.TensorCache("latents", tmp_path)
    assert fresh.missing([KEY]) == {KEY}
    assert damage == "folder" or path.name in capsys.readouterr().err
    with pytest.raises(DataError, match="deleted or damaged"):
        fresh.require(KEY)


def test_only_the_damaged_entries_of_a_shard_are_computed_again(tmp_path, capsys):
    (path,) = stored(tmp_path).files()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the entry whose key is last
    path.unlink()
    path.write_bytes(data)
    store = tensor_cache.TensorCache("latents", tmp_path)
    first, last = sorted([KEY, OTHER_KEY])
    assert store.missing([first, last]) == {last}
    assert f"1 of 2 entries of {path} are damaged" in capsys.readouterr().err
    with store.writing():
        store.put(last, {"latents": torch.zeros(5)}, "b.png")
    (joined,) = store.files()
    assert joined != path
    again = tensor_cache.TensorCache("latents", tmp_path)
    assert again.missing([first, last]) == set()
    assert torch.equal(again.get(last)["latents"], torch.zeros(5))


def test_a_flipped_bit_in_any_byte_is_detected(tmp_path):
    store = stored(tmp_path)
    (path,) = store.files()
    data, whole = path.read_bytes(), store.get(KEY)["latents"].clone()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        path.unlink()
        path.write_bytes(broken)
        found = tensor_cache.TensorCache("latents", tmp_path).get(KEY)
        equal = found is not None and set(found) == {"latents"} and torch.equal(found["latents"], whole)
        assert found is None or equal, place  # a space of the header may change: it has no meaning


def test_an_intact_shard_is_not_read_again_until_it_changes(tmp_path, monkeypatch):
    (path,) = stored(tmp_path).files()
    os.utime(path, (1, 1))
    monkeypatch.setattr(file_hashes, "MAX_TICK_NS", -(1 << 62))  # no wait for the clock of the file system
    reads = []
    plain = tensor_shards.Shard.damaged_rows
    monkeypatch.setattr(tensor_shards.Shard, "damaged_rows", lambda one: reads.append(one) or plain(one))
    for expected in (1, 1):
        assert tensor_cache.TensorCache("latents", tmp_path).get(KEY) is not None
        assert len(reads) == expected
    tensor_cache.check_everything_again(tmp_path)
    assert tensor_cache.TensorCache("latents", tmp_path).get(KEY) is not None
    os.utime(path, (2, 2))
    assert tensor_cache.TensorCache("latents", tmp_path).get(KEY) is not None
    assert len(reads) == 3


def test_two_writers_lose_nothing_and_leave_one_shard(tmp_path):
    keys = [tensor_cache.cache_key(number=number) for number in range(20)]
    stores = [tensor_cache.TensorCache("text", tmp_path) for _ in range(2)]

    def fill(number: int) -> None:
        for key in keys[number::2]:  # a shard for each entry
            stores[number].put(key, {"x": torch.full((2,), float(keys.index(key)))}, "a caption")
        stores[number].join_shards()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, range(2)))
    store = tensor_cache.TensorCache("text", tmp_path)
    assert store.missing(keys) == set()
    assert [store.get(key)["x"][0].item() for key in keys] == list(range(20))
    store.join_shards()
    assert len(store.files()) == 1


def test_a_run_with_a_damaged_cache_gives_the_same_adapter(tmp_path, monkeypatch):
    data = runs.make_dataset(tmp_path / "data", 2)
    adapters = []
    for name in ("first", "second"):
        monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))
        file = runs.make_recipe(tmp_path / f"{name}.yaml", "tiny-unet", data, tmp_path / name)
        adapters.append((runs.train(file, "train.steps=2") / "adapter.safetensors").read_bytes())
        entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
        for entry, kept in zip(entries, (0, 30, 500) * len(entries), strict=False):
            content = entry.read_bytes()[:kept]
            entry.unlink()  # a file that is still mapped is not shortened
            entry.write_bytes(content)
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_never_stored(tmp_path, value):
    store = tensor_cache.TensorCache("latents", tmp_path)
    with pytest.raises(NumericError, match=r"a\.png") as caught:
        store.put(KEY, {"latents": torch.tensor([1.0, value])}, "a.png")
    assert caught.value.exit_code == 6
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_caption_that_overflows_in_half_precision_is_returned_for_float32(
    dtype, tmp_path, pipe, monkeypatch
):
    """Whether a caption overflows does not depend on the captions before it."""
    family = families.detect_family(BASE)
    plain, cat = family.encode_text, caches.TextRequest("a cat", SQUARE)

    def encode(pipe, captions, size=None, images=None):
        embeddings = plain(pipe, captions, size, images)
        if captions == ["a cat"]:
            embeddings[0]["prompt_embeds"][0, 0] = float("inf")
        return embeddings

    monkeypatch.setattr(family, "encode_text", encode, raising=False)
    text = caches.TextCache(family, BASE, dtype, tmp_path)
    if dtype == torch.float32:
        with pytest.raises(NumericError, match="a cat") as caught:
            text.fill([DOG, cat], pipe, dtype, quiet=True)
        assert "precision" not in str(caught.value)
    else:
        assert text.fill([cat, DOG], pipe, dtype, quiet=True) == [cat]
    assert text.missing([DOG, cat]) == [cat]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_name_the_damaged_weight(value, tmp_path):
    data = runs.make_dataset(tmp_path / "data", 1)
    family = families.detect_family(BASE)
    own = family.load(BASE, dtype=torch.float32, only={"vae"})
    own.vae.get_parameter("encoder.conv_in.weight").data.view(-1)[0] = value
    with pytest.raises(NumericError, match=r"vae\.encoder\.conv_in\.weight"):
        latents(data, tmp_path / "cache").fill(items_of(data), own, quiet=True)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_the_error_of_a_cache_that_cannot_be_written_names_a_remedy(tmp_path, monkeypatch, code):
    def refuse(name: str, path: Path) -> None:
        if name == "write":
            raise OSError(code, "x")

    monkeypatch.setattr(storage, "io_hook", refuse)
    with pytest.raises(DiskError, match="LORAKIT_CACHE") as caught:
        tensor_cache.TensorCache("text", tmp_path).put(KEY, {"x": torch.zeros(1)}, "a caption")
    assert caught.value.exit_code == 5
    assert str(tmp_path) in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_a_cache_folder_that_cannot_be_created_is_an_error(tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(DiskError, match="LORAKIT_CACHE"):
        tensor_cache.TensorCache("text", tmp_path / place).put(KEY, {"x": torch.zeros(1)}, "a caption")


def test_a_full_disk_ends_a_run_with_exit_code_5_and_the_same_command_resumes(tmp_path, monkeypatch):
    data = runs.make_dataset(tmp_path / "data", 2)
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-unet", data, tmp_path / "run")
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "cache"))

    def refuse(name: str, path: Path) -> None:
        if name == "write" and (tmp_path / "cache") in path.parents:
            raise OSError(errno.ENOSPC, "x")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "io_hook", refuse)
        with pytest.raises(DiskError, match="LORAKIT_CACHE"):
            runs.train(file, "train.steps=1")
    assert (runs.train(file, "train.steps=1") / "adapter.safetensors").exists()


def test_every_part_changes_a_key():
    parts = {"content_hash": "a", "crop": (0, 0, 8, 8), "vae": "h"}
    keys = {tensor_cache.cache_key(**parts)} | {
        tensor_cache.cache_key(**(parts | {name: "other"})) for name in parts
    }
    assert len(keys) == 4


def test_a_shard_is_limited_in_size_and_no_entry_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "SHARD_BYTES", 400)
    monkeypatch.setattr(tensor_cache, "GROUP_BYTES", 100)
    store, keys = tensor_cache.TensorCache("text", tmp_path), [tensor_cache.cache_key(n=n) for n in range(9)]
    with store.writing():
        for number, key in enumerate(keys):
            store.put(key, {"x": torch.full((32,), float(number))}, "a caption")
    assert len(store.files()) >= 3
    assert not store._pending
    assert not store._in_flight
    assert [store.get(key)["x"][5].item() for key in keys] == list(range(9))
