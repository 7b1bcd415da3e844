"""Find recipe files, including those that ship with lorakit. Imports neither YAML nor pydantic."""

from __future__ import annotations

from pathlib import Path

from lorakit.core.errors import ConfigError
from lorakit.core.nearest import nearest_name


def builtin_recipes_folder() -> Path:
    """Return the folder of the recipes that ship: beside the package in a checkout, inside it when
    installed."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def builtin_recipes() -> dict[str, Path]:
    """Return the recipes that ship, by name: {"sd15": .../sd15.yaml, ...}."""
    files = builtin_recipes_folder().glob("*.yaml")
    return {file.stem: file for file in sorted(files, key=lambda file: file.stem)}


def describe_recipe(file: Path) -> str:
    """Return the first comment of a recipe file, a sentence on what it trains."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[0].lstrip("# ") if lines else ""


def find_recipe(recipe: str | Path) -> Path:
    """Return the path of a recipe: a file, or the name of a recipe that ships, such as `sd15`.

    A file of that name in the working folder comes first. Raises ConfigError with the nearest name if there
    is none.
    """
    path = Path(recipe)
    shipped = builtin_recipes()
    name = str(recipe)
    if name in shipped and not path.is_file():
        own = path.with_suffix(".yaml")
        return own if own.is_file() else shipped[name]
    if path.exists():
        from lorakit.config.recipe_files import check_recipe_path

        check_recipe_path(path)
        return path
    beside = {file.name: str(file) for file in sorted(path.parent.glob("*.y*ml"))[:200]}
    known = beside if path.suffix else {**dict.fromkeys(shipped), **beside}
    near = nearest_name(path.name, known)
    meant = f"; did you mean {known.get(near) or near!r}?" if near else ""
    raise ConfigError(
        f"there is no such recipe{meant}",
        where=name,
        remedy="give a YAML file, or one of the recipes that `lorakit recipes` lists"
        + ("" if near else f"; a base model is written as base={name}"),
    )
