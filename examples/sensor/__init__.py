"""The 19 July 2024 analogue: a small kernel-mode sensor, its content, and its content validator."""
