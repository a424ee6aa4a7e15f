"""A trained reward model as a reward function."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tunix.ops import visibility
from tunix.sft import frozen_model
from tunix.sft.dpo import reward_model

ScoreRowsFn = Callable[[Sequence[Int[np.ndarray, " T"]], Sequence[int]], Sequence[float]]
"""``fn(rows, prompt_lengths)``: one score per row of tokens, prompt and completion."""


class ModelReward:
    """Scores completions with whatever scores rows of tokens.

    Args:
        score_rows: E.g. :class:`RewardModelScores`. Its tokens must be those of the policy.
    """

    def __init__(self, score_rows: ScoreRowsFn):
        self._score_rows = score_rows

    def __call__(
        self,
        prompt_ids: Sequence[Int[np.ndarray, " P"]],
        completion_ids: Sequence[Int[np.ndarray, " T"]],
    ) -> list[float]:
        """Return the scores."""
        rows = [np.concatenate(pair) for pair in zip(prompt_ids, completion_ids, strict=True)]
        return [float(x) for x in self._score_rows(rows, [len(ids) for ids in prompt_ids])]


class RewardModelScores:
    """The scores of a model that :class:`RewardTrainer` trained, at the last token of each row.

    Args:
        model: The reward model.
        micro_batch_size: Rows that are scored at a time.
        length_multiple: Rows are padded to a multiple of it, so that few shapes are compiled.
    """

    def __init__(
        self,
        model: reward_model.RewardModel,
        *,
        micro_batch_size: int = 8,
        length_multiple: int = 128,
    ):
        self._model = frozen_model.FrozenModel(model)
        self._size, self._multiple = micro_batch_size, length_multiple

    def __call__(
        self, rows: Sequence[Int[np.ndarray, " T"]], prompt_lengths: Sequence[int]
    ) -> list[float]:
        """Return the score of every row.

        Raises:
            TokenIdError: If the reward model has no embedding for one of the tokens.
        """
        del prompt_lengths
        width = -(-max(map(len, rows)) // self._multiple) * self._multiple
        scores: list[float] = []
        for start in range(0, len(rows), self._size):
            part = rows[start : start + self._size]
            tokens = np.zeros((self._size, width), np.int32)
            lengths = np.ones(self._size, np.int32)
            for i, row in enumerate(part):
                tokens[i, : len(row)], lengths[i] = row, len(row)
            batch = {"tokens": tokens, "lengths": lengths}
            scores += np.asarray(self._model.compute(_scores, batch))[: len(part)].tolist()
        return scores


def _scores(model: reward_model.RewardModel, batch: Mapping[str, Array]) -> Float[Array, " R"]:
    tokens, lengths = batch["tokens"], batch["lengths"]
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (places < lengths[:, None]).astype(jnp.int32)
    hidden, _ = model.decoder.hidden(tokens, visibility.Visibility(places, segments))
    last = hidden[jnp.arange(len(tokens)), lengths - 1].astype(jnp.float32)
    return last @ model.score[...].astype(jnp.float32)
