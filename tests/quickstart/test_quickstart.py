"""`lorakit quickstart` as a newcomer gives it: the adapter learns, by the figures of its own report."""

from __future__ import annotations

from lorakit.cli import main
from lorakit.core import storage


def test_quickstart_teaches_the_dit_stripes(tmp_path, capsys):
    assert main.main(["quickstart", "--out", str(tmp_path / "q"), "--base", "tiny-dit", "--quiet"]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "q/tiny-dit-striped"
    for path in ("eval/report.html", "eval/contact.png", "adapter.safetensors", "report.html"):
        assert (run / path).is_file()
    assert str(run / "eval/report.html") in out
    assert "lorakit train recipes/sd15.yaml" in out
    base, taught, other = (
        next(
            row
            for row in storage.read_json(run / "eval/scores.json")["summary"]
            if row["kind"] == kind and test(row)
        )
        for kind, test in (
            ("concept", lambda row: row["arm"] == "base"),
            ("concept", lambda row: row["arm"] != "base"),
            ("other", lambda row: row["arm"] != "base"),
        )
    )
    assert taught["clip_t_gain"]["low"] > 0
    assert base["right"]["mean"] <= 0.1
    assert taught["right"]["mean"] >= 0.85
    assert other["clip_t_gain"]["mean"] > -taught["clip_t_gain"]["mean"] / 5
