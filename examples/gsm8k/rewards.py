"""Rewards of the GSM8K recipe: the right answer, and the line it was asked for in."""

from tunix.rl.reward_fns import formats, maths
from tunix.rl.scoring import rewards

right_answer = maths.right_answer

ends_with_answer = rewards.Reward(
    fn=formats.Matches(pattern=r".*\n#### -?\$?\d[\d,]*(?:\.\d+)?"), name="ends_with_answer"
)
"""Whether the last line is ``#### NUMBER`` and something stands before it."""

__all__ = ["right_answer", "ends_with_answer"]  # noqa: RUF022, the order of reward_weights
