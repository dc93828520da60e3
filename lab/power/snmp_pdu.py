"""PDUs by SNMP. Which objects a family has stands in lab/power/snmp_families.py.

[power.rack-a]
backend = "snmp_pdu"
address = "pdu-a.lab"
version = "3"                # or "1", "2c" with community_secret
user = "lab"
auth_secret = "pdu-auth"     # the names of secrets, never their values
priv_secret = "pdu-priv"
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lab.power.base import (
    DeviceSettings,
    OutletError,
    PowerDevice,
    PowerState,
    RefusedError,
    SecretName,
    Secrets,
    Timing,
)
from lab.power.snmp import (
    SYS_OBJECT_ID,
    AuthProtocol,
    Community,
    PrivProtocol,
    SnmpAgent,
    User,
    Value,
)
from lab.power.snmp_families import FAMILIES, Family, family_of


class SnmpPduSettings(DeviceSettings):
    """[power.NAME] with backend = "snmp_pdu"."""

    address: str
    """Host name or IP address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 161
    version: Literal["1", "2c", "3"] = "2c"
    community_secret: SecretName | None = None
    """Versions 1 and 2c; it must be one that may write."""
    user: str | None = None
    """Version 3."""
    auth_protocol: AuthProtocol = "SHA"
    auth_secret: SecretName | None = None
    priv_protocol: PrivProtocol = "AES"
    priv_secret: SecretName | None = None
    model: str = "auto"
    """A family of snmp_families.py; auto: by the device's sysObjectID."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model != "auto" and self.model not in FAMILIES:
            raise ValueError(f"expected model auto or one of {', '.join(FAMILIES)}")
        if self.version == "3":
            if self.user is None or self.community_secret is not None:
                raise ValueError("expected user, and no community_secret, with version 3")
            if self.priv_secret is not None and self.auth_secret is None:
                raise ValueError("expected auth_secret beside priv_secret (RFC 3414)")
        elif self.community_secret is None or self.user is not None:
            raise ValueError(f"expected community_secret, and no user, with version {self.version}")
        return self


class Device(PowerDevice):
    """One PDU. Outlets are named by number, by the index of their row ("1.1.7"), or by name."""

    Settings = SnmpPduSettings
    settings: SnmpPduSettings
    default_timing = Timing(deadline_seconds=15)

    def __init__(self, name: str, settings: SnmpPduSettings, secrets: Secrets) -> None:
        super().__init__(name, settings, secrets)
        self._agent = SnmpAgent(
            settings.address, settings.port, self._credentials(), lambda: self.timing
        )
        self._family: Family | None = FAMILIES.get(settings.model)

    def family(self) -> Family:
        """Asked once where lab.toml says auto. Raises OutletError for a product nobody knows."""
        if self._family is None:
            system = str(self._agent.get(SYS_OBJECT_ID))
            self._family = family_of(system)
            if self._family is None:
                raise OutletError(
                    f"{self.address()} is of no family known here (sysObjectID {system}): if it has"
                    f" one of their MIBs, give [power.{self.name}] a model: {', '.join(FAMILIES)}"
                )
        return self._family

    def locate(self, outlet: str) -> str:
        """The outlet's row, by its index, its number there, or a name of the family's columns."""
        family = self.family()
        places = list(self._agent.walk(family.state))
        names: dict[str, list[str]] = {place: [] for place in places}
        for column in family.names:
            for place, name in self._agent.walk(column).items():
                if name and place in names:
                    names[place].append(str(name))
        found = [
            place for place in places if outlet in {place, place.rpartition(".")[2], *names[place]}
        ]
        if len(found) != 1:
            what = f"{len(found)} outlets fit" if found else "there is no outlet"
            shown = ", ".join(_shown(place, names[place]) for place in found or places)
            raise OutletError(
                f"{self.address()}: {what} {outlet!r}; expected one number or name of: "
                f"{shown or 'no outlet at all, so the model is wrong or the user may not read it'}"
            )
        return found[0]

    def read(self, place: str) -> PowerState:
        """By the family's state column."""
        family = self.family()
        value = self._agent.get(f"{family.state}.{place}")
        if value is None:
            raise OutletError(f"{self.address()} has no outlet {place} any more")
        return _state(family, value)

    def order(self, place: str, wanted: PowerState) -> None:
        """By the family's command column; refused where the outlet is locked."""
        family = self.family()
        if family.locked is not None:
            column, values = family.locked
            if self._agent.get(f"{column}.{place}") in values:
                raise RefusedError(
                    f"outlet {place} of {self.address()} is locked there: unlock it in the device's"
                    " own settings"
                )
        column, value = family.on if wanted is PowerState.ON else family.off
        self._agent.set(f"{column}.{place}", value)

    def read_all(self) -> dict[str, PowerState]:
        """Every outlet's state."""
        family = self.family()
        rows = self._agent.walk(family.state).items()
        return {place: _state(family, value) for place, value in rows}

    def address(self) -> str:
        """Family and address."""
        model = next((name for name, one in FAMILIES.items() if one is self._family), "SNMP PDU")
        return f"{model} {self.name} ({self._agent})"

    def close(self) -> None:
        """Closes its socket."""
        self._agent.close()

    def _credentials(self) -> Community | User:
        one = self.settings
        if one.version != "3":
            assert one.community_secret is not None  # else it had been refused
            return Community(one.version, self._secrets(one.community_secret))
        assert one.user is not None
        auth = one.auth_secret and (one.auth_protocol, self._secrets(one.auth_secret))
        priv = one.priv_secret and (one.priv_protocol, self._secrets(one.priv_secret))
        return User(one.user, auth or None, priv or None)


def _state(family: Family, value: Value) -> PowerState:
    known = family.states.get(value) if isinstance(value, int) else None
    return known or PowerState.UNKNOWN


def _shown(place: str, names: list[str]) -> str:
    also = ", ".join(dict.fromkeys(name for name in names if name != place))
    return f"{place} ({also})" if also else place
