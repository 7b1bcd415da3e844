"""Command lines for tests: parse one without running it, or run one and let its errors through."""

from __future__ import annotations

from collections.abc import Sequence

import click

from lorakit.cli.main import lorakit


def parse(words: Sequence[str]) -> click.Context:
    """Parse the words after `lorakit`; an invalid line raises click.UsageError."""
    context, rest = click.Context(lorakit, info_name="lorakit"), list(words)
    command: click.Command = lorakit
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command = found
        if not isinstance(command, click.Group):
            return command.make_context(name, rest, parent=context)
        context = click.Context(command, parent=context, info_name=name)
    raise AssertionError(words)


def call(*words: str) -> int:
    """Run a command line; returns the exit code, and raises ConfigError and the like."""
    with parse(words) as context:
        return int(context.command.invoke(context) or 0)


def call_data(*words: str) -> int:
    """Run `lorakit data WORDS`."""
    return call("data", *words)
