"""The house holds: floors, no circles, no family names outside families/, sizes, one writer, light rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    1: "errors storage tensor_header keyed recipe strict_yaml explain manifest buckets placement"
    " images masks source jpeg resample color sniff places objective vae report progress hub"
    " timesteps weighting fields objective_settings adapter_settings single_file bases prompts rundir tracker"
    " statistics launch watchdog opening clips",
    2: "families adapter optim memory quantize score samplers",
    3: "cache checkpoint export sample guides shown trained_text loading",
    4: "surgery dataset masking preserving batches planner plans stores session",
    5: "losses slider probe trainer looks train trial summary evaluate",
    6: "quickstart studio doctor cli reproduce",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
TORCH_FREE = (
    ["lorakit." + name for name in ("cli", "recipe", "manifest", "buckets", "report", "storage", "images")]
    + ["lorakit." + name for name in ("errors", "progress", "prompts", "rundir", "bases", "launch")]
    + ["lorakit." + name for name in ("families", "doctor", "watchdog")]
    + ["data_tools.commands", "data_tools.prepare"]
)
FILES = sorted([*ROOT.glob("lorakit/**/*.py"), *ROOT.glob("data_tools/**/*.py")])
WRITERS = re.compile(
    r"(?<!storage)\.(write_text|write_bytes|touch|mkdir|unlink|rename|symlink_to|rmdir)\(|os\.(replace|rename|remove|unlink|mkdir|makedirs)\("
    r"|shutil\.(copy|move|rmtree)|open\([^)\n]*[\"'](w|a|x|wb|ab|xb|w\+|a\+b)[\"']|torch\.save\(|pickle\.dump"
)


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, *, lazy: bool = True) -> set[str]:
    """Modules of the project that a file imports; without `lazy`, only those at its top level."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    nodes = list(ast.walk(tree)) if lazy else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else node.module for name in names}
    return {name for name in found if name.startswith(("lorakit", "data_tools"))}


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_room_has_a_floor():
    rooms = {room(module(file)) for file in FILES if module(file).startswith("lorakit.")}
    assert rooms <= set(FLOOR)


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_come_from_the_same_floor_or_below(file):
    name = module(file)
    if name == "lorakit":
        return
    mine = FLOOR[room(name)] if name.startswith("lorakit.") else 1
    for other in imports(file):
        if other.startswith("lorakit."):
            assert FLOOR[room(other)] <= mine, f"{name} (floor {mine}) imports {other}"
        elif other.startswith("data_tools") and name.startswith("lorakit."):
            assert mine == 6, f"{name} must not import {other}"


def test_no_circles():
    graph = {module(file): {n for n in imports(file, lazy=False) if n != module(file)} for file in FILES}
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join([*path, name])
        if name in state or name not in graph:
            return
        state[name] = 1
        for other in graph[name]:
            if not name.startswith(other + "."):  # a package's own file list is not a circle
                visit(other, (*path, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


def test_no_family_is_named_outside_families():
    names = r"[\"'](sd15|sd3|flux2|StableDiffusion\w*Pipeline|Flux2\w*Pipeline)[\"']"
    allowed = ("families", "export", "quickstart")
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\bif .*\bfamily(\.name)? *(==|in)\b", text) or "families" in file.parts, file
        if not any(part in file.parts for part in allowed):
            assert not re.search(names, text), file


def test_only_storage_writes():
    for file in FILES:
        if module(file) == "lorakit.storage":
            continue
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if WRITERS.search(line)]
        assert not lines, f"{module(file)}: {lines}"


def test_sizes():
    lengths = {module(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert max(lengths.values()) <= 400, {n: k for n, k in lengths.items() if k > 400}
    assert sum(k <= 300 for k in lengths.values()) >= 0.9 * len(lengths)
    long = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > 60:
                    long[f"{module(file)}.{node.name}"] = size
    assert not long, long


def test_light_rooms_load_without_torch():
    code = f"import sys\nimport {', '.join(TORCH_FREE)}\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_next_to_nothing():
    code = (
        "import sys\nfrom lorakit import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic', 'yaml', 'diffusers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_top_level_is_what_was_agreed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines() if not line.startswith(".")}
    assert top == {"pyproject.toml", "README.md", "lorakit", "recipes", "tests", "data_tools", "examples"}
