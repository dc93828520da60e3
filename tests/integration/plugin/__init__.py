"""The pytest plugin: what it refuses, and how tests on machines end."""
