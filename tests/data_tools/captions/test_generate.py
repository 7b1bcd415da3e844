"""Captions by a model behind a server: what is sent, and that no failure stops or loses anything."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from data_tools.captioners import CaptionerOptions, load_captioner
from data_tools.captions.caption_journal import JOURNAL, CaptionJournal
from data_tools.captions.generate import CaptioningOptions
from data_tools.prepare import Dataset, PrepareOptions, bucket_dataset, caption_dataset, prepare_dataset
from lorakit import manifest
from lorakit.core.errors import ConfigError
from lorakit.manifest import Record
from lorakit.models import chat_client
from tests.commands import call_data
from tests.data_tools.caption_server import CaptionServer, ReceivedRequest, serving_captions
from tests.data_tools.folders import hashes

RGB = {"red": (220, 30, 20), "green": (20, 200, 40), "blue": (30, 20, 220)}


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (0.01, 0.01))


def colored_images(folder: Path, *colors: str) -> Path:
    """One image of each color, named after it; all of different sizes."""
    folder.mkdir(exist_ok=True)
    for number, color in enumerate(colors):
        Image.new("RGB", (96 + number, 64), RGB[color]).save(folder / f"{number}-{color}.png")
    return folder


def run_captioner(folder: Path, server: CaptionServer, *, full: bool = False, **changes: object) -> Dataset:
    """Run `caption` (`prepare` if `full`) with the captioner behind the server."""
    captioning = {
        name: changes.pop(name) for name in list(changes) if name in CaptioningOptions.__dataclass_fields__
    }
    captioner = {
        name: changes.pop(name) for name in list(changes) if name in CaptionerOptions.__dataclass_fields__
    }
    options = PrepareOptions(
        resolution=64,
        quiet=True,
        captioner=CaptionerOptions(**{"server": server.url, "timeout": 5.0, **captioner}),  # type: ignore[arg-type]
        captioning=CaptioningOptions(**captioning),  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )
    return (prepare_dataset if full else caption_dataset)(folder, options)


def texts(result: Dataset) -> dict[str, list[str]]:
    return {record.file: [caption.text for caption in record.captions] for record in result.records}


def failures(record: Record) -> list[str]:
    return [note.split(": ")[2] for note in record.notes if note.startswith("caption_failed")]


def describe_color(request: ReceivedRequest) -> str:
    return f"a {request.color} wall"


def test_every_image_is_captioned_and_the_manifest_names_the_model(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red", "green", "blue")
    before = hashes(folder)
    with serving_captions(describe_color) as server:
        result = run_captioner(folder, server, full=True)
        assert texts(result) == {
            "0-red.png": ["a red wall"],
            "1-green.png": ["a green wall"],
            "2-blue.png": ["a blue wall"],
        }
        (caption,) = manifest.load_manifest(folder)[0].captions
        assert (caption.source, caption.model, caption.prompt) == (
            "model",
            "served-model",
            server.requests[0].prompt,
        )
        assert caption.image_hash is not None
        assert run_captioner(folder, server, full=True).records == result.records
    assert len(server.requests) == 3  # no request is repeated
    assert {name: value for name, value in hashes(folder).items() if name in before} == before
    assert not (folder / JOURNAL).exists()


def test_the_model_gets_the_image_upright_and_cropped(tmp_path: Path) -> None:
    """Stored rotated by 90 degrees, red at one end: the square crop of the upright image excludes the red."""
    folder = colored_images(tmp_path / "d")
    image = Image.new("RGB", (400, 200), RGB["green"])
    image.paste(RGB["red"], (0, 0, 90, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated clockwise: the left end becomes the top
    image.save(folder / "turned.jpg", exif=exif, quality=95, subsampling=0)
    Image.new("RGB", (64, 64), RGB["blue"]).save(folder / "other.png")
    with serving_captions(describe_color) as server:
        run_captioner(folder, server, full=True, bucket_mode="square", max_side=100)
    images = {request.color: request.image for request in server.requests}
    shown = images["green"].convert("RGB")
    assert shown.size == (100, 100)
    assert shown.getpixel((50, 2))[0] < 90  # type: ignore[index]
    record = manifest.load_manifest(folder)[1]
    assert (record.size, record.crop) == ((200, 400), (0, 100, 200, 300))


def test_a_caption_of_the_user_stays_unless_another_policy_is_chosen(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red", "green")
    (folder / "0-red.txt").write_text("by hand")
    with serving_captions(describe_color) as server:
        assert texts(run_captioner(folder, server))["0-red.png"] == ["by hand"]
        assert len(server.requests) == 1
        assert texts(run_captioner(folder, server, write_policy="append"))["0-red.png"] == [
            "by hand",
            "a red wall",
        ]
        assert texts(run_captioner(folder, server, write_policy="overwrite", regenerate=True))[
            "0-red.png"
        ] == ["a red wall"]
    # The replacement that the user requested stays in later runs.
    later = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
    assert texts(later)["0-red.png"] == ["a red wall"]
    assert "captions_replaced" in {finding.code for finding in later.findings}
    assert (folder / "0-red.txt").read_text() == "by hand"


def test_equal_images_are_requested_once(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red")
    (folder / "copy.png").write_bytes((folder / "0-red.png").read_bytes())
    with serving_captions(lambda request: f"answer {request.number}") as server:
        assert set(map(tuple, texts(run_captioner(folder, server)).values())) == {("answer 0",)}


def test_a_template_is_replaced_by_a_models_caption(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red")
    prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, class_noun="wall"))
    with serving_captions(describe_color) as server:
        assert texts(run_captioner(folder, server)) == {"0-red.png": ["a red wall"]}


def test_each_prompt_gives_as_many_captions_as_requested(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red")
    with serving_captions(lambda request: f"{request.prompt} {request.body.get('seed')}") as server:
        found = texts(
            run_captioner(folder, server, prompts=("short", "long"), captions_per_prompt=2, temperature=0.7)
        )["0-red.png"]
    assert [text.split()[0] for text in found] == ["short", "short", "long", "long"]
    assert len(set(found)) == 4
    seeds = {request.body["seed"] for request in server.requests}
    assert len(seeds) == 4


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (429, "http_429"),
        (500, "http_500"),
        (400, "http_400"),
        (b"<html>busy</html>", "invalid_response"),
        (b'{"choices": []}', "invalid_response"),
        (b'{"choices": [{"message": {"content": 7}}]}', "invalid_response"),
        (b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}', "refused"),
        ("", "empty_response"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("As an AI, I see no image.", "refused"),
        (("a wall that is", "length"), "truncated_response"),
        (("x", "content_filter"), "refused"),
        ((307, {"Location": "http://127.0.0.1:9/elsewhere"}), "http_307"),
    ],
)
def test_a_failure_is_recorded_and_the_other_images_are_captioned(
    tmp_path: Path, said: object, code: str
) -> None:
    folder = colored_images(tmp_path / "d", "red", "green", "blue")
    with serving_captions(
        lambda request: said if request.color == "green" else describe_color(request)
    ) as server:
        result = run_captioner(folder, server)
        kept = {record.file: record for record in result.records}
        assert failures(kept["1-green.png"]) == [code]
        assert kept["1-green.png"].captions == ()
        assert texts(result)["0-red.png"] == ["a red wall"]
        assert texts(result)["2-blue.png"] == ["a blue wall"]
        assert {"caption_failed", "no_caption"} <= {finding.code for finding in result.findings}
        asked = sum(request.color == "green" for request in server.requests)
        assert asked == (3 if code in ("http_429", "http_500") or said == b"<html>busy</html>" else 1)
    with serving_captions(describe_color) as server:  # the same command again requests only the missing one
        result = run_captioner(folder, server)
        assert [request.color for request in server.requests] == ["green"]
    assert texts(result)["1-green.png"] == ["a green wall"]
    assert not [note for record in result.records for note in record.notes if "caption_failed" in note]


def test_a_retry_waits_as_long_as_the_server_asks(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red")
    replies: list[object] = [(429, {"Retry-After": "0.3"}), 503, "a red wall"]
    with serving_captions(lambda request: replies[request.number]) as server:
        began = time.monotonic()
        assert texts(run_captioner(folder, server)) == {"0-red.png": ["a red wall"]}
        assert 0.3 <= time.monotonic() - began < 3


def test_a_slow_answer_is_given_up_in_time(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red", "green")

    def reply(request: ReceivedRequest) -> object:
        if request.color == "red":
            time.sleep(0.8 if request.number % 2 else 0)
            return 0.05  # every byte after 0.05 s: 6 s for the whole
        return "a green wall"

    with serving_captions(reply) as server:
        began = time.monotonic()
        result = run_captioner(folder, server, timeout=0.4)
    assert time.monotonic() - began < 5
    assert [failures(record) for record in result.records] == [["timeout"], []]


def test_a_truncated_answer_keeps_its_complete_sentences(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red")
    with serving_captions(lambda request: ("A red wall.\nIt stands in", "length")) as server:
        assert texts(run_captioner(folder, server)) == {"0-red.png": ["A red wall."]}


def test_a_wrong_key_stops_all_requests_and_keeps_earlier_captions(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", *["red"] * 30)
    with serving_captions(lambda request: "a red wall" if request.number < 3 else 401) as server:
        result = run_captioner(folder, server, concurrency=1)
    assert len(server.requests) < 10
    assert sum(bool(record.captions) for record in result.records) == 3
    assert sum(failures(record) == ["http_401"] for record in result.records) == 27


def test_requests_stop_when_every_image_fails_in_the_same_way(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", *["red"] * 60)
    with serving_captions(lambda request: 500) as server:
        result = run_captioner(folder, server, concurrency=2)
    assert len(server.requests) <= 3 * 26
    assert all(failures(record) == ["http_500"] for record in result.records)


def test_concurrent_requests_give_the_same_result(tmp_path: Path) -> None:
    def slowly(request: ReceivedRequest) -> str:
        time.sleep(0.05)
        return describe_color(request)

    written = []
    for concurrency in (1, 6):
        folder = colored_images(tmp_path / f"d{concurrency}", *["red", "green", "blue"] * 6)
        with serving_captions(slowly) as server:
            run_captioner(folder, server, concurrency=concurrency)
        assert server.max_concurrency == concurrency or (concurrency > 1 and server.max_concurrency > 2)
        written.append((folder / manifest.MANIFEST_FILE).read_bytes())
    assert written[0] == written[1]


def test_a_stopped_run_continues_with_the_missing_requests(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", *["red", "green", "blue"] * 3)
    stopped = False

    def reply(request: ReceivedRequest) -> object:
        nonlocal stopped
        stopped = request.number >= 4
        return describe_color(request)

    def interrupt(*_: object) -> None:
        if stopped:
            raise KeyboardInterrupt

    with serving_captions(reply) as server, pytest.MonkeyPatch.context() as patch:
        real = CaptionJournal.append
        patch.setattr(CaptionJournal, "append", lambda *args: (real(*args), interrupt()))
        with pytest.raises(KeyboardInterrupt):
            run_captioner(folder, server, concurrency=1)
    assert not (folder / manifest.MANIFEST_FILE).exists()
    journal = folder / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"key": "torn')
    done = len(journal.read_text().splitlines()) - 1
    assert done >= 4
    assert len(caption_dataset(folder, PrepareOptions(class_noun="wall", quiet=True)).records) == 9
    assert journal.exists()  # another command keeps the answers
    with serving_captions(describe_color) as server:
        result = run_captioner(folder, server)
    assert len(server.requests) == 9 - done
    assert all(record.captions for record in result.records)
    assert not journal.exists()


def test_edits_apply_to_the_models_captions_and_are_recorded(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red")
    with serving_captions(lambda request: "The image shows a red wall.") as server:
        result = run_captioner(folder, server, caption_edits=("strip-preamble", "trigger=sks"))
    (caption,) = result.records[0].captions
    assert (caption.text, caption.original_text) == ("sks, A red wall.", "The image shows a red wall.")
    again = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
    assert again.records[0].captions == (caption,)
    plain = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True, caption_edits=()))
    assert plain.records[0].caption == "The image shows a red wall."


def test_a_caption_of_a_changed_image_or_crop_is_reported(tmp_path: Path) -> None:
    folder = colored_images(tmp_path / "d", "red", "green")
    with serving_captions(describe_color) as server:
        run_captioner(folder, server, full=True)
        Image.new("RGB", (96, 64), RGB["blue"]).save(folder / "0-red.png")
        result = prepare_dataset(folder, PrepareOptions(resolution=64, quiet=True))
        (stale,) = [finding for finding in result.findings if finding.code == "stale_caption"]
        assert stale.files == ("0-red.png",)
        assert texts(run_captioner(folder, server))["0-red.png"] == ["a blue wall"]  # and requested again
        result = bucket_dataset(folder, PrepareOptions(resolution=32, bucket_mode="square").bucket_options())
    assert "stale_caption" in {finding.code for finding in result.findings}


def test_the_key_comes_from_the_environment_and_goes_only_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = colored_images(tmp_path / "d", "red")
    monkeypatch.setenv("LORAKIT_CAPTION_API_KEY", "canary-7391")
    with serving_captions(describe_color) as server:
        run_captioner(folder, server, full=True)
    assert server.requests[0].headers["Authorization"] == "Bearer canary-7391"
    for path in folder.rglob("*"):
        assert path.is_dir() or b"canary-7391" not in path.read_bytes()
    assert "canary-7391" not in "".join(capfd.readouterr())


def test_a_remote_server_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    load_captioner(CaptionerOptions(server="https://models.example.org/v1", model="m"))
    assert "the images are sent to another machine: models.example.org" in caplog.text
    caplog.clear()
    load_captioner(CaptionerOptions(server="http://localhost:1/v1", model="m"))
    assert caplog.text == ""


@pytest.mark.parametrize("model", ["m", None])
def test_a_key_is_never_sent_unencrypted(model: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not for the list of models."""
    monkeypatch.setenv("LORAKIT_CAPTION_API_KEY", "secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        load_captioner(CaptionerOptions(server="http://models.example.org/v1", model=model))


def test_the_only_model_of_a_server_needs_no_name(tmp_path: Path) -> None:
    with serving_captions(describe_color) as server:
        assert load_captioner(CaptionerOptions(server=server.url)).name == "served-model"
        server.models = ["one", "two"]
        with pytest.raises(ConfigError, match="has 2 models") as caught:
            load_captioner(CaptionerOptions(server=server.url))
        assert "one, two" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="does not list its models"):
        load_captioner(CaptionerOptions(server=server.url, timeout=1.0))


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://x/v1", "http://", "http://me:secret@x/v1"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_captioner(CaptionerOptions(server=address, model="m"))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wrong", [{}, {"max_tokens": 0}, {"concurrency": 0}, {"timeout": -1.0}, {"temperature": 3.0}], ids=str
)
def test_invalid_captioner_options_are_refused(wrong: dict[str, float]) -> None:
    given = {"server": "http://127.0.0.1:1/v1", **wrong} if wrong else {}
    with pytest.raises(ConfigError) as caught:
        CaptionerOptions(**given).check()  # type: ignore[arg-type]
    assert caught.value.remedy
    for bad in ({"write_policy": "all"}, {"captions_per_prompt": 0}, {"max_side": 4}):
        with pytest.raises(ConfigError):
            CaptioningOptions(**bad).check()  # type: ignore[arg-type]


def test_the_command_captions_and_exits_with_3_if_captions_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = colored_images(tmp_path / "d", "red", "green")

    def call(*words: str) -> int:
        return call_data("caption", str(folder), "--json", "--quiet", *words)

    replies = {"red": "The image shows a red wall.", "green": 500}
    with serving_captions(lambda request: replies[request.color]) as server:
        words = [
            "--server",
            server.url,
            "--prompt",
            "what?",
            "--caption-edit",
            "strip-preamble",
            "--max-side",
            "64",
        ]
        assert call(*words) == 3
        assert json.loads(capsys.readouterr().out)["captions"] == {"model": 1}
        replies["green"] = "a green wall"
        assert call(*words) == 0
        assert json.loads(capsys.readouterr().out)["captions"] == {"model": 2}
    assert server.requests[0].prompt == "what?"
    assert [record.caption for record in manifest.load_manifest(folder)] == ["A red wall.", "a green wall"]


def test_only_prompt_and_image_are_sent(tmp_path: Path) -> None:
    """No path, file name or EXIF is sent with the image."""
    folder = colored_images(tmp_path / "secret-folder")
    exif = Image.Exif()
    exif[0x010E] = "canary in the EXIF"
    Image.new("RGB", (96, 64), RGB["red"]).save(folder / "secret-name.jpg", exif=exif)
    with serving_captions(describe_color) as server:
        run_captioner(folder, server, full=True)
    sent = json.dumps(server.requests[0].body)
    assert "secret" not in sent
    assert set(server.requests[0].body) == {"model", "max_tokens", "temperature", "messages"}
    assert not server.requests[0].image.getexif()
    assert "canary" not in str(server.requests[0].image.info.get("exif", ""))
