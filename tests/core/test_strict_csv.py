from __future__ import annotations

import pytest

from lorakit.core.errors import DataError
from lorakit.core.strict_csv import read_csv

REFUSED = {
    "unquoted comma": ("file_name,text\na.png,a dog, sitting\n", "3 cells under 2 column names", 2),
    "missing cell": ("file_name,text\na.png,x\nb.png\n", "1 cells under 2 column names", 3),
    "lost quotation mark": ('file_name,text\na.png,"a dog\nb.png,a cat\n', "unexpected end of data", 3),
    "text after a quotation mark": ('file_name,text\na.png,"a" dog\n', "expected after", 2),
    "huge cell": ("file_name,text\na.png," + "x" * 200_000 + "\n", "field larger than field limit", 2),
    "doubled column": ("file_name,text,text\na.png,x,y\n", "two columns are named 'text'", 1),
}


@pytest.mark.parametrize(("text", "message", "line"), REFUSED.values(), ids=REFUSED)
def test_a_row_that_is_not_as_the_first_line_is_refused_with_its_line(text, message, line):
    with pytest.raises(DataError, match=message) as caught:
        list(read_csv(text, "metadata.csv"))
    assert caught.value.where == f"metadata.csv, line {line}"


def test_quoted_cells_keep_commas_lines_and_quotation_marks():
    text = 'file_name,text\na.png,"a dog, ""sitting""\non a sofa"\n\nb.png,a "cat"\n'
    assert [row for _, row in read_csv(text, "x")] == [
        {"file_name": "a.png", "text": 'a dog, "sitting"\non a sofa'},
        {"file_name": "b.png", "text": 'a "cat"'},
    ]


def test_tabs_without_quotation_marks():
    rows = list(read_csv('Prompt\tCategory\na "dog\tAnimals\n', "x", delimiter="\t", has_quotes=False))
    assert rows == [(2, {"Prompt": 'a "dog', "Category": "Animals"})]


def test_an_empty_table_has_no_rows():
    assert list(read_csv("", "x")) == list(read_csv("file_name,text\n", "x")) == []
