"""Every field of every config is set by some test: by keyword, as a key, or in YAML.

It says nothing of what that test asserts. It does find a setting that nobody ever tried.
"""

import ast
import re

from tests.repo import configs, source

IN_TEXT = re.compile(r"[A-Za-z_]\w*(?=\s*[:=.])|(?<=\.)[A-Za-z_]\w*")
"""Names in YAML, in ``key=value`` and in dotted keys."""

SET_OTHERWISE = {
    "TransformerConfig.sandwich_norms": "by the presets of Gemma 2 and 3, in their parity tests",
    "DpoRun.cpo_config": "by the name of the objective, in tests/cli/dpo_main_test.py",
}


def names_set(tree: ast.AST) -> set[str]:
    """Return the names that code passes by keyword, uses as keys or writes in texts of settings."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg is not None:
            found.add(node.arg)
        elif isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            found.update(key for key in keys if isinstance(key, str))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(IN_TEXT.findall(node.value))
    return found


def test_every_field_is_set_by_a_test():
    found: set[str] = set()
    for path in source.python_files("tests"):
        if path.name != "tested_fields_test.py":
            found |= names_set(source.tree_of(path))
    fields = [
        (f"{cls.__qualname__}.{name}", name)
        for cls in configs.config_classes()
        for name in configs.new_fields(cls)
    ]
    assert len(fields) > 300
    never = [full for full, name in fields if name not in found and full not in SET_OTHERWISE]
    assert never == []


def test_names_are_found_in_calls_keys_and_texts():
    code = """
make(batch_size=2)
options = {"learning_rate": 0.1}
run("training_config.max_steps=3")
text = 'a: 1'
plain = "not_set"
"""
    names = names_set(ast.parse(code))
    assert {"batch_size", "learning_rate", "training_config", "max_steps", "a"} <= names
    assert "not_set" not in names
