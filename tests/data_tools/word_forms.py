"""Forms in which people keep the words of images: files beside them, JSON of other tools, tables, in images.

Each form writes unique words into a folder with two images. A word that no caption has must be named: its
file, and its row or column, in one finding.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import ExifTags, Image, PngImagePlugin

IMAGES = ("IMG_0.png", "IMG_1.png")
STEM = "IMG_0"  # of the image with a special form; the other image has a plain caption if the form is a file
_numbers = itertools.count()


@dataclass
class Words:
    """Unique words and, for each, the names of its place: all of them must be in one finding."""

    folder: Path
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def new(self, *place: str, number: int = 3) -> str:
        """Return a text of new words in a place."""
        words = [_word(next(_numbers)) for _ in range(number)]
        self.places |= dict.fromkeys(words, place)
        return " ".join(words)

    def write(self, name: str, content: str | bytes, encoding: str = "utf-8") -> None:
        """Write a file of the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))


def _word(number: int) -> str:
    letters = ""
    for _ in range(4):
        number, digit = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwxz"[digit] + "aeiou"[digit % 5]
    return letters


Form = Callable[[Words], None]


def _beside(end: str, encoding: str = "utf-8", template: str = "{}") -> Form:
    """Return a form: a file of text with the image's name and this end."""

    def write(words: Words) -> None:
        name = f"{STEM}{end}"
        text = template
        while "{}" in text:
            text = text.replace("{}", words.new(name), 1)
        words.write(name, text, encoding)

    return write


def _json(make: Callable[[Callable[[str], str]], Any], end: str = ".json") -> Form:
    """Return a form: a JSON file of the image; `make` gets a function that returns new words for a key."""

    def write(words: Words) -> None:
        name = f"{STEM}{end}"
        words.write(name, json.dumps(make(lambda key: words.new(*(f"{key}".split())))))

    return write


FILES: dict[str, Form] = {
    "txt": _beside(".txt"),
    "caption": _beside(".caption"),
    "upper case": _beside(".TXT"),
    "mixed case": _beside(".Caption"),
    "name with extension": _beside(".png.txt"),
    "upper name with extension": _beside(".PNG.TXT"),
    "utf-16": _beside(".txt", "utf-16"),
    "utf-16 without mark": _beside(".txt", "utf-16-le"),
    "byte order mark": _beside(".txt", "utf-8-sig"),
    "windows lines": _beside(".txt", template="{}\r\n{}\r\n"),
    "old mac lines": _beside(".txt", template="{}\r{}"),
    "paragraphs": _beside(".txt", template="A {} is here.\n\nAnd {} over there."),
    "tag per line": _beside(".txt", template="{}\n{}\n{}"),
    "latin-1": _beside(".txt", "latin-1", "é {}"),
    "broken utf-8": lambda words: words.write(f"{STEM}.txt", words.new(f"{STEM}.txt").encode() + b"\xff"),
    "settings of a generator": _beside(
        ".txt", template="{}\nNegative prompt: {}\nSteps: 20, Sampler: Euler, Seed: 1, Model: {}"
    ),
    "tags file": _beside(".tags"),
    "prompt file": _beside(".prompt"),
    "markdown": _beside(".md"),
    "text file": _beside(".text"),
    "_caption.txt": _beside("_caption.txt"),
    "-tags.txt": _beside("-tags.txt"),
    ".caption.txt": _beside(".caption.txt"),
    "name with extension and tags": _beside(".png.tags"),
    "no extension": _beside("_description"),
    "yaml": _beside(".yaml", template="caption: {}\n"),
    "xmp": _beside(".xmp", template="<x><dc:description><rdf:li>{}</rdf:li></dc:description></x>"),
    "html": _beside(".html", template="<p>{}</p>"),
    "other spelling": lambda words: words.write("img 0.txt", words.new("img 0.txt")),
    "copy": _beside(" (1).txt"),
    "hidden": lambda words: words.write(".IMG_0.txt", words.new(".IMG_0.txt")),
    "in a folder of captions": lambda words: words.write("txt/IMG_0.txt", words.new("txt/IMG_0.txt")),
    "list of names": lambda words: words.write("list.txt", f"IMG_0.png|{words.new('list.txt')}\n"),
    "word processor": lambda words: words.write(
        "captions.docx", b"PK\3\4" + words.new("captions.docx").encode()
    ),
    "spreadsheet": lambda words: words.write(
        "captions.xlsx", b"PK\3\4" + words.new("captions.xlsx").encode()
    ),
}

JSON_FILES: dict[str, Form] = {
    "caption": _json(lambda new: {"caption": new("")}),
    "captions": _json(lambda new: {"captions": [new(""), new("")]}),
    "text": _json(lambda new: {"text": new(""), "width": 512, "score": float("nan")}),
    "description": _json(lambda new: {"description": new("")}),
    "numbered": _json(lambda new: {"caption_0": new(""), "caption_1": new("")}),
    "list of texts": _json(lambda new: [new(""), new("")]),
    "one text": _json(lambda new: new("")),
    "list of objects": _json(lambda new: {"captions": [{"caption": new("")}, {"text": new("")}]}),
    "list of tags": _json(lambda new: {"tags": new("").split()}),
    "text of tags": _json(lambda new: {"tags": new("").replace(" ", ", ")}),
    "caption and tags": _json(lambda new: {"caption": new(""), "tags": new("").split()}),
    "danbooru": _json(
        lambda new: {
            "tag_string": new("") + " highres",
            "tag_string_character": new("").replace(" ", "_"),
            "tag_string_general": new(""),
            "tag_string_meta": new(f"{STEM}.json"),
            "source": "https://example.org/x",
        }
    ),
    "gallery-dl list": _json(lambda new: {"category": "pixiv", "tags": new("").split(), "id": 5}),
    "gallery-dl text": _json(lambda new: {"category": "gelbooru", "tags": new(""), "rating": "safe"}),
    "gallery-dl groups": _json(lambda new: {"tags_general": new(""), "tags_artist": new("")}),
    "e621": _json(lambda new: {"tags": {"general": new("").split(), "meta": new(f"{STEM}.json").split()}}),
    "pixiv": _json(lambda new: {"tags": [{"name": new("")}, {"name": new("")}]}),
    "tagger": _json(lambda new: dict.fromkeys(new("").split(), 0.9)),
    "tagger with groups": _json(lambda new: {"general": dict.fromkeys(new("").split(), 0.9)}),
    "tagger in tags": _json(lambda new: {"tags": dict.fromkeys(new("").split(), 0.9)}),
    "exiftool": _json(lambda new: [{"SourceFile": "x.jpg", "ImageDescription": new("")}]),
    "takeout": _json(
        lambda new: {"title": "IMG_0.png", "description": new(""), "imageViews": "3"}, ".png.json"
    ),
    "florence and blip": _json(lambda new: {"blip": new("blip"), "florence": new("florence")}),
    "negative prompt": _json(lambda new: {"prompt": new(""), "negative_prompt": new("negative_prompt")}),
    "second caption": _json(lambda new: {"text": new(""), "long_caption": new("long_caption")}),
    "nested": _json(lambda new: {"post": {"info": {"caption": new("post.info.caption")}}}),
    "languages": _json(lambda new: {"caption": {"en": new(f"{STEM}.json"), "de": new(f"{STEM}.json")}}),
    "number": _json(lambda new: {"caption": 5, "text": new(f"{STEM}.json")}),
    "unknown keys": _json(lambda new: {"what": new("what"), "scene": new("scene")}),
    "japanese key": _json(lambda new: {"caption": new(""), "説明": new("説明")}),
    "repeated key": lambda words: words.write(
        f"{STEM}.json",
        f'{{"caption": "{words.new(f"{STEM}.json")}", "caption": "{words.new(f"{STEM}.json")}"}}',
    ),
    "cut off": lambda words: words.write(f"{STEM}.json", f'{{"caption": "{words.new(f"{STEM}.json")}'),
    "of another name": lambda words: words.write(
        f"{STEM}.info.json", json.dumps({"caption": words.new(f"{STEM}.info.json")})
    ),
}


def _table(name: str, make: Callable[[Words], Iterator[str]]) -> Form:
    """Return a form: a table of lines."""

    def write(words: Words) -> None:
        words.write(name, "\n".join(make(words)) + "\n")

    return write


def _csv(header: str, *cells: Any, name: str = "metadata.csv") -> Form:
    """Return a form: a CSV with a row for each image; a cell is the place of its words."""

    def rows(words: Words) -> Iterator[str]:
        yield header
        for image in IMAGES:
            yield ",".join([image, *(words.new(*cell) for cell in cells)])

    return _table(name, rows)


def _jsonl(make: Callable[[Words, int], dict[str, Any]], name: str = "metadata.jsonl") -> Form:
    def rows(words: Words) -> Iterator[str]:
        for number, image in enumerate(IMAGES, 1):
            yield json.dumps({"file_name": image, **make(words, number)})

    return _table(name, rows)


def _parquet(make: Callable[[Words], dict[str, list[Any]]], name: str = "metadata.parquet") -> Form:
    def write(words: Words) -> None:
        table = pyarrow.table({"file_name": list(IMAGES), **make(words)})
        pyarrow.parquet.write_table(table, words.folder / name)

    return write


def _line(number: int, name: str = "metadata.jsonl") -> tuple[str, str]:
    return name, f"line {number}"


def _two_tables(words: Words) -> None:
    row = {"file_name": IMAGES[0], "text": words.new("metadata.jsonl")}
    words.write("metadata.csv", f"file_name,text\n{IMAGES[0]},{words.new()}\n")
    words.write("metadata.jsonl", json.dumps(row))


TABLES: dict[str, Form] = {
    "jsonl text": _jsonl(lambda words, _: {"text": words.new()}),
    "jsonl caption": _jsonl(lambda words, _: {"caption": words.new()}),
    "jsonl captions": _jsonl(lambda words, _: {"captions": [words.new(), words.new()]}),
    "jsonl objects": _jsonl(lambda words, _: {"captions": [{"text": words.new()}]}),
    "jsonl description": _jsonl(lambda words, _: {"description": words.new()}),
    "jsonl tags": _jsonl(lambda words, _: {"tags": words.new().split()}),
    "jsonl text and tags": _jsonl(lambda words, _: {"text": words.new(), "tags": words.new()}),
    "jsonl two captions": _jsonl(lambda words, _: {"text": words.new(), "caption": words.new("caption")}),
    "jsonl languages": _jsonl(
        lambda words, number: {"text": {"en": words.new("metadata.jsonl", str(number))}}
    ),
    "jsonl title and story": _jsonl(
        lambda words, _: {"title": words.new("title"), "story": words.new("story"), "id": "x"}
    ),
    "jsonl null": _jsonl(
        lambda words, number: {"text": None if number == 1 else words.new(), "width": float("nan")}
    ),
    "jsonl broken line": _table(
        "metadata.jsonl",
        lambda words: iter(
            [
                json.dumps({"file_name": IMAGES[1], "text": words.new()}),
                f'{{"file_name": "{IMAGES[0]}", "text": "{words.new(*_line(2))}',
            ]
        ),
    ),
    "jsonl array": lambda words: words.write(
        "metadata.jsonl",
        json.dumps([{"file_name": image, "text": words.new()} for image in IMAGES], indent=1),
    ),
    "jsonl missing file": _table(
        "metadata.jsonl",
        lambda words: iter(
            [
                json.dumps({"file_name": "absent.png", "text": words.new(*_line(1))}),
                json.dumps({"file_name": IMAGES[1], "text": words.new()}),
            ]
        ),
    ),
    "jsonl twice": _table(
        "metadata.jsonl",
        lambda words: iter(
            [json.dumps({"file_name": image, "text": words.new()}) for image in (*IMAGES, *IMAGES)]
        ),
    ),
    "jsonl long line": _jsonl(lambda words, _: {"text": words.new(number=2000)}),
    "jsonl latin-1": lambda words: words.write(
        "metadata.jsonl",
        f'{{"file_name": "{IMAGES[0]}", "text": "é {words.new(*_line(1))}"}}\n'.encode("latin-1")
        + json.dumps({"file_name": IMAGES[1], "text": words.new()}).encode(),
    ),
    "csv": _csv("file_name,text", ()),
    "csv caption and notes": _csv("file_name,caption,notes", (), ("notes",)),
    "csv numbered": _csv("file_name,caption_0,caption_1", (), ()),
    "csv image and prompt": _csv("image,prompt", ()),
    "csv other names": _csv("Filename,Description", ()),
    "csv unknown columns": _csv("file_name,what,scene", ("what",), ("scene",)),
    "csv windows": lambda words: words.write(
        "metadata.csv", "file_name,text\r\n" + "".join(f"{i},{words.new()}\r\n" for i in IMAGES), "utf-8-sig"
    ),
    "csv semicolons": _table(
        "metadata.csv", lambda words: iter(["file_name;text", *(f"{i};{words.new()}" for i in IMAGES)])
    ),
    "csv lost quotation mark": _table(
        "metadata.csv",
        lambda words: iter(
            [
                "file_name,text",
                f'{IMAGES[0]},"{words.new("metadata.csv", "line 2")}',
                f"{IMAGES[1]},{words.new()}",
            ]
        ),
    ),
    "csv comma": _table(
        "metadata.csv",
        lambda words: iter(
            [
                "file_name,text",
                f"{IMAGES[0]},{words.new('metadata.csv', 'line 2')},{words.new('metadata.csv', 'line 2')}",
                f"{IMAGES[1]},{words.new()}",
            ]
        ),
    ),
    "csv of one image": _table(
        "metadata.csv", lambda words: iter(["file_name,text", f"{IMAGES[1]},{words.new()}"])
    ),
    "parquet": _parquet(lambda words: {"text": [words.new(), words.new()]}),
    "parquet lists": _parquet(lambda words: {"captions": [[words.new(), words.new()], [words.new()]]}),
    "parquet structs": _parquet(
        lambda words: {"text": [{"en": words.new("metadata.parquet", f"{n}")} for n in (1, 2)]}
    ),
    "parquet null": _parquet(lambda words: {"text": [None, words.new()], "alt": [words.new("alt"), None]}),
    "kohya": lambda words: words.write(
        "meta_cap.json",
        json.dumps({f"/x/{Path(i).stem}": {"caption": words.new(), "tags": words.new()} for i in IMAGES}),
    ),
    "kohya with an odd entry": lambda words: words.write(
        "meta_cap.json",
        json.dumps(
            {"IMG_0": {"caption": words.new(), "score": 1}, "x": {"tags": words.new("meta_cap", "'x'")}}
        ),
    ),
    "captions.csv": _csv("image,caption", (), name="captions.csv"),
    "Captions.TSV": _table("Captions.TSV", lambda words: iter(["file\ttext", f"IMG_0\t{words.new()}"])),
    "data.jsonl": _jsonl(lambda words, _: {"text": words.new()}, name="data.jsonl"),
    "captions.json": lambda words: words.write("captions.json", json.dumps({i: words.new() for i in IMAGES})),
    "llava": lambda words: words.write(
        "blip.json", json.dumps([{"image": image, "caption": words.new()} for image in IMAGES])
    ),
    "coco": lambda words: words.write(
        "annotations.json",
        json.dumps(
            {
                "info": {"version": "1"},
                "images": [{"id": n, "file_name": image} for n, image in enumerate(IMAGES)],
                "annotations": [{"image_id": n, "caption": words.new()} for n in (0, 0, 1)],
            }
        ),
    ),
    "table of another folder": lambda words: words.write(
        "train.csv", f"name,words\nelsewhere/IMG_0.png,{words.new('train.csv')}\n"
    ),
    "parquet of another name": _parquet(
        lambda words: {"text": [words.new("train.parquet"), words.new("train.parquet")]}, name="train.parquet"
    ),
    "two tables": _two_tables,
}


def _embedded(save: Callable[[Image.Image, str], bytes], name: str = IMAGES[0]) -> Form:
    def write(words: Words) -> None:
        path = words.folder / IMAGES[0]
        with Image.open(path) as image:
            data = save(image.convert("RGB"), words.new(name))
        path.unlink()
        words.write(name, data)

    return write


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _png_text(key: str) -> Callable[[Image.Image, str], bytes]:
    def save(image: Image.Image, text: str) -> bytes:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(key, text)
        return _save(image, "PNG", pnginfo=info)

    return save


def _exif(tag: int, encode: Callable[[str], Any] = str) -> Callable[[Image.Image, str], bytes]:
    def save(image: Image.Image, text: str) -> bytes:
        exif = Image.Exif()
        if tag == ExifTags.Base.UserComment:
            exif.get_ifd(ExifTags.IFD.Exif)[tag] = encode(text)
        else:
            exif[tag] = encode(text)
        return _save(image, "JPEG", exif=exif)

    return save


def _xmp(image: Image.Image, text: str) -> bytes:
    packet = (
        "<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        "<rdf:Description xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:description><rdf:Alt>"
        f"<rdf:li xml:lang='x-default'>{text}</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF>"
        "</x:xmpmeta>"
    )
    return _save(image, "JPEG", xmp=packet.encode())


def _iptc(image: Image.Image, text: str) -> bytes:
    data = b"\x1c\x02\x78" + len(text).to_bytes(2, "big") + text.encode()
    block = b"8BIM\x04\x04\0\0" + len(data).to_bytes(4, "big") + data + b"\0" * (len(data) % 2)
    segment = b"Photoshop 3.0\0" + block
    plain = _save(image, "JPEG")
    return plain[:2] + b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment + plain[2:]


EMBEDDED: dict[str, Form] = {
    "png parameters": _embedded(_png_text("parameters")),
    "png description": _embedded(_png_text("Description")),
    "exif description": _embedded(_exif(ExifTags.Base.ImageDescription), "IMG_0.jpg"),
    "exif keywords": _embedded(_exif(ExifTags.Base.XPKeywords, lambda t: t.encode("utf-16-le")), "IMG_0.jpg"),
    "exif comment": _embedded(
        _exif(ExifTags.Base.UserComment, lambda t: b"UNICODE\0" + t.encode("utf-16-le")), "IMG_0.jpg"
    ),
    "jpeg comment": _embedded(lambda image, text: _save(image, "JPEG", comment=text.encode()), "IMG_0.jpg"),
    "xmp": _embedded(_xmp, "IMG_0.jpg"),
    "iptc": _embedded(_iptc, "IMG_0.jpg"),
}
