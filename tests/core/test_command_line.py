"""Help, errors, output and speed of the command line itself."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import click
import pytest

from lorakit.cli import evaluate, main
from lorakit.core import command_line, storage, tables
from lorakit.core.errors import ConfigError, DataError
from tests import commands


def all_commands() -> dict[str, click.Command]:
    """Every command by its words, such as `eval run`."""
    found: dict[str, click.Command] = {}

    def add(group: command_line.Group, prefix: str) -> None:
        for name in group.lazy:
            command = group.get_command(click.Context(group), name)
            assert command is not None
            found[prefix + name] = command
            if isinstance(command, command_line.Group):
                add(command, f"{prefix}{name} ")

    add(main.lorakit, "")
    return found


COMMANDS = all_commands()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


# ---- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_lorakit_alone_prints_its_help_by_section(capsys, words):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    sections = re.findall(r"^(\w+):\n", out, re.M)
    assert sections == ["Options", "Train", "Data", "Evaluate", "Adapters", "Information"]
    for name in main.COMMANDS:
        assert re.search(rf"^  {name} ", out, re.M)


@pytest.mark.parametrize("group", ["data", "eval"])
def test_a_group_alone_prints_its_help(capsys, group):
    code, out, err = run(capsys, group)
    assert (code, err) == (0, "")
    assert f"Usage: lorakit {group}" in out


def test_python_m_lorakit_works():
    done = subprocess.run([sys.executable, "-m", "lorakit", "--version"], capture_output=True, text=True)
    assert re.fullmatch(r"lorakit \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_starts_with_its_line_in_the_list_and_has_an_example(capsys, name):
    code, out, _ = run(capsys, *name.split(), "--help")
    assert code == 0
    *above, last = name.split()
    group = COMMANDS[above[0]] if above else main.lorakit
    assert isinstance(group, command_line.Group)
    text = " ".join(out.split())
    assert group.lazy[last].help.rstrip(".") in text
    command = COMMANDS[name]
    if isinstance(command, command_line.Command):
        examples = [command.example] if isinstance(command.example, str) else command.example
        assert re.search(rf"Examples?:\n  {re.escape(examples[0])}\n", out)
        for example in examples:
            assert f"  {example}\n" in out
            if example.startswith("lorakit "):
                commands.parse(re.findall(r'"[^"]*"|\S+', example)[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_has_a_help_text(name):
    for param in COMMANDS[name].params:
        assert getattr(param, "help", None), param.name


def test_help_imports_no_library_but_click():
    code = (
        "import sys\nfrom lorakit.cli import main\nassert main.main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'yaml', 'rich', 'subprocess', 'logging', 'pathlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "own = [n for n in sys.modules if n.startswith(('lorakit.', 'data_tools'))]\n"
        "assert len(own) <= 9, own\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_takes_little_processor_time():
    """The target is 60 ms; the limit leaves room for slow machines, a heavy import is far above it."""
    resource = pytest.importorskip("resource", reason="no processor times of children on this system")

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    with_click = min(seconds("-c", "import click") for _ in range(5))
    assert min(seconds("-m", "lorakit", "--help") for _ in range(5)) < 1.6 * with_click


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["trian", "sd15"], "train"),
        (["familes"], "families"),
        (["data", "perpare", "photos"], "prepare"),
        (["eval", "scor", "images"], "score"),
        (["train", "sd15", "--num-proceses", "2"], "--num-processes"),
        (["data", "prepare", "photos", "--triger", "sks"], "--trigger"),
        (["families", "--jsn"], "--json"),
    ],
)
def test_a_mistyped_command_or_option_names_the_nearest(capsys, words, meant):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.endswith(f"; did you mean {meant!r}?")
    assert re.fullmatch(r"  remedy: lorakit( data| eval)?( \w+)? --help", second)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "missing argument 'RECIPE'"),
        (["train", "out=runs/x"], "missing argument 'RECIPE'"),
        (["train", "a.yaml", "b.yaml"], "more than one recipe: a.yaml, b.yaml"),
        (["train", "sd15", "out", "=", "x"], "a key and its value are separated"),
        (["train", "sd15", "out=", "x"], "write them as one word: sd15 out=x"),
        (["--quiet", "train", "sd15"], "options come after the command"),
        (["sample", "tiny-dit"], "missing option '--prompts'"),
        (["sample", "tiny-dit", "--prompts", "p", "--batch-size", "0"], "0 is not a positive number"),
        (["sample", "tiny-dit", "--prompts", "p", "--batch-size", "x"], "'x' is not a valid integer"),
        (["export", "runs/a", "--for", "comfy"], "'comfy' is not one of"),
        (["families", "extra"], "unexpected extra argument"),
        (["data", "scan", ""], "the path is empty"),
    ],
)
def test_a_usage_error_is_one_line_and_where_the_help_is(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 2
    assert "Usage:" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize("words", [["quickstart"], ["train", "sd15"], ["resume", "run"]])
def test_commands_without_an_answer_have_no_json(capsys, words):
    code, _, err = run(capsys, *words, "--json")
    assert code == 2
    assert "no such option" in err


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=1e-4", "optimizer.lr"),
        ("learning_rate=1e-4", "optimizer.lr"),
        ("optimizer.learning_rate=1e-4", "lr"),
        ("steps=100", "train.steps"),
        ("max_train_steps=100", "train.steps"),
        ("epochs=3", "train.steps"),
        ("train.epochs=3", "steps"),
        ("network_dim=8", "adapter.rank"),
        ("adapter.dim=8", "rank"),
        ("rank=8", "adapter.rank"),
        ("batch_size=2", "train.batch_size"),
        ("gradient_accumulation_steps=2", "train.accumulate"),
        ("output_dir=x", "out"),
        ("trian.steps=1", "train"),
        ("optimizer.lrr=1", "lr"),
        ("resolutoin=512", "resolution"),
    ],
)
def test_a_mistyped_recipe_key_names_the_nearest_also_by_the_words_of_other_trainers(capsys, override, meant):
    code, _, err = run(capsys, "train", "sd15", override)
    assert code == 2
    assert f"{override.partition('=')[0].partition('.')[0]}" in err
    assert f"did you mean {meant!r}?" in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--lr", "1e-4"], "optimizer.lr=1e-4"),
        (["--learning-rate=1e-4"], "optimizer.lr=1e-4"),
        (["--learningrate", "1e-4"], "optimizer.lr=1e-4"),
        (["-lr", "1e-4"], "optimizer.lr=1e-4"),
        (["--steps", "100"], "train.steps=100"),
        (["--train.steps", "100"], "train.steps=100"),
        (["--max_train_steps=100"], "train.steps=100"),
        (["--steps"], "train.steps=..."),
        (["--output_dir", "my run"], "out='my run'"),
        (["--network_dim", "8", "out=x"], "adapter.rank=8"),
        (["--rank", "8"], "adapter.rank=8"),
        (["--seed", "1"], "train.seed=1"),
        (["--mixed_precision", "fp16"], "train.precision=fp16"),
        (["--use_8bit_adam"], "optimizer.name=adamw8bit"),
        (["--gradient_checkpointing"], "memory.gradient_checkpointing=1"),
        (["--train_text_encoder"], "adapter.text_encoder=true"),
        (["--processes", "2"], "--num-processes"),
        (["--num_processes", "2"], "--num-processes"),
        (["--pretrained_model_name_or_path", "a/b"], "base=a/b"),
        (["--resoluton", "512"], "resolution=512"),
        (["steps", "100"], "train.steps=100"),
        (["steps:100"], "train.steps=100"),
        (["lr"], "optimizer.lr=..."),
    ],
)
def test_a_setting_written_in_another_way_is_answered_with_what_to_write(capsys, words, meant):
    code, out, err = run(capsys, "train", "sd15", *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[0].endswith(f"; did you mean {meant!r}?")
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--resume"], "lorakit resume RUN"),
        (["--resume_from_checkpoint", "latest"], "lorakit resume RUN"),
        (["--xformers"], "memory-efficient attention is always used"),
        (["--cache_latents"], "always cached"),
        (["--enable_bucket"], "sorted into buckets"),
        (["--v_parameterization"], "reads it from the base model"),
        (["--save_model_as", "safetensors"], "always .safetensors"),
        (["--revision", "main"], "base=ID@REVISION"),
        (["xformers=true"], "memory-efficient attention is always used"),
    ],
)
def test_a_setting_that_lorakit_does_not_need_is_answered_with_the_reason(capsys, words, answer):
    code, _, err = run(capsys, "train", "sd15", *words)
    assert code == 2
    assert answer in err
    assert len(err.splitlines()) <= 3


@pytest.mark.parametrize(
    "words", [["--epochs", "3"], ["epochs=3"], ["train.epochs=3"], ["--max_train_epochs=3"]]
)
def test_epochs_are_answered_with_the_number_of_steps_of_the_dataset(capsys, tmp_path, words):
    rows = [{"file": "a.png", "repeats": 10}, {"file": "b.png"}, {"file": "c.png", "keep": False}]
    storage.write_jsonl(tmp_path / "manifest.jsonl", rows)
    code, _, err = run(capsys, "train", "sd15", f"dataset={tmp_path}", *words)  # batch 2, accumulate 2
    assert code == 2
    assert "steps = epochs x images x repeats" in err
    assert "3 epochs of 11 images are train.steps=9" in err
    code, _, err = run(capsys, "train", "sd15", "dataset=nowhere", *words)
    assert "steps = epochs x images x repeats" in err
    assert "images are" not in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evaluate", "run"], "eval"),
        (["prepare", "photos"], "data prepare"),
        (["caption", "photos"], "data caption"),
        (["pick", "run"], "eval pick"),
        (["generate", "tiny-dit"], "sample"),
        (["dat", "prepare", "photos"], "data"),
        (["help", "trian"], "train"),
        (["sample", "tiny-dit", "--steps", "5"], "--num-inference-steps"),
        (["sample", "tiny-dit", "--cfg", "5"], "--guidance-scale"),
        (["sample", "tiny-dit", "--lora", "a"], "--adapter"),
        (["quickstart", "--output", "a"], "--out"),
        (["data", "prepare", "photos", "--class_noun", "dog"], "--class-noun"),
        (["export", "runs/a", "--target", "comfyui"], "--for"),
        (["export", "runs/a", "--for", "comfy"], "comfyui"),
        (["export", "runs/a", "--for", "A111"], "a1111"),
        (["quickstart", "--base", "tiny-unit"], "tiny-unet"),
        (["data", "export", "photos", "--to", "koya", "--out", "x"], "kohya"),
        (["data", "bucket", "photos", "--crop", "centre"], "center"),
    ],
)
def test_other_words_for_commands_options_and_values_name_the_nearest(capsys, words, meant):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert f"did you mean {meant!r}?" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["help"], "lorakit"),
        (["help", "train"], "lorakit train"),
        (["help", "data", "scan"], "lorakit data scan"),
        (["data", "help", "scan"], "lorakit data scan"),
    ],
)
def test_help_may_stand_before_a_command(capsys, words, usage):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: {usage} ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("no_color", ["", "1"])
def test_errors_are_coloured_on_a_terminal_unless_no_color_is_set(monkeypatch, no_color):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    command_line.print_error(DataError("the image is damaged", where="a.jpg", remedy="replace it"))
    plain = "error: the image is damaged\n  where: a.jpg\n  remedy: replace it\n"
    assert (stream.getvalue() == plain) == bool(no_color)
    assert re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()) == plain


def test_an_interrupt_is_one_word_and_130(capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line.Command, "invoke", interrupt)
    code, _, err = run(capsys, "families")
    assert code == 130
    assert err.startswith("interrupted")
    assert len(err.splitlines()) == 1


def test_a_reader_that_stops_reading_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "lorakit", "families", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(120) == 0


# ---- options and output ------------------------------------------------------------------------------------


def test_options_and_overrides_in_any_order():
    lines = (
        ["train", "r.yaml", "--num-processes", "2", "out=X", "train.steps=5"],
        ["train", "--num-processes", "2", "r.yaml", "out=X", "train.steps=5"],
        ["train", "r.yaml", "out=X", "--num-processes", "2", "train.steps=5"],
        ["train", "r.yaml", "out=X", "train.steps=5", "--num-processes=2"],
    )
    for line in lines:
        parsed = commands.parse(line).params
        assert parsed["recipe"] == "r.yaml"
        assert parsed["overrides"] == ("out=X", "train.steps=5")
        assert parsed["num_processes"] == 2


def test_an_override_may_come_before_the_recipe(capsys, tmp_path):
    code, _, err = run(capsys, "train", "out=X", str(tmp_path / "absent.yaml"))
    assert code == 2
    assert "there is no such recipe" in err
    assert "absent.yaml" in err


def test_quiet_reaches_the_library_during_the_command_only(monkeypatch, capsys):
    seen = []
    monkeypatch.delenv("LORAKIT_QUIET", raising=False)
    monkeypatch.setattr(
        "lorakit.models.families.family_table",
        lambda: seen.append(command_line.os.environ["LORAKIT_QUIET"]) or [],
    )
    assert run(capsys, "families", "--quiet", "--json")[0] == 0
    assert seen == ["1"]
    assert "LORAKIT_QUIET" not in command_line.os.environ


@pytest.mark.parametrize("text", ["", "a", "0", "-1", "11", "nan", "0.5,,1"])
def test_impossible_strengths_are_refused(text):
    with pytest.raises(ConfigError, match="strengths"):
        evaluate._parse_strengths(text)
    assert evaluate._parse_strengths("1,0.5,1") == (0.5, 1.0)


def test_a_table_in_a_pipe_is_one_line_a_row(capsys):
    long = "x" * 300
    tables.print_table(("name", "rank", "text"), [("a", 4, long), ("longer", 128, "b")], numeric=("rank",))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name    rank  text", f"a          4  {long}", "longer   128  b"]


def test_a_table_on_a_terminal_fits_its_width(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("COLUMNS", "60")
    tables.print_table(("name", "text"), [("a[bold]", "word " * 40)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 60
    assert any("a[bold]" in line for line in lines)


def test_recipes_and_families_are_listed_one_a_line(capsys):
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    assert re.search(r"^sd15 +Stable Diffusion 1\.5 ", out, re.M)
    code, out, _ = run(capsys, "families")
    assert code == 0
    rows = json.loads(run(capsys, "families", "--json")[1])
    for row in rows:
        assert re.search(rf"^{row['name']} .*\([1-9]\)$", out, re.M)
        assert re.search(rf"^\([1-9]\) {re.escape(row['tested'])}$", out, re.M)
