"""`lorakit quickstart` trains an adapter that learns the concept, by the scores of its own report."""

from __future__ import annotations

import pytest

from lorakit.cli import main
from lorakit.core import storage
from tests.long_tier import long


@pytest.mark.parametrize(
    ("options", "accuracy"),
    [(["--steps", "100"], 0.3), pytest.param([], 0.85, marks=long)],
    ids=["some steps", "all steps"],
)
def test_quickstart_trains_stripes_on_tiny_dit(tmp_path, capsys, options, accuracy):
    command = ["quickstart", "--out", str(tmp_path / "q"), "--base", "tiny-dit", "--quiet", *options]
    assert main.main(command) == 0
    out = capsys.readouterr().out
    run = tmp_path / "q/tiny-dit-striped"
    for path in ("eval/report.html", "eval/contact-sheet.png", "adapter.safetensors", "report.html"):
        assert (run / path).is_file()
    assert str(run / "eval/report.html") in out
    assert "lorakit export" in out
    assert "lorakit train sd15" in out
    selected = storage.read_json(run / "eval/selection.json")["variant"]
    summary = storage.read_json(run / "eval/scores.json")["summary"]
    rows = {(row["variant"], row["kind"]): row for row in summary}
    base, subject, unrelated = (
        rows["base", "subject"],
        rows[selected, "subject"],
        rows[selected, "unrelated"],
    )
    assert subject["clip_t_gain"]["ci_low"] > 0
    assert base["clip_accuracy"]["mean"] <= 0.1
    assert subject["clip_accuracy"]["mean"] >= accuracy
    assert unrelated["clip_t_gain"]["mean"] > -subject["clip_t_gain"]["mean"] / 5
