"""Disks of powered-off machines: read from outside, and edited once the evidence is sealed."""
