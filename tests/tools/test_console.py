"""Tables: they fit the terminal, and everything that was put in comes out."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from laurel_graph.tools import console

ROWS = [
    ("/bert/encoder/layer.0/attention/output/LayerNorm/Add", "no-skip", "neither a nor b leads straight back " * 4),
    ("漢字" * 30, "bias", "b does not depend on the input"),
    ("x" * 200, "gate", ""),
]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_and_keeps_every_character_when_the_terminal_is_narrow(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    console.print_table("joins", ("join", "reason", "detail"), ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= width for line in lines)
    columns = ["", "", ""]
    for line in lines[3:]:
        for place, part in enumerate(line.split("│")):
            columns[place] += "".join(part.split())
    assert columns == ["".join("".join(row[i] for row in ROWS).split()) for i in range(3)]


def test_table_aligns_numbers_right_and_text_left_when_it_is_printed(capsys):
    console.print_table("sizes", ("name", "size"), [("a", 1.5), ("long name", 12), ("b", None)])
    assert capsys.readouterr().out == (
        "sizes\nname      ┃ size\n━━━━━━━━━━╇━━━━━\na         │  1.5\nlong name │   12\nb         │\n"
    )


def test_progress_says_how_far_and_how_long_on_a_terminal_alone(capsys, monkeypatch):
    from laurel_graph.steps import tell

    with console.progress("comparing"):
        tell("runs", 1, 4)
    tell("to nobody", 1, 2)
    assert capsys.readouterr() == ("", "comparing ...\n")
    assert console._how_far(0, 0, 9.0) == "" and console._how_far(0, 4, 9.0) == "0/4: "
    assert console._how_far(1, 4, 30.0) == "1/4, 90 s left: " and console._how_far(1, 4, 0.1) == "1/4: "
    assert [console.said(seconds) for seconds in (3.2, 240.0, 4800.0)] == ["3 s", "4 min", "1 h 20 min"]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.progress("comparing [b]"):
        tell("runs", 1, 4)
    assert "1/4: runs: comparing [b]" in capsys.readouterr().err


def test_a_long_list_leaves_room_for_the_answer_on_a_terminal(monkeypatch):
    assert console.lines_left(96, 12) == 96
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "80")
    assert [console.lines_left(wanted, 12) for wanted in (8, 12, 13, 96)] == [8, 12, 12, 12]
    monkeypatch.setenv("LINES", "10")
    assert console.lines_left(96, 12) == 5
