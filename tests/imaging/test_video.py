"""Videos: examined, read by frame, rotated upright, and refused if damaged."""

from __future__ import annotations

import builtins
import io
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.listing import list_dataset
from lorakit import manifest
from lorakit.core import checksums, storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import decode, resize, video
from lorakit.imaging.color_encoding import encoding_to_srgb, from_codes
from lorakit.imaging.decode import ImageError
from lorakit.manifest import Record, VideoInfo
from tests.imaging import videos


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.mkv", "ffv1")]
)
def test_a_video_is_examined_and_its_frames_are_read(name, codec):
    data = videos.encode(7, name=name, codec=codec)
    inspection = video.inspect_video(data, name, 10_000)
    assert inspection.video == VideoInfo(7, 8.0)
    assert inspection.first_frame.size == (64, 48)
    frames = video.read_frames(data, name, [0, 2, 6])
    assert [videos.frame_number(frame) for frame in frames] == [0, 2, 6]
    assert np.array_equal(frames[0], np.asarray(inspection.first_frame))
    assert inspection.content_hash == video.inspect_video(data, name, 10_000).content_hash
    assert (
        inspection.content_hash
        != video.inspect_video(videos.encode(6, name=name, codec=codec), name, 10_000).content_hash
    )


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        (".mp4", "libx264", "a.mkv"),
        (".mkv", "ffv1", "a.mp4"),
        (".avi", "mpeg4", "a.avi"),
        (".avi", "mpeg4", "a"),
    ],
)
def test_the_content_of_a_video_decides_not_its_name(container, codec, name):
    data = videos.encode(4, name=f"x{container}", codec=codec)
    assert video.inspect_video(data, name, 10_000).video.frames == 4
    assert videos.frame_number(video.read_frames(data, name, [3])[0]) == 3


@pytest.mark.parametrize(
    ("info", "fps", "max_frames", "multiple", "expected"),
    [
        (VideoInfo(9, 8.0), 8.0, 9, 4, (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (VideoInfo(9, 8.0), 8.0, 8, 4, (0, 1, 2, 3, 4)),  # one more than a multiple of 4
        (VideoInfo(4, 8.0), 8.0, 81, 4, (0,)),
        (VideoInfo(9, 8.0), 8.0, 1, 4, (0,)),  # an image
        (VideoInfo(12, 32.0), 16.0, 81, 4, (0, 2, 4, 6, 8)),
        (VideoInfo(12, 24.0), 16.0, 81, 4, (0, 1, 3, 4, 6)),
        (VideoInfo(6, 4.0), 16.0, 81, 4, (0, 1, 2, 3, 4)),  # no frame is repeated
        (VideoInfo(100, 25.0), 25.0, 17, 8, tuple(range(17))),
        (VideoInfo(31, 29.97), 14.985, 13, 4, tuple(range(0, 25, 2))),
    ],
)
def test_frames_are_chosen_by_frame_rate_and_multiple(info, fps, max_frames, multiple, expected):
    assert video.frame_indices(info, fps, max_frames, multiple) == expected


def test_a_rotated_video_is_upright():
    data = videos.encode(2, rotation=90)
    inspection = video.inspect_video(data, "a.mp4", 10_000)
    assert inspection.first_frame.size == (48, 64)
    clockwise = np.rot90(video.read_frames(videos.encode(2), "a.mp4", [0])[0], -1)
    assert np.array_equal(np.asarray(inspection.first_frame), clockwise)


def test_videos_without_a_color_space_have_the_colors_that_players_show():
    """Players assume BT.601 for small videos and BT.709 for large ones."""
    color = (200, 60, 20)
    for size, matrix in (((64, 48), "ITU601"), ((1280, 720), "ITU709")):
        frame = video.read_frames(videos.encode_color(color, size, matrix), "a.mp4", [0])[0]
        assert np.abs(frame.reshape(-1, 3).mean(0) - color).max() < 2, size


def test_damaged_and_other_files_are_refused():
    data = videos.encode(9, codec="ffv1", name="a.mkv", size=(128, 96))
    for bytes_, name, code in (
        (data[: len(data) // 2], "a.mkv", "truncated"),
        (b"", "a.mp4", "empty"),
        (bytes(400), "a.mp4", "corrupt"),
        (videos.encode(3)[:900], "a.mp4", "corrupt"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "a.mp4", "not_an_image"),  # it would read other files
        (b"<!doctype html><title>404</title>", "a.mp4", "html_or_xml"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a.mp4", "lfs_pointer"),
        (b"FLV\x01\x05" + bytes(99), "a.mp4", "unsupported_format"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(99), "a.wmv", "unsupported_format"),
        (videos.encode(3).replace(b"avc1", b"zzz1"), "a.mp4", "unsupported_format"),  # an unknown codec
        (videos.encode_sound(), "a.mp4", "not_an_image"),
        (videos.encode(3), "a.mp4", "too_many_pixels"),
    ):
        with pytest.raises(ImageError) as caught:
            video.inspect_video(bytes_, name, 1_000 if code == "too_many_pixels" else 100_000)
        assert caught.value.code == code, name
        assert caught.value.remedy
    with pytest.raises(ImageError, match="no frame 3"):
        video.read_frames(videos.encode(3), "a.mp4", [0, 3])


def test_the_error_without_pyav_names_the_extra(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *arguments):
        if name == "av":
            raise ImportError(name)
        return real(name, *arguments)

    data = videos.encode(1)
    monkeypatch.delitem(sys.modules, "av")
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'lorakit\[video\]'"):
        video.inspect_video(data, "a.mp4", 10_000)
    storage.write_bytes(tmp_path / "a.mp4", data)
    with pytest.raises(ConfigError, match=r"lorakit\[video\]"):
        list_dataset(tmp_path, include_videos=True)


def _record(folder: Path) -> manifest.Record:
    file = storage.write_bytes(folder / "a.mp4", videos.encode(9))
    inspection = video.inspect_video(file.read_bytes(), "a.mp4", 10_000)
    sha256 = checksums.sha256_file(file)
    return manifest.Record(
        "a.mp4", sha256, inspection.content_hash, *inspection.first_frame.size, video=inspection.video
    )


def test_the_image_of_a_video_is_its_first_frame(tmp_path):
    record = _record(tmp_path)
    first = video.read_frames((tmp_path / "a.mp4").read_bytes(), "a.mp4", [0])[0]
    assert np.array_equal(np.asarray(decode.read_record_image(tmp_path, record)), first)
    assert decode.record_thumbnail(tmp_path, record, 32).size == (32, 24)
    with pytest.raises(ImageError, match="changed"):
        decode.read_record_image(tmp_path, replace(record, sha256="0" * 64))


def test_frames_are_cropped_and_resized_like_images(tmp_path):
    record, crop, size = _record(tmp_path), (8, 0, 56, 48), (32, 32)
    frames = resize.load_video_tensor(tmp_path, record, crop, size, (0, 4))
    assert frames.shape == (3, 2, 32, 32)
    assert torch.equal(frames[:, 0], resize.load_image_tensor(tmp_path, record, crop, size))
    assert videos.frame_number(frames[:, 1].permute(1, 2, 0).numpy()) == 4


def test_the_manifest_records_frames_and_rate_of_videos_only(tmp_path):
    record = _record(tmp_path)
    assert manifest.parse_record(manifest.manifest_bytes([record]), "x") == record
    assert b'"video": {"frames": 9, "fps": 8.0}' in manifest.manifest_bytes([record])
    assert b"video" not in manifest.manifest_bytes([replace(record, video=None)])
    with pytest.raises(Exception, match="at least one frame"):
        manifest.check_record(replace(record, video=VideoInfo(0, 8.0)), "x")


def test_frames_become_a_strip_and_an_animation():
    frames = [Image.new("RGB", (8, 6), (20 * i, 0, 0)) for i in range(5)]
    strip = video.frame_strip(frames)
    assert strip.size == (24, 6)
    assert [strip.getpixel((x, 0))[0] for x in (0, 8, 16)] == [0, 40, 80]
    assert video.frame_strip(frames[:1]).tobytes() == frames[0].tobytes()
    with Image.open(io.BytesIO(video.encode_webp(frames, 8.0))) as frames:
        assert frames.n_frames == 5
        frames.seek(4)
        assert frames.convert("RGB").getpixel((0, 0)) == (80, 0, 0)
        assert frames.info["duration"] == 125


VARIABLE = {
    "a pause": [0, 0.1, 0.2, 0.3, 0.9, 1.0, 1.1, 1.2],
    "a slow start": [0, 0.4, 0.5, 0.6, 0.65, 0.7, 0.8, 1.0],
    "a phone": [0, 0.033, 0.066, 0.12, 0.2, 0.233, 0.266, 0.3, 0.36],
    "fast, then slow": [0, 0.02, 0.04, 0.06, 0.08, 0.3, 0.5, 0.7, 0.9],
}


@pytest.mark.parametrize("fps", [4.0, 8.0])
@pytest.mark.parametrize("name", VARIABLE)
def test_frames_of_a_variable_rate_are_chosen_by_their_time(name: str, fps: float) -> None:
    times = VARIABLE[name]
    data = videos.encode_timed(times)
    info = video.inspect_video(data, "a.mp4", 10**6).video
    assert info.times == pytest.approx(times, abs=2e-3)
    indices = video.frame_indices(info, fps, 81, 1)
    for number, index in enumerate(indices):
        target = number / min(fps, info.fps)
        assert abs(times[index] - target) <= min(abs(time - target) for time in times) + 2e-3
    frames = video.read_frames(data, "a.mp4", indices)
    assert [videos.frame_number(frame) for frame in frames] == list(indices)


def test_a_constant_rate_needs_no_times() -> None:
    for rate in (8, 24, 30):
        info = video.inspect_video(videos.encode(9, rate=rate), "a.mp4", 10**6).video
        assert info == VideoInfo(9, float(rate))


@pytest.mark.parametrize(
    ("info", "fps", "expected"),
    [
        (VideoInfo(11, 25.0), 20.0, (0, 1, 2, 4, 5, 6, 7, 9, 10)),
        (VideoInfo(9, 8.0), 6.0, (0, 1, 3, 4, 5, 7, 8)),
    ],
)
def test_every_frame_is_within_half_a_frame_of_its_time(
    info: VideoInfo, fps: float, expected: tuple[int, ...]
) -> None:
    assert video.frame_indices(info, fps, 81, 1) == expected
    for number, index in enumerate(expected):
        assert abs(index / info.fps - number / fps) <= 0.5 / info.fps + 1e-9


@pytest.mark.parametrize(
    ("pixel_aspect", "size"),
    [(Fraction(2, 1), (128, 48)), (Fraction(1, 2), (64, 96)), (Fraction(4, 3), (85, 48)), (None, (64, 48))],
)
def test_pixels_that_are_not_square_are_stretched(
    pixel_aspect: Fraction | None, size: tuple[int, int]
) -> None:
    data = videos.encode_timed([0, 0.1, 0.2], pixel_aspect=pixel_aspect)
    assert video.inspect_video(data, "a.mp4", 10**6).first_frame.size == size


@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_hdr_videos_are_mapped_to_srgb(transfer: int) -> None:
    """As images of the same codes: a level of PQ is darker than its number."""
    data = videos.encode_timed([0, 0.1], codes=(9, transfer), gray=40)
    plain = videos.encode_timed([0, 0.1], codes=(1, 1), gray=40)
    hdr, sdr = (np.asarray(video.inspect_video(one, "a.mp4", 10**6).first_frame) for one in (data, plain))
    expected = encoding_to_srgb(Image.fromarray(sdr), from_codes(9, transfer))
    assert np.abs(hdr.astype(int) - np.asarray(expected)).max() <= 6
    assert abs(int(hdr.mean()) - int(sdr.mean())) > 5


@pytest.mark.parametrize("times", [(0.1, 0.2), (0.0, 0.2, 0.1), (0.0,)])
def test_times_that_make_no_sense_are_refused(times: tuple[float, ...]) -> None:
    record = Record("a.mp4", "0" * 64, "0" * 64, 8, 8, video=VideoInfo(max(2, len(times)), 8.0, times))
    with pytest.raises(DataError, match="times of a video"):
        manifest.check_record(record, "x")
