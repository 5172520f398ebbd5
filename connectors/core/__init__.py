"""What every agent shares."""
