"""JSON of others is read, or refused with one sentence."""

import pytest

from tunix.utils import json_text

DEEP = 1000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param("[" * DEEP + "]" * DEEP, "nests more than 100 deep", id="lists in lists"),
        pytest.param(
            '{"a":' * DEEP + "1" + "}" * DEEP, "nests more than 100 deep", id="objects in objects"
        ),
        pytest.param("[" * 101 + "]" * 101, "nests more than 100 deep", id="one level too many"),
        pytest.param("[" * DEEP, "nests more than 100 deep", id="nested and cut off"),
        pytest.param("1" * 10_000, "a whole number of more than 4,300 digits", id="10,000 digits"),
        pytest.param(
            '{"a": [' + "9" * 5_000 + "]}", "a whole number of more than 4,300", id="deep inside"
        ),
        pytest.param(b'{"a": "\xff"}', "not UTF-8 at byte 8", id="not UTF-8"),
        pytest.param(b"\xff\xfe{\x00", "it looks like UTF-16", id="UTF-16"),
        pytest.param('{"a": }', "not valid JSON at column 7: Expecting value", id="no value"),
        pytest.param("", "not valid JSON at column 1", id="nothing"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(content, problem):
    with pytest.raises(json_text.JsonError, match=problem):
        json_text.parse(content)


def test_what_can_be_read_is_read():
    assert json_text.parse("[" * 100 + "]" * 100)[0][0][0]
    assert json_text.parse('{"a": 1' + "0" * 4000 + "}") == {"a": 10**4000}
    assert json_text.parse('["' + "[" * 1000 + '"]') == ["[" * 1000], "brackets in a text"
    assert json_text.parse('"\\ud83d\\ude00"') == "\U0001f600", "the two halves of one character"


def test_a_key_twice_is_refused_where_that_is_asked_for():
    assert json_text.parse('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(json_text.JsonError, match="'a' twice; remove one"):
        json_text.parse('{"a": 1, "a": 2}', unique="column")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"[1]", "expected a JSON object, found list", id="a list"),
        pytest.param(b"null", "expected a JSON object, found NoneType", id="null"),
        pytest.param(b'{"a": {"b": 1, "b": 1}}', "has key 'b' twice", id="a key twice"),
        pytest.param(b"{", "not valid JSON", id="cut off"),
    ],
)
def test_an_object_is_returned_or_what_stands_there_is_named(content, problem):
    assert json_text.parse_object(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    with pytest.raises(json_text.JsonError, match=problem):
        json_text.parse_object(content)


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert json_text.parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
