"""Settings of ``evaluation``: what ``tunix sft`` measures on held-out rows besides the loss."""

import dataclasses
from collections.abc import Iterator

from tunix.sft.loop import reply_scores
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions(config_lib.Config):
    """``evaluation.generation``: greedy replies to held-out prompts, compared with their answers.

    Scores are metrics of the evaluation called ``generation/NAME``, and replies are kept below
    ``generations`` in the run directory.
    """

    num_prompts: int = 64
    """Held-out rows that are asked, evenly spaced; all of them if there are no more."""

    max_new_tokens: int = 128
    """Tokens after which a reply is cut."""

    scores: tuple[str, ...] = ("exact_match",)
    """Of `exact_match`, `word_f1` and `chrf`: how a reply compares with the row's own."""

    score_functions: tuple[str, ...] = ()
    """Python files of functions (prompts, completions, ...), which get the data's columns and
    ``reference``, the row's own reply."""

    batch_size: int = 16
    """Replies decoded at the same time."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range and scores that there are not."""
        yield from super().problems()
        yield from config_lib.below_one(self, "num_prompts", "max_new_tokens", "batch_size")
        for name in self.scores:
            if name not in reply_scores.SCORES:
                hint = config_lib.did_you_mean(name, reply_scores.SCORES)
                yield f"scores: {name!r} is not one of {list(reply_scores.SCORES)}{hint}"
        if len(set(self.scores)) < len(self.scores):
            yield f"scores has one twice: {list(self.scores)}"
        if not self.scores and not self.score_functions:
            yield "nothing is scored: name scores or score_functions"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(config_lib.Config):
    """``evaluation``: what is measured on held-out rows besides the loss."""

    generation: GenerationOptions | None = None
    """Samples replies and scores them."""
