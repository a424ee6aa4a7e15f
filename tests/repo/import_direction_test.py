"""Imports between the rooms run one way."""

import pytest

from tests.repo import source

# What each room may import besides itself. `perf` and `utils` are open to all.
_LOW = {"utils", "perf"}
_MIDDLE = {"ops", "models", "data"} | _LOW
ALLOWED = {
    "utils": set(),
    "perf": {"utils"},
    "ops": _LOW,
    "models": {"ops"} | _LOW,
    "data": {"ops"} | _LOW,
    "tokenizers": {"models"} | _LOW,
    "generate": {"tokenizers"} | _MIDDLE,
    "oss": {"models"},
    "processors": {"models"} | _LOW,
    "sft": _MIDDLE,
    "rl": {"tokenizers", "generate", "sft"} | _MIDDLE,
    "cli": {"rl", "tokenizers", "generate", "sft"} | _MIDDLE,
}


def room_of(module: str) -> str | None:
    """Return ``ops`` for ``tunix.ops.dot``, and None for ``tunix.version``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "tunix" and parts[1] in ALLOWED else None


def forbidden(module: str, imports: list[tuple[str, int]]) -> list[str]:
    own = room_of(module)
    if own is None:
        return []
    return [
        f"{module}:{line} imports {name}: {own} may import only {sorted(ALLOWED[own])}"
        for name, line in imports
        if (other := room_of(name)) is not None and other != own and other not in ALLOWED[own]
    ]


def test_imports_run_one_way():
    problems = [
        problem
        for path in source.python_files("tunix")
        for problem in forbidden(
            source.module_name(path), source.imported_modules(source.tree_of(path))
        )
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "name", "is_forbidden"),
    [
        pytest.param("tunix.ops.dot", "tunix.models.lora", True, id="up is forbidden"),
        pytest.param("tunix.models.lora", "tunix.ops.dot", False, id="down is allowed"),
        pytest.param("tunix.ops.dot", "tunix.ops.norm", False, id="within a room is allowed"),
        pytest.param("tunix.ops.dot", "tunix.version", False, id="the version is open to all"),
        pytest.param("tunix.utils.config", "tunix.perf.span", True, id="utils imports nothing"),
    ],
)
def test_the_check_itself(module, name, is_forbidden):
    assert bool(forbidden(module, [(name, 1)])) is is_forbidden


def test_every_room_has_a_rule():
    rooms = {
        path.name
        for path in (source.ROOT / "tunix").iterdir()
        if path.is_dir() and any(path.rglob("*.py"))
    }
    assert rooms == set(ALLOWED)
