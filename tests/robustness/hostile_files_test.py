"""Damaged files are read rightly or refused with a message, whatever the damage."""

import pytest

from scripts.robustness import hostile_files


@pytest.mark.slow
def test_two_thousand_damaged_files_are_read_rightly_or_refused_in_one_message():
    assert hostile_files.attack(total=2_000, seed=0) == []
