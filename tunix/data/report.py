"""What became of a data set on its way to tokens."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_SHOWN = 5


@dataclasses.dataclass
class DataReport:
    """Counts and, for every row that was changed or left out, its place."""

    source: str = "data"
    rows: int = 0
    """Rows that were kept."""
    tokens: int = 0
    trained_tokens: int | None = 0
    """``None`` where nothing is trained, as of prompts."""
    longest: int = 0
    """Tokens of the longest row kept."""
    plain_rows: int = 0
    """Rows kept that are text, and lack the form of the tokenizer's chat template."""
    truncated: list[str] = dataclasses.field(default_factory=list)
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """Places by reason."""
    never_stop: list[str] = dataclasses.field(default_factory=list)
    """Rows in which no trained token ends a generation."""

    def keep(
        self,
        where: str,
        tokens: Int[np.ndarray, " T"],
        loss_weights: Float[np.ndarray, " T"],
        eos_ids: Sequence[int],
    ) -> None:
        """Count the example at ``where`` as one to train on."""
        self.rows += 1
        self.tokens += len(tokens)
        self.trained_tokens = (self.trained_tokens or 0) + int(np.count_nonzero(loss_weights))
        self.longest = max(self.longest, len(tokens))
        if not np.isin(tokens[loss_weights > 0], eos_ids).any():
            self.never_stop.append(where)

    def drop(self, where: str, reason: str) -> None:
        """Count the row at ``where`` as left out."""
        self.dropped.setdefault(reason, []).append(where)

    @property
    def rows_dropped(self) -> int:
        """How many rows were left out, for whatever reason."""
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        """Return one paragraph."""
        trained = ""
        if self.trained_tokens is not None:
            share = 100.0 * self.trained_tokens / max(self.tokens, 1)
            trained = f"{self.trained_tokens:,} of them trained ({share:.1f}%), "
        sentences = [
            f"{self.source}: {self.rows:,} rows, {self.tokens:,} tokens, {trained}"
            f"the longest row has {self.longest:,}."
        ]
        if self.truncated:
            sentences.append(f"Truncated {_places(self.truncated)}.")
        for reason, places in self.dropped.items():
            sentences.append(f"Dropped {_places(places)}: {reason}.")
        if self.never_stop:
            sentences.append(
                f"Warning: {_places(self.never_stop)} train no token that ends a reply, so the "
                "model does not learn to stop there; use a chat template that closes replies "
                "with a stop token, or do not truncate."
            )
        return " ".join(sentences)


def _places(places: list[str]) -> str:
    more = f" and {len(places) - _SHOWN:,} more" if len(places) > _SHOWN else ""
    noun = "row" if len(places) == 1 else "rows"
    return f"{len(places):,} {noun} ({', '.join(places[:_SHOWN])}{more})"
