"""Reward functions that are ready for use."""
