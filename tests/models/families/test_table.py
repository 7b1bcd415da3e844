"""`lorakit families`, and that its README tells how a family is really made."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lorakit.adapters.formats import consumers
from lorakit.cli import main
from lorakit.models import families
from lorakit.models.families.family import Family
from tests import tiny
from tests.models.families.test_derived import EQUAL

README = Path(families.__file__).parent / "README.md"


def test_every_family_is_shown_with_all_that_is_known(capsys):
    assert main.main(["families"]) == 0
    text = capsys.readouterr().out
    for family in families.FAMILIES:
        row = text[text.index(f"\n{family.name} ") :].split("\n")[1:5]
        assert family.title in row[0]
        assert f"{family.objective}; targets: attention" in row[1]
        assert f"rank 16: {family.rank16}" in row[1]
        assert row[2].endswith(family.licence)
        assert "tested: equal to its pipeline" in row[3]
    assert "any other text-to-image pipeline" in text
    assert main.main(["families", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*(family.name for family in families.FAMILIES), "derived"]
    assert len({frozenset(row) for row in rows}) == 1


def test_the_readme_is_a_page_and_names_what_there_is():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < 500
    hooks = re.search(r"each hook says what it is for: (.*?)\.\n", text, re.S)
    for name in re.findall(r"`(\w+)`", hooks[1]):
        assert hasattr(Family, name), name
    for file in ("base.py", "tokens.py", "by_length.py", "replay.py", "derived"):
        assert file in text
        assert (README.parent / file).exists()
    assert (README.parent.parent / "vae.py").read_text().count("RULES = {") == 1


def test_the_readmes_family_is_one(monkeypatch):
    """Its code, with the names it uses, makes a family that `find` would take."""
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)[1]
    made: dict[str, type[Family]] = {}
    exec(code, {"Family": Family}, made)
    family = made["SomeModel"]()
    assert family.describe()["name"] == "some-model"
    assert family.pipelines == ("SomeModelPipeline",)


def test_the_main_readme_lists_every_family_and_where_its_adapters_load():
    text = (README.parent.parent.parent / "README.md").read_text(encoding="utf-8")
    shown = {"comfyui": "ComfyUI", "a1111": "A1111/Forge", "diffusers": "diffusers"}
    for family in families.FAMILIES:
        tools = [shown[name] for name in consumers.CONSUMERS if name in consumers.loader_rules(family.name)]
        assert f"| `{family.name}` | {family.title} | {', '.join(tools)} |" in text
    text_only = sum(row.shown is None for row in tiny.ROWS.values())
    assert f"Of the {text_only} tiny pipelines, {len(EQUAL)} are taken" in text
