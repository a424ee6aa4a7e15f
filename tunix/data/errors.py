"""One error for everything that is wrong with a data set."""

from collections.abc import Sequence

_SHOWN = 20


class DataError(ValueError):
    """Data that cannot be used, with every reason why: file, row, column."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.source, self.problems = source, tuple(problems)
        super().__init__(source, self.problems)  # args as passed, so that the error pickles

    def __str__(self) -> str:
        """Return one line per problem, the first twenty of them."""
        lines = [f"\n  - {p}" for p in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"\n  - and {len(self.problems) - _SHOWN} more")
        return f"cannot use {self.source}:" + "".join(lines)
