"""Reward functions: settings, processes, faults and what they add up to."""
