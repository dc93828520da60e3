"""Culprits, buckets and families, from stacks written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashdump_analysis import DumpError
from crashdump_analysis.blame import blame
from crashdump_analysis.bucket import failure_bucket_id, failure_id_hash
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.family import LEAF, Family, Place, family_of, source_name
from crashdump_analysis.owners import OWNERS, Owners, owners_with, read_owner_file, read_owners
from crashdump_analysis.report import Culprit, StackFrame


def stack_of(*names: str) -> list[StackFrame]:
    """Frames from "module!function", "module", "?" (no module); "~" before one marks a guess.

    A frame written "module!function^" shares the next one's addresses: it is inlined there.
    """
    frames = []
    physical = 0
    for name in names:
        module, _, function = name.strip("~^").partition("!")
        inline = name.endswith("^")
        frames.append(
            StackFrame(
                None if module == "?" else module,
                function or None,
                None,
                None,
                None if inline else 0x10,
                0xFFFFF80000000000 + physical,
                0xFFFFAB0000000000 + physical,
                inline,
                trapped=False,
                guess=name.startswith("~"),
            )
        )
        physical += not inline
    return frames


def culprit_of(*names: str, fault: int = 0) -> tuple[str | None, str | None, str]:
    culprit, _ = blame(stack_of(*names), fault, read_owners(), fault="faulted" if fault else "")
    return culprit.module, culprit.function, culprit.confidence


@pytest.mark.parametrize(
    ("names", "fault", "expected"),
    [
        # 0x50 and 0xD1: the fault's own frame
        (
            ["nt!KeBugCheckEx", "nt!MiSystemFault", "nt!KiPageFault", "sensor!Read", "nt!Call"],
            3,
            ("sensor", "Read", "high"),
        ),
        # The fault is in the kernel, on the driver's behalf.
        (
            ["nt!KeBugCheckEx", "nt!KiPageFault", "nt!RtlCopyMemory", "sensor!Read", "nt!Call"],
            2,
            ("sensor", "Read", "medium"),
        ),
        # A bug check of the driver's own.
        (["nt!KeBugCheckEx", "sensor!Stop", "nt!Call"], 0, ("sensor", "Stop", "medium")),
        # Network and filter libraries give way to whoever is further down.
        (
            ["nt!KeBugCheckEx", "ndis!Indicate", "fltmgr!Perform", "wan!Receive", "ndis!Call"],
            0,
            ("wan", "Receive", "medium"),
        ),
        # and are blamed where nobody else is.
        (["nt!KeBugCheckEx", "ndis!Indicate", "ndis!Call"], 0, ("ndis", "Indicate", "low")),
        (["nt!KeBugCheckEx", "nt!PspThreadDelete"], 0, ("nt", "PspThreadDelete", "low")),
        # A recorder of traces gives way to the driver that traces.
        (["wpprecorder!Log", "sensor!Trace", "nt!Call"], 0, ("sensor", "Trace", "medium")),
        # "maybe" gives way, too, but not to "last".
        (["mssecflt!Scan", "nt!Call"], 0, ("mssecflt", "Scan", "low")),
        (["mssecflt!Scan", "other!Call"], 0, ("other", "Call", "medium")),
        # The compiler's helpers: their caller is meant.
        (
            ["nt!KeBugCheckEx", "sensor!__report_gsfailure", "sensor!Parse"],
            0,
            ("sensor", "Parse", "medium"),
        ),
        # A wild jump.
        (["nt!KeBugCheckEx", "?", "sensor!Dispatch"], 1, ("sensor", "Dispatch", "high")),
        # Guessed frames.
        (["nt!KeBugCheckEx", "~sensor", "~nt!Call"], 0, ("sensor", None, "low")),
        (["nt!KeBugCheckEx", "nt!KiPageFault"], 0, (None, None, "none")),
        ([], 0, (None, None, "none")),
    ],
)
def test_culprits(
    names: list[str], fault: int, expected: tuple[str | None, str | None, str]
) -> None:
    assert culprit_of(*names, fault=fault) == expected


def test_reasons_say_what_is_on_the_stack_and_what_is_guessed() -> None:
    for names, guessed in ((["mssecflt!Scan", "nt!Call"], False), (["~tcpip", "~nt"], True)):
        culprit, _ = blame(stack_of(*names), 0, read_owners())
        assert culprit.reason.startswith("only parts of Windows are on the stack")
        assert ("by a guess" in culprit.reason) == guessed


def test_an_inlined_function_at_the_fault_is_the_culprit() -> None:
    found = culprit_of("nt!KiPageFault", "sensor!Inner^", "sensor!Outer", fault=1)
    assert found == ("sensor", "Inner", "high")


def test_an_ignored_helper_inlined_at_the_fault_is_skipped() -> None:
    found = culprit_of("nt!KiPageFault", "sensor!memcpy^", "sensor!Outer", fault=1)
    assert found == ("sensor", "Outer", "high")


def owners(tmp_path: Path, text: str) -> Owners:
    path = tmp_path / "owners.ini"
    path.write_text(text)
    return read_owner_file(path)


def test_the_more_complete_rule_wins(tmp_path: Path) -> None:
    rules = owners(
        tmp_path,
        "a*=prefix\nabc=module\nabc!F*=functions\nabc!Foo=function\nab*!Foo=far\ndefault=nobody\n",
    )
    assert rules.of("abc", "Foo") == "function"
    assert rules.of("ABC", "FooBar") == "functions"
    assert rules.of("abc", "Other") == "module"
    assert rules.of("abc", None) == "module"
    assert rules.of("abd", "Foo") == "far"
    assert rules.of("abd", "Bar") == "prefix"
    assert rules.of("xyz", "Foo") == "nobody"


def test_a_labs_rules_win_over_equally_complete_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "first.ini", tmp_path / "second.ini"
    first.write_text("fltmgr=ours\nsensor*=our_drivers\nsensor!Log=ignore\n")
    second.write_text("fltmgr=theirs\nndis=theirs\ndefault=theirs\n")
    rules = owners_with([first, str(second)])
    assert (rules.of("fltmgr", "FltpX"), rules.of("ndis", None)) == ("ours", "theirs")
    assert (rules.of("sensor2", "Run"), rules.of("sensor", "Log")) == ("our_drivers", "ignore")
    assert rules.of("sensor", "memcpy") == "ignore"  # the more complete one
    assert rules.of("anything", None) == "theirs"
    assert read_owners().of("fltmgr", None) == "last_filter_manager"
    culprit = blame(stack_of("sensor!Log", "sensor!Run"), 0, rules)[0]
    assert (culprit.function, culprit.owner) == ("Run", "our_drivers")


def test_owner_rules_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "owners.ini"
    with pytest.raises(FileNotFoundError):
        owners_with([path])
    path.write_bytes(b"sensor=\xff\xfe\n")
    with pytest.raises(DumpError, match="UTF-8"):
        owners_with([path])


def test_evidence_decides_before_the_stack_or_makes_it_less_sure() -> None:
    stack = stack_of("nt!KeBugCheckEx", "sensor!memcpy", "sensor!Run", "other!Call")
    named = Evidence(("seen",), "other", "other.sys", "because", "high")
    culprit, frame = blame(stack, 0, read_owners(), evidence=named)
    assert culprit == Culprit(
        "other", "Call", None, None, "because", "high", "MachineOwner", ("seen",)
    )
    assert frame == 3
    culprit, frame = blame(stack, 0, read_owners(), evidence=Evidence(module="absent"))
    assert (culprit.module, culprit.function, frame) == ("absent", None, None)
    own = Evidence(module="sensor")
    assert blame(stack, 0, read_owners(), evidence=own)[0].function == "Run"
    # A guess says nothing of the function: the module is known, and no more.
    culprit, frame = blame(stack_of("~sensor!Old"), 0, read_owners(), evidence=own)
    assert (culprit.module, culprit.function, frame) == ("sensor", None, None)
    elsewhere = Evidence(module="sensor", elsewhere=True)
    assert blame(stack, 0, read_owners(), evidence=elsewhere)[1] is None
    doubtful = Evidence(("seen",), at_most="low", doubt="perhaps not")
    culprit, _ = blame(stack, 0, read_owners(), evidence=doubtful)
    assert (culprit.module, culprit.confidence) == ("sensor", "low")
    assert culprit.reason.endswith("; perhaps not")
    nobody = Evidence(("seen",), no_culprit="hardware")
    culprit, frame = blame(stack, 0, read_owners(), no_culprit="other", evidence=nobody)
    assert (culprit.module, culprit.reason, culprit.evidence) == (None, "hardware", ("seen",))


def test_comments_and_empty_lines(tmp_path: Path) -> None:
    rules = owners(tmp_path, "; nothing\n\nabc=me ; said here\n")
    assert rules.of("abc", None) == "me"
    assert rules.of("xyz", None) == "MachineOwner"


@pytest.mark.parametrize("line", ["abc", "=me", "abc=", "a*c=me", "abc!F*o=me", "!F=me", "abc!=me"])
def test_a_wrong_rule_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(DumpError, match=r"owners\.ini line 2"):
        owners(tmp_path, f"abc=me\n{line}\n")


def test_the_rules_that_come_along_are_readable() -> None:
    rules = read_owners()
    assert rules.rules == read_owner_file(OWNERS).rules
    assert rules.of("nt", "KeBugCheckEx") == "ignore"
    assert rules.of("NT", "KeBugCheckEx") == "ignore"
    assert rules.of("nt", "KeSetEvent").startswith("last_")
    assert rules.of("sensor", None) == "MachineOwner"
    assert rules.of("anything", "memcpy") == "ignore"


# Published by WinDbg in !analyze output.
PUBLISHED = {
    "AV_myfault!unknown_function": "9745090a-9bce-ccba-c096-ca6e9ca04c64",
    "AV_tunnel!TeredoWfpRemoveHashEntry": "ed81a04d-9dd2-aa51-bc2a-d6f45f90b7a5",
    "0x19_22_Driver!unknown_function": "13274a29-c6c5-4e24-cb5a-0988e703af11",
    "0x139_1d_INVALID_BALANCED_TREE_Driver!unknown_function": (
        "8ebd2998-ea64-b96c-aae8-2108d8c92247"
    ),
    "0x13C_nt!PspThreadDelete": "6fe88179-1572-f8e2-aeff-cd9c600ecf3a",
    "0x39_nt!IopLoadUnloadDriver": "040db381-bc8d-17b6-aa75-a2fbc31557a4",
    "AV_fileinfo!FIPfFileFSOpPostCreate": "b4048e5d-9388-9a34-9958-ec36d87bbe12",
    "0xCA_13_nt!PiDmaGuardProcessPreStart": "b367b2d8-0cc5-f3e0-e733-3787841dcdd2",
    "0x5A_c0000428_IMAGE_filecrypt.sys": "35f25777-b01e-70a1-c502-f690dab6cb3a",
    "0x116_IMAGE_nvlddmkm.sys": "c89bfe8c-ed39-f658-ef27-f2898997fdbd",
    "LKD_0x117_IMAGE_igdkmd64.sys": "df5cc292-6e03-34f8-7849-e22c43f13df4",
    "0x124_16_GenuineIntel__UNKNOWN_IMAGE_GenuineIntel.sys": "37af9407-4a3e-0b08-acdd-dadffdc34c3c",
    "AV_nt!KiDeferredReadySingleThread": "626f59d5-90cc-ab48-85f0-60e170096c96",
    "AV_ndis!ndisQueueIoWorkItem": "10686423-afa1-4852-ad1b-9324ac44ac96",
    "0x1E_c0000005_R_nt!CmpCreateKeyBody": "c4b33015-e33f-270e-d1a4-e4a9a8d630df",
    "0xD5_VRF_win32k!hbmSelectBitmap+ca": "c18afd13-ae34-094e-a35a-2fa69da06b7c",
    "X64_0x7E_man+1ce7": "ceed7a1b-a47b-c452-63c1-012e444d5204",
    "AV_OVSExt!OvsWaitEventIoctl": "07550bfb-c3b5-0412-b95d-f89a5c4671a9",
    "0x9F_4_OpenZFS!zfs_unload_stage_1": "fc14382a-d6c3-0a9c-a179-67f499258f81",
}


@pytest.mark.parametrize(("name", "value"), PUBLISHED.items())
def test_published_hashes(name: str, value: str) -> None:
    assert failure_id_hash(name) == value


def test_a_published_hash_of_user_mode() -> None:
    name = "INVALID_POINTER_READ_c0000005_AccessV.exe!main"
    assert failure_id_hash(name, user_mode=True) == "06a63211-3ee0-9330-318a-a8218924c64e"


def bucket_of(
    code: int,
    first: int,
    *names: str,
    others: tuple[int, int, int] = (0, 0, 0),
    evidence: Evidence | None = None,
    **known: Any,
) -> str:
    stack = stack_of(*names)
    culprit, frame = blame(stack, 0, read_owners(), evidence=evidence)
    return failure_bucket_id(
        code,
        (first, *others),
        culprit=culprit,
        stack=stack,
        frame=frame,
        evidence=evidence,
        **known,
    )


@pytest.mark.parametrize(
    ("code", "first", "names", "expected"),
    [
        (0xD1, 1, ["myfault"], "AV_myfault!unknown_function"),
        (0xD1, 1, ["tunnel!TeredoWfpRemoveHashEntry"], "AV_tunnel!TeredoWfpRemoveHashEntry"),
        (0x19, 0x22, ["Driver"], "0x19_22_Driver!unknown_function"),
        (0x139, 0x1D, ["Driver"], "0x139_1d_INVALID_BALANCED_TREE_Driver!unknown_function"),
        (0x13C, 1, ["nt!PspThreadDelete"], "0x13C_nt!PspThreadDelete"),
        (
            *(0xCA, 0x13, ["nt!PiDmaGuardProcessPreStart"]),
            "0xCA_13_nt!PiDmaGuardProcessPreStart",
        ),
        (0x0A, 1, ["nt!KiDeferredReadySingleThread"], "AV_nt!KiDeferredReadySingleThread"),
        (0xD1, 1, ["ndis!ndisQueueIoWorkItem"], "AV_ndis!ndisQueueIoWorkItem"),
        (0x9F, 4, ["OpenZFS!zfs_unload_stage_1"], "0x9F_4_OpenZFS!zfs_unload_stage_1"),
        (0x39, 1, ["nt!IopLoadUnloadDriver"], "0x39_nt!IopLoadUnloadDriver"),
        (
            0x7E,
            0xFFFFFFFFC0000005,
            ["fileinfo!FIPfFileFSOpPostCreate"],
            "AV_fileinfo!FIPfFileFSOpPostCreate",
        ),
    ],
)
def test_published_buckets(code: int, first: int, names: list[str], expected: str) -> None:
    assert bucket_of(code, first, *names) == expected
    assert expected in PUBLISHED


@pytest.mark.parametrize(
    ("code", "first", "others", "expected"),
    [
        (0x50, 1, (0, 0, 2), "AV_R_INVALID_csagent!unknown_function"),
        (0x50, 1, (2, 0, 0), "AV_W_(null)_csagent!unknown_function"),
        (0x50, 1, (1, 0, 7), "AV_W_csagent!unknown_function"),
        (0x50, 1, (3, 0, 7), "AV_W_csagent!unknown_function"),
        # The debugger's letter for an execution is not known; a read or a write it is not.
        (0x50, 1, (0x10, 0, 7), "AV_csagent!unknown_function"),
        (0x50, 1, (0x11, 0, 7), "AV_csagent!unknown_function"),
        (0x133, 0, (0, 0, 0), "0x133_DPC_csagent!unknown_function"),
        (0x133, 1, (0, 0, 0), "0x133_ISR_csagent!unknown_function"),
        (0x9F, 3, (0, 0, 0), "0x9F_3_csagent!unknown_function"),
        (0x3B, 0xC0000094, (0, 0, 0), "0x3B_c0000094_csagent!unknown_function"),
        (0xEF, 0, (0, 0, 0), "0xEF_csagent!unknown_function"),
    ],
)
def test_heads_of_buckets(
    code: int, first: int, others: tuple[int, int, int], expected: str
) -> None:
    assert bucket_of(code, first, "csagent", others=others) == expected


# Published buckets whose hashes were not seen.
@pytest.mark.parametrize(
    ("code", "first", "names", "known", "expected"),
    [
        (0x133, 0, ["npcap!NPF_ObjectPoolReturn"], {}, "0x133_DPC_npcap!NPF_ObjectPoolReturn"),
        (0x13A, 0x12, ["Driver!CreateRandomFile"], {}, "0x13a_12_Driver!CreateRandomFile"),
        (0x139, 3, ["nt!KiFast"], {}, "0x139_3_CORRUPT_LIST_ENTRY_nt!KiFast"),
        (0xD5, 1, ["win32k!hbmSelectBitmap"], {}, "0xD5_VRF_win32k!hbmSelectBitmap"),
        (
            *(0xC4, 0x20004, ["MyDriver!OnInterrupt"]),
            {"evidence": Evidence(detail="IrqlExApcLte1_XDV")},
            "0xc4_IrqlExApcLte1_XDV_VRF_MyDriver!OnInterrupt",
        ),
        (
            *(0x4A, 1, ["nt!KiSystemServiceExitPico"], {"process": "notmyfault64.exe"}),
            "RAISED_IRQL_FAULT_notmyfault64.e_nt!KiSystemServiceExitPico",
        ),
        (
            *(0x9F, 3, []),
            {"evidence": Evidence(module="usbccgp", image="UsbHub3.sys", detail="usbccgp")},
            "0x9F_3_usbccgp_IMAGE_UsbHub3.sys",
        ),
        (0x116, 1, [], {"evidence": Evidence(module="nv", image="nv.sys")}, "0x116_IMAGE_nv.sys"),
        (
            *(0x141, 1, [], {"live": True, "evidence": Evidence(module="nvlddmkm")}),
            "LKD_0x141_IMAGE_nvlddmkm",
        ),
        (
            *(0x117, 1, []),
            {"live": True, "evidence": Evidence(module="igdkmd64", image="igdkmd64.sys")},
            "LKD_0x117_IMAGE_igdkmd64.sys",
        ),
        (
            *(0x124, 16, [], {"vendor": "GenuineIntel", "evidence": Evidence(no_culprit="it is")}),
            "0x124_16_GenuineIntel__UNKNOWN_IMAGE_GenuineIntel.sys",
        ),
        (0x0A, 1, ["nt!VfBuild", "sensor!Lock"], {}, "AV_VRF_sensor!Lock"),
    ],
)
def test_variants_of_buckets(
    code: int, first: int, names: list[str], known: dict[str, Any], expected: str
) -> None:
    assert bucket_of(code, first, *names, **known) == expected


def test_code_that_was_paged_out() -> None:
    where = 0xFFFFF80000001000
    found = bucket_of(0xD1, where, "sensor!Run", others=(2, 8, where))
    assert found == "AV_CODE_AV_PAGED_IP_sensor!Run"
    assert bucket_of(0xD1, where, "sensor!Run", others=(2, 0, where)) == "AV_sensor!Run"


def families_of(
    *names: str,
    code: int = 0xD1,
    first: int = 0xC0000005,
    place_of: Callable[[StackFrame], Place] = lambda _: Place(),
    build: str = "669A00006000",
    own_bug_check: bool = False,
) -> Family:
    stack, rules = stack_of(*names), read_owners()
    culprit, frame = blame(stack, 0, rules)
    return family_of(
        code,
        (first, 0, 0, 0),
        culprit=culprit,
        stack=stack,
        frame=frame,
        owners=rules,
        place_of=place_of,
        build=build,
        own_bug_check=own_bug_check,
    )


def family(*names: str, code: int = 0xD1) -> str:
    found = families_of(*names, code=code)
    assert found.basis in ("functions", "bug check", "guess")
    return found.key


PLAIN = ("nt!KiPageFault", "sensor!Match", "sensor!Evaluate", "sensor!Run", "sensor!Main", "nt!T")


def test_a_family_is_the_same_for_each_face_of_a_bug() -> None:
    expected = "sensor!Match < Evaluate < Run"
    assert family(*PLAIN) == expected
    for code in (0x50, 0x7E, 0x0A, 0x3B):
        assert family(*PLAIN, code=code) == expected
    inlined = ("nt!KiPageFault", "sensor!Match^", "sensor!Evaluate^", "sensor!Run", "sensor!Main")
    assert family(*inlined) == expected
    assert family("nt!KiPageFault", *(one.replace("sensor", "SENSOR") for one in PLAIN)) == expected
    # Through a helper, and deeper in a recursion.
    assert family("nt!RtlCompareMemory", "sensor!memcmp", *PLAIN[1:]) == expected
    assert family("sensor!Match", "sensor!Match", "sensor!Match", *PLAIN[2:]) == expected
    # A part that the compiler moved away, a handler, a clone.
    for name in ("Match.cold.1", "Match$fin$0", "Match.constprop.0", "Match.part.0.cold"):
        assert family(f"sensor!{name}", *PLAIN[2:]) == expected


def test_families_of_different_bugs_differ() -> None:
    names = {
        family(*PLAIN),
        family("sensor!Match", "sensor!Other", "sensor!Run"),
        family("sensor!Other", "sensor!Evaluate", "sensor!Run"),
        family("other!Match", "other!Evaluate", "other!Run"),
        family("sensor!Match", "nt!Call", "sensor!Evaluate", "sensor!Run"),
        family(code=0xE2),
        family(code=0x80),
    }
    assert len(names) == 7


def test_without_names_and_shapes_a_family_holds_for_one_build() -> None:
    stack = ("sensor", "sensor", "nt")

    def of(build: str, *starts: int | None) -> Family:
        following = iter(starts)
        return families_of(*stack, build=build, place_of=lambda _: Place(next(following)))

    found = of("B1", 0x1000, 0x2000, None)
    assert found.key == "sensor!+1000 < +2000 of build B1"
    assert (found.frames, found.basis) == (("+1000", "+2000"), "places")
    assert of("B2", 0x1000, 0x2000, None).key != found.key
    assert of("B1", None, None, None).key == "sensor!+10 of build B1"  # the frames' offsets


def test_without_names_shapes_hold_across_builds() -> None:
    def of(build: str, start: int, *shapes: str | None) -> Family:
        following = iter(shapes)
        return families_of(
            *("sensor", "sensor", "sensor!Main", "nt"),
            build=build,
            place_of=lambda _: Place(start, next(following)),
        )

    found = of("B1", 0x1000, "aa", "bb")
    assert (found.key, found.basis) == ("sensor!~aa < ~bb < Main", "shapes")
    assert of("B2", 0x3000, "aa", "bb").key == found.key
    assert of("B1", 0x1000, "aa", "cc").key != found.key
    mixed = of("B1", 0x1000, "aa", None)
    assert (mixed.key, mixed.basis) == ("sensor!~aa < +1000 < Main of build B1", "places")


def test_a_leaf_alone_is_no_shape() -> None:
    found = families_of("sensor", "nt", place_of=lambda _: Place(None, LEAF), build="B1")
    assert (found.key, found.basis) == ("sensor!+10 of build B1", "places")
    places = iter([Place(None, LEAF), Place(0x1000, "aa")])
    found = families_of("sensor", "sensor", "nt", place_of=lambda _: next(places))
    assert (found.key, found.basis) == ("sensor!~leaf < ~aa", "shapes")


def test_a_drivers_own_bug_check_is_its_family() -> None:
    own = families_of("driver", code=0xA0000001, first=5, own_bug_check=True)
    assert (own.key, own.basis) == ("driver raises 0xA0000001 (5)", "own bug check")
    other = families_of("driver", code=0xA0000001, first=6, own_bug_check=True)
    assert other.key != own.key
    # A first parameter that may be an address tells no kinds apart.
    for first in (0xFFFFF80000001000, 0xFFFFF80000002000):
        found = families_of("driver", code=0xA0000001, first=first, own_bug_check=True)
        assert found.key == "driver raises 0xA0000001"
    named = families_of("driver!Stop", code=0xA0000001, first=5, own_bug_check=True)
    assert named.key == "driver!Stop"


def test_guessed_frames_are_no_part_of_a_family() -> None:
    assert family("sensor!Match", "~sensor!Evaluate") == "sensor!Match"
    assert family("~sensor!Match", "~sensor!Evaluate") == "sensor!Match"
    assert families_of("sensor!Match", "~sensor!Evaluate").basis == "functions"
    # What begins with one says so, and is not taken for what holds across builds.
    assert families_of("nt!KeBugCheckEx", "~sensor!Match").basis == "guess"
    assert families_of("nt!KeBugCheckEx", "~sensor").basis == "guess"


def test_source_names() -> None:
    for name in ("Match", "A::B<int>::C", "operator()", "cold", "x.colder"):
        assert source_name(name) == name
