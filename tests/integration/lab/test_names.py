"""Nothing keys on names: the story of an image whose every name and label is another."""

from __future__ import annotations

import re
from pathlib import Path

from images.test_kernel.registry import Settings
from lab.outcome import Outcome
from tests.support.labs import make_candidate, make_lab

OTHER = Settings(
    os_id="otheros",
    computer_name="SOMEBODY",
    product_name="Another product",
)
CONTRACT = [
    ('id = "mswindows"', 'id = "otheros"'),
    ("shows that the lab works, never that a sensor is safe", "is called otherwise"),
]


def test_the_story_under_other_names(folder: Path) -> None:
    lab = make_lab(
        folder,
        name="win11-23h2",
        contract=CONTRACT,
        settings=OTHER,
        volume_label="OSDISK",
        volume_id=0x0BADCAFE,
        disk_bytes=768 << 20,
    )
    candidate = make_candidate(folder, changes={"settle_seconds = 4": "settle_seconds = 2"})
    assert "is as its contract says" in lab.lab("image", "check", "win11-23h2", exit_code=0).stdout
    lab.run(candidate, "benign", "killer", exit_code=1)
    record = lab.record()
    assert (record.image, record.verdict, record.recovered) == ("win11-23h2", "hold", True)
    assert [one.outcome for one in record.outcomes] == [
        Outcome.PASSED,
        Outcome.CRASHED,
        Outcome.BOOT_LOOPING,
    ]
    assert {crash.bucket for crash in record.crashes} == {record.crashes[0].bucket}
    assert str(record.crashes[0].culprit).startswith("sensor!MatchField")


def test_an_image_that_breaks_its_contract_is_told(folder: Path) -> None:
    lab = make_lab(
        folder,
        contract=[
            ('id = "mswindows"', 'id = "debian"'),
            ("staged_bytes = 83_886_080", "staged_bytes = 83_886_081"),
        ],
    )
    with (folder / "contract.toml").open("a") as contract:
        contract.write(
            """
[[requires]]
name = "an editor"
program = 'C:\\Windows\\System32\\reg.exe'
arguments = ["query", 'HKLM\\SOFTWARE\\Editor']
fix = "Install one."
"""
        )
    said = lab.lab("image", "check", "guest", exit_code=1).stdout
    assert "the agent says 'mswindows', os.id says 'debian'" in said
    assert "has 83886080 bytes, dump.staged_bytes says 83886081" in said
    assert re.search(r"an editor: .*ended with 1.*Install one\.", said, re.S)
    assert "guest: 3 wrong" in said
