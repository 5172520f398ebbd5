"""Releases of the agent: built from the code that runs here, signed, published, and kept for hosts to fetch."""
