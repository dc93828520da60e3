"""Triage of kernel dumps, in Python and from the command line.

from crashdump_analysis import triage
report = triage("MEMORY.DMP", symbols=["build/symbols"])

python -m crashdump_analysis.triage MEMORY.DMP --symbols build/symbols
"""

from crashdump_analysis.triage.analysis import triage
from crashdump_analysis.triage.command import main

__all__ = ["main", "triage"]
