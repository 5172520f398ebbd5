"""The server agent type."""
