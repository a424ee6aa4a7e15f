"""Scores of replies, by hand and against sacrebleu."""

import itertools

import numpy as np
import pytest

from tunix.sft.loop import reply_scores
from tunix.utils import config as config_lib


def test_an_exact_match_overlooks_space_around_a_reply_and_nothing_else():
    found = reply_scores.exact_match([" 42\n", "42.", "Paris", ""], ["42", "42", "paris", "x"])
    assert found == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("reply", "reference", "f1"),
    [
        # 5 of 6 words of each are shared.
        ("the cat sat on the mat", "The cat is on the mat.", 5 / 6),
        ("sehr gut", "das ist sehr gut", 2 * 1.0 * 0.5 / 1.5),
        ("no no no", "no", 0.5),
        ("mat the on", "on the mat", 1.0),
        ("", "x", 0.0),
        ("y", "x", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_the_f1_of_words(reply, reference, f1):
    assert reply_scores.word_f1([reply], [reference]) == [pytest.approx(f1, rel=1e-12)]


@pytest.mark.parametrize(
    ("reply", "reference", "percent"),
    [
        # sacrebleu 2.5, CHRF().sentence_score.
        ("the cat sat on the mat", "the cat is on the mat", 64.5779420625287),
        ("Das ist gut.", "das ist sehr gut", 31.471982010558452),
        ("ab", "ab cd efg", 26.76056338028169),
        # One run of one character: precision 1, recall 1/2, F2 = 5/9.
        ("a", "ab", 100 * 5 / 9),
        ("", "x", 0.0),
        ("xyz", "abc", 0.0),
        ("hello world", "hello world", 100.0),
    ],
)
def test_chrf_is_that_of_sacrebleu(reply, reference, percent):
    assert reply_scores.chrf([reply], [reference]) == [pytest.approx(percent / 100, rel=1e-12)]


def shortest(prompts, completions, **columns):
    assert (prompts, columns) == (["p", "q"], {"reference": ["a", "b"], "kind": [1, 2]})
    return [None if not text else -len(text) for text in completions]


def kind_of(completions, kind):
    return [float(k) for k in kind]


COLUMNS = {"reference": ["a", "b"], "kind": [1, 2]}


def test_functions_get_what_they_name_and_may_not_apply():
    scores = reply_scores.Scores([reply_scores.exact_match, shortest, kind_of])
    found = scores(["p", "q"], ["a", ""], COLUMNS)
    assert list(found) == ["exact_match", "shortest", "kind_of"]
    np.testing.assert_array_equal(found["exact_match"], [1.0, 0.0])
    np.testing.assert_array_equal(found["shortest"], [-1.0, np.nan])
    np.testing.assert_array_equal(found["kind_of"], [1.0, 2.0])


class Mute:
    def __repr__(self):
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda completions, refrence: [], "did you mean 'reference'"),
        (lambda completions: [1.0], "returned 1 numbers for 2 completions"),
        (lambda completions: [1.0, float("nan")], "nan where a finite number is expected"),
        (lambda completions: [1.0, True], "True where a finite number"),
        (lambda completions: 0.5, "must return a list of numbers, got 0.5"),
        (lambda completions: {0.5, 1.0}, "must return a list of numbers, got {"),
        (lambda completions: b"ab", "must return a list of numbers, got b'ab'"),
        (lambda completions: itertools.repeat(1.0), "more than 2 numbers for 2 completions"),
        (lambda completions: [1.0, Mute()], r"returned \(its text cannot be made"),
    ],
)
def test_what_is_no_score_is_an_error_that_says_so(fn, message):
    with pytest.raises(reply_scores.ScoreError, match=message):
        reply_scores.Scores([fn])(["p", "q"], ["a", "b"], COLUMNS)


def test_scores_need_names_of_their_own():
    with pytest.raises(config_lib.ConfigError, match="2 functions are called 'chrf'"):
        reply_scores.Scores([reply_scores.chrf, reply_scores.chrf])
    with pytest.raises(config_lib.ConfigError, match="at least one"):
        reply_scores.Scores([])
