import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest

from tunix.cli.schemas import structure
from tunix.utils import config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(config.Config):
    rank: int
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.rank < 1:
            yield f"rank must be positive, got {self.rank}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(config.Config):
    size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(config.Config):
    name: str
    inner: Inner | None = None
    options: Options | None = None
    rate: float = 0.5
    steps: int | None = None
    flag: bool = False
    shape: tuple[int, ...] = (1,)
    free: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def build(**raw):
    return structure.structure(Outer, raw, notes={"inner.old": "gone, use rank"}, source="x.yaml")


def problems_of(**raw):
    with pytest.raises(config.ConfigError) as caught:
        build(**raw)
    assert caught.value.subject == "x.yaml"
    return list(caught.value.problems)


def test_blocks_become_dataclasses():
    made = build(name="n", inner={"rank": 2, "names": ["q", "k"]}, free={"a": 1})
    assert made == Outer(name="n", inner=Inner(rank=2, names=("q", "k")), free={"a": 1})


def test_every_mistake_is_in_one_message():
    assert problems_of(
        naem="n", inner={"rank": "two", "kind": "c", "old": 1}, rate="fast", flag=1, shape=[1.5]
    ) == [
        "unknown key 'naem' (did you mean 'name'?)",
        "name is required",
        "inner.old: gone, use rank",
        "inner.rank must be a whole number, got 'two'",
        "inner.kind must be one of 'a', 'b', got 'c'",
        "rate must be a number, got 'fast'",
        "flag must be true or false, got 1",
        "shape must be a list, each item a whole number, got [1.5]",
    ]


def test_what_a_block_objects_to_is_reported_with_its_path():
    assert problems_of(name="n", inner={"rank": 0}, steps=True) == [
        "inner: rank must be positive, got 0",
        "steps must be a whole number or null, got True",
    ]


def test_a_missing_key_of_a_block_is_named_in_full():
    assert problems_of(name="n", inner={"kind": "b"}) == ["inner.rank is required"]


def test_an_empty_block_that_needs_values_is_null():
    assert build(name="n", inner={}).inner is None


def test_an_empty_block_that_needs_none_is_there():
    assert build(name="n", options={}).options == Options(size=1)
    assert build(name="n", options=None).options is None


def test_a_value_in_place_of_a_block_is_an_error():
    assert problems_of(name="n", inner=3) == ["inner must be a block of keys or null, got 3"]


@pytest.mark.parametrize(
    ("key", "raw", "expected"),
    [
        pytest.param("steps", 1e3, 1000, id="1e3 is a whole number"),
        pytest.param("steps", None, None, id="null where null is allowed"),
        pytest.param("rate", 1, 1.0, id="a whole number is a number"),
        pytest.param("name", 7, "7", id="a directory called 7"),
        pytest.param("shape", "(2,2)", (2, 2), id="a tuple written as text"),
    ],
)
def test_values_that_are_accepted(key, raw, expected):
    made = getattr(build(**{"name": "n", key: raw}), key)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        pytest.param("steps", 1.5, id="a fraction is no whole number"),
        pytest.param("flag", "true", id="quoted true is text"),
        pytest.param("name", 1.5, id="a fraction is no text"),
        pytest.param("rate", True, id="true is no number"),
        pytest.param("rate", None, id="null where it is not allowed"),
        pytest.param("shape", "(2,", id="half a tuple"),
        pytest.param("shape", 2, id="a number in place of a list"),
    ],
)
def test_values_that_are_refused(key, raw):
    assert len(problems_of(**{"name": "n", key: raw})) == 1


def test_plain_values_come_back_equal():
    made = build(name="n", inner={"rank": 2}, shape=[2, 3])
    plain = structure.to_plain(made)
    assert plain["inner"] == {"rank": 2, "names": [], "kind": "a"}
    assert build(**plain) == made


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_whole_number_too_long_for_a_float_is_an_error_and_no_overflow(digits):
    (problem,) = problems_of(name="n", rate=-(10**digits))
    assert problem == "rate must be a finite number, got -inf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk(config.Config):
    kind: Literal["disk"] = "disk"
    path: str = "/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net(config.Config):
    kind: Literal["http", "https"] = "https"
    host: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Store(config.Config):
    place: Disk | Net = dataclasses.field(default_factory=Disk)


def stored(**place):
    return structure.structure(Store, {"place": place}, notes={}, source="x.yaml").place


def test_a_block_of_several_kinds_has_the_keys_of_the_one_that_is_named():
    assert stored(path="/a") == Disk(path="/a"), "the first where none is named"
    assert stored(kind="disk") == Disk()
    assert stored(kind="http", host="h") == Net(kind="http", host="h")


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ({"kind": "http", "path": "/a"}, "place.host is required"),
        ({"kind": "disk", "hots": "h"}, "unknown key 'place.hots'"),
        ({"kind": "htps"}, "place.kind 'htps' is not one of ['disk', 'http', 'https'] (did you"),
    ],
)
def test_a_key_of_another_kind_or_an_unknown_kind_is_refused(place, problem):
    with pytest.raises(config.ConfigError) as caught:
        stored(**place)
    assert any(p.startswith(problem) for p in caught.value.problems), caught.value.problems
