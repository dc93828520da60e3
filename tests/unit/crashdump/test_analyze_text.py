"""`!analyze -v` output as others have published it, down to the fields that are read."""

from __future__ import annotations

import json

import jsonschema
import pytest

from crashdump_analysis.bucket import failure_id_hash
from crashdump_analysis.engines.analyze import Analyze, is_missing, parse
from crashdump_analysis.report import SCHEMA

# From Microsoft's "Using the !analyze extension", CC-BY-4.0 (windows-driver-docs).
MICROSOFT = """\
*******************************************************************************
*                                                                             *
*                        Bugcheck Analysis                                    *
*                                                                             *
*******************************************************************************

DRIVER_IRQL_NOT_LESS_OR_EQUAL (d1)
Arguments:
Arg1: 00000004, memory referenced

BUGCHECK_STR:  0xD1

FOLLOWUP_IP:
USBPORT!USBPORT_BadRequestFlush+7c
f832035c 894204           mov     [edx+0x4],eax

FOLLOWUP_NAME:  usbtri

SYMBOL_NAME:  USBPORT!USBPORT_BadRequestFlush+7c

MODULE_NAME:  USBPORT

IMAGE_NAME:  USBPORT.SYS

BUCKET_ID:  0xD1_W_USBPORT!USBPORT_BadRequestFlush+7c

Followup: usbtri
---------
"""

# The fields of a debugger of 2023, from DebugPrivilege/InsightEngineering on bug check 0x13A.
NEW = """\
*                        Bugcheck Analysis                                    *

KEY_VALUES_STRING: 1

    Key  : Failure.Bucket
    Value: 0x13a_12_Driver!CreateRandomFile

SYMBOL_NAME:  Driver!CreateRandomFile+13b

MODULE_NAME: Driver

IMAGE_NAME:  Driver.sys

BUCKET_ID_FUNC_OFFSET:  13b

FAILURE_BUCKET_ID:  0x13a_12_Driver!CreateRandomFile

FAILURE_ID_HASH:  {ea91b8db-b8d2-b485-3fb8-7116e18cbc08}

Followup:     MachineOwner
---------
"""

# And of one of 2017, posted to a mailing list about KVM; it has both bucket fields.
OLD = """\
*                        Bugcheck Analysis                                    *

FOLLOWUP_NAME:  MachineOwner
SYMBOL_NAME:  nt!InitBootProcessor+12a
MODULE_NAME: nt
IMAGE_NAME:  ntkrnlmp.exe
FAILURE_BUCKET_ID:  X64_0x5C_HAL_CLOCK_INTERRUPT_NOT_RECEIVED_nt!InitBootProcessor+12a
BUCKET_ID:  X64_0x5C_HAL_CLOCK_INTERRUPT_NOT_RECEIVED_nt!InitBootProcessor+12a
FAILURE_ID_HASH_STRING:  km:x64_0x5c_hal_clock_interrupt_not_received_nt!initbootprocessor+12a
FAILURE_ID_HASH:  {829a944d-7639-05f1-a55f-2677354a890e}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            MICROSOFT,
            (
                *("0xD1_W_USBPORT!USBPORT_BadRequestFlush+7c", None, "USBPORT.SYS", "USBPORT"),
                *("USBPORT!USBPORT_BadRequestFlush+7c", "usbtri"),
            ),
        ),
        (
            NEW,
            (
                *("0x13a_12_Driver!CreateRandomFile", "ea91b8db-b8d2-b485-3fb8-7116e18cbc08"),
                *("Driver.sys", "Driver", "Driver!CreateRandomFile+13b", "MachineOwner"),
            ),
        ),
        (
            OLD,
            (
                "X64_0x5C_HAL_CLOCK_INTERRUPT_NOT_RECEIVED_nt!InitBootProcessor+12a",
                *("829a944d-7639-05f1-a55f-2677354a890e", "ntkrnlmp.exe", "nt"),
                *("nt!InitBootProcessor+12a", "MachineOwner"),
            ),
        ),
        ("", (None,) * 6),
        ("FAILURE_ID_HASH:  rubbish\nIMAGE_NAME:\n", (None,) * 6),
    ],
    ids=["microsoft", "new", "old", "nothing", "rubbish"],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_fields(text: str, expected: tuple[str | None, ...], line_end: str) -> None:
    text = text.replace("\n", line_end)
    found = parse(text)
    assert found == Analyze(text, *expected)
    if found.bucket_id and found.bucket_hash:
        assert failure_id_hash(found.bucket_id) == found.bucket_hash
    schema = json.loads(SCHEMA.read_text())["properties"]["analyze"]
    jsonschema.validate({**vars(found)}, schema)


def test_a_field_is_taken_once_and_only_from_the_start_of_a_line() -> None:
    text = "MODULE_NAME: first\n    MODULE_NAME: inner\nMODULE_NAME: second\n"
    assert parse(text).module_name == "first"


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        # What the engine in pykd's wheel prints, which has no ext.dll.
        ('The call to LoadLibrary(ext) failed, Win32 error 0n2\n    "The system ..."\n', True),
        ("No export analyze found\n", True),
        (MICROSOFT, False),
        # A driver's missing symbols are no missing extension.
        (NEW + "Unable to load image Driver.sys, Win32 error 0n2\n", False),
    ],
)
def test_missing_extension(text: str, *, missing: bool) -> None:
    assert is_missing(text) is missing
