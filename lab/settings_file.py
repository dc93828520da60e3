"""Where the lab's settings are looked for; nothing else, so that asking costs nothing."""

from __future__ import annotations

import os
from typing import Final

FILE_NAME: Final = "lab.toml"
ENVIRONMENT_VARIABLE: Final = "LAB_TOML"
"""Names the file where none is given and the current folder has no lab.toml."""


def is_named() -> bool:
    """Whether there is a lab.toml here, or the environment names one."""
    return os.path.exists(FILE_NAME) or bool(os.environ.get(ENVIRONMENT_VARIABLE))
