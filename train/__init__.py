"""Training: turns face photos into the weights that ``lafr_core`` loads."""
