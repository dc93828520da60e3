"""Physical and virtual addresses are different types, so that one is never taken for the other."""

from __future__ import annotations

from typing import Final, NewType

PhysicalAddress = NewType("PhysicalAddress", int)
VirtualAddress = NewType("VirtualAddress", int)

PAGE_SIZE: Final = 0x1000
KERNEL_SPACE: Final = 0xFFFF_8000_0000_0000
"""The lowest canonical address of the upper half, which belongs to the kernel."""
