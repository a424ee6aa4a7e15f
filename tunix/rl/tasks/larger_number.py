"""Which of two two-digit numbers is larger: 8,010 questions."""

import re

from tunix.rl.tasks import task

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def questions() -> list[task.Question]:
    """Return every ordered pair of distinct numbers from 10 to 99."""
    return [
        task.Question(
            text=f"Which number is larger, {a} or {b}? Answer with just the number.",
            answer=max(a, b),
            # A pair and its mirror image ask the same thing.
            key=(min(a, b), max(a, b)),
        )
        for a in range(10, 100)
        for b in range(10, 100)
        if a != b
    ]


def reward(completions: list[str], answer: list[int], finish_reasons: list[str]) -> list[float]:
    """Return 1 where the first number is the answer and the reply ended by itself."""
    first = [NUMBER.search(reply) for reply in completions]
    right = [
        found is not None and float(found[0]) == wanted
        for found, wanted in zip(first, answer, strict=True)
    ]
    return task.reward_where(right, finish_reasons)


LARGER_NUMBER = task.Task(
    name="larger_number", questions=questions, reward_fn=reward, max_tokens_to_generate=20
)
