import subprocess
import sys

import pytest

from tunix import version
from tunix.cli import errors, main
from tunix.utils import config


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--version"])
    assert capsys.readouterr().out == f"tunix {version.__version__}\n"


def test_the_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in main.COMMANDS)


def test_nothing_at_all_is_answered_with_the_commands(capsys):
    assert main.main([]) == errors.USAGE_ERROR
    shown = capsys.readouterr().err
    assert all(f"\n  {name}" in shown for name in main.COMMANDS)


@pytest.mark.parametrize("command", ["sft", "dpo", "grpo", "generate", "export"])
def test_every_command_has_help_of_its_own(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main.main([command, "--help"])
    assert f"usage: tunix {command}" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main.main(["train"])
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["peft_main", "grpo_main"])
def test_the_modules_run_in_the_form_of_google_tunix(module):
    done = subprocess.run(
        [sys.executable, "-m", f"tunix.cli.{module}", "base_config.yaml", "seed=x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == errors.USAGE_ERROR
    assert "seed must be a whole number, got 'x'" in done.stderr
    assert "model_config.model_id is required" in done.stderr
    assert "Traceback" not in done.stderr


def failing(error):
    def command(argv):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (config.ConfigError("x.yaml", ["a is wrong"]), "error: invalid x.yaml:\n  - a is wrong\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "error: a.txt: No such file"),
        (OSError("disk full; free some space"), "error: disk full; free some space\n"),
        (ValueError(), "error: ValueError\n"),
    ],
)
def test_bad_input_is_one_message(error, message, capsys):
    assert errors.run(failing(error), []) == errors.USAGE_ERROR
    assert capsys.readouterr().err.startswith(message)


def test_the_traceback_is_there_when_asked_for(monkeypatch):
    monkeypatch.setenv(errors.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="what"):
        errors.run(failing(ValueError("what")), [])


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(AssertionError):
        errors.run(failing(AssertionError()), [])


def test_an_interrupt_says_how_to_go_on(capsys):
    assert errors.run(failing(KeyboardInterrupt("saved step 3")), []) == 130
    assert capsys.readouterr().err == "saved step 3\n"
