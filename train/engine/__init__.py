"""The loop every stage shares: steps, checkpoints, journal, optimisers, processes."""
