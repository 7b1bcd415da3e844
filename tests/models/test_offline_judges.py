"""Judges without network: packages and files of the hub's cache, at the pinned commit only."""

from __future__ import annotations

from importlib import metadata

import huggingface_hub
import pytest

from lorakit.models import offline_judges
from lorakit.models.judge_files import PINS
from lorakit.models.offline_judges import judge_states


def test_a_judge_of_the_hub_works_offline_if_its_pinned_commit_was_downloaded(monkeypatch):
    calls = []

    def lookup(repository: str, file: str, revision: str) -> str | None:
        calls.append((repository, revision))
        return "/cache/model.safetensors" if "dinov2" in repository else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lookup)
    states = {state.name: state for state in judge_states()}
    assert states["DINOv2"].offline
    assert not states["PickScore"].offline
    assert "network" in states["PickScore"].remedy
    assert {repository for repository, _ in calls} <= set(PINS)
    assert all(revision == PINS[repository].revision for repository, revision in calls)


@pytest.mark.parametrize(
    ("package", "judge", "extra"),
    [
        (offline_judges.IMAGENET_PACKAGE, "ImageNet encoder", "lorakit[imagenet]"),
        ("rapidocr", "rapidocr", "lorakit[ocr]"),
        ("onnxruntime", "rapidocr", "lorakit[ocr]"),
    ],
)
def test_a_judge_of_a_package_works_if_it_is_installed(package, judge, extra, monkeypatch):
    version = metadata.version

    def missing(name: str) -> str:
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    assert {state.name: state.offline for state in judge_states()}[judge]
    monkeypatch.setattr(offline_judges.metadata, "version", missing)
    state = next(state for state in judge_states() if state.name == judge)
    assert not state.offline
    assert extra in state.remedy
