"""How the trajectories of a step come about."""
