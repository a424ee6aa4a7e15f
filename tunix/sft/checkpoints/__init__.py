"""What a checkpoint holds, whether it is sound, and how a run goes on from it."""
