"""Imports between the rooms run one way, and those between modules never come back."""

import ast
from collections.abc import Iterator, Mapping

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


def circles(imports: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the modules of every circle (strongly connected components, Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> Iterator[list[str]]:
        order[module] = lowest[module] = len(order)
        path.append(module)
        for other in sorted(imports[module]):
            if other not in order:
                yield from visit(other)
            if other in path:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == order[module]:
            found = path[path.index(module) :]
            del path[path.index(module) :]
            if len(found) > 1 or module in imports[module]:
                yield sorted(found)

    for module in sorted(imports):
        if module not in order:
            yield from visit(module)


def imports_within(folder: str) -> dict[str, set[str]]:
    """Return what each module imports of the others, anywhere in it: also for types only."""
    trees = {source.module_name(p): source.tree_of(p) for p in source.python_files(folder)}
    imports: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = {name for name, _ in source.imported_modules(tree)}
        # A name that is no module is one in a module.
        found = {name if name in trees else name.rpartition(".")[0] for name in names}
        imports[module] = found & trees.keys() - {module}
    return imports


def test_no_module_imports_what_imports_it():
    """Not in a function or behind TYPE_CHECKING either: pass a value or a protocol."""
    found = [" <-> ".join(circle) for circle in circles(imports_within("tunix"))]
    assert not found, "circles of imports:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        pytest.param({"a": {"b", "c"}, "b": {"c"}, "c": set()}, [], id="two ways down"),
        pytest.param({"a": {"b"}, "b": {"a"}}, [["a", "b"]], id="there and back"),
        pytest.param(
            {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}, "e": {"f"}, "f": {"d"}},
            [["d", "e", "f"], ["b", "c"]],
            id="one below another",
        ),
    ],
)
def test_circles_are_found(imports, expected):
    assert list(circles(imports)) == expected


def test_imports_in_functions_and_for_types_count():
    text = "if TYPE_CHECKING:\n    from tunix.a import b\ndef f():\n    import tunix.c"
    assert source.imported_modules(ast.parse(text)) == [("tunix.a.b", 2), ("tunix.c", 4)]


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
