"""Machines for the integration tests, under a libvirt that each test process has for itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from images.contract import CATALOG, Contract, load_contract
from tests.support.libvirt import Domain, Libvirt

MachineFactory = Callable[[Path], Domain]
_domains = pytest.StashKey[list[Domain]]()


@pytest.fixture(scope="session")
def libvirt() -> Iterator[Libvirt]:
    """A private libvirt, stopped with all its machines when the tests end."""
    with Libvirt() as started:
        yield started


@pytest.fixture(scope="session")
def contract() -> Contract:
    """What the image under test promises; its deadlines are the tests' deadlines."""
    return load_contract(CATALOG.parent / "test_kernel/contract.toml")


@pytest.fixture
def domain_of(libvirt: Libvirt, request: pytest.FixtureRequest) -> Iterator[MachineFactory]:
    """Makes a machine (still off) over a disk image; its power is cut after the test."""
    made = request.node.stash.setdefault(_domains, [])

    def make(image: Path) -> Domain:
        domain = Domain(libvirt, image)
        made.append(domain)
        return domain

    yield make
    for domain in made:
        domain.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the machines of a failed test last said."""
    report = yield
    if report.failed:
        for domain in item.stash.get(_domains, []):
            for title, text in domain.last_words().items():
                report.sections.append((f"{domain.name}: {title}", text))
    return report
