"""Runs that are killed, shared or damaged end as one that nothing happened to, or say why not."""

import pytest

from scripts.robustness import kills


@pytest.mark.slow
@pytest.mark.parametrize("command", kills.COMMANDS)
def test_a_run_survives_kills_second_writers_and_damaged_checkpoints(command):
    assert kills.attack([command], kills=3, seed=0) == []
