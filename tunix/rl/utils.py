"""Small helpers that reinforcement learning scripts call."""

from tunix.rl.objectives import critic
from tunix.utils import reference_names

create_critic_model = critic.create_critic_model


__getattr__ = reference_names.hints(__name__)
