"""From a stack to a culprit, a bucket and a family: the same for every engine's stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crashdump_analysis.blame import blame
from crashdump_analysis.bucket import failure_bucket_id, failure_id_hash
from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import find_evidence
from crashdump_analysis.bugchecks.faults import Crash, Fault
from crashdump_analysis.family import Place, family_of, place_in
from crashdump_analysis.modules import Module
from crashdump_analysis.owners import Owners
from crashdump_analysis.report import Bucket, Culprit, StackFrame
from crashdump_analysis.unwind import ImageAt


@dataclass(frozen=True)
class Judgement:
    """Who is at fault, and which crashes this one belongs with."""

    culprit: Culprit
    bucket: Bucket


def judge(
    crash: Crash,
    description: Description,
    fault: Fault | None,
    stack: Sequence[StackFrame],
    *,
    start: int,
    owners: Owners,
    image_at: ImageAt,
    build_of: Callable[[Module], str],
    process: str = "",
    vendor: str = "",
) -> Judgement:
    """Judges a crash.

    start: index in the stack of the frame at fault, or of the first. image_at: unwind data, asked
    only where functions have no names. build_of: what tells builds of a module apart. process and
    vendor: names of the current process and of the processor's maker, empty where not known.
    """
    evidence = find_evidence(crash, description, fault)
    culprit, frame = blame(
        stack,
        start,
        owners,
        no_culprit=description.no_culprit,
        fault=fault.event if fault else "",
        evidence=evidence,
    )
    module = crash.modules.named(culprit.module) if culprit.module else None

    def place_of(one: StackFrame) -> Place:
        address = one.instruction - (not one.trapped)
        found = image_at(address)
        return place_in(found[0], address - found[1]) if found else Place()

    family = family_of(
        crash.code,
        crash.parameters,
        culprit=culprit,
        stack=stack,
        frame=frame,
        owners=owners,
        place_of=place_of,
        build=build_of(module) if module else "unknown",
        own_bug_check=not description.known
        and evidence is not None
        and evidence.module == culprit.module,
    )
    bucket_id = failure_bucket_id(
        crash.code,
        crash.parameters,
        culprit=culprit,
        stack=stack,
        frame=frame,
        evidence=evidence,
        live=description.live and (crash.went_on or "LIVE" in description.name),
        image=module.image if module else "",
        process=process,
        vendor=vendor,
    )
    bucket = Bucket(bucket_id, failure_id_hash(bucket_id), family.key, family.frames, family.basis)
    return Judgement(culprit, bucket)
