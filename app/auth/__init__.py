"""API keys, sessions and roles."""
