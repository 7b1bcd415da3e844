"""The architecture: package dependencies, cycles, sizes, one module that writes, imports without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("core",),
    ("manifest", "config"),
    ("imaging",),
    ("reports",),
    ("models",),
    ("adapters",),
    ("data",),
    ("sampling",),
    ("planner",),
    ("training",),
    ("evaluation",),
    ("data_tools",),
    ("quickstart",),
    ("cli",),
    ("__main__",),
)
"""Packages from the lowest to the highest: each may import itself and what stands above it in this list."""
LAYER = {name: index for index, names in enumerate(LAYERS) for name in names}
DATA_TOOLS_IMPORTS = {"core", "config", "imaging", "manifest", "reports", "models"}
DATA_TOOLS_USERS = {"cli", "quickstart"}
TORCH_FREE = (
    "lorakit",
    "lorakit.cli.doctor",
    "lorakit.cli.main",
    "lorakit.config.recipe",
    "lorakit.core.errors",
    "lorakit.core.launch",
    "lorakit.core.progress",
    "lorakit.core.storage",
    "lorakit.core.watchdog",
    "lorakit.data.prompts",
    "lorakit.imaging.buckets",
    "lorakit.imaging.decode",
    "lorakit.manifest",
    "lorakit.models.base_model",
    "lorakit.models.families",
    "lorakit.reports",
    "lorakit.training.run_folder",
    "data_tools.cli",
    "data_tools.prepare",
)
FILES = sorted([*ROOT.glob("lorakit/**/*.py"), *ROOT.glob("data_tools/**/*.py")])
WRITERS = re.compile(
    r"(?<!storage)\.(write_text|write_bytes|touch|mkdir|unlink|rename|symlink_to|rmdir)\(|os\.(replace|rename|remove|unlink|mkdir|makedirs)\("
    r"|shutil\.(copy|move|rmtree)|open\([^)\n]*[\"'](w|a|x|wb|ab|xb|w\+|a\+b)[\"']|torch\.save\(|pickle\.dump"
)


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, *, lazy: bool = True) -> set[str]:
    """Modules of the project that a file imports, inside functions and TYPE_CHECKING blocks too.

    Without `lazy`, only those that are imported when the module is.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if is_module(name) else node.module for name in full}
    return {name for name in names if name.split(".")[0] in ("lorakit", "data_tools")}


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def package(name: str) -> str:
    """The layer's name: the first folder or module within lorakit; data_tools is one package."""
    parts = name.split(".")
    return parts[0] if parts[0] == "data_tools" or len(parts) == 1 else parts[1]


def test_every_package_has_a_layer():
    assert {package(module(file)) for file in FILES} - {"lorakit"} == set(LAYER)


@pytest.mark.parametrize("file", FILES, ids=module)
def test_imports_point_down(file):
    name = module(file)
    if name == "lorakit":
        return  # the public API: lazy names of all packages
    own = package(name)
    for other in imports(file):
        target = package(other)
        assert LAYER[target] <= LAYER[own], f"{name} imports {other}, which is above it"
        if target == own:
            continue
        assert LAYER[target] < LAYER[own], f"{name} imports {other}, which is beside it"
        if own == "data_tools":
            assert target in DATA_TOOLS_IMPORTS, f"{name} must not import {other}"
        if target == "data_tools":
            assert own in DATA_TOOLS_USERS, f"{name} must not import {other}"


@pytest.mark.parametrize("lazy", [False, True], ids=["at import", "in functions and for types too"])
def test_there_is_no_import_cycle(lazy):
    graph = {module(file): {n for n in imports(file, lazy=lazy) if n != module(file)} for file in FILES}
    del graph["lorakit"]  # the public API: it imports what a name needs when the name is used
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join([*path, name])
        if name in state or name not in graph:
            return
        state[name] = 1
        for other in graph[name]:
            if not name.startswith(other + "."):  # a package lists its own modules
                visit(other, (*path, name))
        state[name] = 2

    for name in graph:
        visit(name, ())


def test_few_entries_stand_directly_in_the_package():
    documents = {"__init__.py", "py.typed", "LICENSE", "README.md"}
    listed = subprocess.run(["git", "ls-files", "lorakit"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    entries = {line.split("/")[1] for line in listed.stdout.splitlines()} - documents
    assert len(entries) <= 15, sorted(entries)


def test_no_family_is_named_outside_families():
    names = re.compile(r"sd15|sd3|flux2|StableDiffusion\w*Pipeline|Flux2\w*Pipeline")
    allowed = ("families", "formats", "quickstart")
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\bif .*\bfamily(\.name)? *(==|in)\b", text) or "families" in file.parts, file
        if not any(part in file.parts for part in allowed):
            values = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
            assert not [v for v in values if isinstance(v, str) and names.fullmatch(v)], file


def test_only_storage_writes():
    for file in FILES:
        if module(file) == "lorakit.core.storage":
            continue
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if WRITERS.search(line)]
        assert not lines, f"{module(file)}: {lines}"


def test_files_and_functions_are_short():
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


def test_modules_that_need_no_torch_do_not_import_it():
    code = f"import sys\nimport {', '.join(TORCH_FREE)}\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_next_to_nothing():
    code = (
        "import sys\nfrom lorakit.cli import main\n"
        "try:\n    main.main(['--help'])\nexcept SystemExit:\n    pass\n"
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
