"""Hostile archives are refused as a whole, and nothing is written (fault 95 of fault_catalogue.md)."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_tools.formats.archive_checks import ArchiveLimits
from data_tools.formats.import_export import import_dataset
from data_tools.formats.tar_archives import read_tar
from data_tools.formats.zip_archives import read_zip
from lorakit.core.errors import ConfigError, DataError
from tests.data_tools.folders import photo

PICTURE = io.BytesIO()
photo(1, (64, 48)).save(PICTURE, "JPEG")
JPEG = PICTURE.getvalue()


def zipped(path: Path, members: dict[str, bytes], **of_info: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # past the library's own clean-up
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in of_info.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def tarred(path: Path, *members: tuple[str, bytes | None], mode: str = "w", **of_info: object) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            for key, value in of_info.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data or b""))
    return path


def refused(folder: Path, archive: Path, words: str, limits: ArchiveLimits | None = None) -> None:
    """Check that it is refused with its name and a remedy, and that nothing is written anywhere."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError, match=words) as caught:
        import_dataset(folder / "data", [archive], limits=limits)
    assert str(archive) in str(caught.value)
    assert caught.value.remedy
    assert sorted(folder.rglob("*")) == before


EVIL = [
    "../evil.jpg",
    "a/../../evil.jpg",
    "/evil.jpg",
    "C:\\evil.jpg",
    "..\\evil.jpg",
    "\\\\host\\share\\e.jpg",
    "https://h/e.jpg",
]


@pytest.mark.parametrize("name", EVIL)
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    refused(
        tmp_path,
        zipped(tmp_path / "a.zip", {"fine.jpg": JPEG, name: JPEG}),
        "not the path of a file in the dataset folder",
    )
    refused(
        tmp_path,
        tarred(tmp_path / "a.tar", ("fine.jpg", JPEG), (name, JPEG)),
        "not the path of a file in the dataset folder",
    )


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path) -> None:
    kinds = {
        "link": tarfile.SYMTYPE,
        "hard": tarfile.LNKTYPE,
        "pipe": tarfile.FIFOTYPE,
        "device": tarfile.CHRTYPE,
    }
    for name, kind in kinds.items():
        archive = tmp_path / f"{name}.tar"
        tarred(archive, ("x.jpg", None), type=kind, linkname="/etc/passwd")
        refused(tmp_path, archive, "not a plain file")


def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path) -> None:
    for kind in (0o120777, 0o020666):
        archive = zipped(tmp_path / f"{kind}.zip", {"x.jpg": b"/etc/passwd"}, external_attr=kind << 16)
        refused(tmp_path, archive, "a link or a device")


def test_encrypted_and_repeated_members_are_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "locked.zip", {"x.jpg": JPEG}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    refused(tmp_path, tmp_path / "locked.zip", "encrypted")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("x.jpg", JPEG)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.jpg", JPEG)
    refused(tmp_path, tmp_path / "twice.zip", "twice")
    refused(tmp_path, tarred(tmp_path / "t.tar", ("x.jpg", JPEG), ("./x.jpg", JPEG)), "twice")


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    limits = ArchiveLimits(ratio_free_bytes=1 << 20)
    zeros = bytes(8 << 20)
    refused(tmp_path, zipped(tmp_path / "a.zip", {"x.jpg": zeros}), "200 times its size", limits)
    for ending, packed in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        plain = tarred(tmp_path / "plain.tar", ("x.jpg", zeros)).read_bytes()
        archive = tmp_path / f"a.tar.{ending}"
        archive.write_bytes(packed(plain))
        (tmp_path / "plain.tar").unlink()
        refused(tmp_path, archive, "200 times its size", limits)


def test_overlapping_members_count_as_often_as_they_unpack(tmp_path: Path) -> None:
    """A bomb of one file to which every entry of the directory points."""
    archive = zipped(tmp_path / "a.zip", {"0.jpg": bytes(4 << 20)})
    data = archive.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entries = [data[start:end].replace(b"0.jpg", b"%d.jpg" % number) for number in range(10)]
    table = b"".join(entries)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(table), start, 0)
    archive.write_bytes(data[:start] + table + tail)
    refused(tmp_path, archive, "200 times its size", ArchiveLimits(ratio_free_bytes=1 << 20))


def test_too_large_and_too_many_members_are_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        zipped(tmp_path / "a.zip", {"x.jpg": JPEG}),
        "bytes large",
        ArchiveLimits(max_member_bytes=100),
    )
    refused(
        tmp_path,
        tarred(tmp_path / "a.tar", ("x.jpg", JPEG)),
        "bytes large",
        ArchiveLimits(max_member_bytes=100),
    )
    many = {f"{number}.jpg": b"" for number in range(40)}
    refused(
        tmp_path, zipped(tmp_path / "b.zip", many), "40 files; the limit is 30", ArchiveLimits(max_members=30)
    )
    refused(
        tmp_path, tarred(tmp_path / "b.tar", *many.items()), "too many files", ArchiveLimits(max_members=30)
    )


def test_a_million_entries_are_refused_before_the_directory_is_read(tmp_path: Path) -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
    table = b"".join(entry + b"%07d" % number for number in range(1_000_000))
    large = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**6, 10**6, len(table), 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(table), 1)
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(table + large + locator + tail)
    del table
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="1000000 files; the limit is 500000"):
        next(read_zip(path, ArchiveLimits()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_header_that_claims_a_gigabyte_is_refused(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 1 << 30
        (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
        refused(tmp_path, tmp_path / "a.tar", "an extended header of 1073741824 bytes")


def test_damaged_archives_are_one_error(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", {f"{n}.jpg": JPEG for n in range(4)}).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, tmp_path / "a.zip", "cut off")
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(flipped)
    refused(tmp_path, tmp_path / "a.zip", "cannot be read")
    whole = tarred(tmp_path / "a.tar.gz", ("x.jpg", JPEG), ("y.jpg", JPEG), mode="w:gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, tmp_path / "a.tar.gz", "damaged|cannot be read")


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"Rar!" + bytes(600))
    with pytest.raises(ConfigError, match="cannot read this archive or table"):
        import_dataset(tmp_path / "data", [tmp_path / "a.rar"])
    with pytest.raises(ConfigError, match="file or folder does not exist"):
        import_dataset(tmp_path / "data", [tmp_path / "absent.zip"])
    with pytest.raises(DataError, match="the source has no image"):
        import_dataset(tmp_path / "data", [zipped(tmp_path / "a.zip", {"notes.md": b"x"})])


def test_a_tar_is_read_as_a_stream(tmp_path: Path) -> None:
    members = [(f"{number:05d}.jpg", bytes([number % 256]) * 200_000) for number in range(300)]
    tarred(tmp_path / "a.tar", *members)
    del members
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in read_tar(tmp_path / "a.tar", ArchiveLimits())) == 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10  # of 60 MB


def test_windows_separators_make_folders(tmp_path: Path) -> None:
    import_dataset(tmp_path / "data", [zipped(tmp_path / "a.zip", {"sub\\a.jpg": JPEG})])
    assert (tmp_path / "data/sub/a.jpg").read_bytes() == JPEG
