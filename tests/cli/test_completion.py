"""Shell completion: the scripts of four shells, and the words that each of them is given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lorakit.cli import completion, main

SHELLS = completion.SHELLS
SEPARATORS = {"bash": ",", "fish": ",", "zsh": "\n", "powershell": "\n"}


def complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str, shell: str = "bash"
) -> list[str]:
    """The completions of the last word, as `type,value` or whatever the shell's script reads."""
    monkeypatch.setenv("_LORAKIT_COMPLETE", f"{shell}_complete")
    if shell == "fish":
        monkeypatch.setenv("COMP_WORDS", " ".join(["lorakit", *words]))
        monkeypatch.setenv("COMP_CWORD", words[-1])
    else:
        monkeypatch.setenv("COMP_WORDS", " ".join(["lorakit", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
    assert main.main([]) == 0
    return capsys.readouterr().out.splitlines()


def values(lines: list[str]) -> list[str]:
    """The values of bash's lines."""
    return [line.partition(",")[2] for line in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_a_shell_registers_a_completer_for_lorakit(capsys, shell):
    assert main.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    registers = {
        "bash": "complete -o nosort -F _lorakit_completion lorakit",
        "zsh": "compdef _lorakit_completion lorakit",
        "fish": "complete --no-files --command lorakit",
        "powershell": "Register-ArgumentCompleter -Native -CommandName lorakit",
    }
    assert registers[shell] in script
    assert f"{shell}_complete" in script


def test_an_unknown_shell_is_refused(capsys):
    assert main.main(["completion", "tcsh"]) == 2
    assert "'tcsh' is not one of" in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_completes_commands_options_and_recipes(monkeypatch, capsys, tmp_path, shell):
    monkeypatch.chdir(tmp_path)
    for words, value in (
        (("res",), "resume"),
        (("data", "pre"), "prepare"),
        (("data", "prepare", "--class"), "--class-noun"),
        (("train", "sd1"), "sd15-inpaint"),
        (("export", "run", "--for", "com"), "comfyui"),
    ):
        text = "\n".join(complete(monkeypatch, capsys, *words, shell=shell))
        assert f"plain{SEPARATORS[shell]}{value}" in text, (words, text)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("data", "prepare", "ph"), "dir"),
        (("resume", "ru"), "dir"),
        (("inspect", "do"), "file"),
        (("sample", "tiny-dit", "--prompts", "p"), "file"),
        (("train", "sd15", "dataset", "=", "ph"), "file"),
        (("train", "sd15", "dataset", "="), "file"),
    ],
)
def test_paths_are_left_to_the_shell(monkeypatch, capsys, words, kind):
    assert [line.partition(",")[0] for line in complete(monkeypatch, capsys, *words)] == [kind]


def test_a_recipe_is_completed_from_the_built_in_names_and_the_yaml_files_here(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("sd-mine.yaml").touch()
    Path("sd-notes.txt").touch()
    Path("sd-folder").mkdir()
    found = values(complete(monkeypatch, capsys, "train", "sd"))
    assert found[:2] == ["sd15", "sd15-inpaint"]
    assert found[-2:] == ["sd-folder/", "sd-mine.yaml"]
    Path("sd-folder/deep.yaml").touch()
    assert values(complete(monkeypatch, capsys, "train", "sd-folder/d")) == ["sd-folder/deep.yaml"]


def test_the_value_of_a_recipe_key_is_completed_as_a_path(monkeypatch, capsys, tmp_path):
    """bash splits words at `=`, the other shells hand over the whole word."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/a.png").touch()
    Path(".hidden").touch()
    for incomplete, expected in (
        ("dataset=", ["dataset=photos/"]),
        ("dataset=ph", ["dataset=photos/"]),
        ("dataset=photos/", ["dataset=photos/a.png"]),
        ("dataset=nowhere/", []),
    ):
        found = complete(monkeypatch, capsys, "train", "sd15", incomplete, shell="fish")
        assert [line.partition(",")[2] for line in found if line] == expected


def test_keys_of_the_recipe_are_completed_after_it(monkeypatch, capsys):
    assert values(complete(monkeypatch, capsys, "train", "sd15", "optimizer.l")) == [
        "optimizer.lr=",
        "optimizer.loraplus_lr_ratio=",
    ]


def test_completing_a_command_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\nfrom lorakit.cli import main\nassert main.main([]) == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    for words in ("lorakit t", "lorakit train s", "lorakit data prepare --res"):
        environment = {"_LORAKIT_COMPLETE": "zsh_complete", "COMP_WORDS": words, "COMP_CWORD": "1"}
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("line", "value"),
    [("lorakit tra", "train"), ("lorakit train sd1", "sd15-inpaint"), ("lorakit export --fo", "--for")],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_the_script_completes_in_bash(tmp_path, line, value):
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "lorakit"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lorakit "$@"\n')
    program.chmod(0o755)
    words = line.split()
    script = (
        'eval "$(lorakit completion bash)"\n'
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
        '_lorakit_completion lorakit; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    root = Path(main.__file__).parents[2]
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(root)}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert value in done.stdout.split(), done.stderr
