"""What comes over a machine's serial console."""
