"""The test kernel: a small 64-bit kernel shaped like NT, and the builder of its disk images."""
