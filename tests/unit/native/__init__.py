"""The test kernel's own machine code, run function by function in a processor emulator."""
