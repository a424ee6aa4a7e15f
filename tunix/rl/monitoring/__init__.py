"""What a run of reinforcement learning measures, logs and warns of."""
