"""Unwinding out of the functions of images that compilers made, instruction by instruction.

The truth is in what the instructions do to the stack, as objdump shows them: how deep it is, and
which registers lie where. A second opinion on bodies is symbolic's.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pefile
import pytest
from symbolic.debuginfo import Archive

from crashdump_analysis.image import Image, RuntimeFunction, image_in_file
from crashdump_analysis.memory import Memory
from crashdump_analysis.registers import NAMES, RSP, VOLATILE, Registers
from crashdump_analysis.unwind import unwind
from crashdump_analysis.unwind_info import UnwindData
from images.test_kernel.build import BUILT
from tests.support.sensor import VARIANTS, built
from tests.support.synthetic_dump import EPILOG, code

IMAGES = [*(built(one) / "sensor.sys" for one in VARIANTS), BUILT / "ntoskrnl.exe"]
BASE = 0xFFFFF800_40000000
ENTRY = 0xFFFFAB00_00100000
"""rsp at the first instruction of a function: its return address is there."""
RETURN = 0xFFFFF800_12345678
CLOBBERED = 0xBAD0BAD0
PLAIN = {"PushReg", "AllocSmall", "AllocLarge"}
"""pefile's names of unwind codes, for what pushes and subtracts."""
PRESERVED = tuple(one for one in range(16) if one not in (*VOLATILE, RSP))

pytestmark = pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump (binutils)")
every_image = pytest.mark.parametrize("path", IMAGES, ids=lambda one: str(one)[-20:])


@dataclass
class State:
    """Before an instruction: how many bytes of stack the function has in use, what it pushed.

    saved: by register its distance below ENTRY. epilogue: bytes since the first pop, if in one.
    """

    rva: int
    depth: int = 0
    saved: dict[int, int] = field(default_factory=dict)
    epilogue: int | None = None
    body: bool = False


@dataclass
class Function:
    """A function's states, and where its epilogues begin (at a pop) and end."""

    entry: RuntimeFunction
    prologue_size: int
    states: list[State]
    epilogues: list[tuple[int, int]]


def instructions(path: Path) -> list[tuple[int, str]]:
    shown = subprocess.run(
        ["objdump", "-d", "-M", "intel", "--no-show-raw-insn", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = re.findall(r"^ *([0-9a-f]+):\t(.*?)(?: *#.*)?$", shown, re.MULTILINE)
    with pefile.PE(str(path), fast_load=True) as image:
        base = image.OPTIONAL_HEADER.ImageBase
    return [
        (int(address, 16) - base, re.sub(r"^(rex\.W|repz) ", "", text).strip())
        for address, text in lines
    ]


@cache
def functions(path: Path) -> list[Function]:
    """Functions whose prologues only push and subtract, and whose bodies do not.

    Others are tested by hand; those that save their flags there are wrong for a moment, on
    Windows too.
    """
    shown = instructions(path)
    found = []
    with pefile.PE(str(path)) as image:
        for entry in image.DIRECTORY_ENTRY_EXCEPTION:
            one, info = entry.struct, entry.unwindinfo
            kinds = {
                type(code).__name__.removeprefix("PrologEpilogOp") for code in info.UnwindCodes
            }
            body = [line for line in shown if one.BeginAddress <= line[0] < one.EndAddress]
            prologue_end = one.BeginAddress + info.SizeOfProlog
            pushes = any(
                text.startswith("pushf") or (text.startswith("push") and rva >= prologue_end)
                for rva, text in body
            )
            # What lies before a function may be data, and objdump be out of step in it.
            in_step = body[0][0] == one.BeginAddress
            entered = bool(kinds) == bool(info.SizeOfProlog)  # not by hardware, which has pushed
            if kinds <= PLAIN and not pushes and in_step and entered:
                limits = (one.BeginAddress, one.EndAddress, one.UnwindData)
                found.append(followed(limits, info.SizeOfProlog, body))
    return found


def followed(entry: RuntimeFunction, prologue_size: int, lines: list[tuple[int, str]]) -> Function:
    """Follows what each instruction does to the stack, from one line to the next."""
    states: list[State] = []
    epilogues: list[tuple[int, int]] = []
    depth, saved, rax, begun = 0, dict[int, int](), 0, 0
    after_prologue = (0, dict[int, int]())
    for rva, text in lines:
        in_body = rva - entry[0] >= prologue_size
        if in_body and not any(one.body for one in states[-1:]):
            after_prologue = (depth, dict(saved))
        name, _, operand = text.partition(" ")
        operand = operand.strip()
        if in_body and name == "pop" and not begun and NAMES.index(operand) in PRESERVED:
            begun = rva
        since = rva - begun if begun else None
        states.append(State(rva, depth, dict(saved), since, in_body))
        if text.startswith("mov    eax,0x"):
            rax = int(text.rpartition(",")[2], 16)
        if name == "push":
            depth += 8
            saved[NAMES.index(operand)] = depth
        elif name == "pop":
            # Any register will do to allocate eight bytes by a push, and to give them back.
            (top,) = [register for register, place in saved.items() if place == depth]
            assert top == NAMES.index(operand) or top in VOLATILE
            del saved[top]
            depth -= 8
        elif re.match(r"(sub|add)\s+rsp,", text):
            size = rax if operand.endswith("rax") else int(operand.partition(",")[2], 16)
            depth += size if name == "sub" else -size
        elif name in ("ret", "jmp") and in_body:
            if depth == 0 and (after_prologue[0] or name == "ret"):
                following = [one for one, _ in lines if one > rva]
                epilogues.append((begun or rva, following[0] if following else entry[1]))
            depth, saved, begun = after_prologue[0], dict(after_prologue[1]), 0
    return Function(entry, prologue_size, states, epilogues)


class Stack(Memory):
    """The stack of a function in some state."""

    def __init__(self, state: State) -> None:
        self._words = {ENTRY: RETURN}
        for register, depth in state.saved.items():
            self._words[ENTRY - depth] = original(register)

    def read_some(self, address: int, size: int) -> bytes:
        words = (self._words.get(place, 0xDEAD) for place in range(address, address + size, 8))
        return b"".join(struct.pack("<Q", word) for word in words)[:size]


def original(register: int) -> int:
    """What the caller had in a register."""
    return 0x1000 + register


def stepped(image: UnwindData, state: State) -> tuple[int, int, list[int | None]]:
    """rip, rsp and the preserved registers of the caller."""
    registers = Registers(rip=BASE + state.rva)
    for number in PRESERVED:
        registers.integer[number] = CLOBBERED if number in state.saved else original(number)
    registers.rsp = ENTRY - state.depth
    step = unwind(Stack(state), lambda _: (image, BASE), registers, trapped=True)
    after = step.registers
    return after.rip, after.rsp, [after.integer[number] for number in PRESERVED]


def some(states: list[State]) -> list[State]:
    """Each state in prologues and epilogues, and of bodies one in twelve: little happens there."""
    return [
        one
        for number, one in enumerate(states)
        if not one.body or one.epilogue is not None or one.depth == 0 or number % 12 == 0
    ]


EXPECTED = (RETURN, ENTRY + 8, [original(one) for one in PRESERVED])


@every_image
def test_prologues_bodies_and_epilogues(path: Path) -> None:
    image = image_in_file(path.read_bytes(), str(path))
    counts = {"prologue": 0, "body": 0, "epilogue": 0}
    for function in functions(path):
        for state in some(function.states):
            kind = "epilogue" if state.epilogue is not None else "body"
            counts[kind if state.body else "prologue"] += 1
            assert stepped(image, state) == EXPECTED, f"{state} of {function.entry}"
    assert counts["prologue"] > 20
    assert counts["body"] > 50
    assert counts["epilogue"] > 20 or "a-o0" in str(path)


class Words(Memory):
    """Memory in which each word says where it is."""

    def read_some(self, address: int, size: int) -> bytes:
        words = (address_of ^ SCRAMBLED for address_of in range(address, address + size, 8))
        return b"".join(struct.pack("<Q", word) for word in words)[:size]


SCRAMBLED = 0x0000_5A5A_0000_0000


def by_symbolic(rules: str, registers: dict[str, int]) -> dict[str, int]:
    """Registers of the caller by Breakpad's rules: "name: postfix expression", ^ reads memory."""
    known = dict(registers)
    found: dict[str, int] = {}
    for name, expression in re.findall(r"(\S+): (.*?)(?= \S+:|$)", rules):
        stack: list[int] = []
        for word in expression.split():
            if word in ("+", "-"):
                right, left = stack.pop(), stack.pop()
                stack.append(left + right if word == "+" else left - right)
            elif word == "^":
                stack.append(stack.pop() ^ SCRAMBLED)
            else:
                stack.append(known[word] if word in known else int(word))
        (found[name],) = stack
        known.setdefault(name, found[name])
    return found


@every_image
def test_bodies_of_all_functions_against_symbolic(path: Path) -> None:
    """Frame pointers, saved registers and trap handlers too."""
    told = Archive.open(str(path)).get_object(arch="x86_64").make_cficache().open_stream().read()
    image = image_in_file(path.read_bytes(), str(path))
    kinds: dict[str, int] = {}
    for begin, size, rules in re.findall(
        r"^STACK CFI INIT ([0-9a-f]+) ([0-9a-f]+) (.*)$", told.decode(), re.MULTILINE
    ):
        # Behind the last instruction, as a return address is after a call that never returns.
        registers = Registers(rip=BASE + int(begin, 16) + int(size, 16))
        for number in PRESERVED:
            registers.integer[number] = ENTRY + 0x1000 * number
        registers.rsp = ENTRY
        before = {f"${name}": registers.integer[n] or 0 for n, name in enumerate(NAMES)}
        expected = by_symbolic(rules, before)
        step = unwind(Words(), lambda _: (image, BASE), registers, trapped=False)
        after = step.registers
        assert after.rip == expected[".ra"], rules
        assert after.rsp == expected.get("$rsp", expected[".cfa"]), rules
        for number in PRESERVED:
            name = f"${NAMES[number]}"
            assert after.integer[number] == expected.get(name, before[name]), (name, rules)
        kind = "trap" if step.trapped else "frame" if "$rbp" in rules.split(":")[1] else "plain"
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds["plain"] > 10
    assert "ntoskrnl" not in str(path) or kinds["trap"] > 10


class WithEpilogues:
    """An image whose unwind information for one function is of version 2, and without its code."""

    def __init__(self, image: Image, function: Function, size: int) -> None:
        self._image = image
        self._entry = function.entry
        head = image.read(function.entry[2], 4)
        assert head is not None
        codes = image.read(function.entry[2] + 4, 2 * head[2])
        assert codes is not None
        _, end, self._info = function.entry
        starts = [end - start for start, _ in function.epilogues]
        at_end = size in starts
        slots = [code(size, EPILOG, int(at_end))]
        slots += [
            code(one & 0xFF, EPILOG, one >> 8) for one in starts if not (at_end and one == size)
        ]
        slots += [code(0, EPILOG)] if len(slots) % 2 else []
        self.data = bytes((head[0] & ~7 | 2, head[1], head[2] + len(slots), head[3]))
        self.data += b"".join(slots) + codes

    def runtime_function(self, rva: int) -> RuntimeFunction | None:
        return self._image.runtime_function(rva)

    def read(self, rva: int, size: int) -> bytes | None:
        offset = rva - self._info
        if not 0 <= offset <= len(self.data) - size:
            return None
        return self.data[offset : offset + size]


def epilogues_of_one_size(path: Path) -> Iterator[tuple[Function, int]]:
    """Version 2 has one size for all epilogues of a function, which are near its end."""
    for function in functions(path):
        sizes = {end - start for start, end in function.epilogues}
        far = any(function.entry[1] - start > 0xFFF for start, _ in function.epilogues)
        if len(sizes) == 1 and not far:
            yield function, sizes.pop()


@every_image
def test_epilogues_by_codes_of_version_2(path: Path) -> None:
    """Epilogues are then found without code, which a triage dump does not hold."""
    image = image_in_file(path.read_bytes(), str(path))
    inside = 0
    for function, size in epilogues_of_one_size(path):
        described = WithEpilogues(image, function, size)
        for state in some(function.states):
            assert stepped(described, state) == EXPECTED, f"{state} of {function.entry}"
            inside += state.epilogue is not None
    assert inside > 20 or "a-o0" in str(path)
