"""What a run directory says about its settings when a run goes on."""

import pytest

from tunix.cli import run_settings
from tunix.sft import run_directory

FIRST = "seed: 0\noptimizer:\n  learning_rate: 0.1\n  clip: null\nfiles: [a.py]\n"
SECOND = "seed: 1\noptimizer:\n  learning_rate: 0.1\n  clip: 2.0\nfiles: [a.py, b.py]\n"
CHANGED = [
    "changed    seed: 0 -> 1",
    "changed    files: ['a.py'] -> ['a.py', 'b.py']",
    "changed    optimizer.clip: (not set) -> 2.0",
]


@pytest.fixture
def directory(tmp_path):
    return run_directory.RunDirectory(tmp_path)


def begin(directory, text, *, saves=None, fails=False):
    with run_settings.recorded(directory, text):
        if saves is not None:
            (directory.checkpoints / str(saves)).mkdir(parents=True)
        if fails:
            raise ValueError("boom")


def test_a_run_that_goes_on_says_what_has_changed(directory, capsys):
    begin(directory, FIRST, saves=3)
    begin(directory, FIRST)
    assert capsys.readouterr().out == ""
    begin(directory, SECOND)
    assert capsys.readouterr().out.splitlines() == CHANGED
    assert directory.config.read_text() == SECOND


def test_a_directory_without_a_checkpoint_has_nothing_to_compare_with(directory, capsys):
    begin(directory, FIRST)
    begin(directory, SECOND)
    assert capsys.readouterr().out == ""


def test_settings_that_could_not_go_on_do_not_replace_those_of_the_checkpoints(directory):
    begin(directory, FIRST, saves=3)
    with pytest.raises(ValueError, match="boom"):
        begin(directory, SECOND, fails=True)
    assert directory.config.read_text() == FIRST


def test_settings_that_have_trained_further_stay_whatever_happens_then(directory):
    begin(directory, FIRST, saves=3)
    with pytest.raises(ValueError, match="boom"):
        begin(directory, SECOND, saves=4, fails=True)
    assert directory.config.read_text() == SECOND


def test_the_first_settings_stay_when_the_first_start_fails(directory):
    with pytest.raises(ValueError, match="boom"):
        begin(directory, FIRST, fails=True)
    assert directory.config.read_text() == FIRST
