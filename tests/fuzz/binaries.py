"""Mutated binary inputs: safetensors files, archives and tables."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
from typing import Any

from tests.fuzz.mutate import TEXTS, change_bytes, change_tree, dump
from tests.fuzz.texts import Files

_PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
_NAMES = (
    *(
        "a.png",
        "a.png",
        "A.png",
        "./a.png",
        "sub/b.png",
        "a.png/b.png",
        "../x.png",
        "/x.png",
        "C:\\x.png",
        "x\\y.png",
    ),
    *(
        "d/" * 100 + "a.png",
        "n" * 300 + ".png",
        "é.png",
        "a\0b.png",
        "\x1b[2J.png",
        "a\u202eb.png",
        "con",
        "a.txt",
    ),
    *("manifest.jsonl", "metadata.csv", ".hidden/a.png", "__MACOSX/a.png", "a.json", "0001.jpg", "0001.json"),
)


def safetensors(rng: random.Random) -> Files:
    """Return a safetensors file with a mutated header."""
    modules = rng.randrange(1, 4)
    tree: dict[str, Any] = {"__metadata__": _adapter_metadata(rng)}
    place = 0
    for index in range(modules):
        name = f"unet.down_blocks.{index}.attentions.0.transformer_blocks.0.attn1.to_q"
        for part, shape in (("lora_A", [2, 8]), ("lora_B", [8, 2])):
            tree[f"{name}.{part}.weight"] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [place, place + 64],
            }
            place += 64
    if rng.random() < 0.8:
        tree = change_tree(rng, tree)
    if rng.random() < 0.1:
        tree = {
            f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            for i in range(rng.choice((100, 40_000)))
        }
    header = dump(tree).encode("utf-8", "surrogatepass")
    if rng.random() < 0.2:
        header = change_bytes(rng, header)
    length = len(header) if rng.random() < 0.8 else rng.choice((0, 1, len(header) + 1, 2**40, 2**64 - 1))
    body = bytes(rng.choice((place, place, place, place + 1, max(0, place - 1), 0)))
    data = length.to_bytes(8, "little") + header + body
    return {"adapter.safetensors": change_bytes(rng, data) if rng.random() < 0.2 else data}


def _adapter_metadata(rng: random.Random) -> dict[str, str]:
    """Return metadata of lorakit or of diffusers, whose JSON may be mutated."""
    own = {
        "rank": 2,
        "alpha": 2,
        "family": "sd15",
        "rank_pattern": {"x": 2},
        "alpha_pattern": {},
        "rslora": False,
    }
    peft = {"unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": {"to_q": 2}, "unet.alpha_pattern": {}}
    name, values = rng.choice((("lorakit", own), ("lora_adapter_metadata", peft)))
    text = dump(change_tree(rng, values) if rng.random() < 0.5 else values)
    return {"format": "pt", name: text}


def _names(rng: random.Random) -> list[str]:
    """Return names of members: plain ones, and sometimes hostile ones among them."""
    names = [f"{number:04d}.{suffix}" for number in range(rng.randrange(1, 4)) for suffix in ("png", "txt")]
    return names + (rng.sample(_NAMES, rng.randrange(1, 3)) if rng.random() < 0.5 else [])


def zip_archive(rng: random.Random) -> Files:
    """Return a zip with mutated names, records and end records."""
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in _names(rng):
            info = zipfile.ZipInfo(name)
            info.external_attr = rng.choice((*[0] * 30, 0o120777 << 16, 0o010644 << 16))
            archive.writestr(info, rng.choice((_PNG, b"a dog", bytes(100_000), b"")), method)
    data = bytearray(buffer.getvalue())
    for _ in range(rng.randrange(3)):
        places = [i for i in range(len(data) - 4) if data[i : i + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6")]
        place = rng.choice(places) + rng.randrange(4, 46)
        if place + 4 < len(data):
            struct.pack_into(
                "<I", data, place, rng.choice((0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, rng.randrange(2**32)))
            )
    if rng.random() < 0.1:
        end = data.rindex(b"PK\5\6") if b"PK\5\6" in data else len(data)
        large = struct.pack(
            "<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2_000_000, 2_000_000, rng.randrange(2**34), 0
        )
        data[end:end] = large + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    if rng.random() < 0.2:  # names that are not UTF-8, but marked as such
        data = bytearray(bytes(data).replace(b".png", b".p\xffg"))
    return {"a.zip": change_bytes(rng, bytes(data)) if rng.random() < 0.3 else bytes(data)}


def tar_archive(rng: random.Random) -> Files:
    """Return a tar with mutated headers whose checksums fit."""
    buffer = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in _names(rng):
            info = tarfile.TarInfo(name.replace("\0", ""))
            info.type = rng.choice(
                (*[tarfile.REGTYPE] * 6, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE)
            )
            content = rng.choice((_PNG, b"a dog", bytes(9000))) if info.isreg() else b""
            info.size, info.linkname = len(content), "x" if not info.isreg() else ""
            if form == tarfile.PAX_FORMAT and rng.random() < 0.5:
                info.pax_headers = {
                    rng.choice(_PAX_KEYS): rng.choice((*TEXTS[:20], "9" * 5000, "-1", "1,2,3"))
                }
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # a name that this form cannot hold
                continue
    data = bytearray(buffer.getvalue())
    for _ in range(rng.randrange(3)):
        _change_header(rng, data)
    changed = bytes(data) if rng.random() < 0.7 else change_bytes(rng, bytes(data))
    if rng.random() < 0.1:
        changed = changed[:512] * rng.choice((50, 2000)) + changed[512:]
    packed = rng.choice((lambda d: d, lambda d: d, gzip.compress, lzma.compress))(changed)
    return {"a.tar": change_bytes(rng, packed) if rng.random() < 0.15 else packed}


_PAX_KEYS = (
    *(
        "path",
        "size",
        "linkpath",
        "mtime",
        "hdrcharset",
        "GNU.sparse.map",
        "GNU.sparse.size",
        "GNU.sparse.major",
    ),
    *("GNU.sparse.realsize", "GNU.sparse.name", "SCHILY.xattr.x"),
)


def _change_header(rng: random.Random, data: bytearray) -> None:
    place = 512 * rng.randrange(max(1, len(data) // 512))
    if data[place + 257 : place + 262] != b"ustar":
        return
    start, width = rng.choice(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (345, 155)))
    fills = (b"\xff", b"7", b"\x80", b"-", b"K", b"L", b"S", b"x", b"g", b"\0")
    data[place + start : place + start + width] = rng.choice(fills) * width
    data[place + 148 : place + 156] = b" " * 8
    data[place + 148 : place + 156] = b"%06o\0 " % sum(data[place : place + 512])


def table(rng: random.Random) -> Files:
    """Return a parquet file, or an arrow stream of a saved dataset."""
    import pyarrow
    import pyarrow.parquet

    count = rng.choice((1, 3, 100))
    names = [rng.choice(TEXTS[:30]) for _ in range(count)]
    columns: dict[str, Any] = {
        "image": [{"bytes": _PNG, "path": name} for name in names],
        rng.choice(("text", "caption", "x", "captions")): [[n, n] for n in names]
        if rng.random() < 0.3
        else names,
        rng.choice(("lorakit", "mask", "file_name")): rng.choice((names, [None] * count, list(range(count)))),
    }
    made = pyarrow.table(columns)
    if rng.random() < 0.05:
        value = pyarrow.array([bytes(rng.choice((10, 100, 3_000_000)))])
        count = 10 if len(value[0].as_py()) > 10**6 else rng.choice((10, 600_000))
        indices = pyarrow.array([0] * count, pyarrow.int32())
        made = pyarrow.table({"image": pyarrow.DictionaryArray.from_arrays(indices, value)})
    sink = io.BytesIO()
    if rng.random() < 0.75:
        pyarrow.parquet.write_table(
            made,
            sink,
            compression=rng.choice(("none", "snappy", "zstd", "gzip")),
            use_dictionary=rng.random() < 0.7,
            data_page_version=rng.choice(("1.0", "2.0")),
            row_group_size=rng.choice((1, 50, 10**6)) if count < 200 and made.num_rows < 200 else 10**6,
        )
        name = "t.parquet"
    else:
        with pyarrow.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        name = "t.arrow"
    data = sink.getvalue()
    for _ in range(rng.randrange(4)):
        data = change_bytes(rng, data)
    return {name: data}
