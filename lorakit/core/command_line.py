"""Classes and functions that all of lorakit's commands are built from; based on click.

A command is a function that parses nothing itself: click parses, the function calls the library and hands
the answer to `print_answer`. Importing this module loads click and little else, so that `lorakit --help` is
quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

import click

from lorakit.core.errors import LorakitError
from lorakit.core.progress import QUIET_VARIABLE
from lorakit.core.visible_text import escape_controls, escape_json_controls

if TYPE_CHECKING:
    from pathlib import Path  # imported where it is used: it takes a tenth of the time of `lorakit --help`

    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "show_default": True,
}
_OPTIONS, _GENERAL = "Options", "General options"
_JSON, _QUIET, _WORDS = "lorakit.json", "lorakit.quiet", "lorakit.words"
SuggestOption = Callable[[str, Sequence[str], bool], "tuple[str | None, str | None] | None"]


class Option(click.Option):
    """An option that is listed under `section` in the help."""

    def __init__(self, *args: Any, section: str = _OPTIONS, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.section = section


def option(*names: str, section: str = _OPTIONS, **attrs: Any) -> Callable[[F], F]:
    """Declare an option; see `click.option`."""
    return click.option(*names, cls=Option, section=section, **attrs)


def add_options(*declarations: Callable[[F], F]) -> Callable[[F], F]:
    """Combine declarations of options into one decorator; the help lists them in this order."""

    def decorate(function: F) -> F:
        for declaration in reversed(declarations):
            function = declaration(function)
        return function

    return decorate


class PathType(click.ParamType["Path"]):
    """A path, completed by the shell as a `file` or `dir`; the library checks whether it exists."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; an empty text would be the current folder and is refused."""
        from pathlib import Path

        if not str(value):
            self.fail("the path is empty", param, ctx)
        return Path(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete the path."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self.name)]


class PositiveInt(click.types.IntParamType):
    """A whole number from 1."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        number = int(super().convert(value, param, ctx))
        if number < 1:
            self.fail(f"{number} is not a positive number", param, ctx)
        return number


FILE = PathType("file")
FOLDER = PathType("dir")
POSITIVE = PositiveInt()


class Command(click.Command):
    """A command with an example in its help, `--quiet`, and `--json` if it prints an answer.

    `suggest(option, words, similar)` returns what to write instead of an unknown option, and a remedy; with
    `similar`, also for names that are only similar to one it knows.
    """

    def __init__(
        self,
        *args: Any,
        example: str | Sequence[str],
        answers: bool = True,
        suggest: SuggestOption | None = None,
        **attrs: Any,
    ) -> None:
        super().__init__(*args, **attrs, context_settings=CONTEXT)  # type: ignore[misc]
        self.example, self.suggest = example, suggest
        if answers:
            self.params.append(_flag("--json", _JSON, "Print the answer as JSON."))
        self.params.append(_flag("--quiet", _QUIET, "Print no progress and no summary."))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words, and keep them for the message about an unknown one."""
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the arguments that have a help text."""
        rows = [p.get_help_record(ctx) for p in self.get_params(ctx) if isinstance(p, click.Argument)]
        if rows := [row for row in rows if row and row[1]]:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options by section, those of every command last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and not isinstance(param, click.Argument):
                sections.setdefault(getattr(param, "section", _GENERAL), []).append(record)
        for name in sorted(sections, key=lambda name: (name == _GENERAL, name != _OPTIONS)):
            with formatter.section(name):
                formatter.write_dl(sections[name])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the example."""
        examples = [self.example] if isinstance(self.example, str) else self.example
        with formatter.section("Example" if len(examples) == 1 else "Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `--quiet` reaches the processes that it starts, too."""
        from lorakit.core.process_setup import configure_process

        configure_process()
        with _quiet_environment(is_quiet(ctx)):
            return super().invoke(ctx)


def _flag(name: str, key: str, text: str) -> Option:
    def store(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[key] = value

    return Option([name], section=_GENERAL, is_flag=True, expose_value=False, callback=store, help=text)


@contextmanager
def _quiet_environment(quiet: bool) -> Iterator[None]:
    before = os.environ.get(QUIET_VARIABLE)
    if quiet:
        os.environ[QUIET_VARIABLE] = "1"
    try:
        yield
    finally:
        if quiet and before is None:
            del os.environ[QUIET_VARIABLE]


class LazyCommand(NamedTuple):
    """A command that is imported when it is needed: `module:attribute`, and its line in the group's help."""

    target: str
    help: str
    section: str = "Commands"

    @property
    def is_group(self) -> bool:
        """Return True for a group of commands."""
        return self.target.endswith("_group")


class Group(click.Group):
    """A group whose help lists the commands by section without importing them; alone it prints its help."""

    def __init__(self, *args: Any, lazy: dict[str, LazyCommand], **attrs: Any) -> None:
        super().__init__(*args, context_settings=CONTEXT, **attrs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.lazy:
            return None
        import importlib

        module, _, attribute = self.lazy[cmd_name].target.partition(":")
        loaded: click.Command = getattr(importlib.import_module(module), attribute)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.lazy.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words; `help COMMAND` is `COMMAND --help`."""
        if args and args[0] == "help":
            args = [*args[1:], "--help"]
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by its name; an unknown one is an error that names the nearest."""
        name = args[0]
        if name not in self.lazy and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.NoSuchCommand(name, possibilities=self.lazy, ctx=ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of commands without importing them."""
        from click.shell_completion import CompletionItem

        items = [CompletionItem(n, help=e.help) for n, e in self.lazy.items() if n.startswith(incomplete)]
        return items + click.Command.shell_complete(self, ctx, incomplete)


# ---- output ------------------------------------------------------------------------------------------------


def is_quiet(ctx: click.Context | None = None) -> bool:
    """Return True if the current command was given `--quiet`."""
    return bool((ctx or click.get_current_context()).meta.get(_QUIET))


def wants_json() -> bool:
    """Return True if the current command was given `--json`."""
    return bool(click.get_current_context().meta.get(_JSON))


def print_answer(value: Any, text: str | Callable[[], str | None] | None) -> None:
    """Print the answer of the current command: `value` as JSON with `--json`, else `text`.

    `text` may be a function that prints or returns it, which is called only if needed.
    """
    if wants_json():
        import json

        print(escape_json_controls(json.dumps(value, indent=2, ensure_ascii=False, default=str)))
        return
    output = text() if callable(text) else text
    if output is not None:
        print(escape_controls(output), flush=True)


def print_summary(text: str | Callable[[], str | None]) -> None:
    """Print what a person reads beside the answer: nothing with `--quiet` or `--json`."""
    if not is_quiet() and not wants_json():
        print_answer(None, text)


def uses_color(stream: TextIO) -> bool:
    """Return True for a terminal that shows colours, unless NO_COLOR is set (https://no-color.org)."""
    with suppress(ValueError):  # a closed stream
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return False


def print_error(error: LorakitError) -> None:
    """Print `error: ...` with its place and remedy on stderr."""
    message = escape_controls(str(error))
    text = f"error: {message}"
    if uses_color(sys.stderr):
        first, *others = message.split("\n")
        label = click.style("error:", fg="red", bold=True)
        text = "\n".join([f"{label} {click.style(first, bold=True)}", *others])
    with suppress(OSError, ValueError):  # a closed terminal
        print(text, file=sys.stderr, flush=True)


def escape_unencodable_output() -> None:
    """Let characters that the terminal's encoding lacks be escaped instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")


def print_text(text: str) -> None:
    """Print text on stderr, with control characters escaped; a closed terminal is ignored."""
    with suppress(OSError, ValueError):
        print(escape_controls(text), file=sys.stderr, flush=True)


def words_of(context: click.Context) -> list[str]:
    """Return the words after the command that is being parsed."""
    return list(context.meta.get(_WORDS, ()))


def command(
    name: str,
    *decorators: Callable[[F], F],
    example: str | Sequence[str],
    answers: bool = True,
    suggest: SuggestOption | None = None,
) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command from a function, its arguments and options; the docstring is the help.

    The function returns the exit code, or None for 0.
    """

    def decorate(function: Any) -> Command:
        declared = add_options(*decorators)(function)
        result: Command = click.command(name, cls=Command, example=example, answers=answers, suggest=suggest)(
            declared
        )
        return result

    return decorate
