"""A symbol table for volatility3 (its ISF format) with what listing a kernel's modules takes.

volatility3 makes such tables from a PDB's type stream, but its converter stops at records clang
writes (LF_NESTTYPE). So this one is made from public knowledge instead: the offsets are those of
64-bit Windows 10 (wdm.h, winternl.h, published loader structures), not those of any kernel at
hand. A kernel whose lists volatility3 can walk with it has Windows' layout.
"""

from __future__ import annotations

import json
import lzma
import uuid
from pathlib import Path
from typing import Any

import pefile

# Types that volatility3 attaches its own classes to, and so wants to exist in every table.
_WANTED = (
    "_CMHIVE _CM_KEY_BODY _CM_KEY_NODE _CM_KEY_VALUE _CONTROL_AREA _DEVICE_OBJECT _DRIVER_OBJECT "
    "_EPROCESS _ERESOURCE _ETHREAD _EX_FAST_REF _FILE_OBJECT _HMAP_ENTRY _IMAGE_DOS_HEADER "
    "_KMUTANT _KSYSTEM_TIME _KTHREAD _KTIMER _MMVAD _MMVAD_SHORT _OBJECT_HEADER "
    "_OBJECT_SYMBOLIC_LINK _POOL_HEADER _POOL_TRACKER_BIG_PAGES _SHARED_CACHE_MAP _TOKEN _VACB"
)
_INTEGERS = {"unsigned short": 2, "unsigned long": 4, "unsigned long long": 8, "wchar": 2}


def _base(name: str) -> dict[str, Any]:
    return {"kind": "base", "name": name}


def _pointer(to: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "pointer", "subtype": to}


def _struct(name: str) -> dict[str, Any]:
    return {"kind": "struct", "name": name}


def _type(size: int, **fields: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "struct",
        "size": size,
        "fields": {
            name: {"offset": offset, "type": kind} for name, (offset, kind) in fields.items()
        },
    }


def write_symbol_table(kernel: Path, ps_loaded_module_list: int, folder: Path) -> Path:
    """Writes the table for a kernel image and gives its path below volatility3's symbol folder.

    `ps_loaded_module_list` is in bytes from the image's base. volatility3 finds the table by the
    GUID, age and PDB name that the image's debug directory bears, here and in the dump.
    """
    with pefile.PE(str(kernel)) as image:
        (debug,) = (
            entry.entry
            for entry in image.DIRECTORY_ENTRY_DEBUG
            if entry.entry and hasattr(entry.entry, "PdbFileName")
        )
        guid = uuid.UUID(
            fields=(
                debug.Signature_Data1,
                debug.Signature_Data2,
                debug.Signature_Data3,
                debug.Signature_Data4,
                debug.Signature_Data5,
                int.from_bytes(debug.Signature_Data6, "big"),
            )
        ).hex.upper()
        pdb = str(debug.PdbFileName.rstrip(b"\0").decode())
        age = int(debug.Age)
    link = _pointer(_struct("_LIST_ENTRY"))
    byte_pointer = _pointer(_base("void"))
    table = {
        "metadata": {
            "format": "6.1.0",
            "producer": {"name": "bugcheck-lab", "version": "1", "datetime": "2024-01-01T00:00:00"},
            "windows": {"pdb": {"GUID": guid, "age": age, "database": pdb, "machine_type": 0x8664}},
        },
        "base_types": {
            name: {"kind": "int", "size": size, "signed": False, "endian": "little"}
            for name, size in _INTEGERS.items()
        }
        | {
            "pointer": {"kind": "int", "size": 8, "signed": False, "endian": "little"},
            "void": {"kind": "void", "size": 0, "signed": False, "endian": "little"},
        },
        "user_types": {name: _type(8) for name in _WANTED.split()}
        | {
            "_LIST_ENTRY": _type(16, Flink=(0, link), Blink=(8, link)),
            "_UNICODE_STRING": _type(
                16,
                Length=(0, _base("unsigned short")),
                MaximumLength=(2, _base("unsigned short")),
                Buffer=(8, _pointer(_base("unsigned short"))),
            ),
            "_LDR_DATA_TABLE_ENTRY": _type(
                0xA0,
                InLoadOrderLinks=(0, _struct("_LIST_ENTRY")),
                DllBase=(0x30, byte_pointer),
                EntryPoint=(0x38, byte_pointer),
                SizeOfImage=(0x40, _base("unsigned long")),
                FullDllName=(0x48, _struct("_UNICODE_STRING")),
                BaseDllName=(0x58, _struct("_UNICODE_STRING")),
            ),
        },
        "enums": {},
        "symbols": {"PsLoadedModuleList": {"address": ps_loaded_module_list}},
    }
    target = folder / "windows" / pdb / f"{guid}-{age}.json.xz"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress(json.dumps(table).encode()))
    return target
