"""Machines that can be touched, composed of their parts."""
