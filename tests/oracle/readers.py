"""kdmp-parser and volatility3, each as an independent reader of a kernel dump."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kdmp_parser

from tests.oracle.isf import write_symbol_table

PAGE = 0x1000
_DUMP_TYPE = 0xF98  # in the header
_ADDRESS_BITS = 0x000F_FFFF_FFFF_F000  # a page table entry's physical address


class KernelDump:
    """A full or bitmap kernel dump (types 1, 2, 5, 6) as kdmp-parser reads it; x64."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(path)
        self.path = path
        self._dump = kdmp_parser.KernelDumpParser(path)
        header = self._dump.header
        self.dump_type = int(header.DumpType.value)
        self.build = int(header.MinorVersion)
        self.machine = int(header.MachineImageType)
        self.processors = int(header.NumberProcessors)
        self.bug_check_code = int(header.BugCheckCode)
        self.bug_check_parameters = [int(one) for one in header.BugCheckCodeParameter]
        self.ps_loaded_module_list = int(header.PsLoadedModuleList)
        self.directory_table_base = int(self._dump.directory_table_base)
        self.page_count = len(self._dump.pages)

    @property
    def registers(self) -> dict[str, int]:
        """The header's CONTEXT by the names that dbgeng uses."""
        context = self._dump.context
        names = ["Rax", "Rcx", "Rdx", "Rbx", "Rsp", "Rbp", "Rsi", "Rdi", "Rip"]
        names += [f"R{number}" for number in range(8, 16)]
        registers = {name.lower(): int(getattr(context, name)) for name in names}
        registers["efl"] = int(context.EFlags)
        for selector in ("Cs", "Ds", "Es", "Fs", "Gs", "Ss"):
            registers[selector.lower()] = int(getattr(context, f"Seg{selector}"))
        return registers

    def read(self, address: int, size: int) -> bytes | None:
        """Virtual memory through the dump's own page tables; None where a page is not there."""
        out = bytearray()
        while len(out) < size:
            offset = (address + len(out)) % PAGE
            page = self._dump.read_virtual_page(address + len(out) - offset)
            if page is None:
                return None
            out += page[offset : offset + size - len(out)]
        return bytes(out)

    def mapped_pages(self) -> Iterator[int]:
        """Virtual addresses of the pages that are mapped and in the dump, in no special order.

        A large page counts once for each of its small pages that the dump holds. Page tables
        that are mapped as memory, as Windows maps its own, are part of it.
        """
        present = set(self._dump.pages.keys())

        def walk(table: int, level: int, base: int) -> Iterator[int]:
            data = self._dump.read_physical_page(table)
            if data is None:
                return
            shift = 12 + 9 * level
            for index, entry in enumerate(struct.unpack("<512Q", data)):
                if not entry & 1:
                    continue
                address = base | index << shift
                if level == 3 and index >= 256:
                    address |= 0xFFFF_0000_0000_0000  # canonical: bit 47 carried up
                physical = entry & _ADDRESS_BITS
                if level == 0:
                    if physical in present:
                        yield address
                elif level < 3 and entry & 0x80:
                    physical &= -1 << shift
                    for offset in range(0, 1 << shift, PAGE):
                        if physical + offset in present:
                            yield address + offset
                else:
                    yield from walk(physical, level - 1, address)

        yield from walk(self.directory_table_base, 3, 0)

    def sample(
        self, seed: int, count: int, ranges: Sequence[tuple[int, int]] = (), size: int = 16
    ) -> list[tuple[int, int]]:
        """Seeded random (address, size) reads within mapped pages.

        Each of `ranges` (address, size in bytes) that has a mapped page is drawn from first, for
        half of the reads; the other half is drawn from all mapped pages.
        """
        generator = random.Random(seed)
        pages = sorted(self.mapped_pages())
        if not pages:
            raise ValueError(f"{self.path}: no page is mapped through its page tables")
        pools = [
            [page for page in pages if start - start % PAGE <= page < start + length]
            for start, length in ranges
        ]
        pools = [pool for pool in pools if pool]
        reads = []
        for number in range(count):
            pool = pools[number // 2 % len(pools)] if pools and number % 2 == 0 else pages
            offset = generator.randrange(PAGE - size + 1)
            reads.append((generator.choice(pool) + offset, size))
        return reads


@dataclass(frozen=True)
class Volatility:
    """volatility3 in a process of its own: its licence (VSL) stays on its side of the pipe.

    `symbols` is a folder for symbol tables (ISF), `cache` one for its own files.
    """

    symbols: Path
    cache: Path
    timeout: float = 120.0  # seconds

    def run(self, dump: Path, plugin: str) -> list[dict[str, Any]]:
        """A plugin's rows. Raises RuntimeError with volatility3's words if it does not open it."""
        self.symbols.mkdir(parents=True, exist_ok=True)
        command = [str(Path(sys.executable).with_name("vol")), "-q"]
        command += ["--offline", "-r", "json", "--cache-path", str(self.cache)]
        command += ["-s", str(self.symbols), "-f", str(self._readable(dump)), plugin]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=self.timeout,
            check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "HOME": str(self.cache)},
        )
        start = done.stdout.find("[")
        if done.returncode or start < 0:
            raise RuntimeError(
                f"volatility3 {plugin} on {dump}: exit {done.returncode}\n"
                f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
            )
        rows: list[dict[str, Any]] = json.loads(done.stdout[start:])
        return rows

    def crash_info(self, dump: Path) -> dict[str, Any]:
        """windows.crashinfo: what the dump's header says."""
        rows = self.run(dump, "windows.crashinfo")
        if len(rows) != 1:
            raise RuntimeError(f"volatility3 windows.crashinfo on {dump}: {len(rows)} rows, not 1")
        return rows[0]

    def modules(self, dump: Path, kernel: Path, list_offset: int) -> dict[str, tuple[int, int]]:
        """windows.modules: base and size in bytes by file name.

        `kernel` is the image the dump was made with, `list_offset` where PsLoadedModuleList lies
        in it, in bytes from its base.
        """
        write_symbol_table(kernel, list_offset, self.symbols)
        return {
            # It prints 48 of an address's 64 bits.
            row["Name"]: (row["Base"] | 0xFFFF_0000_0000_0000, row["Size"])
            for row in self.run(dump, "windows.modules")
        }

    def _readable(self, dump: Path) -> Path:
        """The dump, or where its type is 6 a copy that says 5.

        A bitmap kernel dump (6) is laid out as a bitmap full dump (5), but volatility3 2.28 looks
        for 5 only (its pull request 1990 adds 6).
        """
        with dump.open("rb") as file:
            file.seek(_DUMP_TYPE)
            if file.read(4) != struct.pack("<I", 6):
                return dump
        self.cache.mkdir(parents=True, exist_ok=True)
        copy = Path(shutil.copyfile(dump, self.cache / f"{dump.name}.type5"))
        with copy.open("r+b") as file:
            file.seek(_DUMP_TYPE)
            file.write(struct.pack("<I", 5))
        return copy
