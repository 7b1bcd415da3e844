"""Checks of a page in a browser: nothing wider than the window, no tiny text, no broken word, keys, names."""

from __future__ import annotations

import itertools

from tests.browser import Browser

MIN_TEXT_PIXELS = 10.0
LOADED = (
    "Promise.all([...document.images].filter(i => i.offsetParent)"
    ".map(i => { i.loading = 'eager'; return i.decode() })).then(() => true)"
)
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, " ": 32, "Tab": 9, "Enter": 13}

# The size of every visible text as it is drawn; the text of a chart is scaled with the chart.
_SMALL_TEXTS = """
[...document.querySelectorAll('body *')].filter(e => e.getClientRects().length
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
    && !e.closest('style, .skip, title')).map(e => {
  const svg = e.closest('svg');
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  return [e.textContent.trim().slice(0, 40), parseFloat(getComputedStyle(e).fontSize) * scale];
}).filter(([text, size]) => size < MINIMUM)
"""
# Words that are drawn on two lines; a word that is longer than a line has to be.
_BROKEN_WORDS = """
[...document.querySelectorAll('th, td')].filter(e => e.getClientRects().length).flatMap(cell => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
  for (let node; node = walker.nextNode();) for (const match of node.textContent.matchAll(/[^\\s-]{2,24}/g)) {
    const range = document.createRange();
    range.setStart(node, match.index);
    range.setEnd(node, match.index + match[0].length);
    const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
    if (tops.size > 1) broken.push(match[0]);
  }
  return broken;
})
"""
_UNNAMED = """
[...document.querySelectorAll('img, input, svg, fieldset, section, a')].filter(e => e.getClientRects().length)
  .filter(e => !(e.getAttribute('alt') || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || e.textContent.trim() || e.closest('label')?.textContent.trim() || e.querySelector('img')))
  .map(e => e.outerHTML.slice(0, 80))
"""
_HEADINGS = (
    "[...document.querySelectorAll('h1, h2, h3, h4')].filter(e => e.getClientRects().length)"
    ".map(e => +e.tagName[1])"
)


def layout_faults(tab: Browser, width: int) -> list[str]:
    """Everything that cannot be read in a window of this width."""
    tab.resize(width, 900)
    assert tab.evaluate(LOADED)
    page_width = tab.evaluate("document.documentElement.scrollWidth")
    faults = [f"{page_width} pixels wide in a window of {width}"] if page_width > width else []
    small = tab.evaluate(_SMALL_TEXTS.replace("MINIMUM", str(MIN_TEXT_PIXELS)))
    faults += [f"{text!r} has {size:.1f} pixels" for text, size in small]
    faults += [f"the word {word!r} is broken" for word in tab.evaluate(_BROKEN_WORDS)]
    return faults


def access_faults(tab: Browser) -> list[str]:
    """Things without a name for a screen reader, and headings that skip a level."""
    faults = [f"no name: {element}" for element in tab.evaluate(_UNNAMED)]
    levels = tab.evaluate(_HEADINGS)
    faults += [] if levels.count(1) == 1 else [f"{levels.count(1)} main headings"]
    steps = itertools.pairwise(levels)
    return faults + [f"h{one} is followed by h{other}" for one, other in steps if other > one + 1]


def press(tab: Browser, key: str) -> None:
    """Press a key where the focus is."""
    text = {"Enter": "\r", " ": " "}.get(key)
    options = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
    tab.call("Input.dispatchKeyEvent", type="keyDown", **options, **({"text": text} if text else {}))
    tab.call("Input.dispatchKeyEvent", type="keyUp", **options)
