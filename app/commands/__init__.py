"""The commands of ``incident-rca``, one module for each noun; ``app.cli`` puts them together."""
