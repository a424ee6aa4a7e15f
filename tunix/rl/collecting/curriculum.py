"""Prompts in the order of what they teach: those that are solved sometimes, more often.

A group whose completions are all right or all wrong has no signal. With rewards of 0 and 1
the variance within a group, and with it what a step learns, is ``p (1 - p)`` for a prompt of
solve rate ``p`` (Foster et al., 2025, "Learning to reason at the frontier of learnability",
arXiv:2502.12272). The rates are not known beforehand: they are counted while training.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from tunix.data import fingerprint
from tunix.rl import trajectory
from tunix.rl.collecting import prompt_batch
from tunix.utils import config as config_lib

UNSEEN_RATE = 0.5
"""What a prompt is thought to be before it was tried: worth trying."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurriculumConfig(config_lib.Config):
    """How prompts are drawn by their running solve rates."""

    solved_at: float = 1.0
    """Reward from which on a completion has solved its prompt."""

    floor: float = 0.1
    """Weight of a prompt that is always or never solved, where one that is solved half of the
    time has 1; above 0, so that a prompt which has become easier is found again."""

    memory: float = 0.5
    """Share of the old rate that remains when a prompt is tried again."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        if not 0.0 < self.floor <= 1.0:
            yield f"floor must lie in (0, 1], got {self.floor}"
        if not 0.0 <= self.memory < 1.0:
            yield f"memory must lie in [0, 1), got {self.memory}"


@runtime_checkable
class ObservesGroups(Protocol):
    """A data set that is told what became of its prompts."""

    def observe(self, groups: Sequence[trajectory.Group]) -> Mapping[str, float]:
        """Take note of the groups of a step, and return metrics."""
        ...


class Curriculum:
    """Draws batches of prompts; the draws depend on the seed and on what was observed, alone.

    Iterator and data set in one, for the rates belong to the run: a checkpoint has them.

    Args:
        rows: Prompts with their columns, ``prompts`` among them.
        config: How to draw.
        batch_size: Prompts per batch, all different.
        num_batches: Batches in all; ``None`` never ends.
        seed: Decides the draws.

    Raises:
        ValueError: If there are fewer rows than a batch has, or the data has a column
            ``prompt_key``, which is added here.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        config: CurriculumConfig,
        *,
        batch_size: int,
        num_batches: int | None,
        seed: int,
    ):
        if not 1 <= batch_size <= len(rows):
            raise ValueError(f"{len(rows)} prompts make no batch of {batch_size} different ones")
        if prompt_batch.PROMPT_KEY in rows[0]:
            raise ValueError(
                f"the data has a column {prompt_batch.PROMPT_KEY!r}, which the curriculum adds; "
                "rename it"
            )
        self._rows, self._config = rows, config
        self._batch_size, self._num_batches, self._seed = batch_size, num_batches, seed
        self._rates: dict[int, float] = {}
        self._draws = 0
        # Recognises, at resume, data under which the rates belong to other prompts.
        self._fingerprint = zlib.crc32(repr([row[prompt_batch.PROMPTS] for row in rows]).encode())
        self._content = fingerprint.combined(map(fingerprint.of_row, rows))

    def __iter__(self) -> "Curriculum":
        """Return the curriculum itself, wherever it stands."""
        return self

    def __len__(self) -> int:
        """Return the batches in all.

        Raises:
            TypeError: If there is no end.
        """
        if self._num_batches is None:
            raise TypeError("a curriculum without num_batches has no length")
        return self._num_batches

    def __next__(self) -> dict[str, list[Any]]:
        """Return the next batch, with the column ``prompt_key``."""
        if self._num_batches is not None and self._draws >= self._num_batches:
            raise StopIteration
        rng = np.random.default_rng([self._seed, self._draws])
        weights = self.weights()
        chosen = rng.choice(
            len(self._rows), self._batch_size, replace=False, p=weights / weights.sum()
        )
        self._draws += 1
        batch = {name: [self._rows[i][name] for i in chosen] for name in self._rows[0]}
        return batch | {prompt_batch.PROMPT_KEY: [int(i) for i in chosen]}

    def weights(self) -> Float[np.ndarray, " N"]:
        """Return the weight of every prompt: ``4 p (1 - p)``, but not below ``floor``."""
        rates = np.full(len(self._rows), UNSEEN_RATE)
        rates[list(self._rates)] = list(self._rates.values())
        return np.maximum(4.0 * rates * (1.0 - rates), self._config.floor)

    def observe(self, groups: Sequence[trajectory.Group]) -> dict[str, float]:
        """Count what was solved.

        Args:
            groups: Completions of prompts that were drawn here.

        Returns:
            ``curriculum_seen``, the share of prompts tried so far, and ``curriculum_solve_rate``,
            their mean rate.
        """
        for group in groups:
            assert isinstance(group.prompt_key, int)  # added by __next__
            solved = np.mean([t.reward >= self._config.solved_at for t in group.trajectories])
            old = self._rates.get(group.prompt_key, UNSEEN_RATE)
            memory = self._config.memory
            self._rates[group.prompt_key] = float(memory * old + (1.0 - memory) * solved)
        return {
            "curriculum_seen": len(self._rates) / len(self._rows),
            "curriculum_solve_rate": float(np.mean(list(self._rates.values()))),
        }

    def get_state(self) -> dict[str, Any]:
        """Return position and rates: what ``set_state`` needs to continue."""
        rates = {str(i): rate for i, rate in sorted(self._rates.items())}
        return {
            "draws": self._draws,
            "rates": rates,
            "fingerprint": self._fingerprint,
            fingerprint.KEY: self._content,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue where ``get_state`` was called.

        Raises:
            ValueError: If the state belongs to other prompts.
        """
        if state.get("fingerprint") != self._fingerprint:
            raise ValueError(
                "cannot resume the curriculum: the saved rates belong to other prompts or another "
                "order of them; restore the data, or start anew"
            )
        fingerprint.require_same(state, self._content, "the curriculum")
        self._draws = int(state["draws"])
        self._rates = {int(i): float(rate) for i, rate in state["rates"].items()}
