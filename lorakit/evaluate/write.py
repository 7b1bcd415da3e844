"""A comparison as files: report.html, scores.json, scores.csv and contact.png.

Scores are shown as 100 x cosine with one decimal; scores.json and scores.csv keep the cosines.
"""

from __future__ import annotations

import csv
import io
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit import report, storage
from lorakit.evaluate.compare import Comparison, Group, Pair
from lorakit.report import Html
from lorakit.statistics import ENOUGH_PROMPTS, Interval

if TYPE_CHECKING:
    from PIL import Image

SHOWN_PROMPTS, SHOWN_SEEDS = 48, 8  # in the page's grid, worst first; the files hold all
SHEET_PROMPTS, SHEET_SEEDS = 24, 8
THUMBNAIL = 128  # pixels in the contact sheet
GRID_THUMBNAIL = 100  # CSS pixels in the page, so that four seeds before and after fit its width
EXTRA_CURVES = 8
_LIBRARIES = ("lorakit", "torch", "diffusers", "transformers", "peft", "open-clip-torch", "numpy", "pillow")
_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet may take for a formula


def write_report(
    out: str | Path,
    comparison: Comparison,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    metrics: Sequence[Mapping[str, Any]],
    extra: Sequence[Html] = (),
) -> Path:
    """Write the four files into the folder `out` and return the page's path.

    `facts` say what was done, as (name, value) rows; `metrics` are the rows of a run's metrics.jsonl, each
    with "step" and numbers; `extra` are further sections of the page.
    """
    folder = Path(out)
    versions = _versions()
    ranked = rank_prompts(comparison.pairs)
    storage.write_json(folder / "scores.json", comparison.to_json() | {"versions": versions})
    storage.write_text(folder / "scores.csv", scores_csv(comparison.pairs))
    storage.save_image(folder / "contact.png", _contact_sheet(ranked))
    body = [
        report.verdict(*headline(comparison.groups)),
        report.paragraph(more) if (more := remarks(comparison.groups)) else Html(),
        report.section("What was done", report.table(["", ""], list(facts))) if facts else Html(),
        report.section("Gain", *_gain(comparison, ranked)),
        report.section("Before and after", *_pictures(ranked)),
        report.section("Training", *curves(metrics)) if metrics else Html(),
        *extra,
        report.section("Settings and versions", *_settings(comparison.scorer, versions)),
    ]
    return storage.write_text(folder / "report.html", report.page(title, body))


def rank_prompts(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Pairs by prompt, the prompt with the smallest mean gain first, seeds in order."""
    prompts: dict[str, list[Pair]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt.id, []).append(pair)
    rows = [sorted(row, key=lambda pair: pair.seed) for row in prompts.values()]
    return sorted(rows, key=_mean_gain)


def headline(groups: Sequence[Group]) -> tuple[str, bool | None]:
    """The verdict in one sentence, on the first group: better, worse, or not to be told apart."""
    main = groups[0]
    good = True if main.gain.low > 0 else False if main.gain.high < 0 else None
    meaning = {
        True: "better beyond chance",
        False: "worse beyond chance",
        None: "no difference beyond chance",
    }
    name = f"{main.kind[:1].upper()}{main.kind[1:]}"
    name = name if "prompts" in name else f"{name} prompts"
    scores = f"CLIP-T {_points(main.before.mean)} → {_points(main.after.mean)}"
    return f"{name}: {scores}, gain {_spread(main.gain, signed=True)}: {meaning[good]}.", good


def remarks(groups: Sequence[Group]) -> str:
    """What the verdict leaves out: choices, the other prompts, and too few prompts."""
    main, *others = groups
    parts = []
    if main.right_before and main.right_after:
        before, after = (_percent(share.mean) for share in (main.right_before, main.right_after))
        parts.append(f"CLIP picks the right description for {after} of the pictures, {before} before.")
    if rest := [group for group in others if group.kind == "other"]:
        parts.append(f"Other prompts: {_spread(rest[0].gain, signed=True)}.")
    if main.gain.indicative:
        parts.append(f"Indicative: {_count(main.gain.units, 'prompt')}, fewer than {ENOUGH_PROMPTS}.")
    return " ".join(parts)


def scores_csv(pairs: Iterable[Pair]) -> str:
    """One line a pair. Texts that a spreadsheet could run as a formula start with an apostrophe."""
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    heads = ["prompt_id", "kind", "seed", "prompt", "score_text", "before", "after", "gain"]
    rows.writerow([*heads, "chosen_before", "chosen_after"])
    for pair in pairs:
        texts = (pair.prompt.id, pair.prompt.kind, pair.prompt.prompt, pair.prompt.score_text)
        name, kind, prompt, score_text = map(_plain, texts)
        numbers = [f"{value:.6f}" for value in (pair.before, pair.after, pair.gain)]
        chosen = [_plain(text or "") for text in (pair.chosen_before, pair.chosen_after)]
        rows.writerow([name, kind, pair.seed, prompt, score_text, *numbers, *chosen])
    return buffer.getvalue()


def _plain(text: str) -> str:
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA_STARTS) else text


def _points(value: float, *, signed: bool = False) -> str:
    """A cosine as shown: times 100, one decimal, a real minus sign; n/a where there is none."""
    if math.isnan(value):
        return "n/a"
    rounded = round(100 * value, 1) + 0.0  # + 0.0 turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", "−")


def _spread(interval: Interval, *, signed: bool = False) -> str:
    low, high = _points(interval.low, signed=signed), _points(interval.high, signed=signed)
    return f"{_points(interval.mean, signed=signed)} [{low}, {high}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _mean_gain(row: Sequence[Pair]) -> float:
    return sum(pair.gain for pair in row) / len(row)


def _gain(comparison: Comparison, ranked: list[list[Pair]]) -> list[Html]:
    asked = any(group.right_after for group in comparison.groups)
    heads = ["Kind", "Prompts", "Pictures", "Before", "After", "Gain"]
    rows: list[list[str | int]] = []
    for group in comparison.groups:
        scores = [_points(group.before.mean), _points(group.after.mean), _spread(group.gain, signed=True)]
        shares = [_percent(i.mean) if i else "" for i in (group.right_before, group.right_after)]
        rows.append([group.kind, group.gain.units, group.pairs, *scores, *(shares if asked else [])])
    note = (
        "CLIP-T is 100 times the cosine of the CLIP features of a picture and its text. A pair shares prompt "
        "and seed. Brackets are 95 % intervals of a bootstrap over prompts, each with all its seeds"
    )
    few = any(group.gain.indicative for group in comparison.groups)
    note += f"; with fewer than {ENOUGH_PROMPTS} prompts they are indicative only." if few else "."
    chart = report.bar_chart(
        [row[0].prompt.id for row in ranked],
        [round(100 * _mean_gain(row), 1) for row in ranked],
        y_label="gain in CLIP-T by prompt",
    )
    table = report.table([*heads, *(["Right before", "Right after"] if asked else [])], rows)
    return [table, report.paragraph(note), *([chart] if len(ranked) > 1 else [])]


def _pictures(ranked: list[list[Pair]]) -> list[Html]:
    """The grid: a row for each prompt, worst gain first, its seeds side by side, with scores."""
    shown = [row[:SHOWN_SEEDS] for row in ranked[:SHOWN_PROMPTS]]
    longest = max(shown, key=len)
    same_seeds = all(pair.seed == longest[i].seed for row in shown for i, pair in enumerate(row))
    heads = [_head(p.seed if same_seeds else None, when) for p in longest for when in ("before", "after")]
    cells = [[cell for pair in row for cell in _cells(pair, name_seed=not same_seeds)] for row in shown]
    padded = [row + [Html()] * (len(heads) - len(row)) for row in cells]
    names = []
    for row in ranked[: len(shown)]:
        gain = report.badge(_points(_mean_gain(row), signed=True))
        names.append(report.join([row[0].prompt.prompt, report.tag("br"), gain]))
    left_out = sum(map(len, ranked)) - sum(map(len, shown))
    more = f" {_count(left_out, 'further pair')} are in the files alone." if left_out else ""
    note = f"The prompts that gained least come first. Numbers are CLIP-T.{more}"
    return [report.paragraph(note), report.grid(heads, names, padded)]


def _head(seed: int | None, when: str) -> Html:
    return report.escape(when) if seed is None else report.join([f"seed {seed}", report.tag("br"), when])


def _cells(pair: Pair, *, name_seed: bool) -> tuple[Html, Html]:
    """The two pictures with their scores; the one after in the colour of a gain or loss that is shown."""

    def cell(picture: Image.Image, when: str, score: float, good: bool | None) -> Html:
        alt = f"{pair.prompt.prompt}, seed {pair.seed}, {when}"
        label = f"{_points(score)} · seed {pair.seed}" if name_seed else _points(score)
        return report.join([report.image(picture, alt=alt, width=GRID_THUMBNAIL), report.badge(label, good)])

    good = None if round(1000 * pair.gain) == 0 else pair.gain > 0
    before = cell(pair.before_image, "before", pair.before, None)
    return before, cell(pair.after_image, "after", pair.after, good)


def _contact_sheet(ranked: list[list[Pair]]) -> Image.Image:
    """For each prompt a row: its seeds before at the left, the same seeds after at the right."""
    shown = [row[:SHEET_SEEDS] for row in ranked[:SHEET_PROMPTS]]
    width = max(map(len, shown))
    cells: list[list[Image.Image | None]] = []
    for row in shown:
        gap = [None] * (width - len(row))
        before, after = [pair.before_image for pair in row], [pair.after_image for pair in row]
        cells.append([*before, *gap, None, *after, *gap])
    heads = ["before", *[""] * width, "after", *[""] * (width - 1)]
    names = [row[0].prompt.prompt for row in shown]
    return report.contact_sheet(cells, column_heads=heads, row_heads=names, cell=THUMBNAIL)


def curves(metrics: Sequence[Mapping[str, Any]]) -> list[Html]:
    """Loss over steps with its running mean, and every other number of the metrics folded away."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        for key, value in row.items():
            if key != "step" and _number(value) and _number(row.get("step")):
                curves.setdefault(key, []).append((float(row["step"]), float(value)))
    loss = {key: points for key, points in curves.items() if "loss" in key}
    shown = dict(loss)
    if len(shown.get("loss", [])) >= 50:
        shown["loss, running mean"] = _running_mean(shown["loss"])
    rest = [key for key in curves if key not in loss][:EXTRA_CURVES]
    charts = [report.line_chart({key: curves[key]}, x_label="step", y_label=key) for key in rest]
    return [
        report.line_chart(shown, x_label="step", y_label="loss"),
        *([report.details("Further curves", *charts)] if charts else []),
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of the last twentieth of the run at each of at most 100 steps."""
    window, stride = max(2, len(points) // 20), max(1, len(points) // 100)
    ends = range(window, len(points) + 1, stride)
    return [(points[end - 1][0], sum(y for _, y in points[end - window : end]) / window) for end in ends]


def _settings(scorer: Mapping[str, Any], versions: Mapping[str, str]) -> list[Html]:
    truncated = list(scorer.get("truncated") or [])
    rows = [[key, _shown(value)] for key, value in scorer.items() if key != "truncated"]
    parts = [report.table(["Scores", ""], rows)]
    if truncated:
        listed = report.tag("ul", *(report.tag("li", text) for text in truncated))
        text = (
            f"{_count(len(truncated), 'text')} did not fit CLIP's context and scored by what they begin with"
        )
        parts.append(report.details(text, listed))
    parts.append(report.details("Versions", report.table(["Package", "Version"], list(versions.items()))))
    return parts


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " × ".join(map(str, value))
    return "none" if value is None else str(value)


def _versions() -> dict[str, str]:
    """Python and the installed libraries that make and score pictures."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
