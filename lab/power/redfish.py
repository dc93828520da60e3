"""BMCs by Redfish (DMTF DSP0266), through sushy.

[power.m1-bmc]
backend = "redfish"
address = "m1-bmc.lab"        # HTTPS, always; "host:port" for another port
user = "lab"
password_secret = "m1-bmc"
fingerprint = "5A:0C:..."     # of its own certificate: openssl x509 -noout -sha256 -fingerprint
                              # or ca_file = "/etc/lab/bmc-ca.pem"; else the public authorities

Sessions are used where the BMC has them, and sushy renews one that has expired.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self, TypeVar

import sushy
from pydantic import AfterValidator, Field, model_validator
from requests.adapters import HTTPAdapter
from sushy import auth, connector, exceptions
from sushy.resources.system.system import System

from lab.power.base import (
    OutletError,
    PowerError,
    PowerState,
    RefusedError,
    Secrets,
    Timing,
    UnreachableError,
)
from lab.power.bmc import THE_SYSTEM, Bmc, BmcSettings, BootDevice

T = TypeVar("T")
CONFLICT = 409
"""The system is not in a state for the order: often, it is off already (DSP0266, 8.6)."""
LIBRARY_ERRORS = (
    exceptions.SushyError,
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
)
"""sushy's own, and what it lets through for an answer that is no JSON, or not of the schema."""
POWER = {sushy.PowerState.ON: PowerState.ON, sushy.PowerState.OFF: PowerState.OFF}
BOOT: dict[BootDevice, sushy.BootSource] = {
    "cd": sushy.BootSource.CD,
    "disk": sushy.BootSource.HDD,
    "pxe": sushy.BootSource.PXE,
    "setup": sushy.BootSource.BIOS_SETUP,
}

# sushy logs as errors what is raised here, in the lab's words.
logging.getLogger("sushy").addHandler(logging.NullHandler())


def _fingerprint(text: str) -> str:
    plain = text.replace(":", "").lower()
    if len(plain) != 64 or set(plain) - set("0123456789abcdef"):
        raise ValueError("expected the SHA-256 fingerprint of a certificate, 64 hex digits")
    return plain


class RedfishSettings(BmcSettings):
    """[power.NAME] with backend = "redfish"."""

    fingerprint: Annotated[str, AfterValidator(_fingerprint)] | None = None
    """SHA-256 of the BMC's own certificate: no other is spoken to, whoever signed it."""
    ca_file: Annotated[str, Field(pattern="^/")] | None = None
    """Absolute path of the certificates of the authorities that may have signed the BMC's."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.fingerprint is not None and self.ca_file is not None:
            raise ValueError("expected fingerprint or ca_file; found both")
        return self


class _Pinned(HTTPAdapter):
    """Speaks only to the certificate with this fingerprint; its signer and names do not matter."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        # Else urllib3 makes a context for each request, and reads all authorities into it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().init_poolmanager(
            *arguments, ssl_context=context, assert_fingerprint=self._fingerprint, **options
        )

    def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
        # Its own certificate has no authority to be verified by; urllib3 asserts the fingerprint.
        return super().send(request, *arguments, **(options | {"verify": False}))


class _Connector(connector.Connector):  # type: ignore[misc]
    """sushy's, with each request sent once, and nothing taken from the environment.

    A proxy, a bundle of authorities or a .netrc of the shell's is not for BMCs.
    """

    def __init__(self, url: str, settings: RedfishSettings, timing: Timing) -> None:
        super().__init__(
            url,
            verify=settings.ca_file or True,
            server_side_retries=1,
            default_request_timeout=timing.answer_seconds,
        )
        self._session.trust_env = False
        if settings.fingerprint is not None:
            self._session.mount("https://", _Pinned(settings.fingerprint))


class Device(Bmc):
    """One BMC. Systems are named by identity, name or UUID."""

    Settings = RedfishSettings
    settings: RedfishSettings
    default_timing = Timing(answer_seconds=15, attempts=2, deadline_seconds=60, poll_seconds=1)

    def __init__(self, name: str, settings: RedfishSettings, secrets: Secrets) -> None:
        super().__init__(name, settings, secrets)
        self._password = secrets(settings.password_secret)
        self._one_request = threading.RLock()  # BMCs have crashed under several
        self._root: sushy.Sushy | None = None
        self._auth: auth.SessionOrBasicAuth | None = None
        self._connector: _Connector | None = None

    def locate(self, outlet: str) -> str:
        """The path of a system."""
        systems = self._read(lambda root: root.get_system_collection().get_members())
        found = [one for one in systems if outlet in {one.path, one.identity, one.name, one.uuid}]
        if not found and outlet == THE_SYSTEM:
            found = systems
        if len(found) != 1:
            known = ", ".join(f"{one.identity} ({one.name})" for one in systems) or "none"
            raise OutletError(
                f"{self.address()}: {len(found)} systems are called {outlet!r}; it has {known}: set"
                f" outlet in [power.{self.name}]"
            )
        return str(found[0].path)

    def read(self, place: str) -> PowerState:
        """Its PowerState; one that is between on and off is unknown."""
        state = self._read(lambda root: root.get_system(place).power_state)
        return POWER.get(state, PowerState.UNKNOWN)

    def order(self, place: str, wanted: PowerState) -> None:
        """ForceOff, or On; success if the BMC answers that it is so already."""
        kinds = [sushy.ResetType.ON, sushy.ResetType.FORCE_ON]
        if wanted is PowerState.OFF:
            kinds = [sushy.ResetType.FORCE_OFF]
        try:
            self._reset(place, *kinds)
        except RefusedError as error:
            # What it is on its way to, reading back will tell.
            is_conflict = getattr(error.__cause__, "status_code", None) == CONFLICT
            if not is_conflict or self.read(place) not in {wanted, PowerState.UNKNOWN}:
                raise

    def pulse(self, place: str, what: Literal["nmi", "reset"]) -> None:
        """Nmi or ForceRestart."""
        nmi, restart = sushy.ResetType.NMI, sushy.ResetType.FORCE_RESTART
        self._reset(place, nmi if what == "nmi" else restart)

    def set_next_boot(self, place: str, device: BootDevice) -> None:
        """By BootSourceOverride; whether by BIOS or UEFI is left as the system has it."""
        once = sushy.BootSourceOverrideEnabled.ONCE
        self._order(lambda root: root.get_system(place).set_system_boot_options(BOOT[device], once))

    def next_boot(self, place: str) -> BootDevice | None:
        """BootSourceOverrideTarget, where it is enabled."""
        boot = self._read(lambda root: root.get_system(place).boot)
        if not boot or boot.enabled in {None, sushy.BootSourceOverrideEnabled.DISABLED}:
            return None
        if boot.target is sushy.BootSource.USB_CD:  # which sushy takes instead where Cd fails
            return "cd"
        return next((name for name, source in BOOT.items() if source is boot.target), None)

    def set_light(self, place: str, *, on: bool) -> None:
        """LocationIndicatorActive, or IndicatorLED where the system is of an older schema."""

        def set_it(root: sushy.Sushy) -> None:
            system = root.get_system(place)
            if "LocationIndicatorActive" in system.json:
                assert self._connector is not None
                self._connector.patch(place, data={"LocationIndicatorActive": on})
            else:
                system.set_indicator_led(sushy.IndicatorLED.LIT if on else sushy.IndicatorLED.OFF)

        self._order(set_it)

    def about(self, place: str) -> dict[str, str]:
        """Of the system resource, and the version of Redfish."""

        def ask(root: sushy.Sushy) -> dict[str, str | None]:
            system: System = root.get_system(place)
            return {
                "manufacturer": system.manufacturer,
                "model": system.model,
                "serial number": system.serial_number,
                "firmware": system.bios_version,
                "Redfish": root.redfish_version,
            }

        return {key: value for key, value in self._read(ask).items() if value}

    def address(self) -> str:
        """Its address."""
        return f"BMC {self.name} (https://{self.settings.address})"

    def close(self) -> None:
        """Ends the session, of which a BMC has few."""
        with self._one_request:
            if self._auth is not None:
                # A BMC that does not answer ends it by itself, in its own time.
                with contextlib.suppress(*LIBRARY_ERRORS):
                    self._auth.close()
                self._auth.reset_session_attrs()  # else sushy tries again as it is let go of
            self._root, self._auth, self._connector = None, None, None

    def _reset(self, place: str, *kinds: sushy.ResetType) -> None:
        """The first of these kinds of reset that the system has."""

        def reset(root: sushy.Sushy) -> None:
            system: System = root.get_system(place)
            has = system.get_allowed_reset_system_values()
            system.reset_system(next((kind for kind in kinds if kind in has), kinds[0]))

        self._order(reset)

    def _read(self, ask: Callable[[sushy.Sushy], T]) -> T:
        """Asks again while there is no answer."""
        for _ in range(self.timing.attempts - 1):
            try:
                return self._order(ask)
            except UnreachableError:
                continue
        return self._order(ask)

    def _order(self, request: Callable[[sushy.Sushy], T]) -> T:
        """Once: an order whose answer was lost may have been taken."""
        with self._one_request:
            try:
                return request(self._connected())
            except LIBRARY_ERRORS as error:
                if isinstance(error, exceptions.AccessError):
                    self.close()
                raise self._in_words(error) from error

    def _connected(self) -> sushy.Sushy:
        if self._root is None:
            url = f"https://{self.settings.address}"
            reach = _Connector(url, self.settings, self.timing)
            login = auth.SessionOrBasicAuth(self.settings.user, self._password.get_secret_value())
            self._root = sushy.Sushy(url, auth=login, connector=reach)
            self._auth, self._connector = login, reach
        return self._root

    def _in_words(self, error: Exception) -> PowerError:
        if isinstance(error, exceptions.AccessError):
            return RefusedError(
                f"{self.address()} refuses user {self.settings.user} (HTTP {error.status_code}):"
                " compare user and password secret in lab.toml with the BMC's, and look whether the"
                " user is an operator there and not locked out"
            )
        if isinstance(error, exceptions.HTTPError):
            said = f"HTTP {error.status_code}: {error.detail or 'no more was said'}"
            if error.status_code >= 500:
                return UnreachableError(
                    f"{self.address()} fails: {said}; it may be starting: look at its own log"
                )
            return RefusedError(f"{self.address()} refuses: {said}")
        if isinstance(error, exceptions.ConnectionError):
            return self._not_connected(error)
        if isinstance(
            error, (exceptions.InvalidParameterValueError, exceptions.MissingActionError)
        ):
            return RefusedError(f"{self.address()} has no such order: {error}")
        return UnreachableError(
            f"{self.address()} answers what is no Redfish ({type(error).__name__}: {error}): look"
            " whether this address is a BMC's, and whether its firmware is current"
        )

    def _not_connected(self, error: Exception) -> PowerError:
        for cause in _causes(error):
            is_pin = str(cause).startswith("Fingerprints did not match")
            if is_pin or isinstance(cause, ssl.SSLCertVerificationError):
                return RefusedError(
                    f"{self.address()} shows a certificate that lab.toml does not allow ({cause}):"
                    " if it is the BMC's own, set its fingerprint, or the ca_file that it is signed"
                    f" by, in [power.{self.name}]; if not, somebody is between"
                )
        return UnreachableError(
            f"{self.address()} does not answer ({error}): look whether the BMC has power and"
            " network, and whether its address is right"
        )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that led to it, also as requests and urllib3 wrap them."""
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            left += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    yield from seen
