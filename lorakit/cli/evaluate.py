"""`lorakit eval <command>`: the arguments, and what each command prints and returns.

Registering loads nothing heavy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorakit.evaluation.evaluate_run import EvaluationResult
    from lorakit.evaluation.judges import JudgeOptions
    from lorakit.sampling.pipeline import SamplingOptions

    Handler = Callable[[argparse.Namespace], int]
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def register_evaluate_commands(subparsers: Subparsers) -> None:
    """Add `eval` with its commands to the program's own."""
    text = "know that it worked: sample, score, compare, pick"
    evaluation = subparsers.add_parser("eval", help=text, description=text)
    commands = evaluation.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_run(commands)
    _register_folder(commands)
    compare = _add_command(
        commands,
        "compare",
        _compare,
        "two evaluated arms against each other, paired by prompt and seed",
        "lorakit eval compare runs/a runs/b",
    )
    for name in ("first", "second"):
        compare.add_argument(name, help="an evaluation or run, or FOLDER:ARM; default: its pick")
    compare.add_argument("--out", help="folder of the report; default: FIRST-against-SECOND")
    for name, handler, text in (
        ("pick", _pick, "which checkpoint to take, from an evaluation that is there"),
        ("report", _report, "write the report of an evaluation again"),
    ):
        made = _add_command(commands, name, handler, text, f"lorakit eval {name} runs/dog")
        made.add_argument("folder", help="a run's or an evaluation's folder")
        made.add_argument("--drift-budget", type=float, metavar="D", help="1 - cosine that is tolerated")
        if name == "report":
            made.add_argument("--wandb", action="store_true", help="also log a table to Weights & Biases")
    _register_prompts(commands)


def _add_command(
    commands: Subparsers, name: str, handler: Handler, text: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, epilog=f"example: {example}")
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(handler=handler)
    return parser


def _register_run(commands: Subparsers) -> None:
    run = _add_command(
        commands,
        "run",
        _run,
        "sample the base and all checkpoints with the same noise, score, find alarms, pick, report",
        "lorakit eval run runs/dog --prompts prompts.jsonl --strengths 0.7,1",
    )
    run.add_argument("run", help="a run's folder")
    run.add_argument("--prompts", help="prompt file; default: the run's own")
    run.add_argument("--checkpoints", default="all", help="all (default), last, or steps such as 200,400")
    run.add_argument("--strengths", default="1", help="of the adapter, such as 0.5,0.7,1 (default: 1)")
    run.add_argument("--no-validation", action="store_true", help="leave out the loss of held-out images")
    _add_judge_options(run)
    add_sampling_options(run)


def _register_folder(commands: Subparsers) -> None:
    folder = _add_command(
        commands,
        "score",
        _score,
        "score a folder of pictures of any generator against a prompt file",
        'lorakit eval score pictures --prompts prompts.tsv --pattern "{id}-{seed}.png"',
    )
    folder.add_argument(
        "folder", help="pictures with samples.json ([{prompt_id, seed, file}]), or named by id"
    )
    folder.add_argument("--prompts", required=True, help="JSONL, YAML, TSV (PartiPrompts) or text")
    folder.add_argument("--pattern", help='how files are named, such as "{id}/{seed}.png"')
    folder.add_argument("--base", metavar="DIR", help="the same prompts and seeds without what is judged")
    folder.add_argument("--trigger", metavar="WORD", help="the word that names the subject")
    folder.add_argument("--class-noun", metavar="NOUN", help="what the subject is")
    folder.add_argument("--out", help="folder of scores and report; default: FOLDER-scores")
    _add_judge_options(folder)


def _register_prompts(commands: Subparsers) -> None:
    prompts = _add_command(
        commands,
        "prompts",
        _prompts,
        "make a prompt set from a dataset's captions and the class noun",
        "lorakit eval prompts PHOTOS --class-noun dog --trigger sks --out prompts.jsonl",
    )
    prompts.add_argument("dataset", help="a prepared folder of images, or a run's folder")
    prompts.add_argument("--class-noun", metavar="NOUN", help="what the subject is, such as dog")
    prompts.add_argument("--trigger", metavar="WORD", help="the word it was taught under, such as sks")
    prompts.add_argument("--count", type=int, default=24, help="prompts of the subject (default: 24)")
    prompts.add_argument("--out", default="prompts.jsonl", help="default: prompts.jsonl")


def _add_judge_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    group.add_argument(
        "--clip", help="`embedded`, a folder of open_clip's, or NAME/PRETRAINED (ViT-L-14/openai)"
    )
    group.add_argument(
        "--dino", metavar="MODEL", help="timm:NAME, transformers:HUB-ID, a folder, or none; default: DINOv2"
    )
    group.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="SCORE[=MODEL]",
        help="clip, clipscore, hpsv2, ocr, pickscore, vqascore; may be given again",
    )
    group.add_argument("--sscd", metavar="FILE", help="the copy detector's TorchScript file")
    group.add_argument(
        "--resize", choices=["shortest", "squash", "pad"], help="of pictures that are not square"
    )
    group.add_argument("--references", metavar="DIR", help="pictures of the subject; a run has its own")
    group.add_argument("--drift-budget", type=float, metavar="D", help="1 - cosine that is tolerated")
    group.add_argument("--wandb", action="store_true", help="also log a table to Weights & Biases")


def add_sampling_options(target: argparse.ArgumentParser) -> None:
    """How pictures are drawn; also for `lorakit sample`."""
    group = target.add_argument_group("sampling")
    group.add_argument("--steps", type=int, default=20, help="sampler steps (default: 20)")
    group.add_argument("--guidance", type=float, help="classifier-free guidance; default: the pipeline's")
    group.add_argument(
        "--sampler", help="ddim, dpm++2m, euler, euler-a, heun, unipc, ...; default: the base's"
    )
    group.add_argument("--size", help="WIDTHxHEIGHT; default: the adapter's resolution, square")
    group.add_argument("--frames", type=int, help="of a clip; default: as the adapter was trained")
    group.add_argument("--batch", type=int, default=8, help="pictures at once, fewer where memory is short")
    text = "hold the base in few bits; default: as the run was trained, else whole"
    group.add_argument("--quantize", choices=["nf4", "int8", "none"], help=text)
    group.add_argument(
        "--img2img", type=float, metavar="S", help="start from each prompt's `image`; 1 keeps nothing"
    )
    group.add_argument("--controlnet", metavar="DIR[:SCALE]", help="a ControlNet of the base, fed `image`")
    group.add_argument("--ip-adapter", metavar="DIR[:SCALE]", help="an IP-Adapter of the base, fed `image`")


def parse_sampling_options(arguments: argparse.Namespace) -> SamplingOptions:
    """The sampling options given."""
    from lorakit.sampling import controls
    from lorakit.sampling.pipeline import SamplingOptions, parse_size

    return SamplingOptions(
        arguments.steps,
        arguments.guidance,
        parse_size(arguments.size),
        arguments.batch,
        arguments.quiet,
        arguments.sampler,
        controls.parse_control(arguments.img2img, arguments.controlnet, arguments.ip_adapter),
        arguments.frames,
        arguments.quantize,
    )


# ---- commands ----------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from lorakit.evaluation.evaluate_run import RunEvaluationOptions, evaluate_run

    request = RunEvaluationOptions(
        prompts=_path(arguments.prompts),
        checkpoints=arguments.checkpoints,
        strengths=_strengths(arguments.strengths),
        judges=_parse_judge_options(arguments),
        references=_path(arguments.references),
        drift_budget=arguments.drift_budget,
        options=parse_sampling_options(arguments),
        validate=not arguments.no_validation,
    )
    return _print_result(arguments, evaluate_run(Path(arguments.run), request))


def _score(arguments: argparse.Namespace) -> int:
    from lorakit.data.prompts import Subject
    from lorakit.evaluation.evaluate_folder import FolderEvaluationOptions, evaluate_folder

    folder = Path(arguments.folder)
    resolved = folder.resolve()
    request = FolderEvaluationOptions(
        prompts=Path(arguments.prompts),
        out=_path(arguments.out) or resolved.with_name(f"{resolved.name}-scores"),
        judges=_parse_judge_options(arguments),
        pattern=arguments.pattern,
        base=_path(arguments.base),
        references=_path(arguments.references),
        subject=Subject(arguments.trigger, arguments.class_noun),
        drift_budget=arguments.drift_budget,
        quiet=arguments.quiet,
    )
    return _print_result(arguments, evaluate_folder(folder, request))


def _compare(arguments: argparse.Namespace) -> int:
    from lorakit.evaluation.evaluate_folder import compare_evaluations
    from lorakit.evaluation.report.verdict import comparison_summary

    names = [
        Path(text).name.replace(":", "-").replace(" ", "-") for text in (arguments.first, arguments.second)
    ]
    out = _path(arguments.out) or Path("-against-".join(names))
    result = compare_evaluations(arguments.first, arguments.second, out)
    before, after = result.evaluation.arms
    text, _ = comparison_summary(result.evaluation, before, after)
    rows = {
        name: gain.to_json()
        for name in result.evaluation.measured()
        if (gain := result.evaluation.gain(before, after, name, result.evaluation.prompts))
    }
    value = {"before": before.name, "after": after.name, "differences": rows, "verdict": text}
    _print_json_or_text(arguments, value, [text, f"report: {result.report}"])
    return 0


def _pick(arguments: argparse.Namespace) -> int:
    from lorakit.core.errors import ConfigError
    from lorakit.evaluation import score_table
    from lorakit.evaluation.report.verdict import selection_headline, selection_remarks
    from lorakit.evaluation.select import select_checkpoint

    _, evaluation = score_table.load_evaluation(arguments.folder)
    if not (evaluation.base and evaluation.tuned):
        remedy = "evaluate a run, or score pictures with --base and --references"
        raise ConfigError("there is nothing to pick from", where=arguments.folder, remedy=remedy)
    chosen = select_checkpoint(evaluation, arguments.drift_budget)
    _print_json_or_text(
        arguments,
        chosen.to_json(),
        [selection_headline(evaluation, chosen)[0], *selection_remarks(evaluation, chosen)],
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from lorakit.evaluation.evaluate_folder import rebuild_evaluation_report

    return _print_result(arguments, rebuild_evaluation_report(Path(arguments.folder), arguments.drift_budget))


def _prompts(arguments: argparse.Namespace) -> int:
    from lorakit.config import recipe
    from lorakit.data.items import load_training_records
    from lorakit.data.prompts import Subject
    from lorakit.evaluation import prompt_set

    folder, trigger, noun = Path(arguments.dataset), arguments.trigger, arguments.class_noun
    if (folder / "recipe.yaml").is_file():
        made = recipe.load_recipe(folder / "recipe.yaml")
        folder, trigger, noun = made.dataset, trigger or made.trigger, noun or made.class_noun
    captions = [caption.text for record in load_training_records(folder) for caption in record.captions]
    prompts = prompt_set.make_prompt_set(captions, Subject(trigger, noun), count=arguments.count)
    file = prompt_set.write_prompt_set(Path(arguments.out), prompts)
    _print_json_or_text(
        arguments, {"path": str(file), "prompts": len(prompts)}, [f"{len(prompts)} prompts in {file}"]
    )
    return 0


def _print_result(arguments: argparse.Namespace, result: EvaluationResult) -> int:
    from lorakit.evaluation.report.verdict import selection_headline, selection_remarks
    from lorakit.evaluation.wandb_table import log_to_wandb

    evaluation, chosen = result.evaluation, result.pick
    value: dict[str, Any] = {
        "report": str(result.report),
        "verdict": selection_headline(evaluation, chosen)[0],
    }
    value |= {"remarks": selection_remarks(evaluation, chosen), "pick": chosen.to_json() if chosen else None}
    _print_json_or_text(arguments, value, [value["verdict"], *value["remarks"], f"report: {result.report}"])
    if getattr(arguments, "wandb", False):
        log_to_wandb(result.report.parent, evaluation, chosen)
    return 0


def _print_json_or_text(arguments: argparse.Namespace, value: Any, lines: Iterable[str]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False) if arguments.json else "\n".join(lines))


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _strengths(text: str) -> tuple[float, ...]:
    from lorakit.core.errors import ConfigError

    try:
        values = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(
            f"{text!r} are no strengths", where="--strengths", remedy="such as 0.5,0.7,1"
        ) from None
    if not all(0 < value <= 10 for value in values):
        raise ConfigError(f"{text!r} holds one that is not above 0", where="--strengths")
    return values


def _parse_judge_options(arguments: argparse.Namespace) -> JudgeOptions:
    from lorakit.evaluation.judges import JudgeOptions

    return JudgeOptions(
        arguments.clip, arguments.dino, tuple(arguments.also), arguments.sscd, arguments.resize
    )
