"""What is collected of a machine that crashed or hung, in which order, before anything is reset.

Each rung of the ladder has a time limit from the image's contract and is recorded, whatever it
brought. Nothing is written to the machine's disk until the evidence is sealed: its files are on
the host, flushed, and named with their hashes in evidence.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from crashdump_analysis.dump.check import State, check_dump
from lab.backend import BackendError
from lab.console.stop_text import stop_codes
from lab.disks.blocks import DiskError
from lab.dumps import (
    CLOCK_TOLERANCE,
    DumpFiles,
    DumpStatus,
    FoundDump,
    SeenBoot,
    copy_dump,
    find_dumps,
    is_being_copied,
)
from lab.ladder import Ladder, Rung
from lab.machine import Machine
from lab.missing_dumps import MissingDump, WholeDump, missing_dumps
from lab.outcome import InfrastructureError, LabError
from lab.signals import SignalKind
from lab.watch import signs_of_life

Cause = Literal["crash", "hang", "restart", "power-cut"]
"""A bug check was signalled; it no longer answers; it went down by itself without either; its power
was cut, whatever it was doing."""
HYPERVISOR = "hypervisor"
"""The `path` of a dump that the hypervisor took."""
WORTH_COPYING = frozenset(
    {DumpStatus.THIS_BOOT, DumpStatus.EARLIER, DumpStatus.OTHER, DumpStatus.TRUNCATED}
)
Say = Callable[[str], None]
PARTIAL = ".partial"
"""The end of the name of a file that is still being written."""


class EvidenceError(InfrastructureError):
    """Evidence could not be brought to safety; what there is was kept, and the message says where.

    `evidence` is what was collected.
    """

    def __init__(self, message: str, evidence: Evidence) -> None:
        super().__init__(message)
        self.evidence = evidence


@dataclass
class CollectedDump:
    """A place that was looked at, and the copy, if one was made.

    path: in the guest, or "hypervisor". status: a DumpStatus. file: the copy's name in the
    evidence folder, None where nothing was copied. stop_code: as its header says.
    """

    path: str
    status: str
    detail: str
    file: str | None = None
    size: int = 0
    sha256: str = ""
    fingerprint: str = ""
    stop_code: int | None = None
    time: str | None = None


@dataclass
class Evidence:
    """All that was collected of one crash or hang.

    boot: the boot that went down. cause: what the collection began with. crashes: bug checks
    signalled since the evidence before this one. overwritten: how many of their dumps the next
    crash wrote over. missing: those bug checks without a dump, each with its reason. kept_disk: the
    machine's own disk layer, a file in the run's folder, kept because something on it could not be
    brought to safety. no_dump: why there is no dump of this boot, in words. signs: of a hang, what
    was seen of the machine. quarantine: why nobody may use it before a person has looked at it.
    """

    boot: int
    cause: Cause
    folder: Path
    began: str
    clock: str = ""
    stop_code_on_console: int | None = None
    crashes: int = 0
    overwritten: int = 0
    missing: list[MissingDump] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    dumps: list[CollectedDump] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    no_dump: str | None = None
    kept_disk: str | None = None
    signs: str = ""
    quarantine: str | None = None

    @property
    def dump(self) -> Path | None:
        """The dump of this boot: from its disk, else (a hang) the hypervisor's."""
        good = [d for d in self.dumps if d.file and d.status == DumpStatus.THIS_BOOT]
        good.sort(key=lambda dump: dump.path == HYPERVISOR)
        return self.folder / str(good[0].file) if good else None

    def as_json(self) -> dict[str, Any]:
        """For evidence.json and the run's record."""
        return {**asdict(self), "folder": self.folder.name}


class Collector:
    """Collects the evidence of one run's machine; remembers which dumps are safe already."""

    def __init__(self, machine: Machine, folder: Path, run_began: datetime, say: Say) -> None:
        self._machine = machine
        self._folder = folder
        self._run_began = run_began
        self._say = say
        self._collected: set[str] = set()
        self._accounted: set[int] = set()
        """Boots whose bug checks are told of."""

    def collect(self, cause: Cause, boot: int | None = None) -> Evidence:
        """Runs the ladder for the current boot, or the one given; then its evidence is sealed.

        A machine whose disk can be read is off afterwards; any other is up again, in a later boot.
        Raises EvidenceError where a dump could not be brought to safety: then the machine's disk
        layer is kept instead, or its evidence.quarantine says why nobody may touch it, and it
        cannot be started again. Whatever goes wrong, Ctrl-C included, what was collected is written
        down first.
        """
        machine = self._machine
        boot = machine.boot if boot is None else boot
        machine.unseal(boot)
        folder = self._folder / f"boot-{boot}-{cause}"
        began = machine.signals.all()[-1].at.isoformat()
        evidence = Evidence(boot, cause, folder, began)
        ladder = Ladder(
            machine, boot, evidence.rungs, self._say, lambda: self._screenshot(evidence)
        )
        try:
            folder.mkdir(parents=True)
            if cause != "power-cut":
                self._screenshot(evidence)
                if cause == "hang":
                    evidence.signs = signs_of_life(machine, boot)
                    self._make_it_dump(evidence, ladder)
                    evidence.signs += f"; {ladder.said_by_sac}"
                if cause != "hang" or machine.crash_signalled(boot):
                    ladder.wait_for_dump()
            if "disk" in machine.features:
                self._power_off(ladder)
                self._console(evidence, ladder)
                self._disk(evidence, ladder)
                sealed = boot
            else:
                self._console(evidence, ladder)
                sealed = self._running_windows(evidence, ladder)
            self._write(evidence)
        except BaseException as error:
            said = self._keep_disk(evidence, error)
            if isinstance(error, LabError | OSError):
                raise EvidenceError(said, evidence) from error
            raise
        machine.seal(sealed)
        return evidence

    def _keep_disk(self, evidence: Evidence, error: BaseException) -> str:
        """Keeps the disk, and writes down what there is; says so."""
        machine = self._machine
        overlay = machine.overlay() if "disk" in machine.features else None
        kept = "there is no disk to keep"
        if overlay is None:
            kept = "what it wrote stays on its disk"
            evidence.quarantine = evidence.quarantine or f"{evidence.folder.name}: {error}"
        elif overlay.exists():
            evidence.kept_disk = overlay.name
            kept = (
                f"the machine's disk is kept as {overlay}. Once the cause is mended, read its"
                f" dumps: lab salvage {self._folder.parent.name}"
            )
        said = f"{error or type(error).__name__}; {kept}"
        evidence.no_dump = evidence.no_dump or said
        evidence.rungs.append(Rung("broken off", 0.0, said))
        try:
            self._write(evidence)
        except OSError as full:
            said += f"; not even evidence.json could be written: {full}"
        return said

    def _make_it_dump(self, evidence: Evidence, ladder: Ladder) -> None:
        file = ladder.make_it_dump(evidence.folder)
        if file is None:
            return
        digest = self._file(evidence, file)
        whole = file.suffix == ".dmp"
        evidence.dumps.append(
            CollectedDump(
                HYPERVISOR, DumpStatus.THIS_BOOT if whole else DumpStatus.NO_DUMP,
                "memory of the hung machine, taken from outside",
                file.name, file.stat().st_size, digest,
            )
        )  # fmt: skip

    def _screenshot(self, evidence: Evidence) -> None:
        """The last screen that could be seen: the first try tells, later ones replace it."""
        if "screenshot" not in self._machine.features:
            return
        file = evidence.folder / "screen.png"
        try:
            picture = self._machine.screenshot()
            file.write_bytes(picture)
        except (BackendError, OSError) as error:
            if "screenshot" not in [rung.name for rung in evidence.rungs]:
                evidence.rungs.append(Rung("screenshot", 0.0, f"failed: {error}"))
            return
        if file.name not in evidence.files:
            evidence.rungs.append(Rung("screenshot", 0.0, f"{len(picture)} bytes"))
        self._file(evidence, file)

    def _power_off(self, ladder: Ladder) -> None:
        with ladder.rung("power off") as rung:
            was_on = self._machine.is_on()
            self._machine.cut_power()
            rung.result = "power cut" if was_on else "it was off already"

    def _console(self, evidence: Evidence, ladder: Ladder) -> None:
        if "console-log" not in self._machine.features:
            return
        with ladder.rung("console") as rung:
            file = evidence.folder / "console.log"
            file.write_bytes(self._machine.console_bytes())
            self._file(evidence, file)
            codes = stop_codes(self._machine.console_bytes(evidence.boot))
            if not self._may_have_crashed(evidence):
                codes = []  # they are of boots before it, which nobody gave one by one
            evidence.stop_code_on_console = codes[-1] if codes else None
            told = f"; stop code 0x{codes[-1]:X}" if codes else ""
            rung.result = f"{file.stat().st_size} bytes{told}"

    def _disk(self, evidence: Evidence, ladder: Ladder) -> None:
        """Copies every dump off the powered-off disk that is not safe yet.

        Raises DiskError, BackendError, and OSError for a dump that the store could not take.
        """
        machine = self._machine
        self._say("Looking for dumps on the powered-off disk")
        boot = self._seen_boot(evidence)
        if machine.is_on():
            raise BackendError(f"{machine.address()} is still on, so its disk is not read")
        with machine.files() as files:
            looked = Rung("look for dumps", 0.0, "; ".join(files.warnings) or "a clean disk")
            evidence.rungs.append(looked)
            found = find_dumps(
                files,
                machine.contract,
                boot,
                run_began=self._run_began,
                collected=self._collected,
            )
            self._pull_all(evidence, ladder, files, found)
        self._account(evidence, boot)

    def _running_windows(self, evidence: Evidence, ladder: Ladder) -> int:
        """Brings the machine up again, and copies the dumps that its Windows has put together.

        Gives the last boot whose evidence is safe then: all before the one that answers. Raises
        BackendError where it does not come up: its dumps stay on its disk.
        """
        machine, contract = self._machine, self._machine.contract
        if not ladder.bring_up():
            reason = f"it did not come up again after {evidence.folder.name}"
            if ladder.loop:
                reason += f" ({ladder.loop})"
            evidence.quarantine = reason
            evidence.rungs.append(Rung("quarantine", 0.0, reason))
            raise BackendError(f"{machine.name}: {reason}, so nobody could copy its dump")
        guest = machine.guest
        self._say("Looking for dumps on the running machine")
        boot = self._seen_boot(evidence)
        files = guest.files()
        found: list[FoundDump] = []

        def is_whole() -> bool:
            nonlocal found
            found = find_dumps(
                files, contract, boot,
                run_began=self._run_began, collected=self._collected, running=True,
            )  # fmt: skip
            owed = machine.crash_signalled(evidence.boot) and contract.dump.setting != "none"
            there = any(one.status is DumpStatus.THIS_BOOT for one in found)
            return (there or not owed) and not is_being_copied(files, contract, found)

        with ladder.rung("wait for the copy of the dump") as rung:
            machine.signals.wait(
                "the dump to be copied", is_whole, contract.deadlines.dump_copying, boot=guest.boot
            )
            rung.result = "nothing is being copied any more"
        self._pull_all(evidence, ladder, files, found)
        self._account(evidence, boot)
        return guest.boot - 1

    def _pull_all(
        self, evidence: Evidence, ladder: Ladder, files: DumpFiles, found: Sequence[FoundDump]
    ) -> None:
        worth = WORTH_COPYING
        if all(one.status is not DumpStatus.THIS_BOOT for one in found):
            worth |= {DumpStatus.STALE}  # where the guest's clock is wrong, that is a guess
        failures = [self._pull(evidence, ladder, files, one, worth) for one in found]
        for failure in filter(None, failures):  # after all that could be copied
            raise failure

    def _account(self, evidence: Evidence, boot: SeenBoot) -> None:
        """What became of the dump of each bug check since the collection before this one."""
        machine = self._machine
        # A bug check may be signalled when its boot's evidence is taken: its dump told of it.
        crashes = [one for one in machine.signals.crashes() if one.boot not in self._accounted]
        self._accounted |= {evidence.boot, *(one.boot for one in crashes)}
        evidence.crashes = len(crashes)
        tolerance = CLOCK_TOLERANCE * machine.contract.deadlines.slowdown
        evidence.missing = missing_dumps(
            machine.signals,
            crashes,
            [
                WholeDump(one.path, datetime.fromisoformat(one.time) - boot.clock_offset)
                for one in evidence.dumps
                if one.file and one.time
                if one.status in {DumpStatus.THIS_BOOT, DumpStatus.EARLIER}
            ],
            staged_in=machine.contract.dump.staged_in,
            tolerance=tolerance,
        )
        if any(one.boot == evidence.boot for one in evidence.missing):
            # "This boot's" by time alone, and nearer to the bug check of a boot before.
            for one in evidence.dumps:
                others = [seen.at for seen in crashes if seen.boot != evidence.boot]
                if one.status == DumpStatus.THIS_BOOT and one.path != HYPERVISOR and one.time:
                    time = datetime.fromisoformat(one.time) - boot.clock_offset
                    if any(abs(time - other) <= tolerance for other in others):
                        one.status = DumpStatus.EARLIER
                        one.detail += ", but this boot's own dump was not finished"
        if evidence.dump is not None:  # matched by more than time
            evidence.missing = [one for one in evidence.missing if one.boot != evidence.boot]
        evidence.overwritten = sum(one.written_over_by is not None for one in evidence.missing)
        if evidence.dump is None:
            reasons = [one.reason for one in evidence.missing if one.boot == evidence.boot]
            if not boot.may_have_crashed:
                after = (boot.crashed - boot.started).total_seconds()
                reasons = [
                    f"the power was cut before a bug check: it was off {after:.3f} s after it began"
                ]
            places = [one.detail for one in evidence.dumps] or ["no place holds one"]
            setting = f"dumps are set to {machine.contract.dump.setting!r}"
            evidence.no_dump = "; ".join([*reasons, setting, *places])
            self._say(f"No dump of boot {evidence.boot}: {'; '.join([*reasons, *places])}")

    def _may_have_crashed(self, evidence: Evidence) -> bool:
        machine = self._machine
        by_hypervisor = machine.contract.panic.crash_loaded_before_dump
        by_console = machine.contract.console.ems != "none" and "console-log" in machine.features
        told = by_hypervisor if "hold-restart" in machine.features else by_console
        return evidence.cause != "power-cut" or not told or machine.crash_signalled(evidence.boot)

    def _seen_boot(self, evidence: Evidence) -> SeenBoot:
        signals = self._machine.signals
        began = signals.of(SignalKind.POWER_ON, SignalKind.RESTORED, boot=evidence.boot)[0].at
        down = signals.crashes(evidence.boot) or signals.of(
            SignalKind.RESTART, SignalKind.POWER_OFF, boot=evidence.boot
        )
        crashed = down[0].at if down else datetime.now(UTC)
        offset = self._machine.clock_offset
        if offset is None:
            evidence.clock = "taken to be UTC: the guest never told its time"
        else:
            evidence.clock = (
                f"the guest's is ahead of the host's by {offset.total_seconds():+.3f} s"
            )
        return SeenBoot(
            f"boot {evidence.boot}", began, crashed, offset or timedelta(),
            evidence.stop_code_on_console, self._may_have_crashed(evidence),
        )  # fmt: skip

    def _pull(
        self,
        evidence: Evidence,
        ladder: Ladder,
        files: DumpFiles,
        found: FoundDump,
        worth: Collection[DumpStatus],
    ) -> Exception | None:
        """Copies one dump if it is worth it and not safe yet; what went wrong, if anything."""
        header = found.header
        one = CollectedDump(
            found.path, found.status, found.detail, None, found.size, "", found.fingerprint,
            header.stop_code if header else None,
            header.time.isoformat() if header and header.time else None,
        )  # fmt: skip
        evidence.dumps.append(one)
        if found.status is DumpStatus.UNREADABLE:
            return DiskError(found.detail)  # what nobody could look at may be the dump
        if found.status not in worth or found.fingerprint in self._collected:
            return None
        with ladder.rung(f"copy {found.path}") as rung:
            try:
                file = copy_dump(files, found, evidence.folder, self._progress(found))
            except (OSError, DiskError) as error:
                rung.result = f"failed: {error}"
                return type(error)(f"the dump in {found.path} could not be copied: {error}")
            one.file, one.sha256 = file.name, self._file(evidence, file)
            rung.result = f"{file.name}, {found.size} bytes"
            whole = check_dump(file)
            cut = whole.state in {State.TRUNCATED, State.ALL_ZERO}
            if not cut:
                self._collected.add(found.fingerprint)
            elif found.status is DumpStatus.THIS_BOOT:
                one.status, one.detail = DumpStatus.TRUNCATED, whole.words
            self._say(f"{found.path}: {found.size / 1e6:.1f} MB, {one.status}")
        return None

    def _progress(self, found: FoundDump) -> Callable[[int], None]:
        """Tells of a copy that takes longer than two seconds, every two seconds."""
        told = time.monotonic()

        def progress(done: int) -> None:
            nonlocal told
            if time.monotonic() - told >= 2 and done < found.size:
                told = time.monotonic()
                self._say(f"{found.path}: {done / 1e6:.0f} of {found.size / 1e6:.0f} MB")

        return progress

    def _file(self, evidence: Evidence, file: Path) -> str:
        """Flushes a file of the evidence to the store and notes its SHA-256."""
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
        evidence.files[file.name] = digest
        return digest

    def _write(self, evidence: Evidence) -> None:
        """evidence.json and signals.json, whole or not at all."""
        signals = [{**asdict(one), "at": one.at.isoformat()} for one in self._machine.signals.all()]
        write_json(evidence.folder / "signals.json", signals)
        write_json(evidence.folder / "evidence.json", evidence.as_json())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, flushed, in one step: a reader sees the old one or the new one."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, default=str)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
