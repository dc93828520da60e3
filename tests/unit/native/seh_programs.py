"""Random programs of nested __try blocks: as machine code with unwind data, and as a model.

A program is a tree of functions. `assemble` makes an image of it, with prologues of all kinds; what
filters, __finally and __except blocks do is decided at probe points, by the same `Scope` objects
that the model (`Model`) consults. Both write a log of events: the logs must be equal.
"""

import itertools
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypothesis import strategies as st

from tests.unit.native.emulator import DRIVER_BASE, KERNEL_BASE, NONVOLATILE, Image

IMAGE_SIZE = 0x20000
CODE, XDATA, PDATA = 0x1000, 0x14000, 0x1C000

Event = tuple[str, int, int]
"""What ran, the scope's number (or -1), and the exception code (0 in a __finally)."""


@dataclass(frozen=True)
class Raise:
    """An action: raise an exception with this code."""

    code: int


@dataclass(frozen=True)
class Scope:
    """A __try block. Each list is consumed from the front, one action per visit of the block."""

    number: int
    is_finally: bool
    actions: tuple[int | Raise, ...] = ()
    """Of the filter: answers (-1, 0, 1) or exceptions; of __finally: exceptions, or 0 for none."""
    block: tuple[Raise, ...] = ()
    """What the __except block raises, on its first visits."""
    child: "Function | None" = None
    """Called by the __finally block."""


@dataclass(frozen=True)
class Function:
    """Calls `child`, then raises, within `scopes` (the outermost first)."""

    number: int
    scopes: tuple[Scope, ...]
    child: "Function | None"
    raises: Raise | None
    shape: int
    """Seed of the prologue's form."""


class Actions:
    """Hands out what a block does on its n-th visit."""

    def __init__(self) -> None:
        self._filters: dict[int, Iterator[int | Raise]] = {}
        self._blocks: dict[int, Iterator[Raise]] = {}

    def next_action(self, scope: Scope) -> int | Raise:
        """For a filter or a __finally block. In the end a filter takes the exception."""
        actions = self._filters.setdefault(scope.number, iter(scope.actions))
        return next(actions, 0 if scope.is_finally else 1)

    def next_block(self, scope: Scope) -> Raise | None:
        """For an __except block."""
        return next(self._blocks.setdefault(scope.number, iter(scope.block)), None)


@st.composite
def programs(draw: st.DrawFn) -> Function:
    """Programs of up to about a dozen functions."""
    numbers, codes, budget = itertools.count(), itertools.count(0xE0000001), [10]

    def exception() -> Raise:
        return Raise(next(codes))

    def scope() -> Scope:
        number = next(numbers)
        if draw(st.booleans()):
            actions = draw(st.lists(st.sampled_from(["none", "raise"]), max_size=2))
            child = any_function() if draw(st.integers(0, 3)) == 0 and budget[0] > 0 else None
            steps = tuple(0 if action == "none" else exception() for action in actions)
            return Scope(number, True, steps, (), child)
        answers = draw(st.lists(st.sampled_from([-1, 0, 0, 0, 1, "raise"]), max_size=4))
        filters = tuple(answer if isinstance(answer, int) else exception() for answer in answers)
        block = tuple(exception() for _ in range(draw(st.integers(0, 2)) // 2))
        return Scope(number, False, filters, block)

    def any_function() -> Function:
        budget[0] -= 1
        scopes = tuple(scope() for _ in range(draw(st.integers(0, 3))))
        child = any_function() if budget[0] > 0 and draw(st.integers(0, 3)) else None
        raises = exception() if child is None or draw(st.booleans()) else None
        return Function(next(numbers), scopes, child, raises, draw(st.integers(0, 1 << 30)))

    return any_function()


class UnhandledError(Exception):
    """No filter took an exception: the system stops here."""


class _UnwindError(Exception):
    def __init__(self, activation: object, index: int, code: int) -> None:
        self.activation, self.index, self.code = activation, index, code


class Model:
    """What structured exception handling means, without stacks: a list of the active scopes."""

    def __init__(self) -> None:
        self.log: list[Event] = []
        self._actions = Actions()
        self._active: list[tuple[Scope, object, int]] = []
        self._running: list[object] = []  # filters' activations, None for a __finally

    def run(self, function: Function) -> None:
        """Run a function to its end. Raises UnhandledError."""
        activation, base = object(), len(self._active)
        self._active += [(scope, activation, at) for at, scope in enumerate(function.scopes)]
        start = True
        following: Raise | None = None
        while True:
            try:
                if start:
                    start = False
                    if function.child:
                        self.run(function.child)
                    following = function.raises
                if following:
                    self._raise(following.code)
                break
            except _UnwindError as unwind:
                if unwind.activation is not activation:
                    raise
                del self._active[base + unwind.index :]
                target = function.scopes[unwind.index]
                self.log.append(("except", target.number, unwind.code))
                following = self._actions.next_block(target)
        del self._active[base:]

    @contextmanager
    def _within(self, activation: object) -> Iterator[None]:
        self._running.append(activation)
        try:
            yield
        finally:
            self._running.pop()

    def _steps(self, kind: str, scope: Scope, code: int) -> int:
        while True:
            action = self._actions.next_action(scope)
            if not isinstance(action, Raise):
                self.log.append((kind, scope.number, code))
                return action
            self._raise(action.code)

    def _raise(self, code: int) -> None:
        self.log.append(("raise", -1, code))
        # Raised in a filter: nested, up to the frame whose filter it is. A __finally in between
        # hides what was going on before its unwind.
        filters = list(itertools.takewhile(bool, reversed(self._running)))
        nested = min(
            (at for at, (_, activation, _) in enumerate(self._active) if activation in filters),
            default=len(self._active),
        )
        for at in range(len(self._active) - 1, -1, -1):
            scope, activation, index = self._active[at]
            if scope.is_finally:
                continue
            with self._within(activation):
                answer = self._steps("nested filter" if at >= nested else "filter", scope, code)
            if answer < 0:
                return
            if answer > 0:
                self._leave(at)
                raise _UnwindError(activation, index, code)
        self.log.append(("unhandled", -1, code))
        raise UnhandledError

    def _leave(self, target: int) -> None:
        while len(self._active) > target + 1:
            inner, _, _ = self._active.pop()
            if inner.is_finally:
                with self._within(None):
                    self._steps("finally", inner, 0)
                    if inner.child:
                        self.run(inner.child)


@dataclass(frozen=True)
class Probe:
    """A place in the code where the test decides what happens. Its length is PROBE_SIZE."""

    kind: str
    function: Function
    scope: Scope | None = None


PROBE = b"\x90\x0f\x0b"  # nop; ud2
PROBE_SIZE = len(PROBE)


@dataclass
class Assembly:
    """The image of a program being made."""

    memory: bytearray = field(default_factory=lambda: bytearray(IMAGE_SIZE))
    code: int = CODE
    xdata: int = XDATA
    entries: list[tuple[int, int, int]] = field(default_factory=list)
    probes: dict[int, Probe] = field(default_factory=dict)
    saved: dict[int, list[int]] = field(default_factory=dict)
    """By function number: the registers its prologue saves; 100 stands for xmm6."""

    def emit(self, *parts: bytes) -> None:
        """Append machine code."""
        for part in parts:
            self.memory[self.code : self.code + len(part)] = part
            self.code += len(part)

    def probe(self, probe: Probe) -> None:
        """Append a probe point."""
        self.probes[DRIVER_BASE + self.code] = probe
        self.emit(PROBE)

    def call(self, target: int) -> None:
        """Append a call of an RVA, and a nop: the return address stays inside the scope."""
        self.emit(b"\xe8", struct.pack("<i", target - self.code - 5), b"\x90")

    def align(self) -> None:
        """Pad the code to 16 bytes."""
        self.emit(b"\xcc" * (-self.code % 16))

    def add_xdata(self, data: bytes) -> int:
        """Append to the unwind data; its RVA."""
        start = self.xdata
        self.memory[start : start + len(data)] = data
        self.xdata += -(-len(data) // 4) * 4
        return start

    def unwind_info(  # noqa: PLR0917
        self, prolog: int, codes: list[bytes], frame: int = 0, flags: int = 0, tail: bytes = b"",
        version: int = 1,
    ) -> int:  # fmt: skip
        """An UNWIND_INFO; `codes` in the order of the prologue."""
        slots = b"".join(reversed(codes))
        count = len(slots) // 2
        header = bytes([version | flags << 3, prolog, count, frame])
        return self.add_xdata(header + slots + b"\0\0" * (count % 2) + tail)

    def image(self) -> Image:
        """The finished image, entries sorted as the format wants them."""
        table = b"".join(struct.pack("<3I", *entry) for entry in sorted(self.entries))
        self.memory[PDATA : PDATA + len(table)] = table
        return Image(DRIVER_BASE, bytes(self.memory), (PDATA, len(table)))


def trap_stub(assembly: Assembly, dispatch: int, size: int) -> int:
    """Calls RtlDispatchException in a frame of `size` bytes above which lies a machine frame."""
    start = assembly.code
    relative = dispatch - (DRIVER_BASE + start) - 5
    assembly.emit(b"\xe8", struct.pack("<i", relative))
    assembly.probe(Probe("dispatched", Function(-1, (), None, None, 0)))
    codes = [bytes([0, 10]), bytes([0, 0x01]) + struct.pack("<H", size // 8)]
    assembly.entries.append((start, assembly.code, assembly.unwind_info(0, codes)))
    assembly.align()
    return start


def assemble(  # noqa: PLR0912, PLR0915
    assembly: Assembly, function: Function, handler: int
) -> int:
    """Append a function and all it calls. `handler`: RVA of a jump to __C_specific_handler."""
    child = assemble(assembly, function.child, handler) if function.child else 0
    handlers = [_funclet(assembly, function, scope, handler) for scope in function.scopes]
    shape = random.Random(function.shape)
    start = assembly.code
    codes: list[bytes] = []

    def code(operation: int, info: int, operand: bytes = b"") -> None:
        codes.append(bytes([assembly.code - start, operation | info << 4]) + operand)

    framed = shape.random() < 0.5
    pushes = shape.sample([r for r in NONVOLATILE if r != 5], shape.randrange(4)) + [5] * framed
    for register in pushes:
        assembly.emit(b"\x41" * (register > 7), bytes([0x50 + register % 8]))
        code(0, register)
    size = shape.choice([0x50, 0x70, 0x90, 0x1230, 0x90000 // 16]) + 8 * (len(pushes) % 2 == 0)
    if size < 0x80:
        assembly.emit(b"\x48\x83\xec", bytes([size]))
        code(2, size // 8 - 1)
    else:
        assembly.emit(b"\x48\x81\xec", struct.pack("<I", size))
        if shape.random() < 0.5 and size >= 0x90:
            code(1, 1, struct.pack("<I", size))
        else:
            code(1, 0, struct.pack("<H", size // 8))
    offset = 16 * shape.randrange(4)
    if framed:
        assembly.emit(b"\x48\x8d\x6c\x24", bytes([offset]))  # lea rbp, [rsp + offset]
        code(3, 0)
    moved = next((r for r in (3, 6, 7) if r not in pushes), None) if shape.random() < 0.5 else None
    if moved is not None:  # mov [rsp + 0x48], register
        assembly.emit(b"\x48\x89", bytes([0x44 | moved << 3]), b"\x24\x48")
        far = shape.random() < 0.5
        code(5 if far else 4, moved, struct.pack("<I", 0x48) if far else struct.pack("<H", 9))
    xmm = shape.random() < 0.5
    if xmm:  # movaps [rsp + 0x30], xmm6
        assembly.emit(b"\x0f\x29\x74\x24\x30")
        far = shape.random() < 0.5
        code(9 if far else 8, 6, struct.pack("<I", 0x30) if far else struct.pack("<H", 3))
    prolog = assembly.code - start
    assembly.saved[function.number] = [
        *pushes,
        *([moved] if moved else []),
        *([100] if xmm else []),
    ]

    begin = assembly.code
    assembly.probe(Probe("body", function))
    if child:
        assembly.call(child)
    if function.raises:
        assembly.probe(Probe("raise", function))
        assembly.emit(b"\x90")
    middle = assembly.code
    scopes = []
    for index in reversed(range(len(function.scopes))):  # the innermost comes first
        scope, end = function.scopes[index], assembly.code
        jump = 0
        if not scope.is_finally:
            assembly.emit(b"\xeb", bytes([PROBE_SIZE + 1]))  # the way without an exception
            jump = assembly.code
            assembly.probe(Probe("except", function, scope))
        assembly.emit(b"\x90")
        scopes.append((begin, end, handlers[index], jump))

    if xmm:
        assembly.emit(b"\x0f\x28\x74\x24\x30")
    if moved is not None:
        assembly.emit(b"\x48\x8b", bytes([0x44 | moved << 3]), b"\x24\x48")
    if framed:  # lea rsp, [rbp + size - offset]
        assembly.emit(b"\x48\x8d\xa5", struct.pack("<I", size - offset))
    else:
        assembly.emit(b"\x48\x81\xc4", struct.pack("<I", size))
    epilogue = assembly.code
    for register in reversed(pushes):
        assembly.emit(b"\x41" * (register > 7), bytes([0x58 + register % 8]))
    assembly.emit(b"\xc3")
    version = shape.choice([1, 2])
    if version == 2:  # one epilogue at the end: its size, "at the end" in info, and padding
        codes += [bytes([0, 6]), bytes([assembly.code - epilogue, 0x16])]
    table = struct.pack("<2I", handler, len(scopes))
    table += b"".join(struct.pack("<4I", *scope) for scope in scopes)
    frame = 5 | offset // 16 << 4 if framed else 0
    flags = 3 if scopes else 0
    info = assembly.unwind_info(prolog, codes, frame, flags, table if scopes else b"", version)
    if shape.random() < 0.3:  # a second entry, chained to the first
        assembly.entries.append((start, middle, info))
        primary = struct.pack("<3I", start, middle, info)
        chained = assembly.unwind_info(0, [], frame, 4, primary)
        assembly.entries.append((middle, assembly.code, chained))
    elif shape.random() < 0.3:  # an entry that points to the real one
        real = assembly.add_xdata(struct.pack("<3I", start, assembly.code, info))
        assembly.entries.append((start, assembly.code, real | 1))
    else:
        assembly.entries.append((start, assembly.code, info))
    assembly.align()
    return start


def _funclet(assembly: Assembly, function: Function, scope: Scope, handler: int) -> int:
    child = assemble(assembly, scope.child, handler) if scope.child else 0
    start = assembly.code
    assembly.emit(b"\x48\x83\xec\x28")  # sub rsp, 0x28
    prolog = [bytes([4, 0x42])]
    assembly.probe(Probe("finally" if scope.is_finally else "filter", function, scope))
    if child:
        assembly.call(child)
    assembly.emit(b"\x90\x48\x83\xc4\x28\xc3")
    assembly.entries.append((start, assembly.code, assembly.unwind_info(4, prolog)))
    assembly.align()
    return start


def kernel_jump(assembly: Assembly, target: int) -> int:
    """Append a jump to a kernel function; its RVA."""
    start = assembly.code
    assembly.emit(b"\xe9", struct.pack("<i", target - (DRIVER_BASE + start) - 5))
    assembly.align()
    return start


assert abs(DRIVER_BASE - KERNEL_BASE) < 1 << 31, "relative jumps reach"
