"""Products of two one-digit numbers: 64 questions."""

from tunix.rl.tasks import numbers, task


def questions() -> list[task.Question]:
    """Return every product of two factors from 2 to 9."""
    return [
        task.Question(
            text=f"What is {a} * {b}? End with the result.",
            answer=a * b,
            key=(min(a, b), max(a, b)),
        )
        for a in range(2, 10)
        for b in range(2, 10)
    ]


def ends_with_the_product(
    completions: list[str], answer: list[int], finish_reasons: list[str]
) -> list[float]:
    """Return 1 where the last number of a reply is the answer, and it ended by itself."""
    right = [numbers.last(reply) == n for reply, n in zip(completions, answer, strict=True)]
    return task.reward_where(right, finish_reasons)


MULTIPLICATION = task.Task(
    name="multiplication",
    questions=questions,
    reward_fn=ends_with_the_product,
    max_tokens_to_generate=20,
)
