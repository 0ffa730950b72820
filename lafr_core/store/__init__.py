"""Keeps files safe: whole or not at all, weights as data, downloads checked."""
