"""`lab console`: watch a machine's console, or type on it."""

from __future__ import annotations

import argparse
import os
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab.commands import image_name
from lab.config import Slot, load_config
from lab.console.log import FollowedLog, Log
from lab.console.port import Port
from lab.console.settings import HANDOVER_SECONDS, log_folder, open_port
from lab.lab import Lab, Say
from lab.leases import Holding
from lab.outcome import LabError
from lab.record import Scenario, new_run_id
from lab.run import Run
from lab.signals import DeadlineError, SignalLog

END = b"\x1d"
"""Ctrl-]: ends a session, as in telnet and virsh console."""
LINGER_SECONDS = 2.0
"""After the end of what is piped in, the console is watched until it is silent for so long."""
LONGEST_ANSWER_SECONDS = 60.0
"""After the end of what is piped in: not longer than this."""
LEASE_SECONDS = 1.0
"""How often it is looked whether a machine's holder still has it."""
CHUNK = 4096
HOUR = 3600.0


def console(options: argparse.Namespace, say: Say) -> int:
    """`lab console`. 0 when the user, the input, or the end of the machine's run ends it."""

    def tell(text: str) -> None:
        # The console's bytes alone go to standard output: it may be a pipe.
        print(text, file=sys.stderr, flush=True)

    config = load_config(options.lab)
    with Lab(config) as lab:
        names = lab.slots(options.machine)
        if len(names) != 1:
            raise LabError(f"which machine? {', '.join(names)}")
        slot = config.slots()[names[0]]
        if options.type:
            run_id = new_run_id()
            purpose = "lab console --type"
            with lab.lease(
                names, purpose=purpose, run_id=run_id, wait=options.wait, say=tell
            ) as held:
                if slot.console is None:
                    name = image_name(config, options.image)
                    image = lab.images.image(name, tell)
                    scenario = Scenario(kind="content")
                    with Run(lab, held, image, scenario, purpose=purpose, say=tell) as run:
                        machine = run.machine
                        machine.start(hold_restart=False)
                        if not sys.stdin.isatty():
                            machine.wait_for_agent()  # before that SAC may not listen
                        log = machine.watch_console().log
                        return _converse(log, machine.type_on_console, tell)
                with _port(lab, slot.name) as port:

                    def press(data: bytes) -> None:
                        held.confirm(f"typing on {slot.name}")
                        port.write(data)

                    return _converse(port.log, press, tell, port)
        if (holding := _holding(lab, slot)) is not None:
            return _watch_holder(lab, slot, holding, tell)
        if slot.console is None:
            raise LabError(
                f"{slot.name} is off: nobody holds it. `lab console {slot.name} --type` boots it;"
                " `lab repro RUN --keep` keeps one running after a run"
            )
        # Who holds the machine needs the port; its log is there to be watched then.
        leased = _every(LEASE_SECONDS, lambda: _holding(lab, slot) is not None)
        with _port(lab, slot.name, wait=0) as port:
            tell(f"Watching {port.line.port}; Ctrl-C ends it")
            interrupted = not _watch(port.log, port.log.size, leased, tell, port)
            seen = port.log.size
        holding = None if interrupted else _holding(lab, slot)
        return 0 if holding is None else _watch_holder(lab, slot, holding, tell, seen)


def _holding(lab: Lab, slot: Slot) -> Holding | None:
    """Who holds a machine now."""
    return next((one for one in lab.leases.holdings() if one.slot == slot.name and one.alive), None)


def _every(seconds: float, question: Callable[[], bool]) -> Callable[[], bool]:
    """Asks so often only; False in between, and True for good once it was."""
    asked, answer = 0.0, False

    def ask() -> bool:
        nonlocal asked, answer
        if not answer and time.monotonic() - asked >= seconds:
            asked, answer = time.monotonic(), question()
        return answer

    return ask


def _port(lab: Lab, slot: str, wait: float = HANDOVER_SECONDS) -> Port:
    config = lab.config
    settings = config.slots()[slot].console
    assert settings is not None
    return open_port(
        settings, config.secret, machine=slot, store=config.store, holder="lab console", wait=wait
    )


def _watch_holder(
    lab: Lab, slot: Slot, holding: Holding, tell: Say, seen: int | None = None
) -> int:
    """Shows the log that a machine's holder writes, to the end of the lease.

    A run's own log from its beginning; that of a port, which is older than the run, from `seen`
    bytes or from now on.
    """
    log = FollowedLog(lab.runs / holding.run_id)
    if slot.console is not None:
        log = FollowedLog(log_folder(lab.config.store, slot.name))
        log.look()
    tell(f"{holding}; watching its console, Ctrl-C ends it")

    def ended() -> bool:
        now = _holding(lab, slot)
        return now is None or now.token != holding.token

    offset = log.size if seen is None else seen
    _watch(log, offset, _every(LEASE_SECONDS, ended), tell)
    return 0


def _watch(
    log: Log, offset: int, over: Callable[[], bool], tell: Say, port: Port | None = None
) -> bool:
    """Copies the log to standard output until `over`, or Ctrl-C: False."""
    signals = SignalLog()
    log.listen(signals.wake)
    trouble: str | None = None  # so that the first state is told, too

    def something() -> bool:
        log.look()
        changed = port is not None and port.trouble != trouble
        return log.size > offset or changed or over()

    try:
        while True:
            try:
                signals.wait("the console to say something", something, HOUR)
            except DeadlineError:
                continue
            if port is not None and port.trouble != trouble:
                trouble = port.trouble
                tell(trouble or f"connected to {port.line.port}")
            ending = over()
            log.look()
            data = log.read(offset)
            offset += len(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            if ending:
                return True
    except KeyboardInterrupt:
        return False
    finally:
        log.forget(signals.wake)


class _Keyboard:
    """Types what comes on standard input, in a thread."""

    def __init__(self, press: Callable[[bytes], None], *, terminal: bool) -> None:
        self._press = press
        self._terminal = terminal
        self.ended_at: float | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="keyboard", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := os.read(sys.stdin.fileno(), CHUNK):
                typed, end, _ = data.partition(END) if self._terminal else (data, b"", b"")
                if typed:
                    # A machine's Enter is a carriage return.
                    self._press(typed if self._terminal else typed.replace(b"\n", b"\r"))
                if end:
                    break
        except BaseException as error:
            self.error = error
        self.ended_at = time.monotonic()


def _converse(log: Log, press: Callable[[bytes], None], tell: Say, port: Port | None = None) -> int:
    """Shows the console and types on it, until Ctrl-] or the end of the input."""
    terminal = sys.stdin.isatty()
    if terminal:
        tell("Ctrl-] ends it; every other key goes to the machine")
    with _raw(terminal):
        keyboard = _Keyboard(press, terminal=terminal)

        def over() -> bool:
            if keyboard.ended_at is None:
                return False
            passed = time.monotonic() - keyboard.ended_at
            answered = min(passed, log.silent_for) >= LINGER_SECONDS
            done = terminal or answered or passed >= LONGEST_ANSWER_SECONDS
            return done or keyboard.error is not None

        _watch(log, log.size if port else 0, over, tell, port)
    if keyboard.error is not None:
        raise keyboard.error
    return 0


@contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """The user's terminal hands on every key as it is."""
    if not terminal:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
