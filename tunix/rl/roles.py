"""Who takes part in reinforcement learning, and in which mode."""

import enum


class Role(enum.Enum):
    """What a model is used for."""

    ACTOR = "actor"
    """The policy that is trained."""
    CRITIC = "critic"
    """What says how good a state is; trained, too."""
    REFERENCE = "reference"
    """The policy it must not move away from."""
    REWARD = "reward"
    """The model that scores completions, if functions do not."""
    ROLLOUT = "rollout"
    """The copy of the actor that samples."""


class Mode(enum.Enum):
    """What completions are sampled for."""

    TRAIN = "train"
    EVAL = "eval"
