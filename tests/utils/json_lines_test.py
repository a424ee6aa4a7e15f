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


BROKEN = {
    "text": b"oops",
    "half a row": b'{"step": 2, "x',
    "bytes that are no UTF-8": b'{"step": 2, "x": "\xff"}',
    "zeros of a power failure": b"\0" * 20,
    "a list": b"[1]",
    "a number": b"5",
    "no step": b'{"x": 1}',
    "a step that is text": b'{"step": "2"}',
    "a step that is a fraction": b'{"step": 2.5}',
    "deep nesting": b'{"step": 2, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an endless number": b'{"step": 2, "x": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("read", [json_lines.read, lambda path: json_lines.truncate_after(path, 1)])
def test_a_broken_line_is_named_with_file_number_and_remedy(tmp_path, read, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match="not rows of a run") as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: not rows of a run:\n  - line 3: ")
    assert message.endswith("\nDelete these lines, or move the file away")
    assert len(message) < 500
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
    path.write_bytes(path.read_bytes().replace(line + b"\n", b""))
    assert [row["step"] for row in json_lines.read(path)] == [1, 3]


def test_all_broken_lines_are_named_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("oops\n" * 8 + '{"step": 1}\n')
    with pytest.raises(ValueError, match=r"(?s)line 1: .*line 5: .*and 3 more"):
        json_lines.read(path)


def test_rows_must_have_what_their_reader_needs(tmp_path):
    path = tmp_path / "log.jsonl"
    json_lines.append(path, [{"step": 1, "a": 1}, {"step": 2, "a": None}, {"step": 3}])
    with pytest.raises(ValueError, match="not rows of a run") as caught:
        json_lines.read(path, {"a": float})
    assert str(caught.value).splitlines()[1:3] == [
        "  - line 2: 'a' must be a number, found None",
        "  - line 3: 'a' must be a number, there is none",
    ]
