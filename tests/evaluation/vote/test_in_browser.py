"""The page of a vote in a browser: keys, layout, and that nothing is asked of the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from lorakit.core import storage
from lorakit.evaluation.vote.vote_file import VoteFile
from tests.browser import Browser, browser
from tests.evaluation.vote.ballots import Client, make_evaluation, open_session, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """An evaluation with images of 400 x 400 pixels and two reference photos."""
    root = tmp_path_factory.mktemp("vote") / "eval"
    evaluation = make_evaluation(root, prompts=4)
    for variant in evaluation.variants:
        for file in variant.files.values():
            with Image.open(root / file) as image:
                image.resize((400, 400)).save(root / file)
    for number in range(2):
        storage.save_image(
            root.parent / f"photos/{number}.png", Image.new("RGB", (90, 60), (200, 90, number))
        )
    evaluation.train_images = "../photos"
    storage.write_json(root / "scores.json", evaluation.to_json())
    return root


@pytest.fixture(scope="module")
def served(root) -> Iterator[tuple[Browser, Client]]:
    with browser() as tab, serving(open_session(root)) as client:
        yield tab, client
        assert tab.complaints == []
        assert {urlsplit(address).netloc for address in tab.requests} == {client.host}


def boxes(tab: Browser, selector: str) -> list[dict[str, float]]:
    """The rectangles of elements in the window."""
    expression = f"[...document.querySelectorAll('{selector}')].map(e => e.getBoundingClientRect().toJSON())"
    return list(tab.evaluate(expression))


def choices(root: Path) -> list[str]:
    return [vote.choice for vote in VoteFile(root).read().votes]


def test_keys_vote_undo_and_show_the_references(served, root):
    tab, client = served
    before = choices(root)
    tab.open(client.address)
    for key in ("ArrowLeft", "ArrowDown", "ArrowRight", "ArrowUp"):
        with tab.loading():
            tab.press(key)
    assert choices(root) == [*before, "left", "too_close", "right", "both_bad"]
    with tab.loading():
        tab.press("u")
    assert choices(root) == [*before, "left", "too_close", "right"]
    assert not tab.evaluate("document.querySelector('details').open")
    tab.press("r")
    assert tab.evaluate("document.querySelector('details').open")


def test_a_key_that_is_held_down_or_typed_into_a_field_does_not_vote(served, root):
    tab, client = served
    before = choices(root)
    tab.open(client.address)
    tab.press("ArrowLeft", is_repeat=True)
    tab.evaluate("document.querySelector('input[type=text]').focus()")
    tab.press("ArrowLeft")
    tab.press("u")
    assert tab.evaluate("document.querySelectorAll('form.ballot').length") == 1
    assert choices(root) == before


def test_a_click_enlarges_an_image_and_another_one_votes(served, root):
    tab, client = served
    tab.open(client.address, width=1280, height=800)
    tab.evaluate("document.querySelector('.images .zoom input').click()")
    assert boxes(tab, ".images img")[0]["height"] > 600
    tab.press("Escape")
    assert boxes(tab, ".images img")[0]["height"] < 600
    with tab.loading():
        tab.evaluate("document.querySelector('button[value=right]').click()")
    assert choices(root)[-1] == "right"


def test_on_a_wide_window_both_images_and_all_buttons_are_in_view(served):
    tab, client = served
    tab.open(client.address, width=1280, height=800)
    left, right = boxes(tab, ".images img")
    assert left["top"] == right["top"]
    assert left["right"] < right["left"]
    assert min(left["height"], left["width"]) >= 400
    assert all(box["top"] >= 0 and box["bottom"] <= 800 for box in [left, *boxes(tab, ".answers button")])
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_long_prompt_does_not_push_the_buttons_out_of_view(served):
    tab, client = served
    tab.open(client.address, width=1280, height=700)
    tab.evaluate("document.querySelector('.prompt').append(' and a long prompt'.repeat(60))")
    assert all(box["bottom"] <= 700 for box in boxes(tab, ".answers button"))


def test_on_a_phone_the_images_are_stacked_and_the_buttons_stay_in_view(served):
    tab, client = served
    tab.open(client.address, width=390, height=844)
    first, second = boxes(tab, ".images img")
    assert first["bottom"] <= second["top"]
    assert first["width"] >= 340
    buttons = boxes(tab, ".answers button")
    assert all(box["top"] >= 0 and box["bottom"] <= 844 and box["height"] >= 36 for box in buttons)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.open(f"{client.address}result", width=390, height=844)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_works_without_its_script(served, root):
    tab, client = served
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(client.address)
        before = choices(root)
        button = boxes(tab, "button[value=too_close]")[0]
        point = {"x": button["left"] + 5, "y": button["top"] + 5, "button": "left", "clickCount": 1}
        with tab.loading():
            tab.call("Input.dispatchMouseEvent", type="mousePressed", **point)
            tab.call("Input.dispatchMouseEvent", type="mouseReleased", **point)
        assert choices(root) == [*before, "too_close"]
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
