"""`lorakit families`, and the README about adding a family."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lorakit.adapters.formats.consumers import guide_table
from lorakit.cli import main
from lorakit.models import families
from lorakit.models.families import specs
from lorakit.models.families.conditioned import ConditionedFamily
from lorakit.models.families.family import Family
from tests import tiny
from tests.models.families.test_derived import EQUAL

README = Path(families.__file__).parent / "README.md"


def test_the_table_has_all_attributes_of_every_family(capsys):
    assert main.main(["families"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["(1)"].startswith("(1) equal to its pipeline")
    for family in families.FAMILIES:
        line = lines[family.name]
        for value in (family.title, family.objective, family.rank16_parameters, family.license):
            assert f" {value} " in line
        assert line.endswith(" (1)")
    assert "any other text-to-image pipeline" in lines["derived"]
    assert lines["derived"].endswith(" (2)")
    assert lines["(2)"].startswith("(2) against its own pipeline")
    assert main.main(["families", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*(family.name for family in families.FAMILIES), "derived"]
    assert len({frozenset(row) for row in rows}) == 1


def test_the_readme_is_one_page_and_names_existing_hooks_and_files():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < 500
    groups = re.search(r"explains the groups of settings \((.*?)\)", text, re.S)
    hooks = re.search(r"the other attributes and the hooks: (.*?)\.\n", text, re.S)
    names = re.findall(r"`(\w+)`", groups[1] + hooks[1])
    assert len(names) == 12
    for name in [*names, *re.findall(r"`(_\w+)`", text)]:
        assert hasattr(Family, name) or hasattr(ConditionedFamily, name), name
    files = [
        "family.py",
        "specs.py",
        "packing.py",
        "video.py",
        "unpadded.py",
        "prompt_override.py",
        "conditioned.py",
    ]
    for file in [*files, "derived"]:
        assert file in text
        assert (README.parent / file).exists()
    assert (README.parent.parent / "vae.py").read_text().count("VAE_SPECS = {") == 1


def test_the_readmes_example_is_a_family():
    """Its code, with the names that it uses, defines a complete family."""
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)[1]
    classes: dict[str, type[Family]] = {}
    exec(code, {"Family": Family} | vars(specs), classes)
    family = classes["SomeModel"]()
    assert family.describe()["name"] == "some-model"
    assert family.pipelines == ("SomeModelPipeline",)


def test_the_guide_lists_every_family_and_the_programs_that_load_its_adapters():
    text = (README.parents[3] / "examples" / "models.md").read_text(encoding="utf-8")
    assert guide_table.markdown_table() in text
    text_only = sum(row.image_arguments is None for row in tiny.ROWS.values())
    assert f"Of {text_only} tiny pipelines, {len(EQUAL)} work this way" in text
