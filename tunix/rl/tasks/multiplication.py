"""Products of two one-digit numbers: 64 questions."""

from tunix.rl.tasks import numbers, task


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


def just_the_product(
    completions: list[str], answer: list[int], finish_reasons: list[str]
) -> list[float]:
    """Return 1 where the reply is the number and nothing else, and ended by itself."""
    right = [numbers.is_just(reply, n) for reply, n in zip(completions, answer, strict=True)]
    return task.reward_where(right, finish_reasons)


MULTIPLICATION = task.Task(
    name="multiplication",
    questions=questions,
    reward_fn=just_the_product,
    guide_fn=numbers.nearness,
    max_tokens_to_generate=20,
)
