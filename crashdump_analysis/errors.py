"""The one error that reading a dump raises."""

from __future__ import annotations


class DumpError(Exception):
    """A dump, image or record is not what it should be.

    `where` is the file, or the place in it; `expected` and `found` say what should be there and
    what is.
    """

    def __init__(self, where: str, *, expected: str, found: str) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}")
        self.where = where
        self.expected = expected
        self.found = found
