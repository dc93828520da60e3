"""Candidates on real machines, through the lab's own Machine."""
