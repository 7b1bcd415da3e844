"""HTML reports are inert: they load and execute nothing, whatever captions, names and prompts contain."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import pytest
from PIL import Image

from data_tools.prepare import PrepareOptions, prepare_dataset
from lorakit import reports
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.reports.rendering import CONTENT_SECURITY_POLICY
from lorakit.training import run_changes, training_report
from lorakit.training.run_folder import RunFolder
from tests import runs
from tests.security import pages


def test_the_content_policy_allows_only_inline_styles_and_images():
    rules = dict(rule.strip().split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split(";"))
    assert rules.pop("default-src") == "'none'"
    assert rules == {
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


@pytest.mark.parametrize(
    "bad",
    [
        "<script>1</script>",
        "<img src='http://example.org/x.png'>",
        "<p onclick='x()'>",
        "<p style='background:url(x)'>",
        "<a href='javascript:x'>",
        "<a href='../a:b'>",
        "<img src='./x.png'>",
    ],
)
def test_the_check_finds_active_content(bad, tmp_path):
    storage.write_text(tmp_path / "good.html", "{% extends 'page.html' %}")
    storage.write_text(
        tmp_path / "bad.html", "{% extends 'page.html' %}{% block main %}{{ bad|safe }}{% endblock %}"
    )
    assert not pages.faults(reports.render_page(tmp_path / "good.html", title="t"))
    assert pages.faults(reports.render_page(tmp_path / "bad.html", title="t", bad=bad))
    assert pages.faults("<p>no policy")


def assert_inert(page: str, words: list[str]) -> None:
    assert pages.faults(page) == []
    elements, text = pages.read(page)
    shown = text + "".join(value or "" for _, attributes in elements for value in attributes.values())
    for word in words:
        assert word in shown  # shown unchanged, neither evaluated nor lost
    links = set(re.findall(r"(?:https?:)?//[\w.-]+/[\w./-]*", page.replace("base64,", "")))
    outside = {link for link in links if urllib.parse.urlparse(link).netloc and "w3.org" not in link}
    assert not {link for link in outside if link.startswith("http")}


def test_hostile_names_and_captions_are_inert_in_the_dataset_report(tmp_path):
    attacks = [*pages.ATTACKS]
    for index, attack in enumerate(attacks):
        name = attack.replace("/", "∕")[:60]
        Image.new("RGB", (64 + index, 64), (index * 20, 0, 0)).save(tmp_path / f"{index}{name}.png")
        storage.write_text(tmp_path / f"{index}{name}.txt", f"a sks thing {attack}")
    storage.write_bytes(tmp_path / '"><svg onload=alert(1)>.png', b"not an image")
    prepare_dataset(tmp_path, PrepareOptions(resolution=64))
    assert_inert((tmp_path / "report.html").read_text(encoding="utf-8"), attacks)


def test_hostile_prompts_and_names_are_inert_in_the_report_of_a_run(tmp_path):
    data = runs.make_dataset(tmp_path / "data", 2)
    tree = {
        "base": "tiny-dit",
        "dataset": str(data),
        "out": str(tmp_path / "{{7*7}} &lt;b&gt; '"),
        "export": [],
    }
    parsed = recipe.parse_recipe(tree)
    run = RunFolder(Path(parsed.out))
    run_changes.start_or_resume(run, parsed, {"dataset": "d", "base": pages.ATTACKS[0], "num_processes": 1})
    storage.append_jsonl(run.metrics_file, {"step": 1, "loss": 1.0, "grad_norm": 1.0, "lr": 1e-4})
    folder = run.path / "samples" / "step-00000000"
    rows = []
    for index, attack in enumerate(pages.ATTACKS):
        storage.save_image(folder / f"{index}.png", Image.new("RGB", (8, 8)))
        rows.append({"file": f"{index}.png", "prompt_id": str(index), "prompt": attack, "seed": 0})
    storage.write_json(folder / "samples.json", rows)
    page = training_report.write_training_report(run, parsed, "done").read_text(encoding="utf-8")
    assert_inert(page, [*pages.ATTACKS, "{{7*7}} &lt;b&gt; '"])
