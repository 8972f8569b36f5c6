"""Images, registries and application containers."""
