"""Examples: candidates for the lab to test."""
