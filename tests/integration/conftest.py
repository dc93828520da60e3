"""Machines for the integration tests, under a libvirt that each test process has for itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from images.contract import CATALOG, Contract, load_contract
from images.test_kernel.build import PAGEFILE_PATH, build_image
from images.test_kernel.registry import CrashDump, Settings
from tests.support.crashes import Crash, CrashMaker
from tests.support.disk import dump_in_pagefile
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import KINDS, content_files, sensor_driver
from tests.support.waiting import wait_for

CrashFactory = Callable[[str, str], Crash]


class MachineFactory(Protocol):
    """Makes a machine, still off, over a disk image."""

    def __call__(self, image: Path, *, hold_restarts: bool = False) -> Domain: ...


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

    def make(image: Path, *, hold_restarts: bool = False) -> Domain:
        domain = Domain(libvirt, image, hold_restarts=hold_restarts)
        made.append(domain)
        return domain

    yield make
    for domain in made:
        domain.close()


@pytest.fixture(scope="session")
def crash_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for crashes that all processes of this test run share."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "crashes"


@pytest.fixture
def crash_of(
    crash_cache: Path, domain_of: MachineFactory, libvirt: Libvirt, contract: Contract
) -> CrashFactory:
    """The crash of a kind in a variant of the sensor; made by the first test that asks for it."""
    maker = CrashMaker(crash_cache, domain_of, libvirt, contract)
    return lambda kind, variant: maker.crash(KINDS[kind], variant)


@pytest.fixture
def complete_dump_of(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, tmp_path: Path
) -> Callable[[str], Path]:
    """Makes a dump of type 1, of a crash by the killer content; takes the sensor's variant."""

    def make(variant: str) -> Path:
        image = build_image(
            libvirt.new_image_path(),
            drivers=[sensor_driver(variant)],
            files=content_files("killer"),
            settings=Settings(auto_reboot=False, dump=CrashDump.COMPLETE),
        )
        domain = domain_of(image)
        domain.start()
        domain.wait_for_crash(contract.deadlines.boot_to_agent)
        wait_for(
            "the screen to say that the dump is complete",
            lambda: "dump complete" in domain.screen_text(),
            contract.deadlines.dump_writing,
        )
        path = tmp_path / "complete.dmp"
        with domain.disk() as disk:
            path.write_bytes(dump_in_pagefile(disk.read(PAGEFILE_PATH)))
        return path

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the machines of a failed test last said."""
    report = yield
    if report.failed and call.when != "teardown":  # after that the machines are gone
        for domain in item.stash.get(_domains, []):
            for title, text in domain.last_words().items():
                report.sections.append((f"{domain.name}: {title}", text))
    return report
