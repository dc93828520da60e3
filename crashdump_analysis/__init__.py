"""A crash dump in, a report out. Knows nothing of labs and can be used alone.

from crashdump_analysis import triage
report = triage("MEMORY.DMP", symbols=["build/symbols"])
"""

from crashdump_analysis.dump.check import Completeness, State, check_dump
from crashdump_analysis.dump.header import DumpHeader, read_header
from crashdump_analysis.dump.source import dump_paths
from crashdump_analysis.errors import DumpError
from crashdump_analysis.report import Report
from crashdump_analysis.triage import triage

__all__ = [
    "Completeness",
    "DumpError",
    "DumpHeader",
    "Report",
    "State",
    "check_dump",
    "dump_paths",
    "read_header",
    "triage",
]
