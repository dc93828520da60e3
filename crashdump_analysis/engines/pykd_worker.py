r"""Microsoft's debugger engine (dbgeng.dll) behind JSON lines, for one process and many dumps.

This one file runs on Windows CPython 3.8 or newer with nothing but the standard library: copy it
to where the engine is (the folder of the ``pykd`` wheel, or the Debugging Tools for Windows) and
start it with pipes for stdin, stdout and stderr::

    python -u pykd_worker.py --engine C:\path\to\folder-with-dbgeng.dll

It needs no compiler: the engine's COM interfaces are called through ctypes. pykd itself is used
for one thing, running the user's pykd scripts on the open dump (``script``).

Protocol, version 2. One JSON object a line, UTF-8. First the worker says hello::

    {"hello": {"protocol": 2, "engine": {"name": "dbgeng", "version": "10.0.15063.400"}, ...}}

then it answers each request ``{"id": 1, "method": "open", "params": {...}}`` with one line,
``{"id": 1, "result": {...}}`` or ``{"id": 1, "error": {"kind": ..., "message": ...}}``:

    open     path, symbol_path, image_path    opens a kernel dump (closing the one before)
    report   -                                everything below, of the state at the bug check
    scope    kind ("trap" | "cxr"), address   registers and stack of a trap frame or CONTEXT record
    read     ranges [[address, size], ...]    virtual memory as hex; shorter or null = not there
    lookup   addresses [...]                  names and lines, without inlined functions
    command  text                             a debugger command's printed output
    script   text                             Python run with pykd on the open dump; its output
    receive  size                             begins to take a dump of so many bytes from the host
    chunk    data                             the next part of it: a gzip stream, in base64
    received sha256                           ends it; gives the path, for "open"
    close    -                                closes the dump, and deletes it if it was received
    quit     -                                ends the worker

A dump that was received lies in a folder beside this file and is deleted with "close", with the
next one and at the worker's end; what a worker that was killed left goes when the next one starts.
A worker ends with its input, also where the engine hangs in a request.
Addresses, sizes and offsets are integers in bytes. ``error.kind`` is one of ERROR_KINDS.

Sources: Microsoft's documentation of dbgeng.h (IDebugClient4, IDebugControl5, IDebugSymbols4,
IDebugDataSpaces, IDebugRegisters); the slot numbers below are the order of that header.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import errno
import hashlib
import importlib
import importlib.util
import io
import json
import os
import select
import shutil
import struct
import sys
import tempfile
import threading
import traceback
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any

PROTOCOL = 2

# Every error a worker answers with bears one of these; hosts add "deadline" and "worker-died".
ERROR_KINDS = {
    "engine-missing": "no usable dbgeng.dll in the folder named",
    "dump-missing": "the dump file is not there or not readable",
    "dump-refused": "the engine does not take the file for a dump",
    "not-a-kernel-dump": "a dump, but of a user-mode process",
    "no-dump-open": "a request that needs an open dump came without one",
    "bad-request": "unknown method, or parameters that do not fit it",
    "engine-failed": "an engine call failed on an open dump",
    "disk-full": "no room for the dump where the worker is",
    "dump-damaged": "the dump that was received is not the one that was sent",
    "script-failed": "a pykd script raised an exception, or pykd itself is not there",
}

_HERE = os.path.dirname(os.path.abspath(__file__))

_ULONG = ctypes.c_uint32
_ULONG64 = ctypes.c_uint64
_PTR = ctypes.c_void_p
_WSTR = ctypes.c_wchar_p

# name: (interface id, {method: (slot, argument types)}). Slots count from IUnknown's three.
_INTERFACES: dict[str, tuple[str, dict[str, tuple[int, tuple[Any, ...]]]]] = {
    "client": (
        "ca83c3de-5089-4cf8-93c8-d892387f2a5e",  # IDebugClient4
        {
            "EndSession": (26, (_ULONG,)),
            "SetOutputCallbacks": (34, (_PTR,)),
            "OpenDumpFileWide": (60, (_WSTR, _ULONG64)),
        },
    ),
    "control": (
        "b2ffe162-2412-429f-8d1d-5bf6dd824696",  # IDebugControl5
        {
            "GetDebuggeeType": (34, (_PTR, _PTR)),
            "GetActualProcessorType": (35, (_PTR,)),
            "GetNumberProcessors": (39, (_PTR,)),
            "GetSystemVersion": (
                40,
                (_PTR, _PTR, _PTR, _PTR, _ULONG, _PTR, _PTR, _PTR, _ULONG, _PTR),
            ),
            "ReadBugCheckData": (43, (_PTR, _PTR, _PTR, _PTR, _PTR)),
            "WaitForEvent": (93, (_ULONG, _ULONG)),
            "GetCurrentTimeDate": (95, (_PTR,)),
            "GetCurrentSystemUpTime": (96, (_PTR,)),
            "ExecuteWide": (133, (_ULONG, _WSTR, _ULONG)),
            "GetStackTraceEx": (169, (_ULONG64, _ULONG64, _ULONG64, _PTR, _ULONG, _PTR)),
        },
    ),
    "symbols": (
        "e391bbd8-9d8c-4418-840b-c006592a1752",  # IDebugSymbols4
        {
            "SetSymbolOptions": (6, (_ULONG,)),
            "GetNumberModules": (12, (_PTR, _PTR)),
            "GetModuleByOffset": (15, (_ULONG64, _ULONG, _PTR, _PTR)),
            "GetModuleParameters": (17, (_ULONG, _PTR, _ULONG, _PTR)),
            "GetScope": (31, (_PTR, _PTR, _PTR, _ULONG)),
            "ResetScope": (33, ()),
            "SetSymbolPathWide": (77, (_WSTR,)),
            "SetImagePathWide": (80, (_WSTR,)),
            "GetModuleNameStringWide": (89, (_ULONG, _ULONG, _ULONG64, _PTR, _ULONG, _PTR)),
            "GetNameByInlineContextWide": (129, (_ULONG64, _ULONG, _PTR, _ULONG, _PTR, _PTR)),
            "GetLineByInlineContextWide": (131, (_ULONG64, _ULONG, _PTR, _PTR, _ULONG, _PTR, _PTR)),
        },
    ),
    "data": (
        "88f7dfab-3ea7-4c3a-aefb-c4e8106173aa",  # IDebugDataSpaces
        {"ReadVirtual": (3, (_ULONG64, _PTR, _ULONG, _PTR))},
    ),
    "registers": (
        "ce289126-9e84-45a7-937e-67bb18691493",  # IDebugRegisters
        {
            "GetNumberRegisters": (3, (_PTR,)),
            "GetDescription": (4, (_ULONG, _PTR, _ULONG, _PTR, _PTR)),
            "GetValue": (6, (_ULONG, _PTR)),
        },
    ),
}

_DEBUG_CLASS_KERNEL = 1
_DEBUG_END_PASSIVE = 0
_DEBUG_OUTCTL_THIS_CLIENT = 0
_DEBUG_EXECUTE_NOT_LOGGED = 2
_DEBUG_MODULE_UNLOADED = 0x1
_DEBUG_MODULE_SYM_BAD_CHECKSUM = 0x10000
_DEBUG_REGISTER_SUB_REGISTER = 1
_DEBUG_ANY_ID = 0xFFFFFFFF
_E_NOINTERFACE = 0x80004002
_MAX_FRAMES = 512
_STACK_FRAME_TYPE_INLINE = 2  # dbghelp.h; INLINE_FRAME_CONTEXT.FrameType, bit 7 = return address
_INLINE_FRAME_CONTEXT_IGNORE = 0xFFFFFFFF  # dbghelp.h: the function itself
_MACHINE_AMD64 = 0x8664

# CASE_INSENSITIVE | UNDNAME | DEFERRED_LOADS | LOAD_LINES | OMAP_FIND_NEAREST | AUTO_PUBLICS
# | FAIL_CRITICAL_ERRORS | NO_PROMPTS: WinDbg's defaults, and never a dialogue box.
_SYMBOL_OPTIONS = 0x1 | 0x2 | 0x4 | 0x10 | 0x20 | 0x10000 | 0x200 | 0x80000

_SYMBOL_TYPES = ("none", "coff", "codeview", "pdb", "export", "deferred", "sym", "dia")

# GetDebuggeeType's second answer (DEBUG_KERNEL_*_DUMP, DEBUG_DUMP_*) for kernel dump files.
_QUALIFIERS = {1024: "triage", 1025: "kernel", 1026: "full", 1028: "active"}

# CONTEXT of winnt.h for x64: byte offsets of the integer registers, eflags and selectors.
_AMD64_CONTEXT_SIZE = 0x4D0
_AMD64_INTEGERS = (
    ("rax", 0x78), ("rcx", 0x80), ("rdx", 0x88), ("rbx", 0x90), ("rsp", 0x98), ("rbp", 0xA0),
    ("rsi", 0xA8), ("rdi", 0xB0), ("r8", 0xB8), ("r9", 0xC0), ("r10", 0xC8), ("r11", 0xD0),
    ("r12", 0xD8), ("r13", 0xE0), ("r14", 0xE8), ("r15", 0xF0), ("rip", 0xF8),
)  # fmt: skip
_AMD64_SELECTORS = (
    ("cs", 0x38), ("ds", 0x3A), ("es", 0x3C), ("fs", 0x3E), ("gs", 0x40), ("ss", 0x42),
)  # fmt: skip


class WorkerError(Exception):
    """A request that failed: a kind of ERROR_KINDS, and words for the reader."""

    def __init__(self, kind: str, message: str, hresult: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.hresult = hresult


class _ModuleParameters(ctypes.Structure):
    """DEBUG_MODULE_PARAMETERS of dbgeng.h."""

    _fields_ = [
        ("Base", _ULONG64), ("Size", _ULONG), ("TimeDateStamp", _ULONG), ("Checksum", _ULONG),
        ("Flags", _ULONG), ("SymbolType", _ULONG), ("NameSizes", _ULONG * 5),
        ("Reserved", _ULONG64 * 2),
    ]  # fmt: skip


class _StackFrame(ctypes.Structure):
    """DEBUG_STACK_FRAME_EX of dbgeng.h."""

    _fields_ = [
        ("InstructionOffset", _ULONG64), ("ReturnOffset", _ULONG64), ("FrameOffset", _ULONG64),
        ("StackOffset", _ULONG64), ("FuncTableEntry", _ULONG64), ("Params", _ULONG64 * 4),
        ("Reserved", _ULONG64 * 6), ("Virtual", ctypes.c_int32), ("FrameNumber", _ULONG),
        ("InlineFrameContext", _ULONG), ("Reserved1", _ULONG),
    ]  # fmt: skip


class _RegisterDescription(ctypes.Structure):
    """DEBUG_REGISTER_DESCRIPTION of dbgeng.h."""

    _fields_ = [
        ("Type", _ULONG), ("Flags", _ULONG), ("SubregMaster", _ULONG), ("SubregLength", _ULONG),
        ("SubregMask", _ULONG64), ("SubregShift", _ULONG), ("Reserved0", _ULONG),
    ]  # fmt: skip


class _Value(ctypes.Structure):
    """DEBUG_VALUE of dbgeng.h: 24 raw bytes, then the type."""

    _fields_ = [("Raw", _ULONG64 * 3), ("TailOfRawBytes", _ULONG), ("Type", _ULONG)]


class _Interface:
    """One COM interface pointer; its methods are callables that return an HRESULT (unsigned)."""

    def __init__(self, pointer: int, methods: dict[str, tuple[int, tuple[Any, ...]]]) -> None:
        table = ctypes.cast(
            ctypes.cast(pointer, ctypes.POINTER(_PTR))[0] or 0, ctypes.POINTER(_PTR)
        )
        self._calls: dict[str, Callable[..., int]] = {}
        for name, (slot, arguments) in methods.items():
            prototype = ctypes.WINFUNCTYPE(_ULONG, _PTR, *arguments)  # type: ignore[attr-defined]
            self._calls[name] = self._bind(prototype(table[slot]), pointer)

    @staticmethod
    def _bind(function: Callable[..., int], pointer: int) -> Callable[..., int]:
        return lambda *arguments: function(pointer, *arguments)

    def __getattr__(self, name: str) -> Callable[..., int]:
        return self._calls[name]


class _OutputCallbacks:
    """An IDebugOutputCallbacks object made of ctypes callbacks; collects what the engine prints."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        winfunctype = ctypes.WINFUNCTYPE  # type: ignore[attr-defined]
        query = winfunctype(_ULONG, _PTR, _PTR, ctypes.POINTER(_PTR))(self._query)
        count = winfunctype(_ULONG, _PTR)(lambda this: 1)
        output = winfunctype(_ULONG, _PTR, _ULONG, ctypes.c_char_p)(self._output)
        # Kept as attributes: the engine holds bare pointers to all of it.
        self._functions = (query, count, count, output)
        self._table = (_PTR * 4)(*(ctypes.cast(f, _PTR).value for f in self._functions))
        self._object = (_PTR * 1)(ctypes.addressof(self._table))
        self.pointer = ctypes.addressof(self._object)

    def _query(self, this: int, interface: int, out: Any) -> int:
        # Only the plain interface (and IUnknown): anything else would make the engine call slots
        # that this object does not have.
        wanted = str(uuid.UUID(bytes_le=ctypes.string_at(interface, 16)))
        if wanted in (
            "00000000-0000-0000-c000-000000000046",
            "4bf58045-d654-4c40-b0af-683090f356dc",
        ):
            out[0] = this
            return 0
        out[0] = None
        return _E_NOINTERFACE

    def _output(self, this: int, mask: int, text: bytes) -> int:
        self.chunks.append(text or b"")
        return 0

    def take(self) -> str:
        """What was printed since the last call."""
        text = b"".join(self.chunks)
        self.chunks = []
        return text.decode("mbcs" if sys.platform == "win32" else "latin-1", "replace")


class Engine:
    """dbgeng.dll of one folder, with at most one dump open."""

    def __init__(self, folder: str) -> None:
        library = os.path.join(folder, "dbgeng.dll")
        if not os.path.isfile(library):
            raise WorkerError("engine-missing", f"no dbgeng.dll in {folder}")
        if not hasattr(ctypes, "WinDLL"):
            raise WorkerError("engine-missing", "dbgeng.dll needs Windows or Wine")
        os.add_dll_directory(folder)  # type: ignore[attr-defined]
        try:
            # By full path and in this order: Windows' own dbghelp.dll is older and would be found.
            ctypes.WinDLL(os.path.join(folder, "dbghelp.dll"))
            create = ctypes.WinDLL(library).DebugCreate
        except (OSError, AttributeError) as error:
            raise WorkerError("engine-missing", f"cannot load {library}: {error}") from error
        create.restype = _ULONG
        self._output = _OutputCallbacks()
        # An empty path means "srv*" to the engine, and that is 5 to 8 s a dump without a network.
        self._empty = tempfile.mkdtemp(prefix="empty-symbols-")
        self._open = False
        self.version = _file_version(library)
        self._folder = folder
        self._pykd: Any = None
        self._received: ReceivedDump | None = None
        client = _PTR()
        unknown = uuid.UUID("00000000-0000-0000-c000-000000000046").bytes_le
        result = create(unknown, ctypes.byref(client))
        if result or not client.value:
            raise WorkerError("engine-missing", f"DebugCreate: HRESULT 0x{result:08x}", result)
        query = _Interface(client.value, {"QueryInterface": (0, (ctypes.c_char_p, _PTR))})
        for name, (identifier, methods) in _INTERFACES.items():
            pointer = _PTR()
            result = query.QueryInterface(uuid.UUID(identifier).bytes_le, ctypes.byref(pointer))
            if result or not pointer.value:
                raise WorkerError(
                    "engine-missing",
                    f"{library} has no {name} interface {{{identifier}}}; under Wine this is "
                    "Wine's own stub: set WINEDLLOVERRIDES=dbgeng,dbghelp=n",
                    result,
                )
            setattr(self, "_" + name, _Interface(pointer.value, methods))
        self._check("SetOutputCallbacks", self._client.SetOutputCallbacks(self._output.pointer))
        self._symbols.SetSymbolOptions(_SYMBOL_OPTIONS)

    # Set in __init__ from _INTERFACES.
    _client: Any = None
    _control: Any = None
    _symbols: Any = None
    _data: Any = None
    _registers: Any = None

    def open(self, path: str, symbol_path: str = "", image_path: str = "") -> dict[str, Any]:
        """Opens a kernel dump; the paths are WinDbg's (semicolons, ``srv*``)."""
        if self._received is None or path != self._received.path:
            self.close()
        self._end_session()
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise WorkerError("dump-missing", f"{path}: {error.strerror}") from error
        self._check("SetSymbolPath", self._symbols.SetSymbolPathWide(symbol_path or self._empty))
        self._check("SetImagePath", self._symbols.SetImagePathWide(image_path or self._empty))
        self._output.take()
        result = self._client.OpenDumpFileWide(path, 0)
        if result == 0:
            self._open = True
            result = self._control.WaitForEvent(0, 0xFFFFFFFF)
        if result:
            text = self._output.take().strip()
            self.close()
            raise WorkerError(
                "dump-refused",
                f"{path} is not a dump the engine accepts (HRESULT 0x{result:08x})"
                + (f": {text}" if text else ""),
                result,
            )
        banner = self._output.take()
        kind, qualifier = _ULONG(), _ULONG()
        self._check(
            "GetDebuggeeType",
            self._control.GetDebuggeeType(ctypes.byref(kind), ctypes.byref(qualifier)),
        )
        if kind.value != _DEBUG_CLASS_KERNEL:
            self.close()
            raise WorkerError(
                "not-a-kernel-dump", f"{path} is a dump of a user-mode process, not of a kernel"
            )
        return {
            "dump_class": _QUALIFIERS.get(qualifier.value, str(qualifier.value)),
            "output": banner,
        }

    def receive(self, size: int) -> dict[str, Any]:
        """Makes room for a dump that the host will send, instead of the one before."""
        self.close()
        self._received = ReceivedDump(_HERE, size)
        return {}

    def chunk(self, data: str) -> dict[str, Any]:
        """The next part of the dump."""
        self._receiving().add(data)
        return {}

    def received(self, sha256: str) -> dict[str, Any]:
        """All of it has come."""
        return self._receiving().finish(sha256)

    def _receiving(self) -> ReceivedDump:
        if self._received is None:
            raise WorkerError("bad-request", "no dump was announced: send a receive request first")
        return self._received

    def close(self) -> dict[str, Any]:
        """Closes the dump, if one is open, and deletes it if it was received."""
        self._end_session()
        self.delete_received()
        return {}

    def delete_received(self) -> None:
        """Deletes the dump if it was received, as far as the engine has not got it open."""
        if self._received:
            self._received.delete()
            self._received = None

    def _end_session(self) -> None:
        if self._open:
            self._open = False
            self._client.EndSession(_DEBUG_END_PASSIVE)
            self._output.take()

    def shut_down(self) -> None:
        """Closes the dump and removes what the engine left on disk."""
        self.close()
        shutil.rmtree(self._empty, ignore_errors=True)

    def report(self) -> dict[str, Any]:
        """Bug check, system, modules, registers and stack, as the dump was taken."""
        self._need_dump()
        self._symbols.ResetScope()
        warnings: list[str] = []
        try:
            stack = self._stack()  # before the modules: it loads the symbols it needs
        except WorkerError as error:  # a dump cut short still has its header to report
            stack = []
            warnings.append(f"no stack: {error}")
        modules = self._modules()
        registers = self._thread_registers()
        if not modules:
            warnings.append("no modules: the dump is incomplete, or its kernel was not found")
        if not registers or not any(registers.values()):
            warnings.append("no registers: the dump holds no processor context")
        outside = [index for index, frame in enumerate(stack) if frame["module"] is None]
        if outside:
            warnings.append(
                f"stack: frame {outside[0]} lies in no module; from there on the frames are "
                "guesses: a wild jump, or the image with the unwind data is not at hand"
            )
        for module in modules:
            if module["symbols_mismatch"]:
                warnings.append(
                    f"{module['name']}: the symbols at hand belong to another build; names in it "
                    "are not to be trusted"
                )
        return {
            "engine": {"name": "dbgeng", "version": self.version},
            "bug_check": self._bug_check(),
            "system": self._system(),
            "modules": modules,
            "registers": registers,
            "stack": stack,
            "warnings": warnings,
        }

    def scope(self, kind: str, address: int) -> dict[str, Any]:
        """Registers and stack as ``.trap`` or ``.cxr`` show them for a record at an address."""
        self._need_dump()
        if kind not in ("trap", "cxr"):
            raise WorkerError("bad-request", f'scope kind must be "trap" or "cxr", not {kind!r}')
        self._symbols.ResetScope()
        output = self.command(f".{kind} 0x{address:x}")["output"]
        context = ctypes.create_string_buffer(_AMD64_CONTEXT_SIZE)
        instruction = _ULONG64()
        result = self._symbols.GetScope(ctypes.byref(instruction), None, context, len(context))
        if "Unable to" in output or "Couldn't" in output or result:
            self._symbols.ResetScope()
            raise WorkerError("engine-failed", f".{kind} 0x{address:x}: {output.strip()}", result)
        stack = self._stack()
        self._symbols.ResetScope()
        registers: dict[str, int] = {"rip": instruction.value}
        if self._machine() == _MACHINE_AMD64:
            registers = {n: struct.unpack_from("<Q", context, o)[0] for n, o in _AMD64_INTEGERS}
            registers.update(
                {n: struct.unpack_from("<H", context, o)[0] for n, o in _AMD64_SELECTORS}
            )
            registers["efl"] = struct.unpack_from("<I", context, 0x44)[0]
        return {"registers": registers, "stack": stack, "output": output}

    def read(self, ranges: list[list[int]]) -> dict[str, Any]:
        """Virtual memory; a range that is not in the dump gives null, one that ends early less."""
        self._need_dump()
        out: list[str | None] = []
        for address, size in ranges:
            buffer = ctypes.create_string_buffer(size)
            done = _ULONG()
            result = self._data.ReadVirtual(address, buffer, size, ctypes.byref(done))
            out.append(None if result else buffer.raw[: done.value].hex())
        return {"data": out}

    def lookup(self, addresses: list[int]) -> dict[str, Any]:
        """Module, function, file and line of addresses."""
        self._need_dump()
        places = []
        for address in addresses:
            place = self._place(address, _INLINE_FRAME_CONTEXT_IGNORE)
            # Only now are the symbols loaded.
            places.append({**place, **self._symbols_at(address)})
        return {"places": places}

    def _symbols_at(self, address: int) -> dict[str, Any]:
        index, parameters = _ULONG(), _ModuleParameters()
        if self._symbols.GetModuleByOffset(
            address, 0, _ref(index), None
        ) or self._symbols.GetModuleParameters(1, None, index.value, _ref(parameters)):
            parameters, index = _ModuleParameters(), _ULONG(_DEBUG_ANY_ID)  # in no module
        return self._symbols_of(parameters, index.value)

    def _symbols_of(self, module: _ModuleParameters, index: int) -> dict[str, Any]:
        # Which name: SYMBOL_FILE 3, LOADED_IMAGE 2.
        return {
            "symbols": _SYMBOL_TYPES[min(module.SymbolType, len(_SYMBOL_TYPES) - 1)],
            "symbols_mismatch": bool(module.Flags & _DEBUG_MODULE_SYM_BAD_CHECKSUM),
            "symbol_file": self._module_name(3, index),
            "loaded_image": self._module_name(2, index),
        }

    def command(self, text: str) -> dict[str, Any]:
        """Runs a debugger command; the HRESULT is passed on, the output is as printed."""
        self._need_dump()
        self._output.take()
        result = self._control.ExecuteWide(
            _DEBUG_OUTCTL_THIS_CLIENT, text, _DEBUG_EXECUTE_NOT_LOGGED
        )
        return {"output": self._output.take(), "hresult": result}

    def script(self, text: str) -> dict[str, Any]:
        """Runs Python with ``pykd`` imported, on the open dump; gives what it printed."""
        self._need_dump()
        if self._pykd is None:
            self._pykd = _import_pykd(self._folder)
        self._output.take()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(text, "<script>", "exec"), {"pykd": self._pykd})  # noqa: S102
            except Exception as error:
                raise WorkerError("script-failed", traceback.format_exc()) from error
        return {"output": printed.getvalue() + self._output.take()}

    def _need_dump(self) -> None:
        if not self._open:
            raise WorkerError("no-dump-open", "no dump is open: send an open request first")

    @staticmethod
    def _check(call: str, result: int) -> None:
        if result & 0x80000000:
            raise WorkerError("engine-failed", f"{call}: HRESULT 0x{result:08x}", result)

    def _bug_check(self) -> dict[str, Any]:
        code, parameters = _ULONG(), [_ULONG64() for _ in range(4)]
        self._check(
            "ReadBugCheckData",
            self._control.ReadBugCheckData(
                ctypes.byref(code), *(ctypes.byref(parameter) for parameter in parameters)
            ),
        )
        return {"code": code.value, "parameters": [parameter.value for parameter in parameters]}

    def _machine(self) -> int:
        machine = _ULONG()
        self._check("GetActualProcessorType", self._control.GetActualProcessorType(_ref(machine)))
        return machine.value

    def _system(self) -> dict[str, Any]:
        platform, major, build, service_pack, used = (_ULONG() for _ in range(5))
        processors, time, uptime = _ULONG(), _ULONG(), _ULONG()
        pack_text, build_text = ctypes.create_string_buffer(256), ctypes.create_string_buffer(256)
        self._check(
            "GetSystemVersion",
            self._control.GetSystemVersion(
                _ref(platform), _ref(major), _ref(build), pack_text, len(pack_text), _ref(used),
                _ref(service_pack), build_text, len(build_text), _ref(used),
            ),
        )  # fmt: skip
        self._check("GetNumberProcessors", self._control.GetNumberProcessors(_ref(processors)))
        self._control.GetCurrentTimeDate(_ref(time))
        self._control.GetCurrentSystemUpTime(_ref(uptime))
        return {
            "machine": self._machine(),
            "build": build.value,
            "build_text": build_text.value.decode("latin-1").replace("Built by: ", ""),
            "checked": major.value == 0xC,  # 0xF is a free build
            "processors": processors.value,
            "time": time.value,  # seconds since 1970, UTC
            "uptime": uptime.value,  # seconds
        }

    def _modules(self) -> list[dict[str, Any]]:
        loaded, unloaded = _ULONG(), _ULONG()
        self._check(
            "GetNumberModules", self._symbols.GetNumberModules(_ref(loaded), _ref(unloaded))
        )
        total = loaded.value + unloaded.value
        parameters = (_ModuleParameters * max(total, 1))()
        if total:
            self._check(
                "GetModuleParameters",
                self._symbols.GetModuleParameters(total, None, 0, ctypes.byref(parameters)),
            )
        modules = []
        for index in range(total):
            one = parameters[index]
            # Which name: DEBUG_MODNAME_IMAGE 0, MODULE 1.
            modules.append(
                {
                    "name": self._module_name(1, index),
                    "image": self._module_name(0, index),
                    "base": one.Base,
                    "size": one.Size,
                    "timestamp": one.TimeDateStamp,
                    "checksum": one.Checksum,
                    "unloaded": bool(one.Flags & _DEBUG_MODULE_UNLOADED),
                    **self._symbols_of(one, index),
                    "flags": one.Flags,
                }
            )
        return modules

    def _module_name(self, which: int, index: int, base: int = 0) -> str:
        buffer = ctypes.create_unicode_buffer(1024)
        result = self._symbols.GetModuleNameStringWide(
            which, index, base, buffer, len(buffer), None
        )
        return "" if result & 0x80000000 else buffer.value

    def _thread_registers(self) -> dict[str, int]:
        """The integer registers of the current processor by the engine's names."""
        count = _ULONG()
        if self._registers.GetNumberRegisters(_ref(count)):
            return {}
        registers = {}
        name = ctypes.create_string_buffer(64)
        for index in range(count.value):
            description, value = _RegisterDescription(), _Value()
            if self._registers.GetDescription(index, name, len(name), None, _ref(description)):
                continue
            if description.Flags & _DEBUG_REGISTER_SUB_REGISTER or not 1 <= description.Type <= 4:
                continue
            text = name.value.decode("ascii")
            if "/" in text:  # a quarter of a vector register: xmm0/3
                continue
            if self._registers.GetValue(index, _ref(value)) == 0:
                mask = (1 << (8 << (description.Type - 1))) - 1  # INT8, 16, 32, 64 are 1 to 4
                registers[text] = value.Raw[0] & mask
        return registers

    def _stack(self) -> list[dict[str, Any]]:
        frames = (_StackFrame * _MAX_FRAMES)()
        filled = _ULONG()
        self._check(
            "GetStackTrace",
            self._control.GetStackTraceEx(0, 0, 0, ctypes.byref(frames), _MAX_FRAMES, _ref(filled)),
        )
        self._output.take()
        return [self._frame(frames[index]) for index in range(filled.value)]

    def _frame(self, frame: _StackFrame) -> dict[str, Any]:
        context = frame.InlineFrameContext
        return {
            "instruction": frame.InstructionOffset,
            "return": frame.ReturnOffset,
            "child_sp": frame.StackOffset,
            "frame": frame.FrameOffset,
            "inline": (context >> 8) & 0x7F == _STACK_FRAME_TYPE_INLINE,
            **self._place(frame.InstructionOffset, context),
        }

    def _place(self, address: int, context: int) -> dict[str, Any]:
        """Names and line of an address; in an inlined function where the context says so."""
        text = ctypes.create_unicode_buffer(4096)
        displacement, line = _ULONG64(), _ULONG()
        out: dict[str, Any] = dict.fromkeys(("module", "function", "displacement", "file", "line"))
        if not self._symbols.GetNameByInlineContextWide(
            address, context, text, len(text), None, _ref(displacement)
        ):
            module, bang, function = text.value.partition("!")
            out["module"] = module
            out["function"] = function if bang else None
            out["displacement"] = displacement.value
        if not self._symbols.GetLineByInlineContextWide(
            address, context, _ref(line), text, len(text), None, _ref(displacement)
        ):
            out["file"], out["line"] = text.value, line.value
        return out


class ReceivedDump:
    """A dump on its way from the host into a folder of its own, or there."""

    PREFIX = "received-"
    _LOCK = "in-use"

    def __init__(self, parent: str, size: int) -> None:
        free = shutil.disk_usage(parent).free
        if size > free:
            raise WorkerError(
                "disk-full",
                f"{parent} has room for {free} bytes, and the dump has {size}",
            )
        self.size = size
        self.folder = tempfile.mkdtemp(prefix=self.PREFIX, dir=parent)
        # Held open: Windows deletes no file that is, so others can tell a living worker's folder.
        self._lock = open(os.path.join(self.folder, self._LOCK), "wb")  # noqa: SIM115
        self.path = os.path.join(self.folder, "MEMORY.DMP")
        self._file = open(self.path, "wb")  # noqa: SIM115
        self._inflate = zlib.decompressobj(31)
        self._hash = hashlib.sha256()
        self._written = 0

    def add(self, data: str) -> None:
        """Takes the next part of the gzip stream, in base64."""
        try:
            packed = base64.b64decode(data, validate=True)
            while packed:
                plain = self._inflate.decompress(packed, 1 << 20)
                packed = self._inflate.unconsumed_tail
                self._write(plain)
        except (ValueError, zlib.error) as error:
            raise WorkerError("dump-damaged", f"what came is no gzip stream: {error}") from error

    def _write(self, plain: bytes) -> None:
        self._written += len(plain)
        if self._written > self.size:
            raise WorkerError("dump-damaged", f"more came than the {self.size} bytes announced")
        self._hash.update(plain)
        try:
            self._file.write(plain)
        except OSError as error:
            raise _disk_error(error, self._written, self.size) from error

    def finish(self, sha256: str) -> dict[str, Any]:
        """Closes the file; its path."""
        try:
            self._file.close()
        except OSError as error:
            raise _disk_error(error, self._written, self.size) from error
        if self._written != self.size or self._hash.hexdigest() != sha256:
            raise WorkerError(
                "dump-damaged",
                f"{self._written} of {self.size} bytes came, and they are not those that were sent",
            )
        return {"path": self.path}

    def delete(self) -> None:
        """Removes it with its folder."""
        with contextlib.suppress(OSError):  # a full disk cannot take what is still in the buffer
            self._file.close()
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @classmethod
    def delete_leftovers(cls, parent: str) -> None:
        """Removes what workers that were killed have left."""
        for name in os.listdir(parent):
            folder = os.path.join(parent, name)
            if name.startswith(cls.PREFIX) and _removed(os.path.join(folder, cls._LOCK)):
                shutil.rmtree(folder, ignore_errors=True)


def _removed(path: str) -> bool:
    try:
        os.remove(path)
    except OSError:
        return False  # somebody has it open
    return True


def _disk_error(error: OSError, written: int, size: int) -> WorkerError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return WorkerError(
        "disk-full" if full else "dump-damaged",
        f"writing the dump failed after {written} of {size} bytes: {error.strerror}",
    )


def _ref(value: Any) -> Any:
    return ctypes.byref(value)


def _import_pykd(folder: str) -> Any:
    """Imports pykd from the engine's folder, attached to the engine this process has loaded.

    pykd.initialize() asks mscoree.dll for .NET hosting, which it needs for managed code only, and
    gives up where there is none, as under Wine. So CLRCreateInstance in the import table of
    pykd.pyd is pointed at a function that says S_OK and hands out nothing.
    """
    sys.path.insert(0, os.path.dirname(folder))
    try:
        pykd = importlib.import_module("pykd")
    except ImportError as error:
        raise WorkerError("script-failed", f"no pykd in {folder}: {error}") from error
    finally:
        sys.path.pop(0)
    kernel32 = ctypes.WinDLL("kernel32.dll")  # type: ignore[attr-defined]
    kernel32.GetModuleHandleW.restype = _PTR
    base = kernel32.GetModuleHandleW(_WSTR("pykd.pyd"))
    slot = _import_slot(base, "mscoree.dll")
    if slot is not None:
        winfunctype = ctypes.WINFUNCTYPE  # type: ignore[attr-defined]
        _PATCHES.append(winfunctype(_ULONG, _PTR, _PTR, ctypes.POINTER(_PTR))(_no_clr))
        old = _ULONG()
        kernel32.VirtualProtect(_PTR(slot), 8, 0x04, _ref(old))  # PAGE_READWRITE
        _ULONG64.from_address(slot).value = ctypes.cast(_PATCHES[-1], _PTR).value or 0
        kernel32.VirtualProtect(_PTR(slot), 8, old.value, _ref(old))
    pykd.initialize()
    return pykd


def _import_slot(base: int, library: str) -> int | None:
    """Address of the first import address table entry a loaded PE32+ has for a DLL.

    Source: the PE format specification, "The .idata Section".
    """

    def u32(address: int) -> int:
        return _ULONG.from_address(address).value

    headers = base + u32(base + 0x3C)
    descriptor = base + u32(headers + 24 + 120)  # optional header, data directory 1
    while u32(descriptor + 12):
        if ctypes.string_at(base + u32(descriptor + 12)).decode("ascii").lower() == library:
            return base + u32(descriptor + 16)
        descriptor += 20
    return None


def _no_clr(class_id: int, interface_id: int, out: Any) -> int:
    """A CLRCreateInstance for a machine without .NET."""
    if out:
        out[0] = None
    return 0


# The import table of pykd.pyd holds the bare address of what is in here.
_PATCHES: list[Any] = []


def _file_version(path: str) -> str:
    """The four numbers of a PE's VS_FIXEDFILEINFO (winver.h), or "unknown"."""
    version = ctypes.WinDLL("version.dll")  # type: ignore[attr-defined]
    size = version.GetFileVersionInfoSizeW(_WSTR(path), None)
    buffer = ctypes.create_string_buffer(max(size, 1))
    pointer, length = _PTR(), _ULONG()
    if (
        not size
        or not version.GetFileVersionInfoW(_WSTR(path), 0, size, buffer)
        or not version.VerQueryValueW(buffer, _WSTR("\\"), _ref(pointer), _ref(length))
    ):
        return "unknown"
    high, low = struct.unpack_from("<II", ctypes.string_at(pointer.value or 0, 16), 8)
    return f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"


def _find_engine() -> str:
    """The first folder with a dbgeng.dll where one may be expected."""
    kits = [os.environ.get(name) for name in ("ProgramFiles(x86)", "ProgramFiles")]
    folders = [_HERE]
    folders += [os.path.join(kit, "Windows Kits", "10", "Debuggers", "x64") for kit in kits if kit]
    package = importlib.util.find_spec("pykd")
    folders += (package.submodule_search_locations or []) if package else []
    for folder in folders:
        if os.path.isfile(os.path.join(folder, "dbgeng.dll")):
            return folder
    raise WorkerError(
        "engine-missing",
        "no dbgeng.dll in " + ", ".join(folders) + "; install pykd for this Python (" + sys.version
        + ") or the Debugging Tools for Windows",
    )  # fmt: skip


def _answer(engine: Engine, request: Any) -> dict[str, Any]:
    """Runs one request; the answer without its id."""
    methods: dict[str, Callable[..., dict[str, Any]]] = {
        "open": engine.open,
        "report": engine.report,
        "scope": engine.scope,
        "read": engine.read,
        "lookup": engine.lookup,
        "command": engine.command,
        "script": engine.script,
        "receive": engine.receive,
        "chunk": engine.chunk,
        "received": engine.received,
        "close": engine.close,
        "quit": engine.close,
    }
    try:
        method = methods.get(request.get("method"))
        if method is None:
            raise WorkerError(
                "bad-request",
                f"unknown method {request.get('method')!r}; known: {', '.join(methods)}",
            )
        try:
            return {"result": method(**request.get("params", {}))}
        except (TypeError, ValueError, ctypes.ArgumentError) as error:
            raise WorkerError("bad-request", f"{request['method']}: {error}") from error
    except WorkerError as error:
        return {"error": {"kind": error.kind, "message": str(error), "hresult": error.hresult}}
    except Exception:  # whatever it was, the host must hear of it and the worker must live on
        return {"error": {"kind": "engine-failed", "message": traceback.format_exc()}}


@contextlib.contextmanager
def _ending_with_the_host(engine: Engine) -> Iterator[None]:
    """Ends the worker where its host is gone in the middle of a request.

    A host that has waited long enough closes the input. What hangs in the engine does not notice,
    and would stay for ever with the dump.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            if _input_is_closed():
                engine.delete_received()
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _input_is_closed() -> bool:
    # Nothing is read: on Windows a read that waits holds up whoever asks about the same pipe, as
    # every library does that is loaded.
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        pipe = _PTR(msvcrt.get_osfhandle(sys.stdin.fileno()))
        there = kernel.PeekNamedPipe(pipe, None, 0, None, None, None)
        return not there and ctypes.get_last_error() == _ERROR_BROKEN_PIPE
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)
    return bool(poll.poll(0))


_LOOK_SECONDS = 2.0
_ERROR_BROKEN_PIPE = 109


def main() -> int:
    """Answers requests until the input ends or ``quit`` comes."""
    parser = argparse.ArgumentParser(
        description="Microsoft's debugger engine behind JSON lines on stdin and stdout."
    )
    parser.add_argument(
        "--engine",
        help="folder with dbgeng.dll, dbghelp.dll and what they need (default: this file's, the "
        "Debugging Tools for Windows, the pykd package: the first that has it)",
    )
    arguments = parser.parse_args()
    ReceivedDump.delete_leftovers(_HERE)

    def send(message: dict[str, Any]) -> None:
        sys.stdout.buffer.write(json.dumps(message).encode("ascii") + b"\n")
        sys.stdout.buffer.flush()

    try:
        engine = Engine(os.path.abspath(arguments.engine) if arguments.engine else _find_engine())
    except WorkerError as error:
        send({"error": {"kind": error.kind, "message": str(error), "hresult": error.hresult}})
        return 1
    send(
        {
            "hello": {
                "protocol": PROTOCOL,
                "engine": {"name": "dbgeng", "version": engine.version},
                "python": sys.version.split()[0],
            }
        }
    )
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line.decode("utf-8"))
            if not isinstance(request, dict):
                raise ValueError("a request must be an object")
        except ValueError as error:
            send({"id": None, "error": {"kind": "bad-request", "message": str(error)}})
            continue
        with _ending_with_the_host(engine):
            answer = _answer(engine, request)
        answer["id"] = request.get("id")
        send(answer)
        if request.get("method") == "quit":
            break
    engine.shut_down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
