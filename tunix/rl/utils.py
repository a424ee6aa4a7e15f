"""Small helpers that reinforcement learning scripts call."""

from tunix.rl import critic

create_critic_model = critic.create_critic_model
