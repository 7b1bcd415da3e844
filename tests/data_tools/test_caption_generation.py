"""Captions by a model, asked over HTTP: what arrives there, and that no failure stops or loses anything."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from PIL import Image

from data_tools import cli
from data_tools.captioners import CaptionerOptions, load_captioner, server
from data_tools.captions import generate
from data_tools.captions.generate import CaptioningOptions
from data_tools.prepare import PrepareOptions, PrepareResult, bucket_dataset, caption_dataset, prepare_dataset
from lorakit import manifest
from lorakit.core.errors import ConfigError
from lorakit.manifest import Record
from tests.data_tools.caption_server import Heard, Talker, talking
from tests.data_tools.folders import hashes

RGB = {"red": (220, 30, 20), "green": (20, 200, 40), "blue": (30, 20, 220)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RETRY_DELAYS", (0.01, 0.01))


def painted(folder: Path, *colours: str) -> Path:
    """One picture of each colour, named by it; no two are equal."""
    folder.mkdir(exist_ok=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (96 + number, 64), RGB[colour]).save(folder / f"{number}-{colour}.png")
    return folder


def ask(folder: Path, talker: Talker, *, full: bool = False, **changes: object) -> PrepareResult:
    """`caption` (or `prepare`, when `full`) with a captioner at the talker."""
    asked = {
        name: changes.pop(name) for name in list(changes) if name in CaptioningOptions.__dataclass_fields__
    }
    asker = {
        name: changes.pop(name) for name in list(changes) if name in CaptionerOptions.__dataclass_fields__
    }
    options = PrepareOptions(
        resolution=64,
        quiet=True,
        captioner=CaptionerOptions(**{"server": talker.url, "timeout": 5.0, **asker}),  # type: ignore[arg-type]
        describe=CaptioningOptions(**asked),  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )
    return (prepare_dataset if full else caption_dataset)(folder, options)


def texts(result: PrepareResult) -> dict[str, list[str]]:
    return {record.file: [caption.text for caption in record.captions] for record in result.records}


def failures(record: Record) -> list[str]:
    return [note.split(": ")[2] for note in record.notes if note.startswith("caption_failed")]


def by_colour(heard: Heard) -> str:
    return f"a {heard.colour} wall"


def test_every_image_is_described_and_the_manifest_says_by_whom(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red", "green", "blue")
    before = hashes(folder)
    with talking(by_colour) as talker:
        result = ask(folder, talker, full=True)
        assert texts(result) == {
            "0-red.png": ["a red wall"],
            "1-green.png": ["a green wall"],
            "2-blue.png": ["a blue wall"],
        }
        (caption,) = manifest.load_manifest(folder)[0].captions
        assert (caption.source, caption.model, caption.prompt) == ("model", "talker", talker.heard[0].prompt)
        assert caption.seen is not None
        assert ask(folder, talker, full=True).records == result.records
    assert len(talker.heard) == 3  # nothing is asked twice
    assert hashes(folder) == before
    assert not (folder / generate.JOURNAL).exists()


def test_the_model_sees_the_picture_upright_and_cropped(tmp_path: Path) -> None:
    """Stored lying on its side, red at one end: the square crop of the upright picture leaves the red out."""
    folder = painted(tmp_path / "d")
    picture = Image.new("RGB", (400, 200), RGB["green"])
    picture.paste(RGB["red"], (0, 0, 90, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise: the left end comes to the top
    picture.save(folder / "turned.jpg", exif=exif, quality=95, subsampling=0)
    Image.new("RGB", (64, 64), RGB["blue"]).save(folder / "other.png")
    with talking(by_colour) as talker:
        ask(folder, talker, full=True, mode="square", side=100)
    pictures = {heard.colour: heard.picture for heard in talker.heard}
    shown = pictures["green"].convert("RGB")
    assert shown.size == (100, 100)
    assert shown.getpixel((50, 2))[0] < 90  # type: ignore[index]
    record = manifest.load_manifest(folder)[1]
    assert (record.size, record.crop) == ((200, 400), (0, 100, 200, 300))


def test_a_hand_written_caption_is_left_alone_unless_told(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red", "green")
    (folder / "0-red.txt").write_text("by hand")
    with talking(by_colour) as talker:
        assert texts(ask(folder, talker))["0-red.png"] == ["by hand"]
        assert len(talker.heard) == 1
        assert texts(ask(folder, talker, which="add"))["0-red.png"] == ["by hand", "a red wall"]
        assert texts(ask(folder, talker, which="overwrite", again=True))["0-red.png"] == ["a red wall"]
    # What the user had put in its place stays in its place, in later runs too.
    later = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
    assert texts(later)["0-red.png"] == ["a red wall"]
    assert "captions_replaced" in {finding.code for finding in later.findings}
    assert (folder / "0-red.txt").read_text() == "by hand"


def test_equal_pictures_are_asked_about_once(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red")
    (folder / "copy.png").write_bytes((folder / "0-red.png").read_bytes())
    with talking(lambda heard: f"answer {heard.number}") as talker:
        assert set(map(tuple, texts(ask(folder, talker)).values())) == {("answer 0",)}


def test_a_template_only_stands_in(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red")
    prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, class_noun="wall"))
    with talking(by_colour) as talker:
        assert texts(ask(folder, talker)) == {"0-red.png": ["a red wall"]}


def test_prompts_and_variants_each_give_a_caption(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red")
    with talking(lambda heard: f"{heard.prompt} {heard.body.get('seed')}") as talker:
        found = texts(ask(folder, talker, prompts=("short", "long"), variants=2, temperature=0.7))[
            "0-red.png"
        ]
    assert [text.split()[0] for text in found] == ["short", "short", "long", "long"]
    assert len(set(found)) == 4
    seeds = {heard.body["seed"] for heard in talker.heard}
    assert len(seeds) == 4


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (429, "http_429"),
        (500, "http_500"),
        (400, "http_400"),
        (b"<html>busy</html>", "malformed"),
        (b'{"choices": []}', "malformed"),
        (b'{"choices": [{"message": {"content": 7}}]}', "malformed"),
        (b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "refused"),
        ("", "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("As an AI, I see no picture.", "refused"),
        (("a wall that is", "length"), "cut_off"),
        (("x", "content_filter"), "refused"),
        ((307, {"Location": "http://127.0.0.1:9/elsewhere"}), "http_307"),
    ],
)
def test_a_failure_is_recorded_and_the_others_go_on(tmp_path: Path, said: object, code: str) -> None:
    folder = painted(tmp_path / "d", "red", "green", "blue")
    with talking(lambda heard: said if heard.colour == "green" else by_colour(heard)) as talker:
        result = ask(folder, talker)
        kept = {record.file: record for record in result.records}
        assert failures(kept["1-green.png"]) == [code]
        assert kept["1-green.png"].captions == ()
        assert texts(result)["0-red.png"] == ["a red wall"]
        assert texts(result)["2-blue.png"] == ["a blue wall"]
        assert {"caption_failed", "no_caption"} <= {finding.code for finding in result.findings}
        asked = sum(heard.colour == "green" for heard in talker.heard)
        assert asked == (3 if code in ("http_429", "http_500") or said == b"<html>busy</html>" else 1)
    with talking(by_colour) as talker:  # the same command again asks for what is missing, and only for that
        result = ask(folder, talker)
        assert [heard.colour for heard in talker.heard] == ["green"]
    assert texts(result)["1-green.png"] == ["a green wall"]
    assert not [note for record in result.records for note in record.notes if "caption_failed" in note]


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red")
    replies: list[object] = [(429, {"Retry-After": "0.3"}), 503, "a red wall"]
    with talking(lambda heard: replies[heard.number]) as talker:
        began = time.monotonic()
        assert texts(ask(folder, talker)) == {"0-red.png": ["a red wall"]}
        assert 0.3 <= time.monotonic() - began < 3


def test_a_slow_or_dripping_answer_is_given_up_in_time(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red", "green")

    def reply(heard: Heard) -> object:
        if heard.colour == "red":
            time.sleep(0.8 if heard.number % 2 else 0)
            return 0.05  # every byte after 0.05 s: 6 s for the whole
        return "a green wall"

    with talking(reply) as talker:
        began = time.monotonic()
        result = ask(folder, talker, timeout=0.4)
    assert time.monotonic() - began < 5
    assert [failures(record) for record in result.records] == [["timeout"], []]


def test_an_answer_that_was_cut_off_keeps_its_whole_sentences(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red")
    with talking(lambda heard: ("A red wall.\nIt stands in", "length")) as talker:
        assert texts(ask(folder, talker)) == {"0-red.png": ["A red wall."]}


def test_a_wrong_key_ends_the_asking_at_once_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", *["red"] * 30)
    with talking(lambda heard: "a red wall" if heard.number < 3 else 401) as talker:
        result = ask(folder, talker, at_once=1)
    assert len(talker.heard) < 10
    assert sum(bool(record.captions) for record in result.records) == 3
    assert sum(failures(record) == ["http_401"] for record in result.records) == 27


def test_a_server_that_only_fails_is_left_alone_after_a_while(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", *["red"] * 60)
    with talking(lambda heard: 500) as talker:
        result = ask(folder, talker, at_once=2)
    assert len(talker.heard) <= 3 * 26
    assert all(failures(record) == ["http_500"] for record in result.records)


def test_questions_go_out_together_and_the_result_is_the_same(tmp_path: Path) -> None:
    def slowly(heard: Heard) -> str:
        time.sleep(0.05)
        return by_colour(heard)

    written = []
    for at_once in (1, 6):
        folder = painted(tmp_path / f"d{at_once}", *["red", "green", "blue"] * 6)
        with talking(slowly) as talker:
            ask(folder, talker, at_once=at_once)
        assert talker.at_once == at_once or (at_once > 1 and talker.at_once > 2)
        written.append((folder / manifest.MANIFEST_FILE).read_bytes())
    assert written[0] == written[1]


def test_a_stopped_run_asks_only_what_is_open(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", *["red", "green", "blue"] * 3)
    stopped = False

    def reply(heard: Heard) -> object:
        nonlocal stopped
        stopped = heard.number >= 4
        return by_colour(heard)

    def interrupt(*_: object) -> None:
        if stopped:
            raise KeyboardInterrupt

    with talking(reply) as talker, pytest.MonkeyPatch.context() as patch:
        real = generate._append_to_journal
        patch.setattr(generate, "_append_to_journal", lambda *args: (real(*args), interrupt()))
        with pytest.raises(KeyboardInterrupt):
            ask(folder, talker, at_once=1)
    assert not (folder / manifest.MANIFEST_FILE).exists()
    journal = folder / generate.JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"key": "torn')
    done = len(journal.read_text().splitlines()) - 1
    assert done >= 4
    assert len(caption_dataset(folder, PrepareOptions(class_noun="wall", quiet=True)).records) == 9
    assert journal.exists()  # another command does not throw away what was paid for
    with talking(by_colour) as talker:
        result = ask(folder, talker)
    assert len(talker.heard) == 9 - done
    assert all(record.captions for record in result.records)
    assert not journal.exists()


def test_edits_apply_to_what_the_model_says_and_are_remembered(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red")
    with talking(lambda heard: "The image shows a red wall.") as talker:
        result = ask(folder, talker, edits=("strip-preamble", "trigger=sks"))
    (caption,) = result.records[0].captions
    assert (caption.text, caption.raw) == ("sks, A red wall.", "The image shows a red wall.")
    again = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
    assert again.records[0].captions == (caption,)
    plain = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, edits=()))
    assert plain.records[0].caption == "The image shows a red wall."


def test_a_caption_of_an_earlier_picture_or_crop_is_named(tmp_path: Path) -> None:
    folder = painted(tmp_path / "d", "red", "green")
    with talking(by_colour) as talker:
        ask(folder, talker, full=True)
        Image.new("RGB", (96, 64), RGB["blue"]).save(folder / "0-red.png")
        result = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
        (stale,) = [finding for finding in result.findings if finding.code == "stale_caption"]
        assert stale.files == ("0-red.png",)
        assert texts(ask(folder, talker))["0-red.png"] == ["a blue wall"]  # and asked again by itself
        result = bucket_dataset(folder, PrepareOptions(resolution=32, mode="square").bucket())
    assert "stale_caption" in {finding.code for finding in result.findings}


def test_the_key_comes_from_the_environment_and_goes_to_the_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = painted(tmp_path / "d", "red")
    monkeypatch.setenv("LORAKIT_CAPTION_KEY", "canary-7391")
    with talking(by_colour) as talker:
        ask(folder, talker, full=True)
    assert talker.heard[0].headers["Authorization"] == "Bearer canary-7391"
    for path in folder.rglob("*"):
        assert path.is_dir() or b"canary-7391" not in path.read_bytes()
    assert "canary-7391" not in "".join(capfd.readouterr())


def test_a_remote_server_is_announced_and_a_key_never_sent_in_the_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_captioner(CaptionerOptions(server="https://models.example.org/v1", model="m"))
    assert "the pictures leave this machine: they are sent to models.example.org" in capsys.readouterr().err
    load_captioner(CaptionerOptions(server="http://localhost:1/v1", model="m"))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LORAKIT_CAPTION_KEY", "secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        load_captioner(CaptionerOptions(server="http://models.example.org/v1", model="m"))


def test_the_model_may_be_left_to_a_server_that_has_one(tmp_path: Path) -> None:
    with talking(by_colour) as talker:
        assert load_captioner(CaptionerOptions(server=talker.url)).name == "talker"
        talker.models = ["one", "two"]
        with pytest.raises(ConfigError, match="has 2 models") as caught:
            load_captioner(CaptionerOptions(server=talker.url))
        assert "one, two" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="does not list its models"):
        load_captioner(CaptionerOptions(server=talker.url, timeout=1.0))


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://x/v1", "http://", "http://me:secret@x/v1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_captioner(CaptionerOptions(server=address, model="m"))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wrong", [{}, {"tokens": 0}, {"at_once": 0}, {"timeout": -1.0}, {"temperature": 3.0}], ids=str
)
def test_captioner_options_are_checked_first(wrong: dict[str, float]) -> None:
    given = {"server": "http://127.0.0.1:1/v1", **wrong} if wrong else {}
    with pytest.raises(ConfigError) as caught:
        CaptionerOptions(**given).check()  # type: ignore[arg-type]
    assert caught.value.remedy
    for bad in ({"which": "all"}, {"variants": 0}, {"side": 4}):
        with pytest.raises(ConfigError):
            CaptioningOptions(**bad).check()  # type: ignore[arg-type]


def test_the_command_line_asks_and_answers_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    folder = painted(tmp_path / "d", "red", "green")
    parser = argparse.ArgumentParser()
    cli.register_data_commands(parser.add_subparsers(required=True))

    def call(*words: str) -> int:
        args = parser.parse_args(["data", "caption", str(folder), "--json", "--quiet", *words])
        return int(args.handler(args))

    replies = {"red": "The image shows a red wall.", "green": 500}
    with talking(lambda heard: replies[heard.colour]) as talker:
        words = ["--server", talker.url, "--prompt", "what?", "--edit", "strip-preamble", "--side", "64"]
        assert call(*words) == 3
        assert json.loads(capsys.readouterr().out)["captions"] == {"model": 1}
        replies["green"] = "a green wall"
        assert call(*words) == 0
        assert json.loads(capsys.readouterr().out)["captions"] == {"model": 2}
    assert talker.heard[0].prompt == "what?"
    assert [record.caption for record in manifest.load_manifest(folder)] == ["A red wall.", "a green wall"]


def test_nothing_but_the_question_leaves(tmp_path: Path) -> None:
    """No path, file name or EXIF goes out with the picture."""
    folder = painted(tmp_path / "secret-folder")
    exif = Image.Exif()
    exif[0x010E] = "canary in the EXIF"
    Image.new("RGB", (96, 64), RGB["red"]).save(folder / "secret-name.jpg", exif=exif)
    with talking(by_colour) as talker:
        ask(folder, talker, full=True)
    sent = json.dumps(talker.heard[0].body)
    assert "secret" not in sent
    assert set(talker.heard[0].body) == {"model", "max_tokens", "temperature", "messages"}
    assert not talker.heard[0].picture.getexif()
    with contextlib.suppress(KeyError):
        assert "canary" not in str(talker.heard[0].picture.info["exif"])
