"""The catalogue of events, the change timeline and the live stream."""
