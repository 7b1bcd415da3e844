"""The `lorakit eval` commands: each parses its options, calls one function and prints the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorakit.cli.sample import parse_sampling_options, sampling_options
from lorakit.core.command_line import (
    FILE,
    FOLDER,
    POSITIVE,
    Group,
    LazyCommand,
    add_options,
    command,
    is_quiet,
    option,
    print_answer,
)

if TYPE_CHECKING:
    from lorakit.evaluation.guests import GuestRequest
    from lorakit.evaluation.judges import JudgeOptions
    from lorakit.evaluation.result import EvaluationResult

Values = dict[str, Any]
COMMANDS = {
    name: LazyCommand(f"lorakit.cli.evaluate:{name}_command", text)
    for name, text in (
        ("run", "Sample and score the base model and all checkpoints, then select one."),
        ("score", "Score a folder of images from any generator."),
        ("compare", "Compare two variants, paired by prompt and seed."),
        ("pick", "Select a checkpoint of an existing evaluation."),
        ("report", "Write the evaluation report again."),
        ("prompts", "Make a prompt file from a dataset's captions and the class noun."),
    )
} | {"vote": LazyCommand("lorakit.cli.vote:vote_command", "Compare checkpoints blindly in the browser.")}


@click.group("eval", cls=Group, lazy=COMMANDS)
def evaluate_group() -> None:
    """Evaluate checkpoints: sample, score, compare, select."""


_SCORES = "Scores"
_max_drift = option(
    "--max-drift",
    type=float,
    metavar="D",
    section=_SCORES,
    help="Limit of the drift on prompts without the subject (1 - cosine similarity); checkpoints above it "
    "are not selected. By default calibrated on the seeds of the base model.",
)
_wandb = option("--wandb", is_flag=True, section=_SCORES, help="Also log a table to Weights & Biases.")
_judge_options = add_options(
    option("--clip-model", metavar="MODEL", section=_SCORES,
           help="CLIP model that scores: `embedded`, an open_clip folder, or NAME/PRETRAINED such as "
           "ViT-L-14/openai."),
    option("--image-encoder", metavar="MODEL", section=_SCORES,
           help="Image encoder that measures similarity: timm:NAME, transformers:HUB_ID, imagenet (needs no "
           "network), a folder, or none; by default DINOv2 (none for the embedded models)."),
    option("--metric", "metrics", multiple=True, metavar="NAME[=MODEL]", section=_SCORES,
           help="Additional metric: clip_t (with a second CLIP model), clipscore, hpsv2, "
           "ocr_accuracy, pickscore, questions or vqascore; repeat for several."),
    option("--win-rate", "win_rates", multiple=True, metavar="METRIC", section=_SCORES,
           help="Also count the pairs that an image wins by this metric against the base model's, as for "
           "pickscore and hpsv2; repeat for several."),
    option("--mask-model", metavar="MODEL", section=_SCORES,
           help="Measure fidelity of the subject without the background: a model that masks it, as "
           "TorchScript or ONNX file, or CLIPSeg or SAM 3 (folder or hub id)."),
    option("--face-model", type=FILE, metavar="FILE", section=_SCORES,
           help="Measure the identity of faces: a face recognition model as TorchScript or ONNX file."),
    option("--face-detector", type=FILE, metavar="FILE", section=_SCORES,
           help="ONNX file of YuNet, which aligns faces; by default the cascades of OpenCV."),
    option("--sscd", type=FILE, metavar="FILE", section=_SCORES,
           help="TorchScript file of SSCD, a model that detects copied training images."),
    option("--resize", type=click.Choice(["shortest", "squash", "pad"]), section=_SCORES,
           help="How images that are not square are fitted to the encoders' input; by default padded."),
    option("--references", type=FOLDER, metavar="DIR", section=_SCORES,
           help="Reference images of the subject; by default the training images of a run."),
    _max_drift,
    _wandb,
)  # fmt: skip


@command(
    "run",
    click.argument("run", type=FOLDER, metavar="RUN", help="The run's folder."),
    option(
        "--prompts",
        type=FILE,
        metavar="FILE",
        help="Prompt file; by default the prompts of the run's recipe.",
    ),
    option("--checkpoints", default="all", metavar="STEPS", help="all, last, or steps such as 200,400."),
    option(
        "--strengths", default="1", metavar="LIST", help="Adapter strengths to evaluate, such as 0.5,0.7,1."
    ),
    option("--no-validation", is_flag=True, help="Skip the validation loss."),
    option(
        "--race",
        is_flag=True,
        help="Sample 8 prompts first, and the others only for checkpoints that can still be the best.",
    ),
    option(
        "--max-images",
        type=POSITIVE,
        metavar="N",
        help="Limit of all images: fewer seeds, then fewer checkpoints.",
    ),
    option(
        "--with",
        "guests",
        multiple=True,
        metavar="FILE[:STRENGTH]",
        help="Another adapter to compare with, of any origin, or another run; repeat for several.",
    ),
    option(
        "--with-trigger",
        "guest_triggers",
        multiple=True,
        metavar="WORD",
        help="Trigger word of the adapter in --with, in the place of the run's; one for each --with. By "
        "default the one that its file records. WORD=OTHER replaces one of several.",
    ),
    _judge_options,
    sampling_options,
    example="lorakit eval run runs/dog --prompts prompts.jsonl --strengths 0.7,1",
)
def run_command(
    run: Path, prompts: Path | None, checkpoints: str, strengths: str, no_validation: bool, **values: Any
) -> None:
    """Sample and score the base model and all checkpoints, then select one.

    Every checkpoint and strength is sampled with the same noise. Images, scores.json, report.html and
    selection.json, which `export` and `sample` read, are written to RUN/eval.
    """
    from lorakit.evaluation.evaluate_run import evaluate_run

    result = evaluate_run(
        run,
        prompts=prompts,
        checkpoints=checkpoints,
        strengths=_parse_strengths(strengths),
        judges=_parse_judge_options(values),
        references=values["references"],
        max_drift=values["max_drift"],
        sampling=parse_sampling_options(values),
        validation_loss=not no_validation,
        guests=_parse_guests(values["guests"], values["guest_triggers"]),
        race=values["race"],
        max_images=values["max_images"],
    )
    _print_result(result, wandb=values["wandb"])


@command(
    "score",
    click.argument("folder", type=FOLDER, metavar="DIR",
                   help="Images with samples.json ([{prompt_id, seed, file}]), named by prompt id, or of "
                   "A1111, ComfyUI, kohya's scripts, ai-toolkit, InvokeAI, SwarmUI, Fooocus or Midjourney."),
    option("--prompts", type=FILE, metavar="FILE",
           help="Prompt file: JSONL, JSON, YAML, TOML, CSV, TSV or text; by default the prompts that the "
           "images carry in their metadata."),
    option("--pattern", metavar="PATTERN",
           help='How the files are named, such as "{prompt_id}/{seed}.png" or "*_{index}_{step}": '
           "{prompt_id}, {prompt} (its words), {index} (from 0), {number} (from 1), {seed}, "
           "{step}, and * for any text."),
    option("--base-images", type=FOLDER, metavar="DIR",
           help="Images of the base model for the same prompts and seeds."),
    option("--trigger", metavar="WORD", help="Trigger word of the subject."),
    option("--class-noun", metavar="NOUN", help="What the subject is, such as dog."),
    option("--out", type=FOLDER, metavar="DIR", help="Folder of scores and report; by default DIR-scores."),
    _judge_options,
    example='lorakit eval score images --prompts prompts.tsv --pattern "{prompt_id}-{seed}.png"',
)  # fmt: skip
def score_command(
    folder: Path,
    prompts: Path | None,
    out: Path | None,
    trigger: str | None,
    class_noun: str | None,
    **values: Any,
) -> None:
    """Score a folder of images from any generator."""
    from lorakit.data.subjects import Subject
    from lorakit.evaluation.evaluate_folder import evaluate_folder

    resolved = folder.resolve()
    result = evaluate_folder(
        folder,
        prompts=prompts,
        out=out or resolved.with_name(f"{resolved.name}-scores"),
        judges=_parse_judge_options(values),
        pattern=values["pattern"],
        base_images=values["base_images"],
        references=values["references"],
        subject=Subject(trigger, class_noun),
        max_drift=values["max_drift"],
        quiet=is_quiet(),
    )
    _print_result(result, wandb=values["wandb"])


@command(
    "compare",
    click.argument(
        "first",
        metavar="FIRST",
        help="A run or an evaluation: FOLDER, or FOLDER@VARIANT such as runs/a@400 or runs/a@400:0.7.",
    ),
    click.argument("second", metavar="SECOND", help="Another one. Without @VARIANT it is the selected one."),
    option(
        "--out", type=FOLDER, metavar="DIR", help="Folder of the report; by default FIRST-against-SECOND."
    ),
    example="lorakit eval compare runs/a runs/b",
)
def compare_command(first: str, second: str, out: Path | None) -> None:
    """Compare two variants, paired by prompt and seed."""
    from lorakit.evaluation.evaluate_folder import compare_evaluations
    from lorakit.evaluation.report.verdict import comparison_summary

    names = [Path(text).name.translate(str.maketrans(":@ ", "---")) for text in (first, second)]
    result = compare_evaluations(first, second, out or Path("-against-".join(names)))
    evaluation = result.evaluation
    one, other = evaluation.variants
    verdict = comparison_summary(evaluation, one, other).text
    differences = {
        name: difference.to_json()
        for name in evaluation.metric_names()
        if (difference := evaluation.paired_difference(one, other, name, evaluation.prompts))
    }
    answer = {"first": one.name, "second": other.name, "differences": differences, "verdict": verdict}
    print_answer(answer, f"{verdict}\nreport: {result.report}")


_evaluation_folder = click.argument("folder", type=FOLDER, metavar="FOLDER", help="A run or an evaluation.")


@command("pick", _evaluation_folder, _max_drift, example="lorakit eval pick runs/dog")
def pick_command(folder: Path, max_drift: float | None) -> None:
    """Select a checkpoint of an existing evaluation, for `export` and `sample` too."""
    from lorakit.core.errors import ConfigError
    from lorakit.evaluation import score_table
    from lorakit.evaluation.evaluate_folder import update_selection
    from lorakit.evaluation.report.verdict import selection_headline, selection_notes
    from lorakit.evaluation.vote.settle import select_with_votes
    from lorakit.evaluation.vote.summary import vote_summary
    from lorakit.evaluation.vote.texts import summary_sentences

    evaluation = score_table.load_evaluation(folder)
    if not (evaluation.base and evaluation.adapter_variants):
        raise ConfigError(
            "there is nothing to select from",
            where=str(folder),
            remedy="evaluate a run, or score images with --base-images and --references",
        )
    root = score_table.find_evaluation_folder(folder)
    selection, votes = select_with_votes(root, evaluation, max_drift), vote_summary(root, evaluation)
    update_selection(root, evaluation, selection)
    lines = [selection_headline(evaluation, selection).text, *selection_notes(evaluation, selection)]
    lines += summary_sentences(votes) if votes else []
    answer = selection.to_json() | {"votes": votes.to_json() if votes else None}
    print_answer(answer, "\n".join(lines))


@command("report", _evaluation_folder, _max_drift, _wandb, example="lorakit eval report runs/dog")
def report_command(folder: Path, max_drift: float | None, wandb: bool) -> None:
    """Write the evaluation report again."""
    from lorakit.evaluation.evaluate_folder import rebuild_evaluation_report

    _print_result(rebuild_evaluation_report(folder, max_drift), wandb=wandb)


@command(
    "prompts",
    click.argument("dataset", type=FOLDER, metavar="DATASET", help="A prepared folder of images, or a run."),
    option("--class-noun", metavar="NOUN", help="What the subject is, such as dog."),
    option("--trigger", metavar="WORD", help="Trigger word of the subject, such as sks."),
    option("--num-prompts", type=int, default=24, metavar="N", help="Number of prompts with the subject."),
    option("--out", type=FILE, default="prompts.jsonl", metavar="FILE", help="The prompt file."),
    example="lorakit eval prompts photos --class-noun dog --trigger sks --out prompts.jsonl",
)
def prompts_command(
    dataset: Path, class_noun: str | None, trigger: str | None, num_prompts: int, out: Path
) -> None:
    """Make a prompt file from a dataset's captions and the class noun."""
    from lorakit.config.concepts import Concept
    from lorakit.config.recipe import load_recipe
    from lorakit.core.errors import ConfigError
    from lorakit.data.items import load_concepts
    from lorakit.data.subjects import Subject
    from lorakit.evaluation import prompt_set

    if (dataset / "recipe.yaml").is_file():
        concepts = list(load_recipe(dataset / "recipe.yaml").concepts)
    else:
        concepts = [Concept(folder=dataset)]
    if (trigger or class_noun) and len(concepts) > 1:
        concepts = [
            c for c in concepts if trigger in (None, c.trigger) and class_noun in (None, c.class_noun)
        ]
        if not concepts:
            remedy = "leave --trigger and --class-noun out for all concepts of the run"
            raise ConfigError("the run has no such concept", where=f"{dataset}", remedy=remedy)
    captions: dict[Subject, list[str]] = {}
    for data in load_concepts(concepts):
        subject = Subject(trigger or data.concept.trigger, class_noun or data.concept.class_noun)
        captions.setdefault(subject, []).extend(data.captions)
    prompts = prompt_set.make_prompt_sets(captions, num_prompts=num_prompts)
    file = prompt_set.write_prompt_set(out, prompts)
    print_answer({"path": str(file), "num_prompts": len(prompts)}, f"{len(prompts)} prompts in {file}")


def _print_result(result: EvaluationResult, *, wandb: bool) -> None:
    from lorakit.evaluation.report.verdict import selection_headline, selection_notes
    from lorakit.evaluation.wandb_table import log_to_wandb

    evaluation, selection = result.evaluation, result.selection
    verdict = selection_headline(evaluation, selection).text
    notes = selection_notes(evaluation, selection)
    answer = {
        "report": str(result.report),
        "verdict": verdict,
        "notes": notes,
        "selection": selection.to_json() if selection else None,
        "next_commands": result.next_commands,
    }
    lines = [verdict, *notes, f"report: {result.report}"]
    lines += [
        f"{'next' if not number else '  or'}: {text}" for number, text in enumerate(result.next_commands)
    ]
    print_answer(answer, "\n".join(lines))
    if wandb:
        log_to_wandb(result.report.parent, evaluation, selection)


def _parse_guests(adapters: tuple[str, ...], triggers: tuple[str, ...]) -> list[GuestRequest]:
    from lorakit.core.errors import ConfigError
    from lorakit.evaluation.guests import GuestRequest

    if triggers and len(triggers) != len(adapters):
        raise ConfigError(
            f"{len(triggers)} trigger words for {len(adapters)} adapters",
            where="--with-trigger",
            remedy="write one --with-trigger for each --with, in the same order",
        )
    words = triggers or (None,) * len(adapters)
    return [GuestRequest(adapter, word) for adapter, word in zip(adapters, words, strict=True)]


def _parse_strengths(text: str) -> tuple[float, ...]:
    from lorakit.core.errors import ConfigError

    try:
        values = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        values = ()
    if not values or not all(0 < value <= 10 for value in values):
        raise ConfigError(
            f"{text!r} is not a list of strengths above 0 and at most 10",
            where="--strengths",
            remedy="write them as 0.5,0.7,1",
        )
    return values


def _parse_judge_options(values: Values) -> JudgeOptions:
    from lorakit.evaluation.judges import JudgeOptions

    files = {
        key: str(values[key]) if values[key] else None for key in ("sscd", "face_model", "face_detector")
    }
    return JudgeOptions(
        values["clip_model"],
        values["image_encoder"],
        values["metrics"],
        resize=values["resize"],
        mask_model=values["mask_model"],
        win_rates=values["win_rates"],
        **files,
    )
