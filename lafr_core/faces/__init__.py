"""Finds, cuts out, judges and pastes faces: everything that happens in pixels around one face."""
