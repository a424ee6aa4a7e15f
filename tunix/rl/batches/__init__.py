"""From trajectories to the chunks that a model reads."""
