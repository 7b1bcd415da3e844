"""The list of forms: the first whose test the text passes is the form of a prompt file.

Content decides, not the extension: that only helps with text that is damaged or could be two things.
"""

from __future__ import annotations

from lorakit.core.errors import DataError
from lorakit.data.prompt_files import unknown
from lorakit.data.prompt_files.dreambooth import is_dreambooth, read_dreambooth
from lorakit.data.prompt_files.infotext import is_infotext, read_infotext
from lorakit.data.prompt_files.json_form import is_json, is_jsonl, read_json, read_jsonl
from lorakit.data.prompt_files.lines_form import read_lines
from lorakit.data.prompt_files.row import Form, PromptText
from lorakit.data.prompt_files.table_form import is_table, read_table
from lorakit.data.prompt_files.toml_form import is_toml, read_toml
from lorakit.data.prompt_files.yaml_form import is_yaml, read_yaml

FORMS = (
    Form("DreamBooth's lists", (".txt", ".py"), is_dreambooth, read_dreambooth),
    Form("JSONL", (".jsonl", ".ndjson"), is_jsonl, read_jsonl),
    Form("JSON", (".json",), is_json, read_json),
    Form("TOML", (".toml",), is_toml, read_toml),
    Form("YAML", (".yaml", ".yml"), is_yaml, read_yaml),
    Form("infotext of A1111", (".txt",), is_infotext, read_infotext),
    Form("a table", (".csv", ".tsv"), is_table, read_table),
)
LINES = Form(
    "plain lines", (".txt", ".text", ".prompts", ".prompt", ".md", ".lst", ""), lambda _: True, read_lines
)
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


def find_form(source: PromptText) -> Form:
    """Return the form of a text. Raises DataError for text that holds no prompts."""
    if not source.first_line():
        raise DataError("the file contains no prompt", where=source.where, remedy="write one prompt a line")
    form = next((form for form in FORMS if form.matches(source)), None)
    if form is None:
        unknown.refuse_unknown(source)
        form = LINES
    usual = {suffix for other in (*FORMS, LINES) for suffix in other.suffixes}
    if source.suffix in usual - {".txt", ""} and source.suffix not in form.suffixes:
        source.log(f"{source.where}: read as {form.title}, which the name does not say")
    return form
