"""Kinds of files that are not read, by their content: image formats, camera raw, videos, archives, text.

A whole file of a kind that is not supported must not be called damaged: fetching it again would not help.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class FileProblem:
    """The reason why a file is not a readable image: a stable code, a sentence, and what to do."""

    code: str
    message: str
    remedy: str | None = None


REFETCH_REMEDY = "download or copy it again"
EXPORT_REMEDY = "open it in the program that wrote it, and export it as PNG"
CONVERT_REMEDY = "open it in an image viewer or editor, and save it as PNG"
RAW_REMEDY = "develop it in a raw converter, and export it as JPEG, PNG or TIFF"
VIDEO_REMEDY = "save frames of it as images, or name it .mp4, .mkv or .webm and train a video model"
_OTHER_REMEDY = "move it out of the folder, or put the image in its place"
_UNPACK_REMEDY = "unpack it, and put the images into the folder"

_UNSUPPORTED, _RAW, _VIDEO, _OTHER = "unsupported_format", "camera_raw", "video_file", "not_an_image"
_ZIP = b"PK\x03\x04"
_OTHER_ENDINGS = re.compile(rb"\x00\x00TRUEVISION-XFILE\.\x00$")
_TGA_TYPES, _TGA_DEPTHS = (1, 2, 3, 9, 10, 11), (1, 8, 15, 16, 24, 32)

# Code, name, remedy, and the regular expression that the file starts with.
_KINDS: tuple[tuple[str, str, str, bytes], ...] = (
    (_UNSUPPORTED, "a Photoshop document (PSD)", EXPORT_REMEDY, rb"8BPS\x00[\x01\x02]"),
    (_UNSUPPORTED, "a GIMP image (XCF)", EXPORT_REMEDY, rb"gimp xcf "),
    (_UNSUPPORTED, "a Clip Studio document", EXPORT_REMEDY, rb"CSFCHUNK"),
    (_UNSUPPORTED, "a PaintShop Pro image", EXPORT_REMEDY, rb"Paint Shop Pro Image File"),
    (_UNSUPPORTED, "a Windows icon (ICO)", CONVERT_REMEDY, rb"\x00\x00\x01\x00[\x01-\xff]\x00"),
    (_UNSUPPORTED, "a Windows cursor (CUR)", CONVERT_REMEDY, rb"\x00\x00\x02\x00[\x01-\xff]\x00"),
    (_UNSUPPORTED, "a macOS icon (ICNS)", CONVERT_REMEDY, rb"icns"),
    (_UNSUPPORTED, "a DirectDraw texture (DDS)", CONVERT_REMEDY, rb"DDS \x7c\x00\x00\x00"),
    (_UNSUPPORTED, "a Khronos texture (KTX)", CONVERT_REMEDY, rb"\xabKTX [12]"),
    (_UNSUPPORTED, "a Blizzard texture (BLP)", CONVERT_REMEDY, rb"BLP[12]"),
    (_UNSUPPORTED, "a PCX image", CONVERT_REMEDY, rb"\n[\x00\x02\x03\x04\x05]\x01[\x01\x02\x04\x08]"),
    (_UNSUPPORTED, "an SGI image", CONVERT_REMEDY, rb"\x01\xda[\x00\x01][\x01\x02]"),
    (_UNSUPPORTED, "a Sun raster image", CONVERT_REMEDY, rb"\x59\xa6\x6a\x95"),
    (_UNSUPPORTED, "an OpenEXR image", CONVERT_REMEDY, rb"v/1\x01"),
    (_UNSUPPORTED, "a Radiance HDR image", CONVERT_REMEDY, rb"#\?(RADIANCE|RGBE)"),
    (_UNSUPPORTED, "a DPX image", CONVERT_REMEDY, rb"SDPX|XPDS"),
    (_UNSUPPORTED, "a FITS image", CONVERT_REMEDY, rb"SIMPLE  =  "),
    (_UNSUPPORTED, "a JPEG XR image", CONVERT_REMEDY, rb"II\xbc[\x00\x01]"),
    (_UNSUPPORTED, "a JPEG-LS image", CONVERT_REMEDY, rb"\xff\xd8\xff\xf7"),
    (_UNSUPPORTED, "a BPG image", CONVERT_REMEDY, rb"BPG\xfb"),
    (_UNSUPPORTED, "a FLIF image", CONVERT_REMEDY, rb"FLIF"),
    (_UNSUPPORTED, "a DjVu document", CONVERT_REMEDY, rb"AT&TFORM"),
    (_UNSUPPORTED, "an IFUNC or LabEye image (IM)", CONVERT_REMEDY, rb"Image type: "),
    (_UNSUPPORTED, "a Windows Paint image (MSP)", CONVERT_REMEDY, rb"DanM|LinS"),
    (_UNSUPPORTED, "an X bitmap (XBM)", CONVERT_REMEDY, rb"#define \w+_width \d"),
    (_UNSUPPORTED, "an XPM image", CONVERT_REMEDY, rb"/\* XPM \*/"),
    (_UNSUPPORTED, "a MAT or NumPy array", CONVERT_REMEDY, rb"\x93NUMPY|MATLAB 5\.0"),
    (
        _UNSUPPORTED,
        "a bitmap without a file header (DIB)",
        CONVERT_REMEDY,
        rb"\x28\x00{3}.{8}\x01\x00[\x01-\x20]\x00",
    ),
    (_UNSUPPORTED, "a Windows metafile", CONVERT_REMEDY, rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF"),
    (_UNSUPPORTED, "a PostScript drawing (EPS)", EXPORT_REMEDY, rb"%!PS|\xc5\xd0\xd3\xc6"),
    (_OTHER, "a PDF document", "export its pages or images as PNG", rb"%PDF-"),
    (_RAW, "a Canon raw file (CR2)", RAW_REMEDY, rb"II\*\x00.{4}CR"),
    (_RAW, "a Canon raw file (CR3)", RAW_REMEDY, rb".{4}ftypcrx "),
    (_RAW, "a Canon raw file (CRW)", RAW_REMEDY, rb"II.{4}HEAPCCDR"),
    (_RAW, "a Fujifilm raw file (RAF)", RAW_REMEDY, rb"FUJIFILMCCD-RAW"),
    (_RAW, "a Panasonic raw file (RW2)", RAW_REMEDY, rb"IIU\x00"),
    (_RAW, "an Olympus raw file (ORF)", RAW_REMEDY, rb"IIR[OS]|MMOR"),
    (_RAW, "a Sigma raw file (X3F)", RAW_REMEDY, rb"FOVb"),
    (_RAW, "a Minolta raw file (MRW)", RAW_REMEDY, rb"\x00MRM"),
    (_VIDEO, "a video in an MKV or WebM container", VIDEO_REMEDY, rb"\x1a\x45\xdf\xa3"),
    (_VIDEO, "an AVI video", VIDEO_REMEDY, rb"RIFF.{4}AVI "),
    (_VIDEO, "an FLV video", VIDEO_REMEDY, rb"FLV\x01"),
    (_VIDEO, "a WMV or ASF video", VIDEO_REMEDY, rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    (_VIDEO, "an MPEG video", VIDEO_REMEDY, rb"\x00\x00\x01[\xba\xb3]|G.{187}G.{187}G"),
    (_OTHER, "a sound file", _OTHER_REMEDY, rb"ID3|fLaC|OggS|RIFF.{4}WAVE|.{4}ftypM4[AB] |FORM.{4}AIF"),
    (_OTHER, "a 7z archive", _UNPACK_REMEDY, rb"7z\xbc\xaf\x27\x1c"),
    (_OTHER, "a RAR archive", _UNPACK_REMEDY, rb"Rar!\x1a\x07"),
    (_OTHER, "a gzip file", _UNPACK_REMEDY, rb"\x1f\x8b\x08"),
    (
        _OTHER,
        "a compressed file (xz, bzip2 or zstd)",
        _UNPACK_REMEDY,
        rb"\xfd7zXZ\x00|BZh[1-9]1AY|\x28\xb5\x2f\xfd",
    ),
    (_OTHER, "a tar archive", _UNPACK_REMEDY, rb".{257}ustar"),
    (_OTHER, "a Microsoft Office document", _OTHER_REMEDY, rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    (_OTHER, "a program", _OTHER_REMEDY, rb"\x7fELF|MZ.{58}..\x00\x00"),
    (_OTHER, "an SQLite database", _OTHER_REMEDY, rb"SQLite format 3"),
    (_OTHER, "a font", _OTHER_REMEDY, rb"wOF[F2]|OTTO|\x00\x01\x00\x00[\x00-\x40]"),
    (_OTHER, "resources of macOS beside a file (AppleDouble)", _OTHER_REMEDY, rb"\x00\x05\x16[\x00\x07]"),
)
_PATTERNS = tuple(
    (code, name, remedy, re.compile(pattern, re.DOTALL)) for code, name, remedy, pattern in _KINDS
)
# Images that are read, for programs that expect another kind of file.
_IMAGES = (
    ("a PNG image", re.compile(rb"\x89PNG")),
    ("a JPEG image", re.compile(rb"\xff\xd8\xff")),
    ("a WebP image", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("a GIF image", re.compile(rb"GIF8[79]a")),
    ("a BMP image", re.compile(rb"BM.{4}\x00{4}", re.DOTALL)),
    ("a TIFF image", re.compile(rb"II\*\x00|MM\x00\*")),
    ("a JPEG XL image", re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL ")),
    ("an AVIF or HEIC image", re.compile(rb".{4}ftyp(avif|avis|hei[cfsx]|mif1|msf1)", re.DOTALL)),
)
# Brands of the container that MP4, MOV, AVIF and HEIC share.
_VIDEO_BRANDS = re.compile(rb"iso[m2-9]|mp4[12]|avc1|qt  |M4V[ HP]|3g[p2].|dash|mmp4|MSNV|f4v |XAVC|mp71")


def identify(data: bytes) -> FileProblem | None:
    """Return what a file is if it is of a known kind that is not read as an image; None for all others."""
    head = data[:4096]
    if head.startswith(_ZIP):
        return _zip_kind(data)
    if head[4:8] == b"ftyp" and _VIDEO_BRANDS.match(head[8:12]):
        return FileProblem(_VIDEO, "a video in an MP4 or MOV container, not an image", VIDEO_REMEDY)
    for code, name, remedy, pattern in _PATTERNS:
        if pattern.match(head):
            if code == _UNSUPPORTED:
                return FileProblem(code, f"{name}, which is not supported", remedy)
            return FileProblem(code, f"{name}, not an image" if code != _RAW else name, remedy)
    return None


def kind_name(data: bytes) -> str | None:
    """Return the name of a file's kind, images that are read among them; None without a known signature."""
    head = data[:4096]
    if head.startswith(_ZIP):
        return "a zip archive, such as a spreadsheet or a document"
    if head[4:8] == b"ftyp" and _VIDEO_BRANDS.match(head[8:12]):
        return "a video in an MP4 or MOV container"
    named = ((name, pattern) for _, name, _, pattern in _PATTERNS)
    return next((name for name, pattern in (*named, *_IMAGES) if pattern.match(head)), None)


def identify_by_guess(data: bytes) -> FileProblem | None:
    """Return what a file without a signature probably is: text, a TGA image, or nothing but zeros."""
    head = data[:4096]
    if not any(data):
        message = "only zero bytes: a download, a copy or the disk has failed"
        return FileProblem("corrupt", message, REFETCH_REMEDY)
    if _OTHER_ENDINGS.search(data[-18:]) or _looks_like_tga(head):
        return FileProblem(_UNSUPPORTED, "a TGA image, which is not supported", CONVERT_REMEDY)
    if text := _as_text(head):
        start = " ".join(text.split())[:40]
        return FileProblem(_OTHER, f'text that starts with "{start}", not an image', REFETCH_REMEDY)
    return None


def _zip_kind(data: bytes) -> FileProblem:
    """Return what a zip file is: documents of many programs are zip files."""
    head = data[:4096]
    if b"mimetypeapplication/x-krita" in head or b"mimetypeimage/openraster" in head:
        message = "a Krita or OpenRaster document, which is not supported"
        return FileProblem(_UNSUPPORTED, message, EXPORT_REMEDY)
    if b"[Content_Types].xml" in head or b"mimetypeapplication/vnd.oasis" in head:
        return FileProblem(_OTHER, "a document of an office program, not an image", _OTHER_REMEDY)
    is_encrypted = len(head) > 6 and bool(head[6] & 1)
    name = "a zip archive with a password" if is_encrypted else "a zip archive"
    return FileProblem(_OTHER, f"{name}, not an image", _UNPACK_REMEDY)


def _looks_like_tga(head: bytes) -> bool:
    """Return True for a plausible header of a TGA image, which has no signature."""
    if len(head) < 18 or head[1] > 1 or head[2] not in _TGA_TYPES or head[16] not in _TGA_DEPTHS:
        return False
    width, height = int.from_bytes(head[12:14], "little"), int.from_bytes(head[14:16], "little")
    has_palette, is_palette = head[1] == 1, head[2] in (1, 9)
    return width > 0 and height > 0 and has_palette == is_palette and not head[17] & 0xC0


def _as_text(head: bytes) -> str:
    """Return the start of a file as text, or "" if it holds bytes that text does not."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = head[: len(head) // 2 * 2].decode("utf-16", "replace")
    elif b"\0" in head:
        return ""
    else:
        text = head.decode("utf-8", "replace")
    strange = sum(not (letter.isprintable() or letter in "\t\r\n\f") for letter in text[:-1])
    strange += text[:-1].count("\ufffd")
    return text if strange <= len(text) // 50 and text.strip("\ufffd \r\n\t") else ""
