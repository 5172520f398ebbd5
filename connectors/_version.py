"""The one place that holds the product's version: platform, agents and artefacts share it."""

__version__ = "0.1.0"
