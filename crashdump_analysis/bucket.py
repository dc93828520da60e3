"""WinDbg's FAILURE_BUCKET_ID and FAILURE_ID_HASH, to find a crash in other people's output.

The grammar, `[LKD_]head[_detail][_VRF]_module!function` or `..._IMAGE_file`, is inferred from
published !analyze output, and debuggers of different years differ. FAILURE_ID_HASH is the MD5 of
"km:" and the bucket in lower case, UTF-16, as a GUID; verified with published pairs.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Final

from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.report import Culprit, StackFrame

_ACCESS_VIOLATION = 0xC0000005
_BY_EXCEPTION = frozenset({0x1E, 0x3B, 0x7E, 0x8E})
_BAD_ADDRESS = frozenset({0x0A, 0xC5, 0xD1})
_EXECUTE: Final = 8
_WRITE, _EXECUTION = 0x3, 0x18  # bits of 0x50's parameter 2: of older Windows and Arm, of newer
_FAST_FAIL: Final = {  # names of winnt.h, less FAST_FAIL_; as buckets have them where seen
    0x2: "MISSING_GSFRAME",
    0x3: "CORRUPT_LIST_ENTRY",
    0x4: "INCORRECT_STACK",
    0x5: "INVALID_ARG",
    0x6: "GS_COOKIE_INIT",
    0x7: "FATAL_APP_EXIT",
    0x8: "RANGE_CHECK_FAILURE",
    0x9: "UNSAFE_REGISTRY_ACCESS",
    0xA: "GUARD_ICALL_CHECK_FAILURE",
    0xB: "GUARD_WRITE_CHECK_FAILURE",
    0xE: "INVALID_REFERENCE_COUNT",
    0x12: "INVALID_JUMP_BUFFER",
    0x15: "INVALID_EXCEPTION_CHAIN",
    0x1D: "INVALID_BALANCED_TREE",
}
_WITH_SUBCODE = frozenset(
    {0x19, 0x1A, 0x9F, 0xA0, 0xC2, 0xC4, 0xC9, 0xCA, 0xE6, 0x10D, 0x119, 0x13A, 0x144}
)
_IN_LOWER_CASE = frozenset({0x1A, 0xC4, 0x13A})  # as published; the others are in capitals
_OF_VERIFIER = frozenset({0xC1, 0xC4, 0xC6, 0xC9, 0xCC, 0xCD, 0xD5, 0xD6, 0xE6})
_VERIFIER_FRAMES = ("verifierext!", "nt!Vf", "nt!Verifier", "nt!ViErrorReport")
_HARDWARE = 0x124
_RAISED_IRQL = 0x4A
_UNKNOWN = "unknown_function"


def failure_id_hash(bucket_id: str, *, user_mode: bool = False) -> str:
    """WinDbg's FAILURE_ID_HASH of a FAILURE_BUCKET_ID."""
    text = ("um:" if user_mode else "km:") + bucket_id
    digest = hashlib.md5(text.lower().encode("utf-16-le"), usedforsecurity=False).digest()
    return str(uuid.UUID(bytes_le=digest))


def failure_bucket_id(
    code: int,
    parameters: Sequence[int],
    *,
    culprit: Culprit,
    stack: Sequence[StackFrame],
    frame: int | None,
    evidence: Evidence | None = None,
    live: bool = False,
    image: str = "",
    process: str = "",
    vendor: str = "",
) -> str:
    """The bucket of a crash whose culprit is the stack's frame of that index.

    live: the dump is of a machine that went on. image: file name of the culprit. process: name of
    the current process. vendor: of the processor, as CPUID has it; all empty where not known.
    """
    evidence = evidence or Evidence()
    if evidence.bucket:
        return evidence.bucket
    if code == _HARDWARE:
        return _hardware(parameters[0], evidence.detail, vendor)
    parts = ["LKD"] if live else []
    parts.append(_head(code, parameters, evidence.detail))
    if code == _RAISED_IRQL and process:
        parts = ["RAISED_IRQL_FAULT", process[:14]]
    elif evidence.detail:
        parts.append(evidence.detail)
    if _verified(code, stack):
        parts.append("VRF")
    if culprit.module is not None and frame is not None:
        parts.append(f"{culprit.module}!{culprit.function or _UNKNOWN}")
    elif culprit.module is not None:
        parts += ["IMAGE", evidence.image or image or culprit.module]
    return "_".join(parts)


def _hardware(source: int, detail: str, vendor: str) -> str:
    parts = [f"0x{_HARDWARE:X}", str(source)]
    if vendor:
        parts.append(vendor)
    parts.append(detail or ("_UNKNOWN" if vendor else "UNKNOWN"))
    return "_".join((*parts, "IMAGE", f"{vendor}.sys") if vendor else parts)


def _verified(code: int, stack: Sequence[StackFrame]) -> bool:
    """Whether Driver Verifier had a hand in it: by the bug check, or seen on the stack."""
    return code in _OF_VERIFIER or any(
        f"{one.module}!{one.function or ''}".startswith(_VERIFIER_FRAMES) for one in stack
    )


def _head(code: int, parameters: Sequence[int], detail: str) -> str:
    """What stands before the module: the kind of the failure."""
    first, second, third, fourth = parameters
    if code == 0x50:
        # No bucket of an execution was seen published.
        access = "" if second & _EXECUTION else "_W" if second & _WRITE else "_R"
        kind = {0x0: "_(null)", 0x2: "_INVALID"}.get(fourth, "")
        return f"AV{access}{kind}"
    if code in _BAD_ADDRESS:
        executed = third == _EXECUTE and first == fourth
        return "AV_CODE_AV_PAGED_IP" if executed else "AV"
    if code in _BY_EXCEPTION:
        exception = first & 0xFFFF_FFFF
        return "AV" if exception == _ACCESS_VIOLATION else f"0x{code:X}_{exception:08x}"
    head = f"0x{code:x}" if code in _IN_LOWER_CASE else f"0x{code:X}"
    return head + _subcode(code, first, detail)


def _subcode(code: int, first: int, detail: str) -> str:
    if code == 0x133:
        return "_ISR" if first == 1 else "_DPC"
    if code == 0x139:
        return f"_{first:x}" + (f"_{_FAST_FAIL[first]}" if first in _FAST_FAIL else "")
    # The name of a rule of Driver Verifier stands for its number.
    return f"_{first:x}" if code in _WITH_SUBCODE and not (code == 0xC4 and detail) else ""
