"""The image contract: the checked-in one is right, and wrong ones are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.contract import CATALOG, ContractError, load_catalog, load_contract

GOOD = (CATALOG.parent / "test_kernel/contract.toml").read_text()


def test_every_contract_of_the_catalog_loads() -> None:
    catalog = load_catalog()
    for name, entry in catalog.items():
        contract = load_contract(CATALOG.parent / entry.contract)
        assert contract.name == name
        assert contract.dump.setting in contract.dump.supported


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("boot_to_agent = 60", "boot_to_agent = 0", ["deadlines.boot_to_agent", "greater than 0"]),
        ("boot_to_agent = 60", "", ["deadlines.boot_to_agent", "required"]),
        (
            "boot_to_agent = 60",
            "boot_too_agent = 60",
            ["deadlines.boot_too_agent", "not permitted"],
        ),
        ('setting = "kernel"', 'setting = "huge"', ["dump.setting", "'kernel'", "found 'huge'"]),
        ("schema = 1", "schema = 2", ["schema", "found 2"]),
        ("'C:\\pagefile.sys'", "'/pagefile.sys'", ["dump.staged_in", "found '/pagefile.sys'"]),
        ("[boot]", "[boot", ["not TOML", "line"]),
    ],
)
def test_a_wrong_contract_names_file_key_and_expectation(
    tmp_path: Path, before: str, after: str, told: list[str]
) -> None:
    assert before in GOOD
    file = tmp_path / "contract.toml"
    file.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(ContractError) as caught:
        load_contract(file)
    for part in [str(file), *told]:
        assert part in str(caught.value)


def test_a_missing_contract_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"absent\.toml: cannot be read"):
        load_contract(tmp_path / "absent.toml")
