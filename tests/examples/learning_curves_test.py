"""The matrix of learning curves fits the commands, and its table says what was measured."""

import importlib
import pathlib
import sys

import pytest

from tests.repo import source
from tunix.cli import config
from tunix.cli.schemas import grpo_schema, ppo_schema, structure

FOLDER = source.ROOT / "scripts" / "learning_curves"


@pytest.fixture
def scripts(monkeypatch):
    """Return the modules by name; they are a program's own, beside it and not in a package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("matrix", "run", "plot")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def test_every_run_of_the_matrix_fits_the_schema_of_its_command(scripts, monkeypatch):
    monkeypatch.chdir(source.ROOT)
    seen = set()
    for one in scripts["matrix"].runs():
        command, *arguments = one.command(pathlib.Path("somewhere"))
        values = config.load(arguments, {}, []).values
        schema = ppo_schema.PpoRun if command == "ppo" else grpo_schema.run_class(values)
        run = structure.structure(schema, values, notes={}, source=one.name)
        assert run.task == one.task and run.seed == one.seed
        rollouts = run.rl_training_config.max_steps / run.algo_config.num_iterations
        assert rollouts == scripts["matrix"].NUM_ROLLOUTS
        assert run.batch_size * run.algo_config.num_generations == 48
        seen.add(one.name)
    assert len(seen) == 3 * 6 * 3


def line(algorithm, seed, after, rewards):
    return {
        "run": f"larger_number-{algorithm}-{seed}",
        "task": "larger_number",
        "algorithm": algorithm,
        "seed": seed,
        "train_reward": rewards,
        "reward_before": 0.1,
        "reward_after": after,
        "greedy_before": 0.0,
        "greedy_after": 1.0,
        "cpu_seconds": 10.0,
    }


def test_the_table_has_the_mean_and_the_range_of_the_seeds(scripts):
    lines = [line("grpo", 0, 0.4, [0.0]), line("grpo", 1, 0.6, [0.0]), line("rloo", 0, 0.3, [0.0])]
    rows = scripts["plot"].table(lines).splitlines()[2:]
    assert [row.removeprefix("| larger_number | ") for row in rows] == [
        "grpo | 2 | 0.10 (0.10–0.10) | 0.50 (0.40–0.60) | 5.0 | 0.00 | 1.00 | 10 |",
        "rloo | 1 | 0.10 | 0.30 | 3.0 | 0.00 | 1.00 | 10 |",
    ]


def test_a_curve_is_a_mean_over_the_last_rollouts(scripts, tmp_path):
    lines = [line("grpo", 0, 0.5, [0.0, 0.3, 0.6, 0.9]), line("grpo", 1, 0.5, [0.0] * 4)]
    assert scripts["plot"].curve(lines[0]) == pytest.approx([0.0, 0.15, 0.3, 0.6])
    scripts["plot"].draw(lines, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
