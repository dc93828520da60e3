"""Carrying out what a candidate.toml says on a machine: steps, content, probes.

No command is ever given twice. Every restart that a step asks for is announced, so it is no sign of
a boot loop.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import PureWindowsPath

from pydantic import SecretStr

from lab.backend import AgentError, AgentSilent, AgentUnreachable
from lab.candidate import SECRET, Activation, Candidate, Content, ContentSet, Probe, Recovery, Step
from lab.disks.edit import Delete, Edit, Replace
from lab.guest.base import CommandResult, Guest
from lab.machine import Machine
from lab.outcome import CandidateError, HungError, InfrastructureError, LabError
from lab.signals import DOWN_KINDS, DeadlineError

SHUTDOWN = r"C:\Windows\System32\shutdown.exe"
REBOOT_INITIATED = 1641
"""ERROR_SUCCESS_REBOOT_INITIATED: the program restarts the machine itself."""
PROBE_PAUSE = 1.0
"""Seconds between rounds of probes while content settles."""


class StepFailed(CandidateError):  # noqa: N818 - what became of a step
    """A step or probe ended otherwise than candidate.toml promises."""


class StepHung(HungError):  # noqa: N818 - what became of a step
    """A step did not end in its time, or the machine fell silent under it."""


class StepUnknown(InfrastructureError):  # noqa: N818 - what became of a step
    """The channel died with the command while the machine went on; it is never repeated."""


def _no_secrets(name: str) -> SecretStr:
    raise LabError(f"a step uses secret {name!r}, and nobody was named to give it")


class Steps:
    """One candidate on one machine.

    note: told each thing that is done, before it is done, and what came of it. secret: gives a
    secret's value by name (lab.config.Config.secret); neither notes, errors nor results hold it.
    """

    def __init__(
        self,
        machine: Machine,
        candidate: Candidate,
        *,
        note: Callable[[str], None],
        secret: Callable[[str], SecretStr] = _no_secrets,
    ) -> None:
        self._machine = machine
        self._candidate = candidate
        self._note = note
        # All of them from the start: output may repeat what an earlier step was given.
        self._secrets = {name: secret(name).get_secret_value() for name in candidate.secrets}

    def install(self) -> list[CommandResult]:
        """Copies the candidate's files and runs its install steps.

        Each kind of steps raises StepFailed, StepHung, StepUnknown, or what ended the machine.
        """
        self._copy_files()
        return self._run_all("install")

    def update(self) -> list[CommandResult]:
        """Copies the candidate's files over those of another version and runs the update steps."""
        self._copy_files()
        return self._run_all("update")

    def roll_back(self) -> list[CommandResult]:
        """Copies the candidate's files and runs the steps that put it back over a newer version."""
        self._copy_files()
        return self._run_all("roll_back")

    def uninstall(self) -> list[CommandResult]:
        """Runs the uninstall steps. lab.identity.check_gone says whether anything is left."""
        return self._run_all("uninstall")

    def verify(self) -> list[CommandResult]:
        """Runs all probes once. Raises StepFailed at the first that does not hold."""
        results = []
        for probe in self._candidate.probes():
            results.append(self._probe(probe))
            self._note(f"probe {probe.name!r} holds")
        return results

    # Content

    def put_content(self, content: ContentSet, activation: Activation | None = None) -> None:
        """Puts content files into the guest, and watches them being taken in.

        The agent cannot rename, so each file is written in place, in the order of names: a sensor
        may see one half written, as it may after a power cut. Then, live or after the restart that
        a next-boot activation takes, the machine is watched for the settle time; a crash is raised
        at once. The probes are asked each second, and the last round must hold.
        """
        rules = self._content_rules()
        folder = PureWindowsPath(rules.folder)
        for file in content.files:
            self._write(str(folder / file.name), file.read(), file.name)
        if (activation or rules.activation) == "next-boot":
            self.restart(f"to take in {content.name}")
        self.settle(content.name)

    def remove_content(self) -> None:
        """Deletes every content file: off the disk, with an announced shutdown and boot.

        The agent cannot delete files.
        """
        rules = self._content_rules()
        self._edit_offline([Delete(str(PureWindowsPath(rules.folder) / rules.pattern))])

    def _content_rules(self) -> Content:
        if self._candidate.content is None:
            raise CandidateError(
                f"{self._candidate.file} has no [content], so content has no place"
            )
        return self._candidate.content

    def settle(self, what: str) -> None:
        """Watches the machine for the content's settle time; probes must hold at its end."""
        rules = self._content_rules()
        boot = self._machine.boot
        seconds = rules.settle_seconds * self._machine.contract.deadlines.slowdown
        self._note(f"watching {what} for {seconds:g} s")
        end = time.monotonic() + seconds
        pause = min(PROBE_PAUSE, seconds / 2)
        next_round = 0.0
        not_yet = ""

        def settled() -> bool:
            nonlocal next_round, not_yet
            if time.monotonic() < next_round:
                return False
            over = time.monotonic() >= end
            try:
                for probe in self._candidate.probes():
                    self._probe(probe)
                if not self._candidate.probes():
                    self._expect_answer(f"under {what}")
            except StepFailed as error:
                if over:
                    raise
                if str(error) != not_yet:
                    not_yet = str(error)
                    self._note(f"not yet: {error}")
            next_round = min(time.monotonic() + pause, max(end, time.monotonic()))
            return over

        # Each probe has a deadline of its own; this one is for their sum.
        longest = sum(self._seconds(probe) for probe in self._candidate.probes())
        silence = self._machine.contract.deadlines.agent_reply
        self._machine.signals.wait(
            f"{what} to settle", settled, seconds + 2 * (longest + silence), boot=boot
        )
        self._note(f"{what} is taken in")

    # Steps

    def _copy_files(self) -> None:
        for source, target in self._candidate.copies():
            self._write(target, source.read_bytes(), source.name)

    def _write(self, target: str, data: bytes, name: str) -> None:
        self._note(f"copying {name} to {target} ({len(data)} bytes)")
        try:
            self._machine.guest.write_file(target, data)
        except (AgentUnreachable, AgentSilent):
            self._expect_answer(f"while {name} was copied to it")
            raise
        except AgentError as error:
            raise StepFailed(f"copying {name} to {target}: {error.message}") from None

    def _run_all(self, kind: str) -> list[CommandResult]:
        steps = self._candidate.steps()[kind]
        if not steps:
            raise CandidateError(f"{self._candidate.file} has no [[{kind}]] steps")
        results = []
        for number, step in enumerate(steps, start=1):
            label = f"{kind} step {number} of {len(steps)}"
            if step.run:
                results.append(self._run_step(label, step))
            else:
                self._note(label)
                self._edit_offline(self._edits(step))
        return results

    def _run_step(self, label: str, step: Step) -> CommandResult:
        restarts_itself = REBOOT_INITIATED in step.reboot
        if restarts_itself:
            self._machine.signals.announce_restart()
        result = self._run(label, step)
        if restarts_itself and result.state == "unknown":
            self._wait_until_down()
        went_down = bool(self._machine.signals.of(*DOWN_KINDS, boot=self._machine.boot))
        if restarts_itself and (went_down or result.exit_code == REBOOT_INITIATED):
            self._note(f"{label} restarts the machine")
            self._machine.restart(lambda guest: None)
            return result
        if restarts_itself:
            self._machine.signals.announce_restart(expected=False)
        self._judge(label, step, result, also=step.reboot)
        asked = result.exit_code in step.reboot
        if step.restart == "always" or (asked and step.restart == "if-asked"):
            self.restart(f"after {label}")
        return result

    def _wait_until_down(self) -> None:
        """A Windows that shuts down ends its agent long before it is off."""
        signals, boot = self._machine.signals, self._machine.boot
        with suppress(DeadlineError):
            signals.wait(
                f"{self._machine.name} to restart",
                lambda: signals.of(*DOWN_KINDS, boot=boot),
                self._machine.contract.deadlines.shutdown,
            )

    def _probe(self, probe: Probe) -> CommandResult:
        label = f"probe {probe.name!r}"
        result = self._run(label, probe, quiet=True)
        self._judge(label, probe, result)
        if probe.expect and not re.search(probe.expect, result.output, re.I | re.M):
            raise StepFailed(f"{label}: expected output with {probe.expect!r}; {result}")
        return result

    def _run(self, label: str, step: Step | Probe, *, quiet: bool = False) -> CommandResult:
        """Runs a program once; the result shows secrets by their names only."""
        program, *arguments = (
            SECRET.sub(lambda found: self._secrets[found[1]], argument) for argument in step.run
        )
        if not quiet:
            self._note(f"{label}: `{' '.join(step.run)}`")
        try:
            result = self._machine.guest.run(program, arguments, deadline=self._seconds(step))
        except AgentUnreachable:
            self._expect_answer(f"when {label} was to run")
            raise
        except AgentError as error:
            said = self._masked(error.message)
            raise StepFailed(
                f"{label}: `{' '.join(step.run)}` could not be started: {said}"
            ) from None
        result = replace(
            result,
            program=step.run[0],
            arguments=tuple(step.run[1:]),
            output=self._masked(result.output),
            errors=self._masked(result.errors),
        )
        if not quiet:
            self._note(f"{label}: {result}")
        return result

    def _masked(self, text: str) -> str:
        """A text of the guest without the secrets that were given to it, now or before."""
        for name, value in self._secrets.items():
            text = text.replace(value, f"${{secret:{name}}}") if value else text
        return text

    def _judge(
        self, label: str, step: Step | Probe, result: CommandResult, also: Sequence[int] = ()
    ) -> None:
        if result.state == "running":
            raise StepHung(f"{label} did not end within {self._seconds(step):g} s: {result}")
        if result.state == "unknown":
            self._expect_answer(f"under {label}")
            raise StepUnknown(
                f"{label}: the agent's channel died, so nobody knows how it ended; it is not"
                f" repeated: {result}"
            )
        if result.exit_code not in (*step.success, *also):
            expected = " or ".join(map(str, (*step.success, *also)))
            raise StepFailed(f"{label}: expected exit code {expected}; {result}")

    def _seconds(self, step: Step | Probe) -> float:
        deadlines = self._machine.contract.deadlines
        return deadlines.command if step.seconds is None else step.seconds * deadlines.slowdown

    def _expect_answer(self, when: str) -> None:
        """Raises StepHung where the agent says nothing within the contract's time."""
        guest = self._machine.guest
        seconds = self._machine.contract.deadlines.agent_reply
        try:
            self._machine.signals.wait("the agent", guest.answers, seconds, boot=guest.boot)
        except DeadlineError:
            raise StepHung(f"{self._machine.name} no longer answers: silent {when}") from None

    def restart(self, why: str) -> None:
        """An announced restart, as Windows' own shutdown makes it."""
        self._note(f"restarting {self._machine.name} {why}")

        def restart(guest: Guest) -> None:
            result = guest.run(SHUTDOWN, ["/r", "/t", "0"])
            if result.state == "ended" and result.exit_code != 0:
                self._machine.signals.announce_restart(expected=False)
                raise StepFailed(f"restart {why}: {result}")

        self._machine.restart(restart)
        self._note(f"{self._machine.name} is up again: boot {self._machine.boot}")

    def recovery_edits(self) -> list[Edit]:
        """What makes a machine start again that crashes at each boot; none where nothing does."""
        recovery = self._candidate.recovery
        return self._edits(recovery) if recovery else []

    def _edits(self, wanted: Step | Recovery) -> list[Edit]:
        return [
            *(Delete(path) for path in wanted.delete),
            *(
                Replace(path, self._candidate.on_host(file).read_bytes())
                for path, file in wanted.replace.items()
            ),
        ]

    def _edit_offline(self, edits: Sequence[Edit]) -> None:
        self._machine.require("disk")
        self._note(f"shutting {self._machine.name} down to edit its disk")
        self._machine.shut_down()
        for done in self._machine.edit(edits):
            self._note(f"{done.path}: {done.action}")
        self._machine.start()
        self._machine.wait_for_agent()
