"""Small files that need hours or gigabytes: each is refused within seconds, in little memory."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_tools.formats import parquet_pages
from data_tools.formats.import_export import import_dataset
from data_tools.formats.table_rows import iter_rows
from lorakit.core import safetensors_header
from lorakit.core.errors import DataError
from lorakit.imaging import decode

SECONDS = 5.0
PEAK_PROGRAM = (
    "import re, sys\nfrom pathlib import Path\nfrom lorakit.core.errors import DataError\n"
    "from data_tools.formats.table_rows import iter_rows\n"
    "try:\n    sum(1 for _ in iter_rows(Path(sys.argv[1]), lambda names, where: None))\n"
    "except DataError as error:\n    print(error.message)\n"
    "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
)


@pytest.fixture(autouse=True)
def within_seconds() -> Iterator[None]:
    started = time.process_time()
    yield
    assert time.process_time() - started < SECONDS


# ---- safetensors -------------------------------------------------------------------------------------------


def _with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _tensor(name: str) -> str:
    return f'"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'


HEADERS = {
    "many metadata keys, one doubled": (
        '{"__metadata__":{' + ",".join(f'"{n:07d}":""' for n in range(600_000)) + ',"0599999":""}}',
        "the key '0599999' occurs twice",
    ),
    "many tensors, one doubled": (
        "{" + ",".join(_tensor(f"t{n % 29_999}") for n in range(30_000)) + "}",
        "the key 't0' occurs twice",
    ),
    "too many tensors": ("{" + ",".join(_tensor(f"t{n}") for n in range(40_000)) + "}", "40000 tensors"),
    "deep": ('{"a":' * 100_000, "inside each other"),
    "empty lists": ('{"a":[' + "[]," * 2_700_000 + "0]}", "more than 8 million values"),
    "long number": ('{"a":' + "9" * 8_000_000 + "}", "more than 64 bits"),
}


@pytest.mark.parametrize(("header", "message"), HEADERS.values(), ids=HEADERS)
def test_a_header_of_eight_megabytes_is_checked_in_seconds(tmp_path: Path, header, message):
    file = tmp_path / "x.safetensors"
    file.write_bytes(_with_header(header.encode()))
    with pytest.raises(DataError, match=message):
        safetensors_header.check_safetensors(file)


# ---- archives ----------------------------------------------------------------------------------------------


def _zip(members: int = 1) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(members):
            archive.writestr(f"{number}.png", b"")
    return buffer.getvalue()


def _zip64(entries: int, size: int) -> bytes:
    """Return a zip of one file with a zip64 record that states more beside it."""
    data = _zip()
    end = data.rindex(b"PK\5\6")
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, 0)
    return data[:end] + record + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1) + data[end:]


def _directory(entries: int) -> bytes:
    """Return a zip with a central directory of `entries`, of which the end record states one."""
    data = _zip()
    start, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    directory = data[start:end] * entries
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(directory), start, 0)
    return data[:start] + directory + tail


def _name_not_utf8() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("é.png", b"")
    return data.getvalue().replace("é".encode(), b"\xff\xff")


ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip64 entries": (lambda: _zip64(2_000_000, 2**33), "central directory"),
    "zip64 size": (lambda: _zip64(1, 2**62), "central directory"),
    "entries beside 1": (lambda: _directory(600_000), "600000 files; the limit is 500000"),
    "name that is not UTF-8": (_name_not_utf8, "invalid start byte|not UTF-8"),
    "folders in names": (lambda: _zip_of("d/" * 3000 + "a.png"), "in 3000 folders"),
    "long name": (lambda: _zip_of("n" * 300 + ".png"), "a name of 304 bytes"),
    "file and folder": (lambda: _zip_of("a.png", "a.png/b.png"), "is a file and a folder"),
}


def _zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(("make", "message"), ZIPS.values(), ids=ZIPS)
def test_a_zip_that_states_more_than_it_has_is_refused_before_it_is_read(tmp_path: Path, make, message):
    (tmp_path / "a.zip").write_bytes(make())
    with pytest.raises(DataError, match=message):
        import_dataset(tmp_path / "out", [tmp_path / "a.zip"])
    assert not (tmp_path / "out").exists()


def _tar(*members: tuple[str, bytes, dict[str, str]], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, attributes in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers, info.type = len(data), attributes, kind
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _tar_name_not_utf8() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a\udcff.png"))
    return buffer.getvalue()


def _xz_of_gigabytes() -> bytes:
    """Return an xz file whose header asks for more memory than any program should give."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    return lzma.compress(_tar(("a.png", b"x", {})), filters=filters)


def _damaged_in_the_middle() -> bytes:
    data = bytearray(_tar(("a.png", b"x", {}), ("b.png", b"x", {})))
    place = data.index(b"b.png")
    data[place + 148 : place + 156] = b"7777777\0"
    return bytes(data)


def _many_headers() -> bytes:
    """Return extended headers that follow each other without a file."""
    header = _tar(("a.png", b"", {"path": "b.png"}))
    return header[:1024] * 5000 + header[1024:]


def _bomb() -> bytes:
    return _tar(*((f"{number}.png", bytes(1 << 20), {}) for number in range(100)))


TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "sparse attributes": (lambda: _tar(("a.png", b"x", {"GNU.sparse.major": "1"})), "sparse"),
    "sparse size": (lambda: _tar(("a.png", b"x", {"GNU.sparse.size": "x"})), "sparse"),
    "sparse type": (lambda: _tar(("a.png", b"", {}), kind=tarfile.GNUTYPE_SPARSE), "sparse"),
    "long number": (lambda: _tar(("a.png", b"x", {"comment": "9" * 200_000})), "more than 63 digits"),
    "chain of headers": (_many_headers, "the archive is damaged"),
    "damaged in the middle": (_damaged_in_the_middle, "cut off or damaged"),
    "no end mark": (lambda: _tar(("a.png", b"x", {}))[:1024], "cut off or damaged"),
    "name that is not UTF-8": (_tar_name_not_utf8, "not UTF-8"),
    "gzip bomb": (lambda: zlib.compress(_bomb(), 9, wbits=31), "more than 200 times its size"),
    "xz bomb": (lambda: lzma.compress(_bomb(), preset=0), "more than 200 times its size"),
    "xz that asks for gigabytes": (_xz_of_gigabytes, "cannot read this archive"),
}


@pytest.mark.parametrize(("make", "message"), TARS.values(), ids=TARS)
def test_a_hostile_tar_is_refused_before_its_first_file_is_written(tmp_path: Path, make, message):
    (tmp_path / "a.tar").write_bytes(make())
    with pytest.raises(Exception, match=message) as caught:
        import_dataset(tmp_path / "out", [tmp_path / "a.tar"])
    assert caught.type.__name__ in ("DataError", "ConfigError")
    assert not (tmp_path / "out").exists()


def test_an_xz_file_of_several_streams_is_read_whole(tmp_path: Path):
    from data_tools.formats.archive_checks import ArchiveLimits
    from data_tools.formats.tar_archives import read_tar

    data = _tar(("a.png", b"x" * 5000, {}), ("b.png", b"y", {}))
    packed = lzma.compress(data[:3000]) + bytes(8) + lzma.compress(data[3000:])
    (tmp_path / "a.tar.xz").write_bytes(packed)
    assert [len(m.data) for m in read_tar(tmp_path / "a.tar.xz", ArchiveLimits())] == [5000, 1]


@pytest.mark.parametrize("depth", [66, 300, 2000])
def test_folders_nested_too_deeply_are_named(tmp_path: Path, depth, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.chdir(source)
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("a.png").write_bytes(b"x")
        with pytest.raises(DataError, match="more than 64 folders inside each other"):
            import_dataset(tmp_path / "out", [source])
    finally:  # one by one: pytest's own cleaning would fail at this depth
        for _ in range(depth):
            os.chdir("..")
            (Path("d") / "a.png").unlink(missing_ok=True)
            os.rmdir("d")


# ---- tables ------------------------------------------------------------------------------------------------


def _repeated(size: int, rows: int):
    import pyarrow

    indices = pyarrow.array([0] * rows, pyarrow.int32())
    return pyarrow.table(
        {"image": pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([bytes(size)]))}
    )


def _lists(size: int, count: int, *longer: str):
    import pyarrow

    return pyarrow.table({"image": [b"x"], "text": [["y" * size] * count + list(longer)]})


TABLES = {
    "large value in each row": (lambda: _repeated(300_000, 100_000), "200 times the size of the file"),
    "huge value": (lambda: _repeated(60_000_000, 20), "200 times the size of the file"),
    "list in one row": (lambda: _lists(5000, 50_000), "a row has 241 MiB"),
    "long texts in a list": (
        lambda: _lists(1, 10_000, "z" * 100_000),
        "may have 953 MiB; write",
    ),
    "rows": (lambda: _repeated(4, 600_000), "more than 150000 rows|200 times"),
}


@pytest.mark.parametrize(("make", "message"), TABLES.values(), ids=TABLES)
def test_a_dictionary_that_becomes_gigabytes_is_refused_in_little_memory(tmp_path: Path, make, message):
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(make(), file, compression="zstd")
    assert file.stat().st_size < 100_000
    run = [sys.executable, "-c", PEAK_PROGRAM, str(file)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(message, printed), printed
    assert int(printed.split()[-1]) < 1_000_000  # KiB


def test_a_page_that_states_too_much_is_refused(tmp_path: Path, monkeypatch):
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(_repeated(3 << 20, 1), file, compression="zstd")
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 2 << 20)
    with pytest.raises(DataError, match="has a page of 3145732 bytes"):
        list(iter_rows(file, lambda names, where: None))


@pytest.mark.parametrize("cut", [10, 100, 300])
def test_a_damaged_table_is_a_data_error(tmp_path: Path, cut):
    import pyarrow.parquet

    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(_repeated(10, 5), file)
    data = file.read_bytes()
    file.write_bytes(data[:cut] + b"\xff" * 8 + data[cut + 8 :])
    with pytest.raises(DataError, match="cannot read the table"):
        list(iter_rows(file, lambda names, where: None))


# ---- images ------------------------------------------------------------------------------------------------


def _encoded(form: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, form, **options)
    return buffer.getvalue()


def _tiff_pages(pages: int) -> bytes:
    data = bytearray(_encoded("TIFF"))
    place = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, place)[0]
    directory = bytes(data[place : place + 2 + 12 * count])
    start = len(data)
    for number in range(pages):
        following = start + (number + 1) * (len(directory) + 4) if number + 1 < pages else 0
        data += directory + struct.pack("<I", following)
    struct.pack_into("<I", data, place + 2 + 12 * count, start)
    return bytes(data)


def _overlapping_tags(count: int, size: int) -> bytes:
    """Return a TIFF directory whose tags all point to the same bytes."""
    entries = b"".join(struct.pack("<HHII", 1000 + number, 1, size, 0) for number in range(count))
    return struct.pack("<2sHIH", b"II", 42, 8, count) + entries + bytes(4)


def _png_chunks(kind: bytes, content: bytes, count: int) -> bytes:
    data = _encoded("PNG")
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunk * count + data[33:]


def _gif_frames(count: int) -> bytes:
    data = _encoded("GIF")
    frame = data[data.index(b",", 13) : -1]
    return data[:-1] + frame * count + b";"


def _jpeg_segments(segment: bytes, count: int) -> bytes:
    data = _encoded("JPEG")
    return data[:2] + segment * count + data[2:]


IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "TIFF pages": (lambda: _tiff_pages(60_000), "multipage: more than 1000 pages"),
    "TIFF tags": (
        lambda: _overlapping_tags(1900, 100_000) + bytes(90_000),
        "more than 67108864 bytes",
    ),
    "TIFF with too many tags": (lambda: _overlapping_tags(60_000, 1), "corrupt: more than 2000 tags"),
    "PNG chunks": (lambda: _png_chunks(b"tEXt", b"a\0b", 300_000), "corrupt: more than 10000 chunks"),
    "PNG texts": (
        lambda: _png_chunks(b"tEXt", b"a\0" + bytes(1 << 20), 20),
        "corrupt: more than 16777216 bytes",
    ),
    "GIF frames": (lambda: _gif_frames(100_000), "animated: more than 1000 frames"),
    "GIF comments": (
        lambda: _gif_with(b"!\xfe" + (b"\xff" + b"x" * 255) * 100_000 + b"\0"),
        "bytes of comments",
    ),
    "JPEG segments": (
        lambda: _jpeg_segments(b"\xff\xe0\0\2", 1_000_000),
        "more than 10000 segments",
    ),
    "JPEG EXIF": (
        lambda: _jpeg_segments(b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527), 400),
        "corrupt: more than 16777216 bytes of metadata",
    ),
    "PPM header": (
        lambda: b"P6\n" + b"# x\n" * 2_000_000 + b"1 1 255\nabc",
        "a header of more than 4096 bytes",
    ),
    "JPEG 2000 boxes": (
        lambda: _encoded("JPEG2000")[:12] + struct.pack(">I4s", 8, b"free") * 100_000,
        "corrupt: more than 10000 boxes",
    ),
}


def _gif_with(comment: bytes) -> bytes:
    data = _encoded("GIF")
    place = data.index(b",", 13)
    return data[:place] + b"!\xfe" + comment + b"\0" + data[place:]


@pytest.mark.parametrize(("make", "reason"), IMAGES.values(), ids=IMAGES)
def test_an_image_with_a_chain_of_parts_is_refused_in_seconds(make, reason):
    with pytest.raises(decode.ImageError) as caught:
        decode.decode_bytes(make(), where="a.png")
    assert reason in caught.value.reason


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_whose_tags_point_to_the_same_bytes_is_ignored_with_a_note(form):
    data = _encoded(form, exif=b"Exif\0\0" + _overlapping_tags(1900, 40_000) + bytes(30_000))
    decoded = decode.decode_bytes(data, where="a.png")
    assert any(note.startswith("broken_exif") for note in decoded.notes)


def test_the_first_of_many_frames_can_be_used():
    decoded = decode.decode_bytes(_gif_frames(5000), where="a.gif", first_frame=True)
    assert "first_frame: frame 1 of more than 1000" in decoded.notes
    assert decoded.image.size == (16, 16)


def test_metadata_of_cameras_and_tools_is_still_read():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "camera" * 100
    for form in ("JPEG", "PNG", "WEBP"):
        decoded = decode.decode_bytes(_encoded(form, exif=exif.tobytes()), where="a")
        assert any(note.startswith("exif_rotated") for note in decoded.notes), form
    workflow = json.dumps({"nodes": list(range(50_000))})
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("workflow", workflow)
    assert decode.decode_bytes(_encoded("PNG", pnginfo=info), where="a").image.size == (16, 16)
