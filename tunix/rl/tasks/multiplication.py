"""Products of two one-digit numbers: 64 questions."""

import re

from tunix.rl.tasks import task

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def questions() -> list[task.Question]:
    """Return every product of two factors from 2 to 9."""
    return [
        task.Question(
            text=f"What is {a} * {b}? Answer with just the number.",
            answer=a * b,
            key=(min(a, b), max(a, b)),
        )
        for a in range(2, 10)
        for b in range(2, 10)
    ]


def reward(completions: list[str], answer: list[int], finish_reasons: list[str]) -> list[float]:
    """Return 1 where the last number is the answer and the reply ended by itself."""
    numbers = [NUMBER.findall(reply) for reply in completions]
    right = [
        bool(found) and float(found[-1]) == wanted
        for found, wanted in zip(numbers, answer, strict=True)
    ]
    return task.reward_where(right, finish_reasons)


MULTIPLICATION = task.Task(
    name="multiplication", questions=questions, reward_fn=reward, max_tokens_to_generate=20
)
