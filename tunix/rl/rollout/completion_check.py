"""What an engine returned, checked before it is learned from.

An engine of one's own that leaves out a log-probability would train on zeros in its place, and
nobody would see it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tunix.generate import completion
from tunix.utils import problems as problems_lib


class CompletionError(problems_lib.SubjectError):
    """An engine returned completions that cannot be used, with every reason why."""

    headline = "{}.generate returned what cannot be used"
    most_shown = 5


def check(
    completions: Sequence[completion.Completion], *, engine: str, count: int, longest: int
) -> None:
    """Raise unless these are ``count`` completions of tokens with their log-probabilities.

    Args:
        completions: What the engine returned.
        engine: Its name, for the message.
        count: Prompts times samples of each.
        longest: Tokens that a completion may have.

    Raises:
        CompletionError: If not.
    """
    if len(completions) != count:
        problem = f"{len(completions)} completions, where {count} were asked for"
        raise CompletionError(engine, [problem])
    problems = [
        f"completion {i}: {problem}"
        for i, one in enumerate(completions)
        for problem in _problems(one, longest)
    ]
    if problems:
        raise CompletionError(engine, problems)


def _problems(one: completion.Completion, longest: int) -> Iterator[str]:
    tokens, logps = np.asarray(one.token_ids), np.asarray(one.logps)
    if len(tokens) > longest:
        yield f"{len(tokens)} tokens, more than max_tokens_to_generate {longest}"
    if logps.shape != tokens.shape:
        yield f"logps of shape {logps.shape} for token_ids of shape {tokens.shape}"
    elif not np.isfinite(logps).all():
        at = int(np.argmax(~np.isfinite(logps)))
        yield f"the log-probability of token {at} is {logps[at]}; it was sampled, so it is finite"
