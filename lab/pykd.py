"""`lab pykd`: Microsoft's debugger engine, where it is to run, set up and tried."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.engines.pykd import pykd_host
from lab.outcome import InfrastructureError
from lab.settings_file import is_named

Say = Callable[[str], None]  # lab.lab has it too, with what triage alone does not need


class PykdError(InfrastructureError):
    """Microsoft's engine could not do what was asked."""


def analysis_host() -> AnalysisHost | None:
    """The analysis host of lab.toml; None without a lab.toml, or where it names none."""
    if not is_named():
        return None
    from lab.config import load_config  # noqa: PLC0415 - takes longer than a dump

    return load_config().analysis_host()


def setup(options: argparse.Namespace, say: Say) -> int:
    """`lab pykd setup`: under Wine, on this machine."""
    if sys.platform == "win32":
        say("On Windows there is nothing to set up: pip install pykd (docs/pykd.md)")
        return 0
    from crashdump_analysis.engines.wine import setup as set_up_under_wine  # noqa: PLC0415

    try:
        say(f"pykd is set up in {set_up_under_wine(say)}")
    except EngineError as error:
        raise PykdError(str(error)) from None
    return 0


def status(options: argparse.Namespace, say: Say) -> int:
    """`lab pykd status`: starts the engine once. 0 if it is ready."""
    host = analysis_host()
    try:
        with pykd_host(host, say=say) as engine:
            say(f"Ready {engine.place}: dbgeng {engine.version}")
            if host is not None:
                say(f"Symbol path there: {host.symbols or 'none, so functions have no names'}")
    except EngineError as error:
        raise PykdError(f"not ready: {error}") from None
    return 0


def command(options: argparse.Namespace, say: Say) -> int:
    """`lab pykd command`: what a debugger command prints on a dump."""
    try:
        with pykd_host(analysis_host(), say=say) as engine:
            engine.open(options.dump, options.symbols)
            print(engine.command(options.text))
    except EngineError as error:
        raise PykdError(str(error)) from None
    return 0
