"""JSON of others is one object, or an error that says what it is."""

import pytest

from tunix.utils import json_object


def test_an_object_is_returned_whatever_its_encoding_mark():
    assert json_object.parse(b'\xef\xbb\xbf{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


def test_64_levels_are_read_and_65_refused():
    def nested(depth):
        return b'{"a": ' * depth + b"1" + b"}" * depth

    found = json_object.parse(nested(63))
    for _ in range(63):
        found = found["a"]
    assert found == 1
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        json_object.parse(nested(64))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a": {"b": 1, "b": 1}}', "key 'b' stands twice"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "digits"),
    ],
)
def test_anything_else_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        json_object.parse(data)
