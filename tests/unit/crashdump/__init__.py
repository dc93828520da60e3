"""The triage engine, a part at a time, on synthetic dumps."""
