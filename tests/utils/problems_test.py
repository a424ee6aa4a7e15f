"""Errors that list problems."""

import importlib
import pickle
import pkgutil

import pytest

import tunix
from tunix.data import errors
from tunix.sft.checkpoints import checkpoint_storage
from tunix.utils import config, problems


class _Unfit(problems.ProblemsError):
    headline = "does not fit"
    most_shown = 2


def _classes(base: type) -> list[type]:
    return [cls for sub in base.__subclasses__() for cls in (sub, *_classes(sub))]


def _all_errors() -> list[type[problems.ProblemsError]]:
    for module in pkgutil.walk_packages(tunix.__path__, "tunix."):
        if not module.name.rpartition(".")[2].startswith("__"):
            importlib.import_module(module.name)
    return [cls for cls in _classes(problems.ProblemsError) if cls.__module__.startswith("tunix")]


def test_each_problem_has_a_line():
    assert str(_Unfit(["one", "two"])) == "does not fit:\n  - one\n  - two"


def test_what_is_more_than_a_screen_is_counted():
    assert str(_Unfit("abcde")) == "does not fit:\n  - a\n  - b\n  - and 3 more"


def test_a_subject_with_braces_stands_as_it_is():
    assert str(config.ConfigError("{x}.yaml", ["one"])) == "invalid {x}.yaml:\n  - one"


def test_the_middle_of_a_very_long_problem_is_left_out():
    line = str(_Unfit(["a" * 2_000 + "b"])).splitlines()[1]
    assert line.startswith("  - aaa") and line.endswith("aab") and len(line) < 1_100


def test_problems_may_come_from_a_generator():
    assert _Unfit(p for p in ["one"]).problems == ("one",)


def test_every_error_that_lists_problems_arrives_whole_from_another_process():
    found = _all_errors()
    assert len(found) > 8
    for cls in found:
        subject = ["it"] if issubclass(cls, problems.SubjectError) else []
        further = [[3], "; move on"] if cls is checkpoint_storage.CheckpointDamagedError else []
        error = cls(*subject, ["one", "two"], *further)
        arrived = pickle.loads(pickle.dumps(error))
        assert type(arrived) is cls
        assert str(arrived) == str(error) and "- one\n  - two" in str(error)
        assert vars(arrived) == vars(error)


@pytest.mark.parametrize("cls", [config.ConfigError, errors.DataError])
def test_an_error_names_its_subject(cls: type[problems.SubjectError]):
    assert cls("train.jsonl", ["one"]).subject == "train.jsonl"
