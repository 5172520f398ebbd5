"""Groups of instances by label selector, and the configuration that the platform means for them."""
