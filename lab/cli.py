"""The `lab` command."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.outcome import LabError, Outcome

EXAMPLES = Path(__file__).parents[1] / "examples"
INCONCLUSIVE_EXIT = 2
"""The lab failed, not the candidate."""
HARNESS_EXIT = 3
"""The lab's own input is wrong: nothing was tried."""

DESCRIPTION = """\
Crashes Windows kernel sensors and their content on lab machines before they ship.

  lab check                       what this machine lacks, and the command to get it
  lab demo                        19 July 2024 on one virtual machine
  lab run --candidate C.toml --content good/ --content new/
  lab repro last -n 3             do a recorded run again
  lab console vm-1                what a machine says on its serial console
  lab triage MEMORY.DMP           what a kernel dump says
  lab pykd status                 Microsoft's debugger engine, as a second opinion

Settings are in ./lab.toml, in the file that LAB_TOML names, or in --lab FILE; start with a copy of
examples/lab.toml."""


class Teller:
    """Prints what is being done and how far into the command, in seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """One line; what a program said besides stands below it."""
        first, *others = [line for line in text.splitlines() if line.strip()] or [""]
        print(f"[{time.monotonic() - self._began:6.1f} s] {first}", flush=True)
        for line in others:
            print(f"{'':11}{line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["triage"]:  # has options of its own, and works without a lab
        return _triage(given[1:])
    options = _parser().parse_args(given)
    # A service manager's stop is handled as Ctrl-C is: evidence first, machines given back.
    # (SIGINT itself may be ignored, in the background of a shell.)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return int(_function(options.function)(options, Teller()))
    except LabError as error:
        print(f"lab {options.name}: {error}", file=sys.stderr)
        lab_failed = error.outcome is Outcome.INFRASTRUCTURE
        return INCONCLUSIVE_EXIT if lab_failed else HARNESS_EXIT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCONCLUSIVE_EXIT
    except KeyboardInterrupt:
        print(f"lab {options.name}: interrupted; what was collected is kept", file=sys.stderr)
        return 130
    except Exception as error:
        said = str(error)
        if not isinstance(error, OSError):
            traceback.print_exc()
            said = "this is a mistake in the lab itself, see above"
        print(f"lab {options.name}: {said}", file=sys.stderr)
        return INCONCLUSIVE_EXIT


def _triage(given: Sequence[str]) -> int:
    """`lab triage`; lab.toml is read only where it may name an analysis host."""
    try:
        return int(
            _function("crashdump_analysis.triage.command:main")(
                given,
                lambda: _function("lab.pykd:analysis_host")(),  # noqa: PLW0108 - imports late
            )
        )
    except LabError as error:
        print(f"lab triage: {error}", file=sys.stderr)
        return HARNESS_EXIT


def _function(place: str) -> Callable[..., int]:
    """Imports what a command needs only when it is given: --help and triage need no libvirt."""
    module, _, name = place.partition(":")
    found: Callable[..., int] = getattr(importlib.import_module(module), name)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(function=function, name=name)
        return added

    def with_lab(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument(
            "--lab", type=Path, metavar="FILE",
            help="the lab's settings (default: ./lab.toml, or what LAB_TOML names)",
        )  # fmt: skip
        return added

    def with_machine(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument(
            "--machine", metavar="NAME", help="a machine of lab.toml (default: any that is free)"
        )
        added.add_argument(
            "--wait", type=float, default=600, metavar="SECONDS",
            help="how long to wait for a free machine (default: 600)",
        )  # fmt: skip
        return with_lab(added)

    with_lab(
        add(
            "check",
            "lab.commands:check_machine",
            "what this machine lacks, and the command to get it",
        )
    )
    add(
        "demo",
        "lab.demo:demo",
        "the example: a bad content file stops a machine, and its dump says why",
        "exit code: 0 when the story went as it should (the verdict is HOLD), else 1",
    ).add_argument("--folder", type=Path, default=EXAMPLES, help=argparse.SUPPRESS)

    run = with_machine(
        add(
            "run",
            "lab.commands:run_candidate",
            "install a candidate, put content on, and say ship or hold",
            """\
exit code: 0 ship, 1 hold, 2 inconclusive (the lab failed, not the candidate), 3 wrong input

example:
  lab run --candidate examples/sensor/candidate.toml --image win11 \\
      --content content/released --content content/next""",
        )
    )
    run.add_argument("--candidate", type=Path, required=True, metavar="candidate.toml")
    run.add_argument(
        "--content", type=Path, action="append", default=[], metavar="FOLDER",
        help="a content set; the first is installed with the driver, the others follow in order",
    )  # fmt: skip
    run.add_argument("--image", metavar="NAME", help="an image of lab.toml (default: its only one)")
    run.add_argument(
        "--activation", choices=["live", "next-boot"],
        help="how new content is activated (default: as candidate.toml says)",
    )  # fmt: skip
    run.add_argument(
        "--with-memory", action="store_true",
        help="start from saved memory: the image booted once, then restored in each run",
    )  # fmt: skip

    repro = with_machine(
        add(
            "repro",
            "lab.repro:repro",
            "do a recorded run again and compare how it crashes",
            """\
RUN is a run's id or the start of it, its folder, or `last`.
exit code: 0 it went the same way each time, 1 it did not, 2 the lab failed, 3 wrong input""",
        )
    )
    repro.add_argument("run", metavar="RUN")
    repro.add_argument("-n", type=_count, default=1, metavar="N", help="how often (default: 1)")
    repro.add_argument(
        "--keep", action="store_true",
        help="after the last one keep the machine running, with its kernel debugger port (COM2)"
        " offered, until Enter or Ctrl-C",
    )  # fmt: skip

    _add_commands_of_machines(add, with_lab)
    add("triage", "", "what a kernel dump says: bug check, stack, culprit, bucket")
    pykd = add(
        "pykd",
        "",
        "Microsoft's debugger engine: set it up, try it, ask it",
        """\
docs/pykd.md says where the engine may run and what its terms are. Set-up fetches 20 MB from the
Python package index, keeps 740 MB, and needs LAB_ACCEPT_DEBUGGER_TERMS=1, which says that you have
settled the licence question for yourself.""",
    ).add_subparsers(required=True, metavar="ACTION")

    def add_pykd(name: str, text: str) -> argparse.ArgumentParser:
        added = pykd.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(function=f"lab.pykd:{name}", name=f"pykd {name}")
        return added

    add_pykd("setup", "fetch pykd, the engine and Windows CPython and make a Wine prefix")
    add_pykd("status", "where the engine runs, and whether it does")
    ask = add_pykd("command", "run a debugger command on a dump")
    ask.add_argument("dump", type=Path, metavar="DUMP")
    ask.add_argument("text", metavar="TEXT", help="such as 'kP; !lmi sensor'")
    ask.add_argument(
        "--symbols", action="append", default=[], metavar="PATH",
        help="folder or WinDbg symbol path with PDBs and images; may be given again",
    )  # fmt: skip
    with_lab(
        add(
            "clean",
            "lab.clean:clean",
            "remove what dead runs left; dumps on their disks are saved first",
            "Runs that still live, and everything without a run's id, are left alone.",
        )
    )
    salvage = with_lab(
        add("salvage", "lab.clean:salvage_run", "read the dumps off a disk that a run kept")
    )
    salvage.add_argument("run", metavar="RUN")
    image = with_machine(add("image", "lab.image_check:check_image", "look at images"))
    image.add_argument("action", choices=["check"], help="boot it and hold it to its contract")
    image.add_argument("image", metavar="NAME")
    return parser


def _add_commands_of_machines(
    add: Callable[..., argparse.ArgumentParser],
    with_lab: Callable[[argparse.ArgumentParser], argparse.ArgumentParser],
) -> None:
    machines = with_lab(
        add(
            "machines",
            "lab.commands:machines",
            "the machines: who holds which, and why",
            "A machine that failed its health check, or did not come back, is out of the pool.",
        )
    )
    machines.add_argument(
        "--release", metavar="MACHINE", help="put it back into the pool, for it was looked at"
    )
    health = with_lab(
        add(
            "health",
            "lab.health:health",
            "boot a machine, ask it, power-cycle it; what fails is taken out of the pool",
            """\
It asks a machine that is out of the pool, too, and puts none back: lab machines --release MACHINE.
exit code: 0 it is well, 1 it is not, 2 the lab failed, 3 wrong input""",
        )
    )
    health.add_argument("machine", metavar="MACHINE")
    health.add_argument("--image", metavar="NAME", help="what it boots (default: the only image)")
    health.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS",
        help="how long to wait for the machine's lease (default: 0)",
    )  # fmt: skip
    power = with_lab(
        add(
            "power",
            "lab.power.command:power",
            "look at or switch an outlet; done is what was read back",
            """\
TARGET is a machine with power in lab.toml, or a [power.NAME] with OUTLET (its number or name).
Switching takes the machine's lease: a machine that somebody holds is left alone.
exit code: 0 it is so, 2 the device failed (the message says how), 3 wrong input

example:
  lab power status m1
  lab power cycle rack-a 7""",
        )
    )
    power.add_argument("action", choices=["status", "on", "off", "cycle"])
    power.add_argument("target", metavar="TARGET")
    power.add_argument("outlet", metavar="OUTLET", nargs="?")
    power.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS",
        help="how long to wait for the machine's lease (default: 0)",
    )  # fmt: skip
    console = with_lab(
        add(
            "console",
            "lab.console.command:console",
            "watch a machine's serial console, or type on it",
            """\
Without --type it only watches and needs no lease: it shows the console of the run that holds the
machine from its beginning, or opens the machine's console port. With --type it takes the machine's
lease; a virtual machine is booted for it. Ctrl-] ends typing; every other key, Ctrl-C too, goes to
the machine. Only the console's bytes go to standard output, so it works in a pipe: typed is what
comes in, and it ends when the console has been silent for 2 s after that. What it says is kept in
STORE/consoles/MACHINE, or in the run's folder: console.log, and console.times.jsonl.

examples:
  lab console vm-1                        watch it
  lab console m1 --type                   a session; SAC answers to "?" and Enter
  echo id | lab console m1 --type         what SAC says to one command""",
        )
    )
    console.add_argument("machine", metavar="MACHINE")
    console.add_argument("--type", action="store_true", help="type, too; takes the lease")
    console.add_argument(
        "--image", metavar="NAME",
        help="what a virtual machine boots for --type (default: lab.toml's only image)",
    )  # fmt: skip
    console.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS",
        help="how long to wait for the lease (default: 0)",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
