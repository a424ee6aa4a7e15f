"""What is learned: advantages, policy and value losses, as functions of arrays."""
