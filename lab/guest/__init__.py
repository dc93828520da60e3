"""Running things inside a machine: one file a channel."""
