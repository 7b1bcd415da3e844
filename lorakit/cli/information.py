"""`lorakit families` and `lorakit recipes`."""

from __future__ import annotations

from lorakit.core.command_line import command, print_answer
from lorakit.core.tables import print_table


@command("families", example="lorakit families --json")
def families_command() -> None:
    """List the supported model families, with their licenses and how each was tested."""
    from lorakit.models import families

    rows = families.family_table()

    def table() -> None:
        tests = {text: number for number, text in enumerate(dict.fromkeys(row["tested"] for row in rows), 1)}
        columns = ("family", "models", "objective", "rank 16", "license", "tested")
        keys = ("name", "title", "objective", "rank16_parameters", "license")
        cells = [[*(row[key] for key in keys), f"({tests[row['tested']]})"] for row in rows]
        print_table(columns, cells, numeric=("rank 16",))
        print("rank 16: trainable parameters of a LoRA of rank 16, 4 bytes each in the adapter file")
        print("\n".join(f"({number}) {text}" for text, number in tests.items()))

    print_answer(rows, table)


@command("recipes", example="lorakit recipes")
def recipes_command() -> None:
    """List the built-in recipes.

    Each can be trained by its name: lorakit train sd15 dataset=photos out=runs/dog
    """
    from lorakit.config.builtin_recipes import builtin_recipes, describe_recipe

    recipes = {name: (file, describe_recipe(file)) for name, file in builtin_recipes().items()}
    answer = {str(file): text for file, text in recipes.values()}
    rows = [(name, text) for name, (_, text) in recipes.items()]
    print_answer(answer, lambda: print_table(("recipe", "trains"), rows))
