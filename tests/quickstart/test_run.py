"""`lorakit quickstart` as a newcomer gives it: the adapter learns, by the figures of its own report."""

from __future__ import annotations

from lorakit import cli, storage


def test_quickstart_teaches_the_dit_stripes(tmp_path, capsys):
    assert cli.main(["quickstart", "--out", str(tmp_path / "q"), "--base", "tiny-dit", "--quiet"]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "q/tiny-dit-striped"
    for path in ("eval/report.html", "eval/contact.png", "adapter.safetensors", "report.html"):
        assert (run / path).is_file()
    assert str(run / "eval/report.html") in out
    assert "lorakit train recipes/sd15.yaml" in out
    groups = {g["kind"]: g for g in storage.read_json(run / "eval/scores.json")["groups"]}
    taught, other = groups["concept"], groups["other"]
    assert taught["gain"]["low"] > 0
    assert taught["right_before"]["mean"] <= 0.1
    assert taught["right_after"]["mean"] >= 0.85
    assert other["gain"]["mean"] > -taught["gain"]["mean"] / 5
