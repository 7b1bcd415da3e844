"""The command `lorakit eval vote`."""

from __future__ import annotations

from pathlib import Path

import click

from lorakit.core.command_line import FOLDER, command, is_quiet, option, print_answer, print_text


@command(
    "vote",
    click.argument("folder", type=FOLDER, metavar="FOLDER", help="A run or an evaluation."),
    option(
        "--variants",
        metavar="A,B",
        help="Two or three variants to compare, such as step-200,step-400 or 400,base; by default those that "
        "the scores cannot distinguish.",
    ),
    option("--voter", metavar="NAME", help="Name of the voter, if several people vote."),
    option("--port", type=click.IntRange(0, 65535), default=0, metavar="N",
           help="Port of the page on this machine; 0 is any free one."),
    option("--open", "open_browser", is_flag=True, help="Open the page in the browser."),
    example="lorakit eval vote runs/dog --open",
)  # fmt: skip
def vote_command(
    folder: Path, variants: str | None, voter: str | None, port: int, open_browser: bool
) -> None:
    """Compare checkpoints blindly in the browser.

    A page on this machine shows two images of the same prompt and seed and asks which is better. Every vote
    is saved at once; the page says when enough votes are in. Ctrl+C ends the vote and prints the result, and
    the same command continues it. `lorakit eval report` adds the result to the report, and a clear
    preference decides between checkpoints that the scores cannot distinguish.
    """
    from lorakit.evaluation.report.number_format import join_names
    from lorakit.evaluation.vote.run_vote import open_session, serve_vote
    from lorakit.evaluation.vote.texts import summary_sentences

    names = [name.strip() for name in variants.split(",")] if variants else []
    session = open_session(folder, names)

    def announce(address: str) -> None:
        if not is_quiet_command:
            compared = join_names(session.choice.names)
            print_text(f"blind vote on {compared} ({session.choice.reason}); Ctrl+C ends it")
        print_text(address)

    is_quiet_command = is_quiet()
    summary = serve_vote(session, port=port, voter=voter or "", open_browser=open_browser, on_start=announce)
    sentences = summary_sentences(summary) or ["No votes."]
    print_answer(summary.to_json(), None if is_quiet_command else "\n".join(sentences))
