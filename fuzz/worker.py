"""The process that libFuzzer runs in: `python -m fuzz.worker CORPUS [libFuzzer's options]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["crashdump_analysis"]):
    from crashdump_analysis.dump import unpack
    from fuzz.target import check
from fuzz.mutate import mutated


def main() -> None:
    """Fuzzes until libFuzzer ends the process."""
    unpack.ANY_RATIO = 4 << 20  # type: ignore[misc]  # bombs would be most of the time
    memory = Path("/dev/shm")  # noqa: S108 - a name of our own is made below it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        place = Path(folder)
        atheris.Setup(
            sys.argv,
            lambda data: check(data, place),
            custom_mutator=lambda data, most, seed: mutated(data, most, seed, atheris.Mutate),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
