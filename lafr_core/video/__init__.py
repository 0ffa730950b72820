"""Clips: reads and writes them, follows their faces from frame to frame, and restores them so that they do not flicker."""
