"""Mutation testing: break one line at a time and see whether a test notices.

``make mutants`` runs it over every module of ``modules.yaml``; ``MODULE=tunix/ops/rope.py`` over
one. The mutants are those of cosmic-ray: ``OPERATORS`` says which. Each is tested in a process
that is forked from one that has imported JAX, with the fastest tests and those that noticed
earlier mutants first, until one fails. A mutant that hangs counts as noticed.

What was found is written to ``results.jsonl`` beside this script and remembered under
``.mutation/``: a mutant that was noticed is not run again until its module changes, a survivor not
until its module or its tests do. So a run that was stopped goes on where it was.
"""

import argparse
import ast
import collections
import difflib
import hashlib
import json
import pathlib
import random
import shutil
import time
from collections.abc import Iterable
from typing import NamedTuple

import cosmic_ray.ast
import cosmic_ray.mutating
import cosmic_ray.plugins
import warm_tests
import yaml

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
WORK = ROOT / ".mutation"

_SWAPS = {
    "BinaryOperator": "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul "
    "RShift_LShift LShift_RShift BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd",
    # The bound moves by one, or the sense turns: what goes unnoticed most easily.
    "ComparisonOperator": "Lt_LtE LtE_Lt Gt_GtE GtE_Gt Eq_NotEq NotEq_Eq Is_IsNot IsNot_Is",
    "UnaryOperator": "Delete_USub Delete_Not Delete_Invert",
}
OPERATORS = [f"core/Replace{kind}_{swap}" for kind in _SWAPS for swap in _SWAPS[kind].split()]
OPERATORS += [
    "core/NumberReplacer",
    "core/AddNot",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ZeroIterationForLoop",
]
"""One replacement for each operator of the language, both neighbours of each number."""


class Mutant(NamedTuple):
    """One change of one module."""

    name: str
    """Where and what, without the line number: ``function: before => after``."""
    line: int
    source: str


def mutants_of(path: pathlib.Path) -> list[Mutant]:
    """Return the mutants of a module, in the order of its lines."""
    source = path.read_text()
    skipped = _declarations(ast.parse(source))
    lines = source.split("\n")
    nodes = list(cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(source)))
    found, seen = [], {source}
    for operator_name in OPERATORS:
        operator = cosmic_ray.plugins.get_operator(operator_name)()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(places):
            bare_star = lines[start[0] - 1][start[1] :].startswith("*,")  # of a signature
            if bare_star or any(first <= start < last for first, last in skipped):
                continue
            mutated = cosmic_ray.mutating.mutate_code(source, operator, occurrence)
            if mutated not in seen:
                seen.add(mutated)
                found.append(_named(source, mutated, start[0]))
    found.sort(key=lambda mutant: (mutant.line, mutant.name))
    times = collections.Counter()
    for i, mutant in enumerate(found):  # a function may hold the same line twice
        times[mutant.name] += 1
        if times[mutant.name] > 1:
            found[i] = mutant._replace(name=f"{mutant.name} ({times[mutant.name]})")
    return found


def _declarations(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where types and decorators of classes stand: they say what is, not what to do."""
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.append(node.returns)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.ClassDef):
            nodes += node.decorator_list
    return [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for node in nodes
        if node is not None
    ]


def _named(source: str, mutated: str, line: int) -> Mutant:
    before, after = [], []
    for text in difflib.unified_diff(source.split("\n"), mutated.split("\n"), n=0, lineterm=""):
        if text.startswith("-") and not text.startswith("---"):
            before.append(" ".join(text[1:].split()))
        elif text.startswith("+") and not text.startswith("+++"):
            after.append(" ".join(text[1:].split()))
    function = "module"
    for node in ast.walk(ast.parse(source)):  # outer functions come before inner ones
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (
            node.lineno <= line <= node.end_lineno
        ):
            function = node.name
    return Mutant(f"{function}: {' '.join(before)} => {' '.join(after)}", line, mutated)


def sample(mutants: list[Mutant], at_most: int, seed: int) -> list[Mutant]:
    """Return so many mutants in random order; a larger sample begins with the smaller one."""
    drawn = list(mutants)
    random.Random(seed).shuffle(drawn)
    return drawn[:at_most]


def run_module(module: str, settings: dict, *, at_most: int, seed: int, deadline: float) -> dict:
    """Test the mutants of one module; return its line of ``results.jsonl``."""
    path = ROOT / module
    found = mutants_of(path)
    chosen = sample(found, at_most, seed)
    work = WORK / module.replace("/", "-")
    memory = work / "outcomes.json"
    files = {test.partition("::")[0] for test in settings["tests"]}
    versions = {
        "module": _version([path]),
        "tests": _version(ROOT / file for file in sorted(files)),
    }
    outcomes = _remembered(memory, versions)
    equivalent = _equivalent(module, settings.get("equivalent") or {}, found)
    left = [m for m in chosen if m.name not in equivalent and m.name not in outcomes]
    if left and time.monotonic() < deadline:
        tests = warm_tests.WarmTests(
            _copied_into(work), module, settings["tests"], WORK / "jax_cache"
        )
        for mutant in left:
            if time.monotonic() > deadline:
                break
            outcome = tests.outcome(mutant.source)
            outcomes[mutant.name] = outcome
            print(f"{module}:{mutant.line}: {outcome}: {mutant.name}", flush=True)
            memory.write_text(json.dumps(versions | {"outcomes": outcomes}, indent=1))
    return _summary(module, found, chosen, outcomes, equivalent)


def _equivalent(module: str, reasons: dict[str, str], found: list[Mutant]) -> set[str]:
    """Return the names that begin like an entry of the list of equivalent mutants."""
    names = {}
    for start in reasons:
        names[start] = {mutant.name for mutant in found if mutant.name.startswith(start)}
        if not names[start]:
            raise SystemExit(f"modules.yaml: {module} has no mutant that begins with {start!r}")
    return set().union(*names.values())


def _version(files: Iterable[pathlib.Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _remembered(memory: pathlib.Path, versions: dict[str, str]) -> dict[str, str]:
    """Return what was found of this version of the module; survivors only of these tests."""
    if (
        not memory.exists()
        or (stored := json.loads(memory.read_text()))["module"] != (versions["module"])
    ):
        return {}
    same_tests = stored["tests"] == versions["tests"]
    found = stored["outcomes"].items()
    return {name: outcome for name, outcome in found if same_tests or outcome != "survived"}


def _summary(module, found, chosen, outcomes, equivalent) -> dict:
    counted = [m for m in chosen if m.name not in equivalent and m.name in outcomes]
    survived = [m for m in counted if outcomes[m.name] == "survived"]
    noticed = len(counted) - len(survived)
    return {
        "module": module,
        "mutants": len(found),
        "sampled": len(chosen),
        "equivalent": sum(m.name in equivalent for m in chosen),
        "run": len(counted),
        "noticed": noticed,
        "rate": round(noticed / len(counted), 3) if counted else None,
        "survived": [f"{m.line}: {m.name}" for m in sorted(survived, key=lambda m: m.line)],
    }


def _copied_into(work: pathlib.Path) -> pathlib.Path:
    """Return a copy of what the tests need; mutants are written there, never into the source."""
    shutil.rmtree(work / "tree", ignore_errors=True)
    for name in ("tunix", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, work / "tree" / name, ignore=ignore)
    shutil.copy2(ROOT / "pyproject.toml", work / "tree")
    return work / "tree"


def _write_result(line: dict) -> None:
    """Replace the line of a module in ``results.jsonl``; the others stay."""
    file = HERE / "results.jsonl"
    known = {}
    if file.exists():
        known = {known["module"]: known for known in map(json.loads, file.open())}
    known[line["module"]] = line
    file.write_text("".join(json.dumps(known[module]) + "\n" for module in sorted(known)))
    print({k: v for k, v in line.items() if k != "survived"}, flush=True)


def main() -> None:
    """Run the mutants of the modules that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="paths as in modules.yaml; all by default")
    parser.add_argument("--at-most", type=int, default=1000, help="mutants a module, drawn evenly")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop then; run again to go on")
    args = parser.parse_args()
    table = yaml.safe_load((HERE / "modules.yaml").read_text())
    if unknown := sorted(set(args.modules) - set(table)):
        raise SystemExit(f"modules.yaml does not list {unknown}; it lists {sorted(table)}")
    deadline = time.monotonic() + 60 * args.minutes
    options = {"at_most": args.at_most, "seed": args.seed, "deadline": deadline}
    for name in args.modules or table:
        if (line := run_module(name, table[name], **options))["run"]:
            _write_result(line)


if __name__ == "__main__":
    main()
