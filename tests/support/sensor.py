"""The example sensor on a machine, and the ways to crash a machine that the tests go through."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.test_kernel.build import DRIVERS_FOLDER, Driver
from images.test_kernel.registry import RegistryValue, ServiceStart
from tests.support.libvirt import Domain, VirshError

SENSOR = Path(__file__).parents[2] / "examples/sensor"
SENSOR_PATH = rf"{DRIVERS_FOLDER}\sensor.sys"
CONTENT_FOLDER = rf"{DRIVERS_FOLDER}\Sensor"
WITH_THE_BUG = ("a-o2", "a-o0", "a-inlined", "a-shifted")
VARIANTS = (*WITH_THE_BUG, "b-o2")
"""b-o2 has the bounds check; the other three bugs are in it, too."""


def built(variant: str) -> Path:
    """The folder with a variant's sensor.sys and sensor.pdb."""
    return SENSOR / "built" / variant


def sensor_driver(
    variant: str,
    *,
    start: ServiceStart = ServiceStart.BOOT,
    parameters: Mapping[str, RegistryValue] | None = None,
) -> Driver:
    """A variant of the sensor as a driver service."""
    return Driver("sensor", built(variant) / "sensor.sys", start, parameters or {})


def content_files(name: str) -> dict[str, Path]:
    """The sensor's example content of that name, by guest path."""
    return {
        rf"{CONTENT_FOLDER}\{file.name}": file
        for file in sorted((SENSOR / "content" / name).glob("*.sys"))
    }


def load_content(domain: Domain, name: str) -> None:
    """Puts content files into the running machine; the sensor loads them within a second.

    The machine may stop before its agent has closed the file.
    """
    for path, file in content_files(name).items():
        try:
            domain.write_file(path, file.read_bytes())
        except VirshError:
            if domain.agent_answers():
                raise


def loaded_drivers(domain: Domain) -> dict[str, dict[str, str]]:
    """What driverquery says of the loaded images, by module name; keys are its column titles."""
    listed = domain.execute(r"C:\Windows\System32\driverquery.exe", "/v", "/fo", "csv")
    return {row["Module Name"]: row for row in csv.DictReader(listed.output.strip().splitlines())}


@dataclass(frozen=True)
class SourceFunction:
    """One of the sensor's functions: its file, and its lines there."""

    name: str
    file: str
    lines: range


def source_function(name: str) -> SourceFunction:
    """Finds a function of the sensor in its source. Raises LookupError."""
    # A definition starts in the first column and its body ends with a brace there.
    definition = re.compile(rf"^\w[^;{{}}=#]*?\b{name}\([^;{{}}]*?\) \{{\n.*?^\}}", re.M | re.S)
    for file in sorted((SENSOR / "src").glob("*.[ch]")):
        text = file.read_text()
        if found := definition.search(text):
            first, last = (text.count("\n", 0, at) + 1 for at in found.span())
            return SourceFunction(name, file.name, range(first, last + 1))
    raise LookupError(f"no function {name} in the sensor's source")


def source_line(file: str, statement: str) -> int:
    """The number of the one line of a source file that holds `statement`."""
    lines = (SENSOR / "src" / file).read_text().splitlines()
    (number,) = [at for at, line in enumerate(lines, start=1) if statement in line]
    return number


def _by_nmi(domain: Domain) -> None:
    domain.inject_nmi()


def _by_keyboard(domain: Domain) -> None:
    # QEMU presses them in this order and lets them go in the opposite one.
    domain.send_keys("KEY_RIGHTCTRL", "KEY_SCROLLLOCK", "KEY_SCROLLLOCK")


@dataclass(frozen=True)
class CrashKind:
    """A way to crash: by content, or by `trigger` once the agent answers.

    frames: the sensor's functions on the stack, innermost first (examples/sensor/README.md).
    culprit: the source file and statement that the innermost frame is at, where one is known.
    """

    name: str
    stop_code: int
    content: str
    variants: tuple[str, ...]
    trigger: Callable[[Domain], None] | None = None
    frames: tuple[str, ...] = ()
    culprit: tuple[str, str] | None = None


KINDS = {
    kind.name: kind
    for kind in (
        CrashKind(
            "killer",
            0x50,
            "killer",
            WITH_THE_BUG,
            frames=(
                "MatchField",
                "EvaluateInstance",
                "EvaluateTemplate",
                "EvaluateProcess",
                "SensorProcessNotify",
            ),
            culprit=("process.c", "if (Input->Kind == FIELD_NUMBER)"),
        ),
        CrashKind(
            "freed",
            0xD1,
            "freed",
            VARIANTS,
            frames=("SumBuckets", "AgeRateWindow", "AgeRateWindows", "SensorTimerDpc"),
            culprit=("rate.c", "Sum += Buckets[Index]"),
        ),
        CrashKind(
            "exception",
            0x7E,
            "exception",
            VARIANTS,
            frames=(
                "OwnerHasPolicy",
                "EvaluateOwnerInstance",
                "RunOwnerPolicies",
                "SensorWorkerThread",
            ),
            culprit=("owner.c", "return (Owner->PolicyFlags & Flags) == Flags"),
        ),
        CrashKind(
            "hang",
            0x133,
            "hang",
            VARIANTS,
            frames=("ScanBurstInstances", "CountBursts", "EvaluateBursts", "SensorTimerDpc"),
        ),
        CrashKind("nmi", 0x80, "benign", VARIANTS, trigger=_by_nmi),
        CrashKind("keyboard", 0xE2, "benign", VARIANTS, trigger=_by_keyboard),
    )
}
CRASHES = [(kind.name, variant) for kind in KINDS.values() for variant in kind.variants]
"""Every kind with every variant in which it happens."""
BUGS = [one for one in CRASHES if KINDS[one[0]].frames]
"""Of those, the ones that the sensor caused."""
ONE_OF_EACH = [
    pytest.param(*one, marks=[] if one[1] == KINDS[one[0]].variants[0] else [pytest.mark.slow])
    for one in CRASHES
]
"""The same for judges that take long: one variant of a kind in `make test`, all in `make slow`."""
