"""Machines, and what is done with them."""
