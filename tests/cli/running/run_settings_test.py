"""What a run directory says about its settings when a run goes on."""

import signal

import pytest

from tunix.cli import command
from tunix.cli.running import run_settings
from tunix.cli.schemas import schema
from tunix.sft import run_directory
from tunix.sft.loop import interrupt

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


def test_a_first_start_that_fails_with_nothing_to_look_at_leaves_nothing(directory):
    with pytest.raises(ValueError, match="boom"):
        begin(directory, FIRST, fails=True)
    assert list(directory.path.iterdir()) == []


def test_a_file_of_the_user_in_the_place_of_the_settings_comes_back(directory):
    directory.config.write_text(FIRST)
    with pytest.raises(ValueError, match="boom"):
        begin(directory, SECOND, fails=True)
    assert directory.config.read_text() == FIRST


def test_the_settings_stay_beside_what_a_first_start_logged_before_it_failed(directory):
    directory.metrics.write_text("{}")
    with pytest.raises(ValueError, match="boom"):
        begin(directory, FIRST, fails=True)
    assert directory.config.read_text() == FIRST


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """Return a function from a run directory to what a user asks for, in a place of its own."""
    monkeypatch.chdir(tmp_path)

    def make(chosen):
        options = schema.ModelOptions(model_id="m")
        run = schema.RunOptions(model_config=options, run_dir=chosen)
        return command.Request(run=run, resolved_yaml=FIRST, only_print=False)

    return make


def start(request, error, *, logs=False):
    with run_settings.opened(request, "sft") as directory:
        assert directory.config.read_text() == FIRST
        if logs:
            directory.metrics.write_text("{}")
        raise error


@pytest.mark.parametrize(
    ("chosen", "step", "expected"),
    [
        (None, 3, r"in c; run the same command again with run_dir=runs/sft-[-\d]+ to continue"),
        ("here", 3, "in c; run the same command again to continue"),
        (None, 0, "^stopped before the first step; nothing was saved$"),
        ("here", 0, "^stopped before the first step; nothing was saved$"),
    ],
)
def test_a_run_that_was_stopped_says_what_continues_it(request_for, chosen, step, expected):
    stopped = interrupt.TrainingInterrupted(step, "c", signal.SIGTERM)
    with pytest.raises(interrupt.TrainingInterrupted, match=expected) as caught:
        start(request_for(chosen), stopped)
    assert caught.value.signum == signal.SIGTERM


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt("boom")])
@pytest.mark.parametrize("chosen", [None, "here"])
def test_a_directory_that_a_failed_start_has_made_goes_again(request_for, tmp_path, chosen, error):
    with pytest.raises(type(error), match="boom"):
        start(request_for(chosen), error)
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


def test_a_directory_that_was_there_stays_and_so_does_what_a_start_has_left(request_for, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="boom"):
        start(request_for("empty"), ValueError("boom"))
    assert list((tmp_path / "empty").iterdir()) == []
    with pytest.raises(ValueError, match="boom"):
        start(request_for("new"), ValueError("boom"), logs=True)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.yaml", "metrics.jsonl"}
