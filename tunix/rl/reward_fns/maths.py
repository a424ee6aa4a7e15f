"""Rewards for maths with an answer that can be checked.

``right_answer`` needs nothing besides this library. ``math_verify_reward`` asks the package
math-verify, which understands more (matrices, inequalities, sets of solutions) and is slower.
"""

import logging
from typing import Any

from tunix.rl.scoring import reward_settings
from tunix.utils import math_answers


def right_answer(completion: str, answer: object) -> float:
    r"""Return 1 if the answer of a solution is right, else 0.

    The last ``\boxed{...}`` counts, else what stands behind ``####`` or "answer is", else the
    last number; see :func:`tunix.utils.math_answers.is_same` for what is the same.

    Args:
        completion: The solution.
        answer: The right answer: a number, text, or a solution that ends in one (as GSM8K has).
    """
    given = math_answers.final_answer(completion)
    return float(given is not None and math_answers.is_same(given, _truth(answer)))


def math_verify_answer(completion: str, answer: object) -> float:
    """Return 1 if math-verify finds the answer right, else 0.

    Run it as :func:`math_verify_reward` does: in processes with a time limit, for SymPy may
    compute for ever on a formula that a model made up.

    Raises:
        ImportError: If ``math-verify`` is not installed.
    """
    try:
        import math_verify  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "this reward needs math-verify: pip install 'tunix[math]'; right_answer does without"
        ) from error
    # Its own time limits are alarm signals, which only a main thread may set: none, in spite of
    # what its annotations say. It would warn of that three times for every reply.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    unlimited: Any = None
    truth = math_verify.parse(f"\\boxed{{{_truth(answer)}}}", parsing_timeout=unlimited)
    given = math_verify.parse(completion, parsing_timeout=unlimited)
    return float(math_verify.verify(truth, given, timeout_seconds=unlimited))


def math_verify_reward(*, workers: int = 2, time_limit: float = 10.0) -> reward_settings.Reward:
    """Return :func:`math_verify_answer` in processes; what takes too long is wrong."""
    return reward_settings.Reward(
        fn=math_verify_answer,
        run_in="process",
        workers=workers,
        time_limit=time_limit,
        on_error=0.0,
    )


def _truth(answer: object) -> str:
    text = str(answer)
    if "####" in text or "boxed" in text:
        return math_answers.final_answer(text) or text
    return text
