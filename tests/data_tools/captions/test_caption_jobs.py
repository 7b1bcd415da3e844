"""Tests of how requests are run: decoding ahead, batches that fit the memory, shards, a killed command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_tools import prepare
from data_tools.captioners import (
    Captioner,
    CaptionerOptions,
    CaptionFailure,
    CaptionRequest,
    CaptionResponse,
)
from data_tools.captioners.batch_size import LARGEST_BATCH, BatchSize
from data_tools.captions import caption_jobs
from data_tools.captions.caption_jobs import CaptionJob, run_jobs
from data_tools.captions.caption_journal import JOURNAL, CaptionJournal
from data_tools.captions.generate import CaptioningOptions, caption_images
from data_tools.prepare import PrepareOptions, caption_dataset, caption_dataset_shard
from lorakit import manifest
from lorakit.core.errors import ConfigError
from lorakit.manifest import Record
from tests.commands import call_data
from tests.data_tools.caption_server import ReceivedRequest, serving_captions
from tests.data_tools.captioners.onnx_taggers import onnx_tagger
from tests.data_tools.folders import fill
from tests.long_tier import long


class LocalModel(Captioner):
    """A captioner whose memory takes `fits` images at once, and that fails at images of one width."""

    name, prompts = "local", ("what?",)

    def __init__(self, batch: BatchSize, *, fits: int = 1000, bad_width: int = 0) -> None:
        self._batch, self.fits, self.bad_width = batch, fits, bad_width
        self.sizes: list[int] = []

    @property
    def batch_size(self) -> int:
        return self._batch.value

    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        self.sizes.append(len(requests))
        if len(requests) > self.fits:
            self._batch.record_out_of_memory(len(requests))
            raise CaptionFailure("out_of_memory", "too large for this device")
        if any(request.image.width == self.bad_width for request in requests):
            raise CaptionFailure("model_error", "the processor fails")
        self._batch.record_success(len(requests))
        return [CaptionResponse(f"{r.image.width} pixels wide, for {r.prompt}") for r in requests]


def records_of(folder: Path, count: int) -> list[Record]:
    """Scanned images, each wider than the one before."""
    for number in range(count):
        fill(folder, {f"{number:02d}.png": None}, size=(32 + number, 32))
    options = PrepareOptions(quiet=True, class_noun="wall", resolution=64)
    return list(caption_dataset(folder, options).records)


def jobs_for(records: Sequence[Record]) -> list[CaptionJob]:
    return [CaptionJob(record, "what?", 0, "", str(number)) for number, record in enumerate(records)]


def test_a_batch_that_does_not_fit_is_halved_and_no_image_is_lost(tmp_path: Path) -> None:
    records = records_of(tmp_path, 20)
    model = LocalModel(BatchSize("cpu", 8), fits=3, bad_width=40)
    results = dict(run_jobs(tmp_path, jobs_for(records), model, 1024))
    answers = {job.record.file: result for job, result in results.items()}
    failed = {file for file, result in answers.items() if isinstance(result, CaptionFailure)}
    assert failed == {"08.png"}
    assert len(answers) == 20
    assert all(
        f"{record.width} pixels wide" in answers[record.file].text
        for record in records
        if record.file not in failed
    )  # type: ignore[union-attr]
    assert max(model.sizes[model.sizes.index(2) :]) <= 4  # what did not fit is not tried again


def test_a_batch_grows_on_a_gpu_while_its_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, sizes = BatchSize("cuda"), []
    monkeypatch.setattr(BatchSize, "_has_room", lambda self: self.value < 8)
    for _ in range(5):
        sizes.append(batch.value)
        batch.record_success(batch.value)
    assert sizes == [1, 2, 4, 8, 8]
    batch.record_out_of_memory(8)
    batch.record_success(batch.value)
    assert batch.value == 4
    monkeypatch.setattr(BatchSize, "_has_room", lambda self: True)
    largest = BatchSize("cuda")
    for _ in range(20):
        largest.record_success(largest.value)
    assert largest.value == LARGEST_BATCH
    fixed = BatchSize("cuda", 3)
    fixed.record_success(3)
    assert (fixed.value, BatchSize("cpu").value) == (3, 4)


def test_the_next_images_are_decoded_while_the_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, decoded = records_of(tmp_path, 12), threading.Semaphore(0)
    real = caption_jobs.captioner_view

    def count(*args: object) -> object:
        decoded.release()
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(caption_jobs, "captioner_view", count)
    ahead: list[bool] = []

    class Waiting(LocalModel):
        def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
            if not ahead:  # its own two images, and at least one of the next
                ahead.append(all(decoded.acquire(timeout=10) for _ in range(3)))
            return super().caption(requests)

    assert len(list(run_jobs(tmp_path, jobs_for(records), Waiting(BatchSize("cpu", 2)), 64))) == 12
    assert ahead == [True]


def test_an_image_with_several_prompts_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, files = records_of(tmp_path, 3), []
    real = caption_jobs.captioner_view
    monkeypatch.setattr(
        caption_jobs, "captioner_view", lambda *args: (files.append(args[1].file), real(*args))[1]
    )
    options = CaptioningOptions(prompts=("a?", "b?", "c?"))
    model = LocalModel(BatchSize("cpu", 2))
    captioned, counts = caption_images(records, model, options, CaptionJournal(tmp_path))
    assert sorted(files) == ["00.png", "01.png", "02.png"]
    assert (counts.num_requests, counts.num_answered) == (9, 9)
    _, again = caption_images(captioned, model, options, CaptionJournal(tmp_path))
    assert (again.num_known, again.num_requests) == (9, 0)


def options_for(url: str) -> PrepareOptions:
    captioner = CaptionerOptions(server=url, model="m", timeout=5.0, concurrency=1)
    return PrepareOptions(resolution=64, quiet=True, captioner=captioner)


def describe_size(request: ReceivedRequest) -> str:
    return f"An image of {request.image.width} by {request.image.height} pixels in {request.color}."


def test_shards_and_the_command_without_them_give_what_one_command_gives(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "parts"]
    for folder in folders:
        for number in range(7):
            fill(folder, {f"{number}.png": None}, size=(40 + number, 32))
        (folder / "3.txt").write_text("by hand")
    with serving_captions(describe_size) as server:
        caption_dataset(folders[0], options_for(server.url))
        requested = len(server.requests)
        for part, count in (("2/2", 2), ("1/2", 4)):  # images 1 and 5; 0, 2, 4, 6
            result = caption_dataset_shard(folders[1], options_for(server.url), part)
            assert result.captioning is not None
            assert result.captioning.num_answered == count
        assert not (folders[1] / manifest.MANIFEST_FILE).exists()
        assert len(list(folders[1].glob(".lorakit-captions-*"))) == 2
        result = caption_dataset(folders[1], options_for(server.url))
        assert len(server.requests) == 2 * requested
    assert result.captioning is not None
    assert (result.captioning.num_known, result.captioning.num_requests) == (6, 0)
    one, parts = ((folder / manifest.MANIFEST_FILE).read_bytes() for folder in folders)
    assert one == parts
    assert not list(folders[1].glob(".lorakit-captions*"))


def test_shard_and_ray_need_a_model_that_they_can_run(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None}, size=(64, 64))
    with pytest.raises(ConfigError, match="a shard needs a captioner"):
        caption_dataset_shard(tmp_path, PrepareOptions(quiet=True), "1/2")
    with pytest.raises(ConfigError, match="not for a server"):
        caption_dataset(tmp_path, options_for("http://127.0.0.1:9/v1"), ray_address="local")
    with pytest.raises(ConfigError, match="needs a captioner"):
        caption_dataset(tmp_path, PrepareOptions(quiet=True, class_noun="dog"), ray_address="local")


def test_the_command_says_how_many_answers_are_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        fill(tmp_path, {f"{number}.png": None}, size=(40 + number, 32))
    with serving_captions(describe_size) as server:
        words = ["caption", str(tmp_path), "--server", server.url]
        assert call_data(*words, "--shard", "1/2", "--quiet") == 0
        assert call_data(*words) == 0
    printed = capfd.readouterr()
    assert "captions: 2 are there already, 2 are requested" in printed.err
    assert "2 of 2 requests answered, 2 answers were there before" in printed.out


@long
def test_a_killed_command_loses_only_what_is_in_flight(tmp_path: Path) -> None:
    for number in range(40):
        fill(tmp_path, {f"{number:02d}.png": None}, size=(40 + number, 32))
    command = [sys.executable, "-m", "lorakit.cli.main", "data", "caption", str(tmp_path), "--quiet"]

    def slowly(request: ReceivedRequest) -> str:
        time.sleep(0.05)
        return describe_size(request)

    with serving_captions(slowly) as server:
        command += ["--server", server.url, "--concurrency", "2"]
        process = subprocess.Popen(command)
        journal = tmp_path / JOURNAL
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 10):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        answered = journal.read_bytes().count(b"\n")
        first = len(server.requests)
        assert 10 <= answered < 40
        subprocess.run(command, check=True)
        assert len(server.requests) - first == 40 - answered
        assert len(server.requests) <= 40 + 4
    assert all(record.captions for record in manifest.load_manifest(tmp_path))


@pytest.mark.skipif(find_spec("ray") is None, reason='needs the extra: pip install "lorakit[ray]"')
def test_ray_gives_the_same_captions(tmp_path: Path) -> None:
    model = onnx_tagger(tmp_path / "wd")
    written = []
    for name, address in (("plain", None), ("ray", "local")):
        folder = tmp_path / name
        for number in range(40):
            fill(folder, {f"{number:02d}.png": None}, size=(40 + number, 32))
        (folder / "07.png").write_bytes(b"damaged")
        captioner = CaptionerOptions(model=str(model), threshold=0.4, character_threshold=0.4, device="cpu")
        options = PrepareOptions(resolution=64, quiet=True, captioner=captioner, allow_missing_captions=True)
        result = prepare.caption_dataset(folder, options, ray_address=address)
        assert result.captioning is not None
        assert result.captioning.num_answered == 39
        written.append((folder / manifest.MANIFEST_FILE).read_bytes())
    assert written[0] == written[1]
