"""How tests on machines end: where it is told, and what the record keeps of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from tests.integration.plugin.conftest import Result, Suite
from tests.support.labs import CONTENT, make_candidate

#: Each case: how pytest shows it, the outcome of its run, and the verdict.
ENDS = {
    "test_leaves_it_off": ("passed", "passed", "ship"),
    "test_plain_assertion": ("failure", "failed", "hold"),
    "test_pytest_fail": ("failure", "failed", "hold"),
    "test_tampers": ("failure", "tampered", "hold"),
    "test_bad_content": ("failure", "crashed", "hold"),
    "test_crash_in_a_fixture": ("failure", "crashed", "hold"),
    "test_crash_after_its_last_line": ("failure", "crashed", "hold"),
    "test_assertion_beside_a_crash": ("failure", "crashed", "hold"),
    "test_skip_beside_a_crash": ("failure", "crashed", "hold"),
    "test_crash_while_fixtures_end": ("error", "crashed", "hold"),
    "test_fixture_that_fails_at_its_end": ("error", "failed", "hold"),
    "test_skips": ("skipped", None, "inconclusive"),
    "test_own_mistake": ("failure", "harness", "inconclusive"),
}
CRASHED = {name for name, (_, outcome, _) in ENDS.items() if outcome == "crashed"}
BY_CONTENT = {"test_bad_content", "test_crash_in_a_fixture", "test_assertion_beside_a_crash"}
ATTACHED = {"report.txt", "report.json", "screen.png", "console.log", "evidence.json"}


def test_each_end_in_two_processes(suite: Suite, tmp_path: Path) -> None:
    """Under pytest-xdist, with two machines and a private libvirt in each process."""
    code, output = suite.run(*ENDS, options=("-n2", "--alluredir=allure"))
    results = suite.results()
    shown = {
        name: (one.state, one.record.outcome, one.record.verdict) for name, one in results.items()
    }
    assert shown == ENDS, output
    assert code == 1
    assert {one.properties["lab_machine"] for one in results.values()} == {"vm-1", "vm-2"}
    for name, one in results.items():
        assert one.properties.get("lab_outcome") == ENDS[name][1]
        assert one.properties["lab_image"] == "guest"
        assert one.record.ended is not None
        assert bool(one.record.crashes) == (name in CRASHED)
        assert list(one.run.glob("evidence/*/")) == [
            one.run / crash.evidence for crash in one.record.crashes
        ]
        assert not (one.run / "disk.qcow2").exists()
    ended = results["test_crash_while_fixtures_end"]
    assert [str(one.outcome) for one in ended.record.outcomes] == ["passed", "crashed"]
    _check_crashes(results)
    _check_allure(tmp_path / "allure")
    assert "its lines must not run" not in output
    assert "harness: this says nothing about the candidate" in results["test_own_mistake"].text
    assert "expected sha256" in results["test_tampers"].text
    # The failure is shown at the test's own line; the lab's lines say nothing about it.
    assert re.search(r"^> +sensor\.update_content\(contents\[1\]\)\nE ", output, re.M)


def _check_crashes(results: dict[str, Result]) -> None:
    for name in CRASHED:
        one = results[name]
        (crash,) = one.record.crashes
        bug_check = "0x50" if name in BY_CONTENT else "0x80"
        assert crash.bug_check == bug_check
        assert f"stop code: {bug_check} (" in one.text
        assert crash.bucket is not None
        assert f"bucket: {crash.bucket}" in one.text
        assert one.properties["lab_stop_code"] == bug_check
        assert one.properties["lab_bucket"] == crash.bucket
        assert one.properties["lab_family"] == crash.family
        assert one.properties.get("lab_culprit") == crash.culprit
        if name in BY_CONTENT:
            assert crash.culprit is not None
            assert crash.culprit.startswith("sensor!")
            assert f"culprit: {crash.culprit}" in one.text
    assert "AssertionError" in results["test_assertion_beside_a_crash"].text
    assert "own lines had ended" in results["test_crash_after_its_last_line"].text


def _check_allure(folder: Path) -> None:
    tests = [json.loads(file.read_text()) for file in folder.glob("*-result.json")]
    named = {one["name"]: one for one in tests}
    assert named.keys() == ENDS.keys()
    crashed = named["test_bad_content"]
    attached = {one["name"]: folder / one["source"] for one in crashed["attachments"]}
    assert attached.keys() >= ATTACHED - {"screen.png"}
    if "screen.png" in attached:  # its reset may be quicker than the screenshot
        assert attached["screen.png"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(attached["report.json"].read_text())["bug_check"]["code"] == 0x50
    steps = [step["name"] for step in crashed["steps"]]
    assert any("New content: killer" in step for step in steps), steps
    assert Counter(steps).most_common(1)[0][1] == 1


def test_a_candidate_that_crashes_its_installation_and_the_same_again(
    suite: Suite, tmp_path: Path
) -> None:
    """Its crash is the call's, and `lab repro` runs the test again and compares."""
    bad = make_candidate(tmp_path)
    (released,) = (bad.parent / "content/benign").iterdir()  # the INF has its name
    (killer,) = (CONTENT / "killer").iterdir()
    released.write_bytes(killer.read_bytes())
    code, output = suite.run("test_is_installed", candidate=bad)
    assert code == 1, output
    (one,) = suite.results().values()
    assert (one.state, one.record.outcome) == ("failure", "crashed"), output
    assert f"again: lab repro {one.run}" in one.text
    done = suite.lab.lab("repro", one.run, "-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    crash = one.record.crashes[0]
    assert f"2 of 2 went as run {one.record.run_id} did: 0x50, {crash.culprit}" in done.stdout
    again = [suite.lab.runs[-2], suite.lab.runs[-1]]
    assert {json.loads((run / "record.json").read_text())["repeats"] for run in again} == {
        one.record.run_id
    }
