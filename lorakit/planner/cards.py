"""The table of cards, `cards.csv`: memory, bandwidths and speeds, as their makers publish them.

`half_tflops` are dense products in half precision that are added up in float32, which on consumer cards is
half of the larger number that is printed. `pcie_gb` is what a link of the card's width moves in one
direction; 0 where memory is shared with the processor.
"""

from __future__ import annotations

import csv
import functools
import io
import re
from dataclasses import dataclass
from importlib import resources

from lorakit.core.errors import ConfigError
from lorakit.core.nearest import nearest_name

_MAKERS = re.compile(
    r"\b(nvidia|geforce|amd|radeon|intel|quadro|tesla|\(r\)|\(tm\)|gpu|graphics)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Card:
    """One card."""

    name: str
    memory_gib: float
    bandwidth_gb: float
    """10^9 bytes a second of its own memory."""
    fp32_tflops: float
    half_tflops: float
    int8_tops: float
    """0 where integer products are not faster."""
    fp8_tflops: float
    pcie_gb: float
    half: str
    """The half precision that it computes in hardware."""

    @property
    def platform(self) -> str:
        """The type of torch's device."""
        if self.name.startswith("Apple"):
            return "mps"
        return "xpu" if self.name.startswith("Arc") else "cuda"


@functools.cache
def all_cards() -> tuple[Card, ...]:
    """Return the cards of the table."""
    text = resources.files("lorakit.planner").joinpath("cards.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    texts = ("name", "half")
    return tuple(
        Card(**{key: value if key in texts else float(value) for key, value in row.items()})  # type: ignore[arg-type]
        for row in rows
    )


def find_card(name: str) -> Card:
    """Return a card by its name, in any spelling: "3060", "rtx3060-12gb", "NVIDIA GeForce RTX 3060".

    Raises ConfigError for an unknown card, with the nearest name.
    """
    if card := match_card(name):
        return card
    near = nearest_name(name, [card.name for card in all_cards()], cutoff=0.3)
    meant = f"; did you mean {near!r}?" if near else ""
    raise ConfigError(
        f"the table has no such card{meant}",
        where=f"--gpu {name}",
        remedy="name a card as its maker does, such as 'RTX 3060 12GB'; or give its memory: --vram 8GB",
    )


def match_card(name: str, memory_gib: float | None = None) -> Card | None:
    """Return the card of a name, such as a driver reports it, or None; `memory_gib` chooses a variant."""
    target = _words(name)
    numbers = {word for word in target if any(c.isdigit() for c in word)}
    if not numbers:
        return None
    matches = []
    for card in all_cards():
        words = _words(card.name)
        memory = {word for word in words if word.endswith("gb")}
        if numbers <= words and words - memory <= target | {"rtx", "gtx", "rx", "apple", "instinct", "arc"}:
            matches.append(card)

    def distance(card: Card) -> tuple[int, float]:
        different = {word for word in target ^ _words(card.name) if not word.endswith("gb")}
        return len(different), abs(card.memory_gib - memory_gib) if memory_gib else card.memory_gib

    matches.sort(key=distance)
    return matches[0] if matches else None


def _words(name: str) -> set[str]:
    text = _MAKERS.sub(" ", name.lower())
    text = re.sub(r"(\d+)\s*gi?b\b", r"\1gb", text)
    text = re.sub(r"\b(rtx|gtx|rx|arc)[\s-]*(?=\d|a\d)", r"\1 ", text)
    words = re.split(r"[^a-z0-9]+", text)
    joined = {"ti", "super", "xt", "xtx", "laptop", "max", "pro", "mobile"}
    split: list[str] = []
    for word in words:
        match = re.fullmatch(r"(\d{4})(ti|super|xtx|xt)?(\d+gb)?", word)
        split += [part for part in match.groups() if part] if match else [word]
    return {"laptop" if word == "mobile" and word in joined else word for word in split if word} - {
        "pcie", "sxm", "sxm2", "sxm4", "sxm5", "hbm2", "hbm3", "with", "q", "max-q",
    }  # fmt: skip
