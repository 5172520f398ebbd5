"""The kubernetes agent type."""
