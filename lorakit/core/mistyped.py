"""One short error for a command line that cannot be parsed: what is wrong, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from lorakit.core.command_line import Command, Group, words_of
from lorakit.core.errors import ConfigError
from lorakit.core.nearest import did_you_mean, nearest_name

# words that other programs have for a command, by the command that has their meaning
COMMAND_SYNONYMS = {
    "evaluate": "eval",
    "generate": "sample",
    "infer": "sample",
    "inference": "sample",
    "tag": "data caption",
    "fit": "train",
    "finetune": "train",
    "continue": "resume",
    "info": "inspect",
    "models": "families",
    "list": "recipes",
    "env": "doctor",
    "version": "--version",
    "select": "eval pick",
}
OPTION_SYNONYMS = {
    "lora": "adapter",
    "lora-weights": "adapter",
    "output": "out",
    "output-dir": "out",
    "output-path": "out",
    "save-to": "out",
    "cfg": "guidance-scale",
    "cfg-scale": "guidance-scale",
    "guidance": "guidance-scale",
    "scheduler": "sampler",
    "width": "size",
    "height": "size",
    "resolution": "size",
    "num-images": "seeds",
    "prompt-file": "prompts",
    "dim": "max-rank",
    "rank": "max-rank",
    "target": "for",
    "program": "for",
    "format": "to",
    "trigger-word": "trigger",
    "class": "class-noun",
    "verbose": "quiet",
    "silent": "quiet",
    "gpus": "num-processes",
    "nproc": "num-processes",
}


def explain_usage_error(error: click.UsageError) -> ConfigError:
    """Return click's error in lorakit's form: one sentence, the nearest match, and where the help is."""
    context = error.ctx
    remedy = f"{context.command_path} --help" if context else "lorakit --help"
    if isinstance(error, click.NoSuchOption) and context:
        return _explain_option(error, context, remedy)
    if isinstance(error, click.NoSuchCommand) and context:
        return _explain_command(error, context, remedy)
    message = error.format_message().rstrip(".").replace("\n", " ")
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.BadParameter) and error.param is not None:
        message += _nearest_choice(error)
    return ConfigError(message, remedy=remedy)


def _explain_option(error: click.NoSuchOption, context: click.Context, remedy: str) -> ConfigError:
    command, words = context.command, words_of(context)
    typed = next(
        (word.partition("=")[0] for word in words if word.startswith(error.option_name)), error.option_name
    )
    message = f"no such option {typed!r}"
    suggest = command.suggest if isinstance(command, Command) else None
    options = [name for param in command.get_params(context) for name in param.opts if name.startswith("-")]
    meant = suggest(typed, words, False) if suggest else None
    if isinstance(command, Group) and (name := next((w for w in words if w in command.lazy), None)):
        remedy = f"options come after the command: {context.command_path} {name} --help"
        return ConfigError(message, remedy=remedy)
    near = nearest_name(typed, options, cutoff=0.65) if meant is None else None
    synonym = f"--{OPTION_SYNONYMS.get(typed.strip('-').replace('_', '-'))}"
    if meant is None and synonym in options:
        near = synonym
    if meant is None and near is None and suggest:
        meant = suggest(typed, words, True)
    if near:
        message += f"; did you mean {near!r}?"
    elif meant:
        write, explanation = meant
        message += f"; did you mean {write!r}?" if write else ""
        remedy = explanation or remedy
    return ConfigError(message, remedy=remedy)


def _explain_command(error: click.NoSuchCommand, context: click.Context, remedy: str) -> ConfigError:
    name = error.command_name
    message = f"no such command {name!r}"
    group = context.command
    if not isinstance(group, Group):
        return ConfigError(message, remedy=remedy)
    below = dict(_commands_below(group, context))
    near = COMMAND_SYNONYMS.get(name) if context.parent is None else None
    near = (
        near
        or below.get(name)
        or nearest_name(name, group.lazy)
        or below.get(nearest_name(name, below, cutoff=0.8) or "")
    )
    return ConfigError(message + (f"; did you mean {near!r}?" if near else ""), remedy=remedy)


def _commands_below(group: Group, context: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the commands of the groups in a group, each with its words: ("prepare", "data prepare")."""
    for name in group.lazy:
        command = group.get_command(context, name) if group.lazy[name].is_group else None
        if isinstance(command, Group):
            yield from ((below, f"{name} {below}") for below in command.lazy)


def _nearest_choice(error: click.BadParameter) -> str:
    """Return the choice that the value of an option was probably meant to be."""
    choices = getattr(getattr(error.param, "type", None), "choices", None)
    typed = re.match(r"'(.*?)' is not one of", error.message)
    return did_you_mean(typed[1], choices) if choices and typed else ""
