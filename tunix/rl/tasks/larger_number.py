"""Which of two two-digit numbers is larger: 8,010 questions."""

from tunix.rl.tasks import numbers, task


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


def just_the_number(
    completions: list[str], answer: list[int], finish_reasons: list[str]
) -> list[float]:
    """Return 1 where the reply is the number and nothing else, and ended by itself."""
    right = [numbers.is_just(reply, n) for reply, n in zip(completions, answer, strict=True)]
    return task.reward_where(right, finish_reasons)


LARGER_NUMBER = task.Task(
    name="larger_number",
    questions=questions,
    reward_fn=just_the_number,
    guide_fn=numbers.nearness,
    max_tokens_to_generate=20,
)
