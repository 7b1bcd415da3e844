"""Before and after: pictures of the same prompts and seeds, scored, compared and shown on one page."""

from lorakit.evaluate.compare import (
    Comparison,
    Group,
    Pair,
    compare,
    load_shots,
    word_alternatives,
)
from lorakit.evaluate.write import headline, remarks, write_report

__all__ = [
    "Comparison",
    "Group",
    "Pair",
    "compare",
    "headline",
    "load_shots",
    "remarks",
    "word_alternatives",
    "write_report",
]
