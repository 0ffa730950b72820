"""Reads, writes, degrades, measures and draws photos."""
