"""The harness, a part at a time."""
