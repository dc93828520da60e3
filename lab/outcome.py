"""What can come out of a test on a machine: the whole vocabulary, and who is to blame for each.

An exception's class is the blame: what the lab raises carries the outcome it leads to.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How one test on one machine ended.

    Product outcomes can hold a release; infrastructure and harness outcomes can neither hold nor
    ship one.
    """

    PASSED = "passed"
    """Everything asked for happened, and driver and content are still the candidate's."""

    # Product: the candidate did it.
    FAILED = "failed"
    """An assertion did not hold, a step of the candidate failed, or the machine restarted by
    itself without a bug check that anybody saw."""
    CRASHED = "crashed"
    """A bug check was seen."""
    HUNG = "hung"
    """No bug check, but the machine no longer answered within the image's deadlines."""
    BOOT_LOOPING = "boot_looping"
    """It crashed again before its agent answered, as often as the contract calls a loop."""
    TAMPERED = "tampered"
    """Driver or content are not what was installed, and no step announced the change."""

    # Nobody can be judged by these.
    INFRASTRUCTURE = "infrastructure"
    """The lab's surroundings failed: hypervisor, host, disk space, image, lease."""
    HARNESS = "harness"
    """The lab itself or its input is wrong: a bug, a bad lab.toml, a bad candidate.toml."""

    @property
    def is_product(self) -> bool:
        """Whether this is a statement about the candidate."""
        return self not in {Outcome.INFRASTRUCTURE, Outcome.HARNESS}

    @property
    def is_bad_product(self) -> bool:
        """Whether it speaks against a release."""
        return self.is_product and self is not Outcome.PASSED


SEVERITY = (
    Outcome.PASSED,
    Outcome.HARNESS,
    Outcome.INFRASTRUCTURE,
    Outcome.FAILED,
    Outcome.HUNG,
    Outcome.TAMPERED,
    Outcome.CRASHED,
    Outcome.BOOT_LOOPING,
)
"""Of several outcomes in one run the last of this order stands for the run."""


class LabError(Exception):
    """What went wrong, where, and what to do; `outcome` says who is to blame."""

    outcome = Outcome.HARNESS


class InfrastructureError(LabError):
    """Hypervisor, host, storage or lease failed."""

    outcome = Outcome.INFRASTRUCTURE


class CandidateError(LabError):
    """The candidate did not do what its candidate.toml promises."""

    outcome = Outcome.FAILED


class TamperedError(LabError):
    """Driver or content changed, and no step announced it."""

    outcome = Outcome.TAMPERED


class HungError(LabError):
    """The machine did not answer within its contract's deadline."""

    outcome = Outcome.HUNG
