"""Switching power: one contract, one file a device family."""
