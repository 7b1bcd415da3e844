"""The command `lorakit`: all commands by section, and how errors are shown.

`lorakit --help` imports click and little else; a command's module is imported when the command is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from lorakit.core.command_line import Group, LazyCommand, print_error, usage_error
from lorakit.core.errors import LorakitError
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
        ("data", "data_tools.cli:data_group",
         "Prepare and check a folder of images for training.", "Data"),
        ("eval", "lorakit.cli.evaluate:evaluate_group",
         "Evaluate checkpoints: sample, score, compare, select.", "Evaluate"),
        ("sample", "lorakit.cli.sample:sample_command", "Generate images from prompts.", "Evaluate"),
        ("export", "lorakit.cli.adapters:export_command",
         "Write an adapter for ComfyUI, A1111 or diffusers.", "Adapters"),
        ("inspect", "lorakit.cli.adapters:inspect_command",
         "Show an adapter's family, type, ranks and norms.", "Adapters"),
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
         "Check the installation and show the devices.", "Information"),
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
    _escape_unencodable_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if instruction := os.environ.get(COMPLETION_VARIABLE):
            from click.shell_completion import shell_complete

            return shell_complete(lorakit, {}, "lorakit", COMPLETION_VARIABLE, instruction)
        with lorakit.make_context("lorakit", words) as context:
            return int(lorakit.invoke(context) or 0)
    except click.exceptions.Exit as stop:  # --help and --version
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        print(error.message)
        return 0
    except click.UsageError as error:
        refusal = usage_error(error)
        print_error(refusal)
        return refusal.exit_code
    except LorakitError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:  # `lorakit ... | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        with suppress(OSError, ValueError):
            print("interrupted", file=sys.stderr)
        return 130


def _escape_unencodable_output() -> None:
    """Let characters that the terminal's encoding lacks be escaped instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
