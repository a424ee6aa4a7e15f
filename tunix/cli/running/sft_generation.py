"""Evaluation by generation in ``tunix sft``: from the settings to what a trainer calls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunix.cli.loading import reward_loading
from tunix.cli.running import training_run
from tunix.cli.schemas import generation_schema
from tunix.data import questions as questions_lib
from tunix.generate import greedy_replies
from tunix.rl.scoring import rewards
from tunix.sft import run_directory
from tunix.sft.loop import generation_eval, reply_scores
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import config as config_lib


def make(
    options: generation_schema.GenerationOptions,
    asked: questions_lib.Questions,
    tokenizer: tokenizer_adapter.TokenizerAdapter,
    directory: run_directory.RunDirectory,
) -> generation_eval.GenerationEval:
    """Return the evaluation; functions of files are run as reward functions are.

    Raises:
        ConfigError: If a file holds no function, or a function needs what the data has not.
    """
    key = "evaluation.generation.score_functions"
    files = reward_loading.load_reward_functions(
        options.score_functions, columns=list(asked.columns), key=key
    )
    for text in reward_loading.unused_functions(
        options.score_functions, columns=list(asked.columns), key=key
    ):
        training_run.OUT.print(f"note       {text}")
    manager = rewards.RewardManager([*(reply_scores.SCORES[s] for s in options.scores), *files])
    try:
        manager.check_columns(list(asked.columns))
    except rewards.RewardError as error:
        raise config_lib.ConfigError(key, error.problems) from error

    def score(
        prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Mapping[str, np.ndarray]:
        return manager(prompts, completions, columns).per_function

    return generation_eval.GenerationEval(
        questions=asked,
        reply=greedy_replies.GreedyReplies(
            tokenizer, max_new_tokens=options.max_new_tokens, max_slots=options.batch_size
        ),
        score=score,
        directory=directory.generations,
    )
