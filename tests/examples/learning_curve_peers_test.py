"""The comparison of reward curves asks every side the same, and its statistics are right."""

import importlib
import pathlib
import sys

import pytest

from tests.repo import source

FOLDER = source.ROOT / "scripts" / "learning_curves"


@pytest.fixture
def scripts(monkeypatch):
    """Return the modules by name; they are a program's own, beside it and not in a package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("matrix", "run", "plot", "peers", "plot_peers", "peer_optax")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


@pytest.fixture
def job(scripts):
    return scripts["peers"].make_job(1, pathlib.Path("model"), 3)


def test_the_job_is_the_matrix_cell_of_its_seed(scripts, job):
    settings, rows = job
    expected = {
        "seed": 1,
        "num_rollouts": 3,
        "batch_size": 6,
        "num_generations": 8,
        "epsilon": 0.2,
        "max_new_tokens": 20,
        "max_prompt_length": 64,
        "temperature": 1.0,
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "learning_rate": 4e-4,
        "warmup_steps": 3,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
    }
    assert {key: settings[key] for key in expected} == expected
    assert settings["questions"] == [row["prompts"][0]["content"] for row in rows]
    assert len(set(settings["questions"])) == 18
    longer = scripts["peers"].make_job(1, pathlib.Path("model"), 4)[0]["questions"]
    assert longer[:18] == settings["questions"]
    assert scripts["peers"].make_job(2, pathlib.Path("model"), 3)[0]["questions"] != longer[:18]


def test_the_first_update_has_a_learning_rate_of_zero(scripts, job):
    assert scripts["peer_optax"].rates(job[0]) == pytest.approx([0.0, 4e-4 / 3, 8e-4 / 3])


def replies(rows, answers, *, first):
    """Return a rollout that is right where the two say so, for 6 questions from ``first`` on."""
    asked = [row for row in range(first, first + 6) for _ in range(8)]
    return {
        "rows": asked,
        "completions": [
            str(rows[row]["answer"]) if answers(i) else "?" for i, row in enumerate(asked)
        ],
        "ended": [i % 2 == 0 for i in range(48)],
        "lengths": [2] * 48,
    }


def test_a_reply_is_rewarded_when_it_is_right_and_has_ended(scripts, job):
    scorer = scripts["peers"].Scorer(*job)
    rewards = scorer.rewards(replies(job[1], lambda i: i < 12, first=0))
    assert rewards == [1.0 if i < 12 and i % 2 == 0 else 0.0 for i in range(48)]
    scorer.rewards(replies(job[1], lambda i: True, first=6))
    assert scorer.curve == {"reward": [0.125, 0.5], "length": [2.0, 2.0], "ended": [0.5, 0.5]}


def test_replies_to_other_questions_than_those_whose_turn_it_is_are_an_error(scripts, job):
    scorer = scripts["peers"].Scorer(*job)
    with pytest.raises(ValueError, match="replies are to questions"):
        scorer.rewards(replies(job[1], lambda i: True, first=6))


def test_fishers_exact_test_agrees_with_tables_worked_by_hand(scripts):
    fisher_p = scripts["plot_peers"].fisher_p
    # The lady tasting tea: 16 of the 70 ways with one mistake, 1 with none, and their mirrors.
    assert fisher_p((3, 4), (1, 4)) == pytest.approx((16 + 1 + 16 + 1) / 70)
    assert fisher_p((4, 4), (0, 4)) == pytest.approx(2 / 70)
    assert fisher_p((2, 4), (2, 4)) == fisher_p((0, 10), (0, 5)) == 1.0
    # Unequal sizes: C(2,k) C(6,2-k) of 28 is 15, 12, 1 for k = 0, 1, 2.
    assert fisher_p((2, 2), (0, 6)) == pytest.approx(1 / 28)
    assert fisher_p((1, 2), (1, 6)) == pytest.approx(13 / 28)


def line(side, seed, rewards):
    return {
        "side": side,
        "seed": seed,
        "train_reward": rewards,
        "train_ended": [1.0] * len(rewards),
        "settings": {"batch_size": 6, "num_generations": 8},
        "cpu_seconds": 100.0 + seed,
    }


def test_the_table_compares_only_seeds_that_both_sides_have(scripts):
    lines = [
        line("trl", 1, [0.0, 0.25, 0.5, 0.5, 0.5]),
        line("tunix", 0, [0.5, 0.5, 0.5, 0.5, 0.5]),
        line("tunix", 1, [0.25, 0.0, 0.5, 1.0, 1.0]),
    ]
    rows = scripts["plot_peers"].table(lines).splitlines()[2:]
    assert rows == [
        "| tunix | 0, 1 | 60 of 192 | – | 0.53 (0.50–0.55) | – | 0.67 (0.50–0.83) "
        "| 1.00 (1.00–1.00) | 100 |",
        "| trl | 1 | 12 of 96 | 1.00 | 0.35 | +0.20 | 0.50 | 1.00 | 101 |",
    ]


def test_the_picture_has_a_curve_for_every_side_that_was_run(scripts, tmp_path):
    lines = [line("tunix", 0, [0.1, 0.5]), line("trl", 0, [0.2, 0.4]), line("trl", 1, [0.0, 0.6])]
    assert list(scripts["plot_peers"].by_side(lines)) == ["tunix", "trl"]
    scripts["plot_peers"].draw(lines, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
