"""Consoles: ports, transports, what is expected of them, and SAC as others have captured it."""
