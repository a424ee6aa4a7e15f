"""Files and functions stay small enough to read in one go."""

import ast

from tests.repo import source

MAX_LINES_OF_A_FILE = 400
MAX_LINES_OF_A_FUNCTION = 60
MAX_LINES_OF_A_UTILS_FILE = 150


def long_functions(tree: ast.Module) -> list[tuple[str, int, int]]:
    """Return ``(name, line, length)``; a docstring is not counted, it explains and does not act."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node):
            length -= node.body[0].end_lineno - node.body[0].lineno + 1
        if length > MAX_LINES_OF_A_FUNCTION:
            found.append((node.name, node.lineno, length))
    return found


def test_no_file_is_longer_than_the_limit():
    problems = []
    for path in source.python_files("tunix", "tests", "examples", "scripts"):
        limit = MAX_LINES_OF_A_UTILS_FILE if path.name == "utils.py" else MAX_LINES_OF_A_FILE
        lines = len(path.read_text().splitlines())
        if lines > limit:
            problems.append(f"{path.relative_to(source.ROOT)}: {lines} lines, at most {limit}")
    assert not problems, "\n".join(problems)


def test_no_function_is_longer_than_the_limit():
    problems = [
        f"{path.relative_to(source.ROOT)}:{line}: {name} has {length} lines of code"
        for path in source.python_files("tunix", "tests", "examples", "scripts")
        for name, line, length in long_functions(source.tree_of(path))
    ]
    assert not problems, "\n".join(problems)


def test_the_check_counts_code_and_not_the_docstring():
    body = "\n".join("    x = 1" for _ in range(MAX_LINES_OF_A_FUNCTION - 1))
    docstring = '    """One.\n\n    Two.\n    """\n'
    assert not long_functions(ast.parse(f"def f():\n{docstring}{body}"))
    assert long_functions(ast.parse(f"def f():\n{docstring}{body}\n    y = 2"))
