r"""Microsoft's debugger engine on this Windows: its own Python, and pykd or the Debugging Tools.

    pip install pykd        (in a Python that pykd has a wheel for; its newest is for 3.9)
    lab triage C:\Windows\Minidump\*.dmp --engine pykd

The worker runs in the Python that LAB_PYKD_PYTHON names, else in this one, and takes the first
dbgeng.dll it finds: LAB_PYKD_ENGINE's folder, the Debugging Tools for Windows, the pykd package.

Never tried on Windows itself; on Windows' Python under Wine it was.
"""

from __future__ import annotations

import os
import sys

from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.worker import WORKER, ProcessChannel, WorkerEngine

PYTHON_VARIABLE = "LAB_PYKD_PYTHON"
ENGINE_VARIABLE = "LAB_PYKD_ENGINE"


class WindowsEngine(WorkerEngine):
    """The engine in a Python of this machine."""

    @property
    def place(self) -> str:
        """See WorkerEngine."""
        return "on this machine"

    def _advice(self) -> str:
        return f"; or name the Python that has it in {PYTHON_VARIABLE} (docs/pykd.md)"

    def _connect(self) -> ProcessChannel:
        python = os.environ.get(PYTHON_VARIABLE) or sys.executable
        engine = os.environ.get(ENGINE_VARIABLE)
        options = ["--engine", engine] if engine else []
        try:
            return ProcessChannel([python, "-u", str(WORKER), *options], os.environ)
        except OSError as error:
            raise EngineError(
                "engine-missing", f"{python} cannot be started: {error.strerror}{self._advice()}"
            ) from None
