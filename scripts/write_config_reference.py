"""Print docs/reference/config.md: every key of the training commands.

The dataclasses are the schema, so they are the reference, too; a test compares
the file with what this prints.
"""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing

from tunix.cli.schemas import dpo_schema, grpo_schema, ppo_schema, reward_schema, sft_schema

COMMANDS = {
    "sft": sft_schema.SftRun,
    "dpo": dpo_schema.DpoRun,
    "reward": reward_schema.RewardRun,
    "grpo": grpo_schema.GrpoRun,
    "ppo": ppo_schema.PpoRun,
}
HEADER = """# Keys of a run

Written by `python scripts/write_config_reference.py`; do not edit.
A nested key is written `block.key=value` on the command line.
"""


def docstrings(cls: type) -> dict[str, str]:
    """Return the attribute docstrings of a dataclass and its bases, on one line each."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, following in itertools.pairwise(body):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(node, ast.AnnAssign) and is_text:
                found[node.target.id] = " ".join(following.value.value.split())
    return found


def default_of(field: dataclasses.Field) -> str:
    """Return the default as it is written in YAML."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if dataclasses.is_dataclass(value):
        return "{}"
    if isinstance(value, tuple):
        return str(list(value)).replace("'", "")
    return str(value)


def blocks_of(annotation: object) -> list[type]:
    """Return the dataclasses that a key may hold, none if it is no block."""
    options = typing.get_args(annotation) or (annotation,)
    return [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]


def rows(cls: type, prefix: str = "") -> list[str]:
    """Return one table row per key, blocks expanded."""
    texts, hints = docstrings(cls), typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        blocks = blocks_of(hints[field.name])
        dotted = prefix + field.name
        text = texts.get(field.name, "").replace("|", "\\|").replace("``", "`")
        if not blocks:
            found.append(f"| `{dotted}` | `{default_of(field)}` | {text} |")
            continue
        if default_of(field) == "null":
            found.append(f"| `{dotted}` | `null` | {text} |")
        for block in blocks:
            found += rows(block, f"{dotted}.")
    return found


def algorithms() -> list[str]:
    """Return one line per algorithm of ``tunix grpo``: the defaults that it changes."""
    base = {f.name: default_of(f) for f in dataclasses.fields(grpo_schema.ALGORITHMS["grpo"])}
    found = ["`algorithm` changes defaults of `grpo_config`:\n"]
    for name, cls in grpo_schema.ALGORITHMS.items():
        changed = [
            f"`{f.name}: {value}`"
            for f in dataclasses.fields(cls)
            if (value := default_of(f)) != base[f.name]
        ]
        if changed:
            found.append(f"- `{name}`: {', '.join(changed)}")
    return [*found, ""]


def page() -> str:
    """Return the whole page."""
    parts = [HEADER]
    for command, cls in COMMANDS.items():
        parts += [f"## `tunix {command}`\n", "| key | default | meaning |", "|---|---|---|"]
        parts += [*rows(cls), ""]
        if command == "grpo":
            parts += algorithms()
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
