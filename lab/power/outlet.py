"""Outlet: what is the same for all power devices. Believes an order when it has read it back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from lab.power.base import (
    NoEffectError,
    OutletError,
    PowerDevice,
    PowerError,
    PowerResult,
    PowerState,
    RefusedError,
    Timing,
    UnreachableError,
    Witness,
    WrongOutletError,
)
from lab.signals import DeadlineError, SignalLog

ON, OFF, UNKNOWN = PowerState.ON, PowerState.OFF, PowerState.UNKNOWN
SHOWN = 12
"""How many changes a message shows."""


@dataclass
class _Readings:
    """What was read after an order, oldest first; trouble: the last question had no answer."""

    states: list[PowerState] = field(default_factory=list)
    trouble: UnreachableError | None = None
    order_trouble: UnreachableError | None = None
    """The order itself had no answer, or none that means success."""

    def stand(self, wanted: PowerState, steady: int) -> bool:
        return self.trouble is None and self.states[-steady:] == [wanted] * steady

    def __str__(self) -> str:
        runs = [(state, len(list(same))) for state, same in itertools.groupby(self.states)]
        said = [f"{state} {count} times" if count > 1 else state for state, count in runs[-SHOWN:]]
        order = f"; the order itself ended so: {self.order_trouble}" if self.order_trouble else ""
        return f"{', '.join(said) or 'nothing'}{order}"


@dataclass(frozen=True)
class _Others:
    """Before an order: what may not change with it. Outlets by place, witnesses by number."""

    outlets: dict[str, PowerState]
    witnesses: list[PowerState]


class Outlet:
    """One outlet, to be looked at and switched. Synchronous, and usable from several threads.

    confirm: the lease's seam (lab.leases.Lease.confirm): called before each order with what is
    about to be done; raises if the machine may not be touched any more. witness: says what the
    machine on this outlet does. others: witnesses of other machines, which must not change.

    Every action raises UnreachableError, RefusedError, NoEffectError or WrongOutletError, or
    OutletError where lab.toml names an outlet that is not there.
    """

    def __init__(
        self,
        device: PowerDevice,
        outlet: str,
        confirm: Callable[[str], None],
        *,
        witness: Witness | None = None,
        others: Sequence[Witness] = (),
    ) -> None:
        self.device = device
        self.outlet = outlet
        self._confirm = confirm
        self._witness = witness
        self._others = tuple(others)
        self._place: str | None = None

    @property
    def name(self) -> str:
        """For messages and results: the outlet and how to find its device."""
        return f"outlet {self.outlet} of {self.device.address()}"

    @property
    def timing(self) -> Timing:
        """The device's."""
        return self.device.timing

    def place(self) -> str:
        """Where the device has it; asked once. Raises OutletError naming the outlets there are."""
        if self._place is None:
            self._place = self.device.locate(self.outlet)
        return self._place

    def status(self) -> PowerResult:
        """What the outlet is now, by one reading."""
        began = time.monotonic()
        self._refuse_blind()
        found = self._ask(self.place())
        seconds = time.monotonic() - began
        return PowerResult("status", found, self._source, found, seconds, tries=0)

    def on(self) -> PowerResult:
        """Returns when the outlet stands at on. One that is on already is fine."""
        return self._switch(ON)

    def off(self) -> PowerResult:
        """Returns when the outlet stands at off. One that is off already is fine."""
        return self._switch(OFF)

    def cycle(self) -> PowerResult:
        """Off and seen to be off, the device's pause, on and seen to be on."""
        began = time.monotonic()
        with self.device.one_at_a_time(self.place()):
            off = self.off()
            end = time.monotonic() + self.timing.pause_seconds
            SignalLog().wait(
                f"{self.name} to rest",
                lambda: time.monotonic() >= end,
                self.timing.pause_seconds + self.timing.deadline_seconds,
            )
            on = self.on()
        return replace(
            on,
            asked="cycle",
            before=off.before,
            seconds=time.monotonic() - began,
            tries=off.tries + on.tries,
            parts=(off, on),
        )

    def _switch(self, wanted: PowerState) -> PowerResult:
        began = time.monotonic()
        if wanted not in self.device.can_order:
            raise RefusedError(
                f"{self.name} cannot be switched {wanted}: {self.device.settings.backend} has no"
                " such order; give the machine another power device for that"
            )
        self._refuse_blind()
        place = self.place()
        with self.device.one_at_a_time(place):
            before = self._ask(place)
            tries = 0
            # A witness alone is never enough to give no order: a hung machine is silent, too.
            is_already = before is wanted and self.device.reads_back
            if not (is_already and self._settles(place, wanted, _Readings([before]), 0)):
                tries = self._order(place, wanted)
            elif self._contradicted(wanted):
                raise self._not_the_machine(wanted)
            return PowerResult(
                "on" if wanted is ON else "off",
                wanted,
                self._source,
                before,
                time.monotonic() - began,
                tries,
                self._agreeing(wanted) if self.device.reads_back else (),
            )

    def _order(self, place: str, wanted: PowerState) -> int:
        """Orders until the state stands; gives how often."""
        others = _Others(self.device.read_all(), [one.ask() for one in self._others])
        readings = _Readings()
        for number in range(1, self.timing.orders + 1):
            self._confirm(f"power {wanted} of {self.name}")
            readings = _Readings()
            try:
                self.device.order(place, wanted)
            except UnreachableError as error:  # the order may have been taken all the same
                readings.order_trouble = error
            stands = self._settles(place, wanted, readings, self.timing.deadline_seconds)
            if stands and not self._contradicted(wanted):
                self._refuse_wrong(place, wanted, others, own_stands=True)
                return number
            self._refuse_wrong(place, wanted, others, own_stands=False)
            if stands:
                raise self._not_the_machine(wanted)
        raise self._why_not(wanted, readings)

    def _not_the_machine(self, wanted: PowerState) -> NoEffectError:
        assert self._witness is not None  # who contradicted
        return NoEffectError(
            f"{self.name} reads {wanted}, and {self._witness.name} says that the machine is not:"
            " look whether it has a second power supply, and whether this outlet is the machine's"
        )

    def _why_not(self, wanted: PowerState, readings: _Readings) -> PowerError:
        waited = f"{self.timing.deadline_seconds:g} s after the last of {self.timing.orders} orders"
        if readings.trouble is not None:
            return UnreachableError(
                f"{self.name} was ordered {wanted}, and whether it did so is not known: "
                f"{readings.trouble}"
            )
        said = (
            f"{self._source} said {readings}" if self._source != self.name else f"read {readings}"
        )
        if wanted in readings.states:
            return NoEffectError(
                f"{self.name} does not stay {wanted}, {waited}: {said}. Look for somebody else who"
                " switches it, a schedule, or a relay that fails"
            )
        return NoEffectError(
            f"{self.name} was ordered {wanted} and does not follow, {waited}: {said}. If the device"
            f" is merely slow, raise deadline_seconds in [power.{self.device.name}.timing]; else"
            " look at its own log and its relay"
        )

    # Reading back

    @property
    def _source(self) -> str:
        if self.device.reads_back or self._witness is None:
            return self.name
        return self._witness.name

    def _refuse_blind(self) -> None:
        if not self.device.reads_back and self._witness is None:
            raise OutletError(
                f"{self.name} cannot be read back, and the machine has no witness: nobody could say"
                " what became of an order; give the machine a BMC, a console or an agent in"
                " lab.toml, or the device a status command"
            )

    def _ask(self, place: str) -> PowerState:
        if self.device.reads_back:
            return self.device.read(place)
        assert self._witness is not None  # else it had been refused
        return self._witness.ask()

    def _settles(self, place: str, wanted: PowerState, readings: _Readings, seconds: float) -> bool:
        """Reads until `wanted` stands (True), or until anything else is read after `seconds`.

        What got there just in time is still asked whether it stays.
        """
        timing = self.timing
        due = time.monotonic() + (timing.poll_seconds if readings.states else 0)
        end = time.monotonic() + seconds

        def finished() -> bool:
            nonlocal due
            if time.monotonic() < due:
                return False
            try:
                readings.states.append(self._ask(place))
                readings.trouble = None
            except UnreachableError as error:
                readings.trouble = error
            due = time.monotonic() + timing.poll_seconds
            if readings.stand(wanted, timing.steady_readings):
                return True
            is_wanted = readings.trouble is None and readings.states[-1] is wanted
            return time.monotonic() >= end and not is_wanted

        # Each reading ends by itself: readings of `wanted` are few, and others come to an end.
        reading = timing.poll_seconds + timing.answer_seconds * (timing.attempts + 2)
        longest = seconds + (timing.steady_readings + 1) * reading
        with suppress(DeadlineError):
            SignalLog().wait(f"{self.name} to be {wanted}", finished, longest)
        return readings.stand(wanted, timing.steady_readings)

    # Witnesses

    def _agreeing(self, wanted: PowerState) -> tuple[str, ...]:
        if self._witness is None or self._witness.ask() is not wanted:
            return ()
        return (self._witness.name,)

    def _contradicted(self, wanted: PowerState) -> bool:
        """Whether the machine's witness still says on although its outlet reads off.

        The other way round means little: a machine may stay off on an outlet with power.
        """
        if self._witness is None or wanted is ON or not self.device.reads_back:
            return False
        witness, seconds = self._witness, self.timing.deadline_seconds
        try:
            SignalLog().wait(f"{witness.name} to see it", lambda: witness.ask() is not ON, seconds)
        except DeadlineError:
            return True
        return False

    def _refuse_wrong(
        self, place: str, wanted: PowerState, before: _Others, *, own_stands: bool
    ) -> None:
        """Raises WrongOutletError if something else went to the wanted state with the order.

        Another outlet is proof only where ours did not follow; another machine also where ours has
        no witness of its own who saw it follow.
        """
        changed = []
        if not own_stands:
            changed = [
                f"outlet {other}"
                for other, state in self._outlets_now().items()
                if other != place and state is wanted is not before.outlets.get(other, wanted)
            ]
        if not (own_stands and self._agreeing(wanted)):
            changed += [
                other.name
                for other, state in zip(self._others, before.witnesses, strict=True)
                if state not in {wanted, UNKNOWN} and other.ask() is wanted
            ]
        if changed:
            raise WrongOutletError(
                f"{self.name} was ordered {wanted}, and {', '.join(changed)} went {wanted} instead:"
                " check the wiring and the outlet in lab.toml, or who else switched it at the same"
                f" moment; what stands at {wanted} now was left so"
            )

    def _outlets_now(self) -> dict[str, PowerState]:
        try:
            return self.device.read_all()
        except UnreachableError:
            return {}
