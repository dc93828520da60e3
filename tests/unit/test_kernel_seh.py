"""Exception dispatching and unwinding of the test kernel, against a model, in an emulator."""

import contextlib
import random
import struct

import pytest
from hypothesis import given, note, settings
from unicorn import x86_const as x86

from tests.unit.native.emulator import (
    CONTEXT_SIZE,
    DRIVER_BASE,
    REGISTERS,
    RSP,
    XMM,
    Emulator,
    Registers,
    kernel_emulator,
)
from tests.unit.native.seh_programs import (
    IMAGE_SIZE,
    PROBE_SIZE,
    Actions,
    Assembly,
    Event,
    Function,
    Model,
    Probe,
    Raise,
    UnhandledError,
    assemble,
    kernel_jump,
    programs,
    trap_stub,
)

FRAME_SIZE = 0x608  # of the trap stub: home space, EXCEPTION_RECORD, CONTEXT
RECORD, CONTEXT = 0x20, 0x100
EXCEPTION_NESTED_CALL = 0x10


class Machine:
    """Runs programs with the kernel's dispatcher, and asserts that registers are right."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        emulator.add_image(Assembly().image())
        emulator.watch_range(DRIVER_BASE, DRIVER_BASE + IMAGE_SIZE, self._step)
        restore = emulator.names["RtlRestoreContext"]
        iretq = emulator.read(restore, 0x100).index(b"\x48\xcf")
        emulator.watch(restore + iretq, self._iretq)

    def run(self, function: Function) -> list[Event]:
        """The log of events."""
        assembly = Assembly()
        self.stub = DRIVER_BASE + trap_stub(
            assembly, self.emulator.names["RtlDispatchException"], FRAME_SIZE
        )
        handler = kernel_jump(assembly, self.emulator.names["__C_specific_handler"])
        entry = assemble(assembly, function, handler)
        self.assembly = assembly
        self.log: list[Event] = []
        self.actions = Actions()
        self.bodies: dict[int, tuple[int, Registers]] = {}
        self.faults: dict[int, tuple[Registers, int]] = {}
        self.random = random.Random(function.shape)
        self.emulator.replace_image(assembly.image())
        self.emulator.reset()
        before = self.emulator.registers().kept()
        try:
            self.emulator.call(DRIVER_BASE + entry)
        except UnhandledError:
            return self.log
        assert self.emulator.registers().kept() == before
        return self.log

    def _iretq(self) -> None:
        cpu = self.emulator.cpu
        rsp = cpu.reg_read(x86.UC_X86_REG_RSP)
        rip, _cs, flags, new, _ss = struct.unpack("<5Q", self.emulator.read(rsp, 40))
        cpu.reg_write(x86.UC_X86_REG_EFLAGS, flags)
        cpu.reg_write(x86.UC_X86_REG_RSP, new)
        cpu.reg_write(x86.UC_X86_REG_RIP, rip)

    def _go(self, address: int) -> None:
        self.emulator.cpu.reg_write(x86.UC_X86_REG_RIP, address)

    def _step(self, address: int) -> None:
        probe = self.assembly.probes.get(address)
        if probe is None:
            return
        registers = self.emulator.registers()
        getattr(self, f"_{probe.kind}")(probe, address, registers)

    def _body(self, probe: Probe, address: int, registers: Registers) -> None:
        cpu = self.emulator.cpu
        for register in self.assembly.saved[probe.function.number]:
            if register == 100:
                cpu.reg_write(XMM[6], self.random.getrandbits(128))
            elif register != 5:  # the frame register holds the frame
                cpu.reg_write(REGISTERS[register], self.random.getrandbits(64))
        key = registers.integer[RSP]
        self.bodies[key] = (probe.function.number, self.emulator.registers())
        self._go(address + PROBE_SIZE)

    def _raise(self, probe: Probe, address: int, registers: Registers) -> None:
        assert probe.function.raises
        self._trap(probe.function.raises, address, address + PROBE_SIZE, registers)

    def _except(self, probe: Probe, address: int, registers: Registers) -> None:
        assert probe.scope
        number, body = self.bodies[registers.integer[RSP]]
        assert number == probe.function.number
        assert registers.kept() == body.kept()
        self.log.append(("except", probe.scope.number, registers.integer[0]))
        action = self.actions.next_block(probe.scope)
        if action is None:
            self._go(address + PROBE_SIZE)
        else:
            self._trap(action, address, address + PROBE_SIZE, registers)

    def _filter(self, probe: Probe, address: int, registers: Registers) -> None:
        self._funclet(probe, address, registers)

    def _finally(self, probe: Probe, address: int, registers: Registers) -> None:
        self._funclet(probe, address, registers)

    def _funclet(self, probe: Probe, address: int, registers: Registers) -> None:
        assert probe.scope
        first, frame = registers.integer[1], registers.integer[2]
        assert self.bodies[frame][0] == probe.function.number, "establisher frame"
        action = self.actions.next_action(probe.scope)
        if isinstance(action, Raise):
            self._trap(action, address, address, registers)
            return
        if probe.scope.is_finally:
            assert first & 0xFF == 1, "AbnormalTermination()"
            code, kind = 0, "finally"
        else:
            record, context = struct.unpack("<2Q", self.emulator.read(first, 16))
            code, flags = struct.unpack("<2I", self.emulator.read(record, 8))
            kind = "nested filter" if flags & EXCEPTION_NESTED_CALL else "filter"
            fault, _ = self.faults[record - RECORD]
            assert context == record - RECORD + CONTEXT
            assert self.emulator.read(context, CONTEXT_SIZE) == fault.to_context()
            self.emulator.cpu.reg_write(x86.UC_X86_REG_RAX, action & 0xFFFFFFFF)
        self.log.append((kind, probe.scope.number, code))
        self._go(address + PROBE_SIZE)

    def _trap(self, action: Raise, address: int, resume: int, registers: Registers) -> None:
        """What processor and trap handler do: a machine frame, a record, a context."""
        self.log.append(("raise", -1, action.code))
        registers.rip = address + 1  # the ud2
        top = (registers.integer[RSP] & ~15) - 40
        machine = struct.pack("<5Q", registers.rip, 0x10, 0x202, registers.integer[RSP], 0x18)
        self.emulator.write(top, machine)
        rsp = top - FRAME_SIZE
        record = struct.pack("<IIQQII", action.code, 0, 0, registers.rip, 0, 0)
        self.emulator.write(rsp + RECORD, record)
        self.emulator.write(rsp + CONTEXT, registers.to_context())
        self.faults[rsp] = (registers, resume)
        cpu = self.emulator.cpu
        for register in (0, 8, 9, 10, 11):  # nobody may rely on what they hold
            cpu.reg_write(REGISTERS[register], self.random.getrandbits(64))
        cpu.reg_write(REGISTERS[1], rsp + RECORD)
        cpu.reg_write(REGISTERS[2], rsp + CONTEXT)
        cpu.reg_write(REGISTERS[RSP], rsp)
        self._go(self.stub)

    def _dispatched(self, _probe: Probe, _address: int, registers: Registers) -> None:
        rsp = registers.integer[RSP]
        fault, resume = self.faults[rsp]
        if not registers.integer[0] & 0xFF:
            (code,) = struct.unpack("<I", self.emulator.read(rsp + RECORD, 4))
            self.log.append(("unhandled", -1, code))
            raise UnhandledError
        context = Registers.from_context(self.emulator.read(rsp + CONTEXT, CONTEXT_SIZE))
        assert context == fault
        self.emulator.set_registers(context)
        self._go(resume)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine(kernel_emulator())


@settings(max_examples=400, deadline=None)
@given(program=programs())
def test_handlers_run_as_in_the_model(machine: Machine, program: Function) -> None:
    model = Model()
    with contextlib.suppress(UnhandledError):
        model.run(program)
    note(f"expected: {model.log}")
    assert machine.run(program) == model.log
