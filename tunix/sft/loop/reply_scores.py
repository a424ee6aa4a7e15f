"""Scores of replies, and how several are run.

A score is ``fn(prompts, completions, **columns)`` and returns a number per completion, or ``None``
where it does not apply: the form of a reward function. Those here compare with the column
``reference``.
"""

import collections
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import Float

from tunix.utils import config as config_lib
from tunix.utils import error_text, score_functions

ScoreFn = Callable[..., Sequence[float | None]]

_CHRF_ORDER, _CHRF_BETA = 6, 2.0


class ScoreError(ValueError):
    """A score function that cannot be used or returned something else than numbers."""


def exact_match(completions: Sequence[str], reference: Sequence[str]) -> list[float]:
    """Return 1 where a reply is the reference but for space around it, else 0."""
    return [
        float(text.strip() == wanted.strip())
        for text, wanted in zip(completions, reference, strict=True)
    ]


def word_f1(completions: Sequence[str], reference: Sequence[str]) -> list[float]:
    """Return the F1 of the words that a reply shares with the reference, whatever their order.

    Words are runs of letters and digits, without regard to case, and count as often as they
    occur.
    """

    def words(text: str) -> collections.Counter[str]:
        return collections.Counter(re.findall(r"\w+", text.casefold()))

    pairs = zip(map(words, completions), map(words, reference), strict=True)
    return [_f_score([(said, wanted)], beta=1.0) for said, wanted in pairs]


def chrf(completions: Sequence[str], reference: Sequence[str]) -> list[float]:
    """Return chrF2 of every reply, from 0 to 1 (Popović, 2015, aclanthology.org/W15-3049).

    Precision and recall of runs of 1 to 6 characters, spaces left out, each averaged over the
    lengths that both texts have; recall counts twice as much.
    """

    def runs(text: str, length: int) -> collections.Counter[str]:
        text = "".join(text.split())
        return collections.Counter(text[i : i + length] for i in range(len(text) - length + 1))

    return [
        _f_score(
            [(runs(text, n), runs(wanted, n)) for n in range(1, _CHRF_ORDER + 1)], beta=_CHRF_BETA
        )
        for text, wanted in zip(completions, reference, strict=True)
    ]


SCORES: Mapping[str, ScoreFn] = {"exact_match": exact_match, "word_f1": word_f1, "chrf": chrf}


class Scores:
    """Runs score functions one after the other and checks what they return.

    Args:
        fns: Functions with different names.

    Raises:
        ConfigError: If there is none, or two have the same name.
    """

    def __init__(self, fns: Iterable[ScoreFn]):
        fns = list(fns)
        self._fns = {score_functions.name_of(fn): fn for fn in fns}
        if not fns:
            raise config_lib.ConfigError("scores", ["there is none; give at least one function"])
        if len(self._fns) < len(fns):
            counts = collections.Counter(map(score_functions.name_of, fns))
            problems = [f"{n} functions are called {name!r}" for name, n in counts.items() if n > 1]
            raise config_lib.ConfigError("scores", problems)

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
    ) -> dict[str, Float[np.ndarray, " B"]]:
        """Return every function's scores by its name; NaN where it does not apply.

        Raises:
            ScoreError: If a function needs a column that there is not, or returns anything but a
                finite number or ``None`` per completion.
        """
        given = {**columns, "prompts": list(prompts), "completions": list(completions)}
        found = {}
        for name, fn in self._fns.items():
            for wanted in score_functions.required(fn):
                if wanted not in given:
                    raise ScoreError(
                        f"score {name} needs the column {wanted!r}; there are {sorted(given)}"
                        f"{config_lib.did_you_mean(wanted, given)}"
                    )
            own = {
                name: [score_functions.own_copy(value) for value in values]
                for name, values in score_functions.taken(fn, given).items()
            }
            values = fn(**own)
            found[name] = _checked(name, values, completions)
        return found


def _checked(name: str, values: Any, completions: Sequence[str]) -> Float[np.ndarray, " B"]:
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        shown = error_text.shown(values)
        raise ScoreError(f"score {name} must return a list of numbers, got {shown:.80}")
    count = len(completions)
    values = list(itertools.islice(values, count + 1))  # an iterator may have no end
    if len(values) != count:
        found = f"more than {count}" if len(values) > count else len(values)
        raise ScoreError(f"score {name} returned {found} numbers for {count} completions")
    for i, value in enumerate(values):
        if value is not None and not score_functions.is_score(value):
            raise ScoreError(
                f"score {name} returned {error_text.shown(value)} where a finite number is "
                f"expected, for completion {i}: {completions[i]!r:.200}"
            )
    return np.asarray([np.nan if v is None else float(v) for v in values])


_Counts = collections.Counter[str]


def _f_score(pairs: Sequence[tuple[_Counts, _Counts]], *, beta: float) -> float:
    """Return the F score of precision and recall, each averaged over those pairs with counts."""
    counted = [(said, wanted) for said, wanted in pairs if said and wanted]
    if not counted:
        return 0.0
    shared = [(said & wanted).total() for said, wanted in counted]
    precision = np.mean([n / s.total() for n, (s, _) in zip(shared, counted, strict=True)])
    recall = np.mean([n / w.total() for n, (_, w) in zip(shared, counted, strict=True)])
    if precision + recall == 0.0:
        return 0.0
    return float((1 + beta**2) * precision * recall / (beta**2 * precision + recall))
