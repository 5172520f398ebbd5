"""The incident-rca platform."""
