"""What all prompts of a run have in common, so that a table can show what they have not."""

import itertools
from collections.abc import Collection, Iterable, Sequence


def shared_lines(prompts: Collection[str]) -> tuple[str, str]:
    """Return the whole lines that every prompt begins with, and those that every one ends with.

    Those of a chat template and a system prompt, as a rule. They leave a line of every prompt;
    both are empty if there is only one.
    """
    lines = [prompt.split("\n") for prompt in set(prompts)]
    if len(lines) < 2:
        return "", ""
    spare = min(len(one) for one in lines) - 1
    first = _leading(zip(*lines, strict=False), spare)
    last = _leading(zip(*(one[::-1] for one in lines), strict=False), spare - len(first))
    return "".join(f"{line}\n" for line in first), "".join(f"\n{line}" for line in last[::-1])


def _leading(columns: Iterable[Sequence[str]], most: int) -> list[str]:
    """Return the elements that are the same everywhere, up to the first that are not."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    return [column[0] for column in itertools.islice(same, most)]
