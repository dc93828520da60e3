"""A crash dump in, a report out. Knows nothing of labs and can be used alone."""
