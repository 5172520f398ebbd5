"""The docker agent type."""
