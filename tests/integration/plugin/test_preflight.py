"""What is refused before a machine starts, and tests that the plugin leaves alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Loaded here once: pytester forgets what a session of its own loads, and libraries in C mind that.
import fixtures.preflight  # noqa: F401
import lab.virtual.libvirt  # noqa: F401
from tests.support.labs import CONTENT
from tests.support.sensor import SENSOR

pytest_plugins = ["pytester"]

EXAMPLE = Path(__file__).parents[3] / "examples/lab.toml"
CANDIDATE = SENSOR / "candidate.toml"
TESTS = """
    import pytest

    def test_on_a_machine(machine):
        raise AssertionError("it must not run")

    def test_of_a_sensor(sensor):
        raise AssertionError("it must not run")

    @pytest.mark.needs("warp-drive")
    def test_needs_what_nothing_has(machine):
        raise AssertionError("it must not run")

    @pytest.mark.needs("nmi", "crash-by-nmi")
    def test_needs_an_nmi(machine):
        raise AssertionError("it must not run")

    @pytest.mark.known_state("memory")
    def test_from_memory(machine):
        raise AssertionError("it must not run")

    @pytest.mark.known_state("memroy")
    def test_from_a_typing_mistake(machine):
        raise AssertionError("it must not run")

    def test_of_something_else():
        pass
"""


@pytest.fixture
def lab_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only lab: it has two images; one promises all, one neither NMI nor saved memory."""
    monkeypatch.delenv("LAB_TOML", raising=False)
    contract = (EXAMPLE.parents[1] / "images/test_kernel/contract.toml").read_text()
    for name, promises in (("able", contract), ("unable", _without(contract))):
        (pytester.path / f"{name}.toml").write_text(promises)
    file = pytester.path / "own.toml"
    file.write_text(
        """\
schema = 1
store = "store"
images.able = { contract = "able.toml", disk = "none.qcow2" }
images.unable = { contract = "unable.toml", disk = "none.qcow2" }
hosts.here.uri = "private"
machines.vm = { backend = "libvirt", host = "here" }
"""
    )
    return file


def _without(contract: str) -> str:
    for capability in ("crash-by-nmi", "save-restore"):
        assert capability in contract
        contract = contract.replace(f'    "{capability}",\n', "")
    return contract


@pytest.mark.parametrize(
    ("tests", "options", "said"),
    [
        ("machine", [], "there is no lab.toml in .*; start with a copy of examples/lab.toml"),
        ("machine", ["--lab=none.toml"], "none.toml: cannot be read: No such file or directory"),
        ("machine", ["--lab=wrong.toml"], r"wrong.toml:2: stroe: .*did you mean .store"),
        ("machine", ["--lab=own.toml"], "images: which one\\? --image able|unable"),
        ("machine", ["--image=abel"], r"there is no \[images.abel\]; did you mean .able.\?"),
        ("machine", ["--image=able", "--machine=lab-7"], "machine 'lab-7' is wanted.*known: vm"),
        ("machine", ["--image=able", "--candidate=no.toml"], "no.toml: cannot be read"),
        ("machine", ["--image=able", "--content=nothing"], "--content needs a candidate"),
        ("sensor", ["--image=able"], "test_of_a_sensor: needs a candidate: --candidate="),
        ("nothing_has", ["--image=able"], "needs_what_nothing_has: needs 'warp-drive', which noth"),
        ("an_nmi", ["--image=unable"], "needs_an_nmi: needs crash-by-nmi, which image test-kernel"),
        ("from_memory", ["--image=unable"], "test_from_memory: needs save-restore, which image"),
        ("mistake", ["--image=able"], r"known_state\('memroy'\): expected one of 'disk', 'memory'"),
        (
            "machine",
            ["--image=able", "--keep", "-n1"],
            "--keep waits for Enter, so it works in one",
        ),
    ],
)
def test_refused(
    pytester: pytest.Pytester,
    lab_file: Path,
    tests: str,
    options: list[str],
    said: str,
) -> None:
    """One usage error that says what is wrong, which test lacks it, and what to add."""
    pytester.makepyfile(TESTS)
    (pytester.path / "wrong.toml").write_text('schema = 1\nstroe = "x"\n')
    if options and not options[0].startswith("--lab"):
        options = [f"--lab={lab_file.name}", *options]
    result = pytester.runpytest_inprocess("-k", tests, *options)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines([f"ERROR: .*{said}.*"])
    assert "it must not run" not in str(result.stdout)


def test_every_test_that_lacks_something_is_named(
    pytester: pytest.Pytester, lab_file: Path
) -> None:
    pytester.makepyfile(test_some=TESTS)
    result = pytester.runpytest_inprocess(f"--lab={lab_file}", "--image=unable")
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    text = str(result.stderr)
    for name in ("of_a_sensor", "needs_what_nothing_has", "needs_an_nmi", "from_memory"):
        assert f"test_some.py::test_{name}: " in text
    assert "test_on_a_machine: " not in text


def test_usage_error_in_several_processes(pytester: pytest.Pytester, lab_file: Path) -> None:
    """pytest-xdist tells it as one process does, and no worker runs a test."""
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(
        "-n2", "-k", "nothing_has", f"--lab={lab_file}", "--image=able"
    )
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines(["ERROR: .*needs 'warp-drive', which nothing can have.*"])
    assert "INTERNALERROR" not in str(result.stdout)


def test_header_says_what_is_tested(pytester: pytest.Pytester, lab_file: Path) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess(
        "-k", "something_else", f"--lab={lab_file}", "--image=able", f"--candidate={CANDIDATE}",
        f"--content={CONTENT / 'killer'}",
    )  # fmt: skip
    result.assert_outcomes(passed=1, deselected=6)
    result.stdout.re_match_lines(
        ["bugcheck lab: lab .*own.toml, image able, candidate sensor 1.0.0.0 .*, content killer"]
    )


def test_deselected_tests_need_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-k", "something_else", "--strict-markers")
    result.assert_outcomes(passed=1, deselected=6)


def test_fixtures_of_the_same_name_are_somebody_elses(pytester: pytest.Pytester) -> None:
    """Unless they are made of ours."""
    pytester.makepyfile(
        test_elsewhere="""
        import pytest

        @pytest.fixture
        def machine():
            return "a lathe"

        def test_a_lathe(machine):
            assert machine == "a lathe"
        """,
        test_here="""
        import pytest

        @pytest.fixture
        def machine(machine):
            return machine

        def test_a_machine(machine):
            raise AssertionError("it must not run")
        """,
    )
    result = pytester.runpytest_inprocess("test_elsewhere.py")
    result.assert_outcomes(passed=1)
    result = pytester.runpytest_inprocess()
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines(["ERROR: test_here.py::test_a_machine needs a machine of a lab"])


def test_other_suites_pay_nothing(tmp_path: Path) -> None:
    """Nothing of the lab is loaded into a session without its fixtures."""
    (tmp_path / "test_other.py").write_text(
        """
import sys

def test_nothing_is_loaded():
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert "fixtures.plugin" in sys.modules
    assert not loaded & {"lab", "libvirt", "sqlalchemy", "pydantic", "images"}
"""
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
