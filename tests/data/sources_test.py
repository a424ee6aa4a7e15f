"""Rows are read whole, or every bad line is named."""

import json
import os
import pickle

import pyarrow as pa
import pytest
from pyarrow import parquet

from tunix.data import errors, sources


def lines(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_bytes(
        b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
    )
    return path


def test_rows_of_a_file_know_their_line_and_blank_lines_are_no_rows(tmp_path):
    path = lines(tmp_path, {"text": "a"}, b"", b"  ", {"text": "\u00e9"})
    rows = sources.read_rows(path)
    assert [row.values for row in rows] == [{"text": "a"}, {"text": "\u00e9"}]
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:4"]
    assert sources.read_rows(str(path)) == rows


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    path = lines(tmp_path, b'\xef\xbb\xbf{"text": "a"}')
    assert sources.read_rows(path)[0].values == {"text": "a"}


def test_lists_and_generators_are_numbered_from_zero():
    rows = sources.read_rows({"n": n} for n in range(3))
    assert [(row.values["n"], row.where) for row in rows] == [
        (0, "row 0"), (1, "row 1"), (2, "row 2"),
    ]  # fmt: skip


def test_every_bad_line_is_named_at_once(tmp_path):
    path = lines(tmp_path, {"text": "a"}, b'{"text": }', b'{"text": "\xff"}', b"[1]", b"{")
    with pytest.raises(errors.DataError) as caught:
        sources.read_rows(path)
    text = str(caught.value)
    assert f"{path}:2: not valid JSON at column 10: Expecting value" in text
    assert f"{path}:3: not UTF-8 at byte 11 of the line" in text
    assert f"{path}:4: expected an object of columns, found list" in text
    assert f"{path}:5: not valid JSON" in text
    assert f"{path}:1:" not in text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param([], "the data set:\n  - it is empty", id="no rows"),
        pytest.param([3], "row 0: expected an object of columns, found int", id="numbers"),
        pytest.param(
            "/no/such.jsonl",
            "/no/such.jsonl:\n  - /no/such.jsonl: there is no such file",
            id="no file",
        ),
        pytest.param("/", "it is a directory", id="a directory"),
    ],
)
def test_what_is_no_data_set_is_refused(source, message):
    with pytest.raises(errors.DataError, match=message):
        sources.read_rows(source)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(errors.DataError, match="it is empty; expected one row or more"):
        sources.read_rows(lines(tmp_path, b"\n"))


def test_columns_are_renamed():
    rows = sources.read_rows([{"question": "q", "id": 1}], columns={"prompt": "question"})
    assert rows[0].values == {"prompt": "q", "id": 1}


def test_a_column_to_rename_must_be_there_and_its_new_name_free():
    with pytest.raises(errors.DataError) as caught:
        sources.read_rows(
            [{"questoin": "q"}, {"question": "q", "prompt": "p"}], columns={"prompt": "question"}
        )
    text = str(caught.value)
    assert "row 0: no column 'question' (did you mean 'questoin'?)" in text
    assert "row 1: has a column 'prompt' already" in text


def test_a_long_list_of_problems_is_cut_and_counted():
    error = errors.DataError("x.jsonl", [f"problem {i}" for i in range(25)])
    assert "problem 19" in str(error)
    assert "problem 20" not in str(error)
    assert str(error).endswith("and 5 more")
    assert len(error.problems) == 25


def test_the_error_survives_another_process():
    error = errors.DataError("x", ["a"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_users_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = lines(tmp_path, {"text": "a"})
    for source in (f"~/{path.name}", "~/*.jsonl", [f"~/{path.name}"]):
        assert [row.values for row in sources.read_rows(source)] == [{"text": "a"}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(b'{"text": "bad \\ud83d end"}',
                     "column 'text' holds half a character, '\\ud83d' at position 4",
                     id="half a character"),
        pytest.param(b'{"messages": [{"role": "user", "content": "\\ude00"}]}',
                     "column 'messages' holds half a character, '\\ude00' at position 0",
                     id="half a character in a message"),
        pytest.param(b'{"t": {"\\ud83d": 1}}', "column 't' holds half a character", id="in a key"),
        pytest.param(b'{"a\\ud83d": 1}', "column 'a\\ud83d' holds half a character",
                     id="in the name of a column"),
        pytest.param(b'{"text": ' + b"[" * 1000 + b"]" * 1000 + b"}", "nests more than 100 deep",
                     id="lists 1,000 deep"),
        pytest.param(b'{"a":' * 1000 + b"1" + b"}" * 1000, "nests more than 100 deep",
                     id="objects 1,000 deep"),
        pytest.param(b'{"text": ' + b"[" * 500 + b"]" * 500 + b"}", "nests more than 100 deep",
                     id="lists 500 deep"),
        pytest.param(b'{"n": ' + b"1" * 10_000 + b"}",
                     "has a whole number of more than 4,300 digits; write it as text",
                     id="10,000 digits"),
    ],
)  # fmt: skip
def test_what_no_tokenizer_can_hold_is_named_with_its_line(tmp_path, line, problem):
    path = lines(tmp_path, {"text": "a"}, line, {"text": "\U0001f600"})
    with pytest.raises(errors.DataError) as caught:
        sources.read_rows(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}:2: ")
    assert problem in caught.value.problems[0]
    str(caught.value).encode("utf-8")


def test_a_value_of_python_may_nest_too_deep():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.DataError, match="row 0: column 'a' nests more than 100 deep"):
        sources.read_rows([{"a": deep}])
    while deep:  # or the interpreter would fall into it
        deep = deep[0]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("by", ["name", "pattern"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, suffix, by):
    os.mkfifo(tmp_path / f"rows.{suffix}")
    source = tmp_path / f"{'rows' if by == 'name' else '*'}.{suffix}"
    with pytest.raises(errors.DataError, match=f"rows.{suffix}: it is a pipe or device; write"):
        sources.read_rows(source)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        pytest.param(pa.table([[1], [2]], names=["text", "text"]), "column 'text' twice",
                     id="a column"),
        pytest.param(
            pa.table({"x": pa.StructArray.from_arrays([pa.array([1])] * 2, names=["a", "a"])}),
            "column 'x.a' twice", id="a key of an object",
        ),
        pytest.param(
            pa.table({"x": pa.ListArray.from_arrays(
                [0, 1], pa.StructArray.from_arrays([pa.array([1])] * 2, names=["a", "a"]))}),
            "column 'x.a' twice", id="a key of an object in a list",
        ),
        pytest.param(pa.table({"m": pa.array([[("k", 1), ("k", 2)]],
                                             pa.map_(pa.string(), pa.int64()))}),
                     "not readable as parquet after row 0", id="a key of a map"),
        pytest.param(pa.table({"t": pa.array([b"\xff"]).view(pa.string())}),
                     "not readable as parquet after row 0", id="text that is not UTF-8"),
        pytest.param(pa.table({"t": pa.array([2**60], pa.timestamp("ms"))}),
                     "not readable as parquet after row 0", id="a date beyond all calendars"),
    ],
)  # fmt: skip
def test_a_table_that_python_cannot_hold_is_named(tmp_path, table, problem):
    path = tmp_path / "rows.parquet"
    parquet.write_table(table, path)
    with pytest.raises(errors.DataError) as caught:
        sources.read_rows(path)
    assert f"{path}: " in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("trl-lib/tldr", "write hub:trl-lib/tldr"),
        ("owner/name@test", "write hub:owner/name@test"),
        ("data/train.jsonl", ""),
        ("/data/train", ""),
        ("a/b/c", ""),
    ],
)
def test_what_looks_like_a_data_set_of_the_hub_is_told_how_to_write_it(address, hint):
    with pytest.raises(errors.DataError) as caught:
        sources.read_rows(address)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{address}: there is no such file; looked in ")
    assert problem.partition("; of the hub, ")[2] == hint
