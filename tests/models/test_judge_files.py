"""Files of judges: pinned commits and hashes, and the hash that is recorded of every other model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorakit.core import checksums
from lorakit.core.errors import ConfigError, DataError
from lorakit.models import hub, judge_files
from lorakit.models.judge_files import PINS, Pin, require_weights, resolve_judge, weights_hash

PATTERNS = ("*.safetensors",)


@pytest.fixture
def snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose snapshots hold one file, b"weights"; returns the specs that were downloaded."""
    specs: list[str] = []

    def download(spec: str, patterns: object, role: str) -> Path:
        specs.append(spec)
        folder = tmp_path / "snapshots" / (spec.partition("@")[2] or "c0ffee")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        return folder

    monkeypatch.setattr(hub, "download_model", download)
    return specs


def pin(monkeypatch: pytest.MonkeyPatch, sha256: str | None) -> None:
    monkeypatch.setitem(judge_files.PINS, "team/judge", Pin("abc123", sha256))


def test_a_pinned_model_is_loaded_at_its_commit_and_its_weights_are_checked(snapshots, monkeypatch):
    digest = checksums.sha256_bytes(b"weights")
    pin(monkeypatch, digest)
    files = resolve_judge("team/judge", PATTERNS, "--image-encoder")
    assert snapshots == ["team/judge@abc123"]
    assert files.describe() == {"model": "team/judge", "revision": "abc123", "weights_sha256": digest}
    assert require_weights(files, "x").read_bytes() == b"weights"


def test_other_weights_at_a_pinned_commit_are_an_error(snapshots, monkeypatch):
    pin(monkeypatch, "0" * 64)
    with pytest.raises(DataError, match="not the published ones"):
        resolve_judge("team/judge", PATTERNS, "--image-encoder")
    assert resolve_judge("team/judge@other", PATTERNS, "x").revision == "other"  # the user's own choice


@pytest.mark.parametrize("spec", ["team/other", "team/judge"])
def test_where_no_hash_is_pinned_the_one_that_was_read_is_recorded(spec, snapshots, monkeypatch):
    pin(monkeypatch, None)
    files = resolve_judge(spec, PATTERNS, "x")
    assert files.weights_sha256 == checksums.sha256_bytes(b"weights")
    assert files.revision == {"team/other": "c0ffee", "team/judge": "abc123"}[spec]


def test_the_hash_of_several_files_depends_on_each_and_on_its_name(tmp_path):
    assert weights_hash(tmp_path) is None
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    first = weights_hash(tmp_path)
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    second = weights_hash(tmp_path)
    (tmp_path / "c.safetensors").write_bytes(b"x")
    assert len({first, second, weights_hash(tmp_path)}) == 3
    files = resolve_judge(str(tmp_path), PATTERNS, "x")
    assert files.revision is None
    assert str(tmp_path.parent) not in str(files.describe())
    with pytest.raises(ConfigError, match="2 safetensors files"):
        require_weights(files, "x")


def test_every_pin_is_a_whole_commit_and_hash():
    for repository, one in PINS.items():
        assert repository.count("/") == 1
        assert re.fullmatch(r"[0-9a-f]{40}", one.revision)
        assert one.weights_sha256 is None or re.fullmatch(r"[0-9a-f]{64}", one.weights_sha256)


def test_the_default_judges_are_pinned():
    import open_clip
    import timm

    from lorakit.evaluation.judges import DEFAULT_CLIP
    from lorakit.evaluation.metrics.extra_metrics import PICKSCORE_REPO
    from lorakit.evaluation.metrics.image_encoders import DEFAULT_IMAGE_ENCODER

    for name in (DEFAULT_CLIP, "ViT-B-32/openai"):
        config = open_clip.get_pretrained_cfg(*name.split("/"))
        assert config["hf_hub"].removesuffix("/") in PINS
    assert timm.get_pretrained_cfg(DEFAULT_IMAGE_ENCODER.removeprefix("timm:")).hf_hub_id in PINS
    assert PICKSCORE_REPO in PINS
