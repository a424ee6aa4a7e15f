"""A command that fails says so once."""

import logging
import sys

from tunix.cli import errors


def record(path, name="absl"):
    return logging.LogRecord(name, logging.ERROR, path, 1, "failed", (), None)


def test_what_the_store_of_checkpoints_logs_is_not_shown_twice(capsys, monkeypatch):
    """Its threads log a traceback for each error that the manager raises, too."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a new process

    def command(argv):
        for found in (record("/lib/orbax/checkpoint/x.py"), record("/lib/other.py")):
            logging.getLogger().handle(found)
        logging.getLogger("asyncio").error("Task exception was never retrieved: 5.orbax-tmp")
        logging.getLogger("tunix").error("ours")
        raise OSError("no space")

    assert errors.run(command, ["tunix"]) == errors.USAGE_ERROR
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "ERROR: failed",
        "ERROR: ours",
        "error: no space",
        "(set TUNIX_TRACEBACK=1 to see where it comes from)",
    ]


def test_writes_that_nobody_waits_for_print_no_traceback(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: shown.append(str(found.exc_value)))

    class Orphan:
        def __init__(self, text):
            self.text = text

        def __del__(self):
            raise RuntimeError(self.text)

    def command(argv):
        for text in ("Event loop is closed", "something else"):
            Orphan(text)
        return 0

    before = sys.unraisablehook
    assert errors.run(command, ["tunix"]) == 0
    assert shown == ["something else"]
    assert sys.unraisablehook is before
