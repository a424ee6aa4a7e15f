"""What commands print of the user's text is that text."""

import pathlib
import re

import pytest
import rich.table

import tunix.cli
from tunix.cli import console


@pytest.mark.parametrize(
    "text", ["[bold]run", "run[/x]", "[link=x]", ":smile:", "\\[a]", "[red]a[/red]"]
)
def test_text_is_printed_as_it_is(capsys, text):
    console.OUT.print(text)
    assert capsys.readouterr().out == f"{text}\n"
    table = rich.table.Table(text, box=None, padding=0, show_header=False)
    table.add_row(text)
    console.OUT.print(table, soft_wrap=False)
    assert capsys.readouterr().out.replace("\n", "").rstrip() == text


def test_commands_print_on_this_console_alone():
    """Another one would read markup in paths again."""
    folder = pathlib.Path(tunix.cli.__file__).parent
    made = [
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"\bConsole\(", path.read_text(encoding="utf-8"))
    ]
    assert made == ["console.py"]
