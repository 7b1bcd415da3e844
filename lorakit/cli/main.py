"""The command `lorakit`: all commands by section, and how errors are shown.

`lorakit --help` imports click and little else; a command's module is imported when the command is used.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import click

from lorakit.core.command_line import (
    Group,
    LazyCommand,
    escape_unencodable_output,
    print_error,
    print_text,
)
from lorakit.core.errors import DataError, Interrupted, LorakitError
from lorakit.core.version import __version__

COMPLETION_VARIABLE = "_LORAKIT_COMPLETE"
COMMANDS = {
    name: LazyCommand(target, text, section)
    for name, target, text, section in (
        ("quickstart", "lorakit.cli.train:quickstart_command",
         "Run a complete example on the embedded base model, offline, in minutes.", "Train"),
        ("train", "lorakit.cli.train:train_command",
         "Train from a recipe, or continue the run if it was interrupted.", "Train"),
        ("resume", "lorakit.cli.train:resume_command", "Resume an interrupted run.", "Train"),
        ("reproduce", "lorakit.cli.train:reproduce_command",
         "Train a finished run again and compare the weights byte for byte.", "Train"),
        ("plan", "lorakit.cli.plan:plan_command",
         "Predict memory, time and cost of a run, and choose its memory settings.", "Train"),
        ("sweep", "lorakit.cli.sweep:sweep_command",
         "Train adapters with several values of recipe keys together on one base model.", "Train"),
        ("cache", "lorakit.cli.cache:cache_command",
         "Encode the images and captions of a recipe before its training.", "Train"),
        ("data", "data_tools.cli:data_group",
         "Prepare and check a folder of images for training.", "Data"),
        ("eval", "lorakit.cli.evaluate:evaluate_group",
         "Evaluate checkpoints: sample, score, compare, select.", "Evaluate"),
        ("sample", "lorakit.cli.sample:sample_command", "Generate images from prompts.", "Evaluate"),
        ("export", "lorakit.cli.adapters:export_command",
         "Write an adapter for ComfyUI, A1111 or diffusers.", "Adapters"),
        ("publish", "lorakit.cli.publish:publish_command",
         "Write a run as a folder for the model hub, and upload it with --to.", "Adapters"),
        ("inspect", "lorakit.cli.adapters:inspect_command",
         "Show an adapter's family, type, ranks and norms, and which programs load it.", "Adapters"),
        ("check", "lorakit.cli.adapters:check_command",
         "Check whether a program loads an adapter file.", "Adapters"),
        ("convert", "lorakit.cli.adapters:convert_command",
         "Write an adapter in another file layout.", "Adapters"),
        ("combine", "lorakit.cli.adapters:combine_command", "Combine several adapters into one.", "Adapters"),
        ("resize", "lorakit.cli.adapters:resize_command", "Reduce the rank of an adapter.", "Adapters"),
        ("extract", "lorakit.cli.adapters:extract_command",
         "Extract a LoRA from a fine-tuned model.", "Adapters"),
        ("merge", "lorakit.cli.adapters:merge_command",
         "Merge adapters into a copy of a base model.", "Adapters"),
        ("families", "lorakit.cli.information:families_command",
         "List the supported model families.", "Information"),
        ("recipes", "lorakit.cli.information:recipes_command", "List the built-in recipes.", "Information"),
        ("recipe", "lorakit.cli.recipe:recipe_group",
         "Print the reference of recipe keys, files and exit codes.", "Information"),
        ("doctor", "lorakit.cli.doctor:doctor_command",
         "Check the installation, and show what this machine can train.", "Information"),
        ("completion", "lorakit.cli.completion:completion_command",
         "Print the script that completes commands in a shell.", "Information"),
    )
}  # fmt: skip


@click.group("lorakit", cls=Group, lazy=COMMANDS)
@click.version_option(__version__, prog_name="lorakit", message="%(prog)s %(version)s")
def lorakit() -> None:
    """Train LoRA adapters for diffusion models: prepare images, train, evaluate, export.

    `lorakit COMMAND --help` explains a command.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; see `lorakit.core.errors` for the codes."""
    escape_unencodable_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if instruction := os.environ.get(COMPLETION_VARIABLE):
            from click.shell_completion import shell_complete

            return shell_complete(lorakit, {}, "lorakit", COMPLETION_VARIABLE, instruction)
        with _stopped_by_sigterm(), lorakit.make_context("lorakit", words) as context:
            return int(lorakit.invoke(context) or 0)
    except click.exceptions.Exit as stop:  # --help and --version
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        print(error.message)
        return 0
    except click.UsageError as error:
        from lorakit.core.mistyped import explain_usage_error

        refusal = explain_usage_error(error)
        print_error(refusal)
        return refusal.exit_code
    except LorakitError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:  # `lorakit ... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a path that cannot be looked up or read, such as one that is too long
        if error.filename is None:
            raise
        refused = DataError(str(error.strerror), where=os.fsdecode(error.filename), remedy="check the path")
        print_error(refused)
        return refused.exit_code
    except KeyboardInterrupt:
        return _report_stop(Interrupted("interrupted", signal_number=signal.SIGINT))
    except Interrupted as stop:
        return _report_stop(stop)


def _report_stop(stop: Interrupted) -> int:
    print_text(str(stop))
    return stop.exit_code


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: with one line, and with what its blocks clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise Interrupted("interrupted", signal_number=number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
