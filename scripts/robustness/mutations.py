"""Damages files at random: their bytes, or one value of what they say.

Every function takes a generator, so that a seed names a case for ever.
"""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Json = Any

_DEEP = 3_000


class _Raw(str):
    """JSON that ``json.dumps`` would not write, such as a number of 10,000 digits."""


HOSTILE: tuple[Json, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    2**31,
    2**63,
    2**64,
    -(2**63) - 1,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "1",
    "no",
    "\x00",
    "é" * 3,
    "../../outside",
    "${x}",
    "{{ 1/0 }}",
    "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "x" * 100_000,
    [],
    {},
    [None],
    [[]],
    [1, "1", None],
    {"": 0},
    {"content": None},
    _Raw('"\\ud83d"'),
    _Raw("[" * _DEEP + "]" * _DEEP),
    _Raw('{"a":' * _DEEP + "1" + "}" * _DEEP),
    _Raw("9" * 10_000),
    _Raw("1e400"),
    _Raw("NaN"),
)
"""What a field may be found to hold instead of its value."""


def bytes_damaged(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one to four accidents of storage or transfer."""
    for _ in range(rng.randint(1, 4)):
        content = rng.choice(_ACCIDENTS)(content, rng)
    return content


def json_damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the JSON text with one value replaced, removed, repeated or of another name."""
    value = json.loads(content)
    marks: dict[str, str] = {}
    path = rng.choice(list(_paths(value)))
    if not path:
        return _dump(_hostile(rng, marks), marks)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    action = rng.choice(("replace", "replace", "replace", "remove", "rename", "repeat"))
    if action == "replace":
        parent[path[-1]] = _hostile(rng, marks)
    elif action == "remove":
        del parent[path[-1]]
    elif isinstance(parent, list):
        parent.append(parent[path[-1]])
    elif action == "rename":
        parent[f"{path[-1]}_"] = parent.pop(path[-1])
    else:
        marks["repeated"] = f'{json.dumps(path[-1])}: {json.dumps(parent[path[-1]])}, "@other"'
        parent["@repeated"] = 0
    return _dump(value, marks)


def json_lines_damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the lines with one of them damaged as JSON."""
    lines = content.splitlines()
    chosen = rng.randrange(len(lines))
    lines[chosen] = json_damaged(lines[chosen], rng)
    return b"\n".join(lines) + b"\n"


def safetensors_damaged(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with its header damaged, and its length right again or not."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.5:
        entries = json.loads(header)
        name = rng.choice([key for key in entries if key != "__metadata__"])
        offsets = entries[name]["data_offsets"]
        shift = rng.choice((-8, -4, -1, 1, 4, 8, len(data), -len(data)))
        which = rng.choice(((0,), (1,), (0, 1)))
        entries[name]["data_offsets"] = [o + shift * (i in which) for i, o in enumerate(offsets)]
        header = json.dumps(entries).encode()
    else:
        header = json_damaged(header, rng)
    said = len(header) + rng.choice((0, 0, 0, 0, 1, -1, 8, 2**40))
    return struct.pack("<Q", max(said, 0)) + header + data


def yaml_damaged(content: bytes, rng: random.Random) -> bytes:
    """Return the lines ``key: value`` with one value replaced by a hostile one."""
    lines = content.decode().splitlines()
    chosen = rng.choice([i for i, line in enumerate(lines) if ": " in line])
    key = lines[chosen].partition(": ")[0]
    marks: dict[str, str] = {}
    value = rng.choice((*_YAML, _dump(_hostile(rng, marks), marks).decode(errors="surrogatepass")))
    lines[chosen] = f"{key}: {value}"
    return "\n".join(lines).encode(errors="surrogatepass") + b"\n"


_YAML = (
    ".nan",
    "-.inf",
    "1e400",
    "no",
    "~",
    "key: text",
    "${oc.env:NOT_SET}",
    "${",
    "*alias",
    "&a [*a]",
    "!!python/object:os.system {}",
    "2026-01-01",
    "0o17",
    "1_000",
    "'",
    "{a: 1, a: 2}",
    "- 1",
)


def _flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(max(len(content), 1))
    return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _without(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[min(end, start + 64) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randint(1, 16)) + content[place:]


def _zeros(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + bytes(len(content[place : place + 64])) + content[place + 64 :]


def _number(content: bytes, rng: random.Random) -> bytes:
    """Write a length or an offset that cannot be."""
    place = rng.randrange(max(len(content) - 8, 1))
    value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**9))
    return content[:place] + struct.pack("<Q", value) + content[place + 8 :]


_ACCIDENTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _flip,
    _cut,
    _without,
    _insert,
    _zeros,
    _number,
)


def _paths(value: Json, path: tuple = ()):
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, item in items:
        yield from _paths(item, (*path, key))


def _hostile(rng: random.Random, marks: dict[str, str]) -> Json:
    value = rng.choice(HOSTILE)
    if isinstance(value, _Raw):
        marks["raw"] = value
        return "@raw"
    return value


def _dump(value: Json, marks: dict[str, str]) -> bytes:
    text = json.dumps(value)
    if "raw" in marks:
        text = text.replace('"@raw"', marks["raw"])
    if "repeated" in marks:
        text = text.replace('"@repeated"', marks["repeated"])
    return text.encode()
