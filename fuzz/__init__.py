"""Coverage-guided fuzzing of the triage engine: `make fuzz`."""
