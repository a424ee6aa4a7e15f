"""The engines of this library by name."""

from collections.abc import Callable, Mapping

from tunix.rl.rollout import base_rollout, mock_rollout, vanilla_rollout

EngineFactory = Callable[..., base_rollout.BaseRollout]
"""A subclass of ``BaseRollout``, or what makes one from the same arguments."""

ROLLOUT_ENGINES: Mapping[str, EngineFactory] = {
    "vanilla": vanilla_rollout.VanillaRollout,
    "mock": mock_rollout.MockRollout,
}
