"""The known name that a mistyped word was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def nearest_name(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar of the known names, or None if none is similar.

    Upper case, dashes and underscores do not count, and neither do parts that were left out:
    `processes` is near `--num-processes`.
    """
    import difflib  # only when something was mistyped: keeps `lorakit --help` fast

    plain = {name: _plain(name) for name in known}
    target = _plain(word)
    if not target:
        return None
    if equal := [name for name, text in plain.items() if text == target]:
        return equal[0]
    close = difflib.get_close_matches(target, list(plain.values()), n=1, cutoff=cutoff)
    scores = [(difflib.SequenceMatcher(None, target, close[0]).ratio(), close[0])] if close else []
    if not scores or scores[0][0] < 0.8:
        parts = set(target.split("-"))
        extended = [text for text in plain.values() if parts <= set(text.split("-"))]
        scores = [(1.0, min(extended, key=len))] if extended and len(target) > 2 else scores
    return next((name for name, text in plain.items() if scores and text == scores[0][1]), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").strip("-")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or an empty string if no known name is similar."""
    name = nearest_name(word, known)
    return f"; did you mean {name!r}?" if name else ""
