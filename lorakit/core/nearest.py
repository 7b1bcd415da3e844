"""The known name that a mistyped word was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable


def nearest_name(word: str, known: Iterable[str]) -> str | None:
    """Return the most similar of the known names, or None if none is similar."""
    import difflib  # only when something was mistyped: keeps `lorakit --help` fast

    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or an empty string if no known name is similar."""
    name = nearest_name(word, known)
    return f"; did you mean {name!r}?" if name else ""
