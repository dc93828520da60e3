"""One run: a leased machine in a known state, what is done with it, and the record of it all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Self

from crashdump_analysis import Report
from lab.backend import AgentSilent, AgentUnreachable, Image
from lab.candidate import Activation, Candidate, ContentSet
from lab.crash_report import fill_in
from lab.disks.edit import EditDone
from lab.evidence import Cause, Collector, Evidence, EvidenceError
from lab.guest.base import Guest
from lab.identity import check_identity
from lab.images import worst_case_dump_bytes
from lab.interrupts import first_interrupt_waits
from lab.lab import Lab
from lab.leases import Lease
from lab.machine import Machine
from lab.outcome import HungError, InfrastructureError, LabError, Outcome
from lab.record import CrashRecord, OutcomeRecord, Record, Scenario
from lab.signals import MachineDown, SignalKind
from lab.steps import Steps
from lab.validator import ask_validator
from lab.verdict import Verdict, verdict_of
from lab.watch import crashes_in_a_row, is_boot_loop, outcome_of, worst

Say = Callable[[str], None]


class Run:
    """A run in progress; a context manager that records how it ended and gives the machine back.

    Evidence of whatever goes down is collected before anything else is done with the machine.
    """

    def __init__(
        self,
        lab: Lab,
        lease: Lease,
        image: Image,
        scenario: Scenario,
        *,
        purpose: str,
        say: Say,
        candidate: Candidate | None = None,
        contents: Sequence[ContentSet] = (),
        repeats: str | None = None,
    ) -> None:
        self.lab = lab
        self.image = image
        self.candidate = candidate
        self.contents = list(contents)
        self.content: ContentSet | None = None
        """What should be on the machine now."""
        self.installed = False
        """Whether the candidate should be on it."""
        self.folder = lab.runs / lease.run_id
        self._say_only = say
        self._lease = lease
        self._began = datetime.now(UTC)
        self.reports: list[Report] = []
        self.record = Record(
            schema=1,
            run_id=lease.run_id,
            lab_version=version("bugcheck-lab"),
            purpose=purpose,
            began=self._began.isoformat(),
            config=str(lab.config.file.resolve()),
            image=image.name,
            candidate=str(candidate.file) if candidate else None,
            candidate_identity=candidate.identity() if candidate else {},
            contents=[one.hashes() for one in contents],
            scenario=scenario,
            repeats=repeats,
            machine={"slot": lease.slot, "lease_token": lease.token},
        )
        self._machine: Machine | None = None
        self._candidates_steps: Steps | None = None
        self._collector: Collector | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            self.record.save(self.folder)
            self._check_space()
            self.record.image_identity = self.lab.images.identity(self.image)
            if self.image.disk is None:
                self.say(f"Taking {self._lease.slot} as it is: nobody knows the state of its disk")
            else:
                self.say(f"Putting {self._lease.slot} into the state of image {self.image.name}")
            self._machine = self.lab.machine(self._lease, self.image, self.folder)
            self.record.machine["address"] = self._machine.address()
            if self.image.disk is None:
                self.record.machine["start_state"] = "not known: it starts as it was found"
            if self.candidate is not None:
                self._make_steps()  # a secret that is missing is told before the boot
            self._collector = Collector(
                self._machine, self.folder / "evidence", self._began, self.say
            )
            self.record.save(self.folder)
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.evidence_waits():
                if isinstance(error, KeyboardInterrupt):
                    self.say("Interrupted. Its evidence first; Ctrl-C again keeps the disk as is")
                crashed = f"{self.machine.name} crashed, and nothing had asked about it"
                self.failed("before the end", error or LabError(crashed))
        finally:
            self._end(error)

    @property
    def machine(self) -> Machine:
        """The machine, while the run lasts."""
        assert self._machine is not None, "a Run is a context manager: `with Run(...) as run:`"
        return self._machine

    def say(self, text: str) -> None:
        """Tells the user and the record."""
        self.record.steps.append(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {text}")
        self._say_only(text)

    # What is done with the machine

    def boot(self) -> Guest:
        """Powers on and waits for the agent."""
        self.machine.start()
        guest = self.machine.wait_for_agent()
        self.say("It has booted; its agent answers")
        return guest

    def install(self, content: ContentSet | None = None) -> list[str]:
        """Installs the candidate with its own content, or with another set put on after that.

        Returns what update_content() returns.
        """
        candidate = self.needs_candidate()
        self.say(f"Installing {candidate.name} {candidate.version}")
        self.installed = True
        self._steps().install()
        self.content = candidate.default_content()
        if content is not None and (
            self.content is None or content.hashes() != self.content.hashes()
        ):
            return self.update_content(content)
        return []

    def update_content(
        self, content: ContentSet, activation: Activation | None = None
    ) -> list[str]:
        """Puts a content set on, and watches it being taken in.

        Returns what the candidate's validator refused, in words; that stops nothing.
        activation: "live", or "next-boot", which restarts the machine; None is the candidate's.
        """
        opinions = ask_validator(self.needs_candidate(), content)
        for opinion in opinions:
            self.say(opinion.words)
        self.say(f"New content: {content.name} ({', '.join(file.name for file in content.files)})")
        # From here on either set may be on the disk; a check before the end would say which.
        self._steps().put_content(content, activation)
        self.content = content.beside(self.content)
        return [opinion.words for opinion in opinions if opinion.refuses]

    def restart(self) -> None:
        """An announced restart with all that is installed."""
        self._steps().restart("with all that is on it")

    def uninstall(self) -> None:
        """Takes the candidate off again."""
        self.say("Uninstalling it")
        self._steps().uninstall()
        self.content, self.installed = None, False

    def check(self, when: str) -> None:
        """Does it work, and is what runs still what was given? Raises TamperedError if not."""
        self._steps().verify()
        identity = check_identity(self.machine, self.needs_candidate(), self.content)
        self.record.identities.append({"when": when, **asdict(identity)})
        self.record.save(self.folder)
        self.say(f"Driver and content are the candidate's ({when})")

    def needs_candidate(self) -> Candidate:
        """The candidate. Raises LabError where the run has none."""
        if self.candidate is None:
            raise LabError("this run has no candidate; name one with --candidate candidate.toml")
        return self.candidate

    def _steps(self) -> Steps:
        return self._candidates_steps or self._make_steps()

    def _make_steps(self) -> Steps:
        """Once: it knows every secret that the guest's output must not show."""
        self._candidates_steps = Steps(
            self.machine,
            self.needs_candidate(),
            note=self.say,
            secret=self.lab.config.secret,
        )
        return self._candidates_steps

    # What goes wrong

    def failed(
        self, what: str, error: BaseException, *, before_the_candidate: bool = False
    ) -> Outcome:
        """Notes what an exception means; of a machine that went down, takes the evidence first.

        Evidence that cannot be brought to safety is an outcome beside that, and raises nothing.
        before_the_candidate: whatever it is, it says nothing about the candidate. Ctrl-C meanwhile
        is raised when all that is noted; a second one at once.
        """
        interrupted = isinstance(error, KeyboardInterrupt)  # the next is the second
        with nullcontext() if interrupted else first_interrupt_waits():
            return self._failed(what, error, before_the_candidate)

    def _failed(self, what: str, error: BaseException, before_the_candidate: bool) -> Outcome:
        error = self._hang_behind(error)
        outcome, reason = outcome_of(error), str(error)
        if isinstance(error, HungError) and self._was_unheard():
            outcome = Outcome.INFRASTRUCTURE
            reason += "; its hypervisor's daemon was away in this boot, and the silence may be its"
        boot = self.boot_of(error)
        crashed = self.machine.crash_signalled(boot) and not self._evidence_is_taken(boot)
        trouble: EvidenceError | None = None
        try:
            if self.evidence_waits() or isinstance(error, MachineDown | HungError):
                crash = self.take_evidence(error)
                # An NMI that we sent makes a hung machine crash; it hung all the same.
                crashed |= bool(crash and crash.bug_check) and not isinstance(error, HungError)
                if crash is not None:
                    reason = crash.summary if crashed else f"{reason}; {crash.summary}"
        except EvidenceError as lost:
            trouble = lost
        finally:  # at Ctrl-C, too
            outcome = Outcome.CRASHED if crashed else outcome
            if before_the_candidate and outcome.is_product:
                reason = f"{outcome} before the candidate was on it: {reason}"
                outcome = Outcome.INFRASTRUCTURE
            self.note_outcome(what, outcome, reason)
        if trouble is not None:
            self.say(str(trouble))
            self.note_outcome(f"evidence of boot {boot}", trouble.outcome, str(trouble))
            self._note_loop(before_the_candidate)
        return outcome

    def _note_loop(self, before_the_candidate: bool) -> None:
        """Of a machine that could not be held: it crashed again and again under the collection."""
        if not is_boot_loop(self.machine.signals, self.machine.contract):
            return
        row = crashes_in_a_row(self.machine.signals)
        reason = f"{row} boots in a row crashed, the last before its agent answered"
        loop = Outcome.INFRASTRUCTURE if before_the_candidate else Outcome.BOOT_LOOPING
        self.note_outcome("recovery", loop, reason)

    def boot_of(self, error: BaseException) -> int:
        """Which boot went down: of a machine that nobody holds, another may have begun since."""
        if isinstance(error, MachineDown):
            return error.signal.boot
        unsealed = self.machine.unsealed_boot
        return self.machine.boot if unsealed is None else unsealed

    def _was_unheard(self) -> bool:
        """Whether the channel to this boot broke: then silence is no proof of a hang."""
        return bool(self.machine.signals.of(SignalKind.RECONNECTED, boot=self.machine.boot))

    def _hang_behind(self, error: BaseException) -> BaseException:
        """A machine that is on and no longer answers hangs, whoever noticed and however."""
        if not isinstance(error, AgentUnreachable | AgentSilent | HungError):
            return error
        machine = self.machine
        try:
            if not machine.is_on():
                if not machine.signals.of(
                    SignalKind.RESTART, SignalKind.POWER_OFF, boot=machine.boot
                ):
                    # Nobody hears a physical machine go off.
                    machine.signals.add(
                        SignalKind.POWER_OFF, "lab", "found off; it or somebody did it"
                    )
                    machine.signals.raise_if_down(machine.boot)
                return error
            if isinstance(error, HungError) or machine.guest.answers():
                return error
        except LabError as reason:  # it went down, or cannot be asked
            return reason
        return HungError(f"{machine.name} no longer answers: {error}")

    def note_outcome(self, what: str, outcome: Outcome, reason: str = "") -> None:
        """Adds an outcome to the record."""
        self.record.outcomes.append(OutcomeRecord(what=what, outcome=outcome, reason=reason))
        self._conclude()
        self.record.save(self.folder)

    def _conclude(self) -> None:
        outcomes = [one.outcome for one in self.record.outcomes]
        self.record.outcome = worst(outcomes) if outcomes else None
        self.record.verdict = verdict_of(outcomes)

    def take_evidence(self, error: BaseException) -> CrashRecord | None:
        """Collects and triages; None where that was done or tried for this boot already.

        Raises EvidenceError where it could not be brought to safety.
        """
        assert self._collector is not None
        machine = self.machine
        boot = self.boot_of(error)
        if self._evidence_is_taken(boot):
            return None
        hung = isinstance(error, HungError) and not machine.crash_signalled(boot)
        restarted = isinstance(error, MachineDown) and not machine.crash_signalled(boot)
        cause: Cause = "hang" if hung else "restart" if restarted else "crash"
        self.say(
            {
                "hang": f"It hangs: {error}. Making it write a dump",
                "restart": f"It went down by itself: {error}",
                "crash": "It has stopped with a bug check",
            }[cause]
        )
        crash = CrashRecord(boot=boot, evidence=f"evidence/boot-{boot}-{cause}", cause=cause)
        self.record.crashes.append(crash)
        try:
            evidence = self._collector.collect(cause, boot)
            self._triage(evidence, crash)
            if evidence.signs:
                crash.summary += f"; seen of it: {evidence.signs}"
        except BaseException as lost:  # also Ctrl-C: it is tried once
            crash.summary = f"its evidence is incomplete: {str(lost) or type(lost).__name__}"
            if isinstance(lost, EvidenceError) and lost.evidence.quarantine:
                self.quarantine(lost.evidence.quarantine)
            raise
        finally:
            self.record.save(self.folder)
        return crash

    def quarantine(self, reason: str) -> None:
        """Takes the machine out of the pool until a person gives it back."""
        slot = self._lease.slot
        self.record.machine["quarantined"] = reason
        self.lab.leases.quarantine(slot, reason, run_id=self.record.run_id)
        self.say(f"{slot} is taken out of the pool: {reason}. `lab machines --release {slot}`")

    def _evidence_is_taken(self, boot: int) -> bool:
        """Whether a boot's evidence was collected, or that was tried."""
        return any(one.boot == boot for one in self.record.crashes)

    def evidence_waits(self) -> bool:
        """Whether something crashed and nobody tried to collect its evidence yet."""
        if "quarantined" in self.record.machine:
            return False  # it was tried, and nobody touches the machine any more
        boot = self.machine.unsealed_boot
        return boot is not None and not self._evidence_is_taken(boot)

    def _triage(self, evidence: Evidence, crash: CrashRecord) -> None:
        """Fills in what the dump says; a bug check that only it or the console told is noted."""
        told = evidence.dump is not None or evidence.stop_code_on_console is not None
        if told and evidence.cause != "hang" and not self.machine.crash_signalled(evidence.boot):
            source = "console" if evidence.dump is None else "dump"
            self.machine.signals.add(
                SignalKind.BUG_CHECK, source, "found when it had gone down", boot=evidence.boot
            )
        if evidence.dump is None:
            crash.summary = f"{evidence.cause} without a dump: {evidence.no_dump}"
            if evidence.stop_code_on_console is not None:
                crash.bug_check = f"0x{evidence.stop_code_on_console:X}"
                crash.summary = (
                    f"bug check {crash.bug_check} (told on the console); {crash.summary}"
                )
            return
        symbols = [*(self.candidate.symbol_folders if self.candidate else ()), *self.image.symbols]
        report = fill_in(crash, evidence, symbols)
        if report is not None:
            self.reports.append(report)
            self.say(crash.summary)

    def can_recover(self) -> bool:
        """Whether it went down by a fault of the product, and its evidence is safe."""
        return (
            bool(self.record.crashes)
            and self.machine.unsealed_boot is None
            and self.record.outcomes[-1].outcome.is_bad_product
        )

    def recover(self) -> bool:
        """Lets the machine boot again; out of a row of crashes by the candidate's offline edits.

        Healthy is: its agent answers, and nothing goes down while the candidate settles. Returns
        whether it is, which the record says, too.
        """
        machine = self.machine
        self.record.recovered = False
        while True:
            if "disk" in machine.features:  # else it came up again to give its dump
                self.say(f"Letting it boot again (boot {machine.boot + 1})")
                machine.start()
            try:
                machine.wait_for_agent()
                if self.installed and self.needs_candidate().content is not None:
                    self._steps().settle("the boot")
                self.record.recovered = True
                self.say("It has come back healthy: its agent answers")
                return True
            except (MachineDown, HungError) as error:
                with first_interrupt_waits():
                    self.take_evidence(error)
                hung = isinstance(error, HungError)
            ours = {one.boot for one in self.record.crashes if one.cause == "hang"}
            row = 0 if hung else crashes_in_a_row(machine.signals, besides=ours)
            if is_boot_loop(machine.signals, machine.contract, besides=ours):
                reason = f"{row} boots in a row crashed, the last before its agent answered"
                self.say(f"A boot loop: {reason}")
                self.note_outcome("recovery", Outcome.BOOT_LOOPING, reason)
            elif 0 < row < machine.contract.boot.loop_after_crashes:
                continue
            if self.record.edits or not self._edit_disk():
                self.say("It does not come back")
                return False

    def _edit_disk(self) -> bool:
        """The candidate's recovery edits on the powered-off disk; False where it has none."""
        if "disk" not in self.machine.features:
            self.say("Nothing can be edited on its disk: it stays as it is")
            return False
        edits = self._steps().recovery_edits() if self.installed else []
        if not edits:
            self.say("The candidate has no recovery edits: it stays down")
            return False
        done: list[EditDone] = self.machine.edit(edits)
        self.record.edits += [asdict(one) for one in done]
        for one in done:
            self.say(f"On its powered-off disk: {one.action} {one.path}")
        self.content = None
        return True

    # Its beginning and end

    def _check_space(self) -> None:
        needed = worst_case_dump_bytes(self.image.contract)
        # What other living runs may still need is not free; that they need as much is a guess.
        living = [one for one in self.lab.leases.holdings() if one.alive]
        others = sum(one.run_id != self._lease.run_id for one in living)
        free = shutil.disk_usage(self.folder).free - others * needed
        if free < needed:
            beside = f" beside what {others} other runs may need" if others else ""
            raise InfrastructureError(
                f"{self.lab.config.store}: {free >> 20} MiB are free{beside}, and the dumps of one"
                f" run of {self.image.name} can take {needed >> 20} MiB. Make room, or name another"
                f" store in {self.lab.config.file}; nothing was started"
            )

    def _end(self, error: BaseException | None) -> None:
        record = self.record
        if error is not None and not (
            isinstance(error, LabError)
            and record.outcomes
            and str(error) == record.outcomes[-1].reason
        ):
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
            record.outcomes.append(
                OutcomeRecord(what="run", outcome=outcome_of(error), reason=reason)
            )
        try:
            if self._machine is not None:
                record.clock_settings = self._machine.clock_settings
                if (offset := self._machine.clock_offset) is not None:
                    record.clock_offset_seconds = offset.total_seconds()
                self._machine.dispose(keep_disk=False)
        except LabError as left:
            record.outcomes.append(
                OutcomeRecord(what="giving back", outcome=left.outcome, reason=str(left))
            )
        finally:
            self._conclude()
            record.ended = datetime.now(UTC).isoformat()
            record.save(self.folder)

    @property
    def verdict(self) -> Verdict:
        """What the outcomes so far say."""
        return verdict_of([one.outcome for one in self.record.outcomes])
