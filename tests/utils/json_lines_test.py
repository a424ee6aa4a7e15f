"""Logs that are cut where a run resumes."""

import pytest

from tunix.utils import json_lines


def test_rows_after_a_step_are_dropped_and_kept_aside(tmp_path):
    path = tmp_path / "log.jsonl"
    json_lines.append(path, [{"step": s, "x": s * s} for s in range(5)])
    assert json_lines.truncate_after(path, 2) == 2
    assert [row["x"] for row in json_lines.read(path)] == [0, 1, 4]
    assert [row["x"] for row in json_lines.read(tmp_path / "log.jsonl.dropped")] == [9, 16]


def test_a_line_that_was_not_finished_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "x')
    assert json_lines.truncate_after(path, 9) == 0
    assert path.read_text() == '{"step": 1}\n'


def test_a_file_that_is_not_there_is_empty(tmp_path):
    assert json_lines.read(tmp_path / "none") == []
    assert json_lines.truncate_after(tmp_path / "none", 3) == 0
    assert not (tmp_path / "none").exists()


def test_a_broken_line_is_named_by_file_and_number(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\noops\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: not a JSON line"):
        json_lines.read(path)
