"""LAFR's own networks: plain torch modules without hosts, files or settings."""
