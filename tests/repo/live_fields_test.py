"""Every field of every config is read by something besides the checks of that config.

Cheap and blunt: an attribute of the same name is looked for, whoever's it is. What a field
changes is tested where it is read, and for reinforcement learning in
``tests/rl/live_settings_test.py``.
"""

import ast
import collections
import dataclasses

from tests.repo import configs, source

READ_BY_NAME = {
    *(f"DpoRun.{name}_config" for name in ("dpo", "orpo", "simpo", "cpo", "kto")),
    "RLRun.python_files",
}
"""Looked up by the name of the objective, or before there is a config to read it of."""


def attributes_read(tree: ast.AST, *, is_config: bool = False) -> collections.Counter[str]:
    """Return the names of attributes that code reads; checks of configs do not count."""
    found: collections.Counter[str] = collections.Counter()
    for node in ast.iter_child_nodes(tree):
        if is_config and isinstance(node, ast.FunctionDef) and "problems" in node.name:
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found[node.attr] += 1
        found += attributes_read(node, is_config=isinstance(node, ast.ClassDef) and _checks(node))
    return found


def _checks(node: ast.ClassDef) -> bool:
    return any(isinstance(one, ast.FunctionDef) and "problems" in one.name for one in node.body)


def inert_fields(
    classes: list[type], read: collections.Counter[str], exceptions: collections.abc.Container[str]
) -> list[str]:
    return [
        f"{cls.__module__}.{cls.__qualname__}.{name}"
        for cls in classes
        for name in configs.own_fields(cls)
        if not read[name] and f"{cls.__qualname__}.{name}" not in exceptions
    ]


def test_no_field_is_inert():
    read: collections.Counter[str] = collections.Counter()
    for path in source.python_files("tunix"):
        read += attributes_read(source.tree_of(path))
    classes = configs.config_classes()
    assert len(classes) > 40
    assert inert_fields(classes, read, READ_BY_NAME) == []


def test_a_field_that_only_its_own_checks_read_is_found():
    code = """
class Settings:
    used: int = 1
    inert: int = 2
    def problems(self):
        yield str(self.inert)
def work(settings):
    settings.inert = settings.used
"""
    read = attributes_read(ast.parse(code))
    assert (read["used"], read["inert"]) == (1, 0)

    @dataclasses.dataclass(frozen=True)
    class Settings:
        used: int = 1
        inert: int = 2
        listed: int = 3

    found = inert_fields([Settings], read, {f"{Settings.__qualname__}.listed"})
    assert [name.rpartition(".")[2] for name in found] == ["inert"]
