"""From settings to what a run works on: models, data, reward functions."""
