"""The families of SNMP PDUs: which objects of their MIBs name, read and switch an outlet.

Identifiers and values are those of the vendors' MIBs, which monitoring projects keep in public
(https://github.com/librenms/librenms/tree/master/mibs; Tripp Lite's and Vertiv's are with the
vendors). A state that stands in no table here (switching, restarting, error) is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab.power.base import PowerState

ON, OFF = PowerState.ON, PowerState.OFF
APC = "1.3.6.1.4.1.318"
CYBERPOWER = "1.3.6.1.4.1.3808"
EATON = "1.3.6.1.4.1.534.6.6.7"
RARITAN = "1.3.6.1.4.1.13742"
SERVERTECH = "1.3.6.1.4.1.1718"
TRIPPLITE = "1.3.6.1.4.1.850"
VERTIV = "1.3.6.1.4.1.21239.5.2"


@dataclass(frozen=True)
class Family:
    """One family of PDUs. Columns are of tables with a row an outlet.

    systems: starts of sysObjectID. names: columns with names, the vendor's and the owner's. state,
    states: the column that is read and what its values mean. on, off: (column, value) to set.
    locked: (column, values) of an outlet that takes no orders, although it answers them without an
    error.
    """

    mib: str
    systems: tuple[str, ...]
    names: tuple[str, ...]
    state: str
    states: Mapping[int, PowerState]
    on: tuple[str, int]
    off: tuple[str, int]
    locked: tuple[str, frozenset[int]] | None = None


FAMILIES = {
    # sPDUOutletCtlName, sPDUOutletCtl
    "apc-masterswitch": Family(
        mib="PowerNet-MIB",
        systems=(f"{APC}.1.3.4.1", f"{APC}.1.3.4.2", f"{APC}.1.3.4.7"),
        names=(f"{APC}.1.1.4.4.2.1.4",),
        state=f"{APC}.1.1.4.4.2.1.3",
        states={1: ON, 2: OFF},
        on=(f"{APC}.1.1.4.4.2.1.3", 1),
        off=(f"{APC}.1.1.4.4.2.1.3", 2),
    ),
    # rPDUOutletStatusOutletName, rPDUOutletStatusOutletState, rPDUOutletControlOutletCommand
    "apc-rpdu": Family(
        mib="PowerNet-MIB",
        systems=(f"{APC}.1.3.4.5",),
        names=(f"{APC}.1.1.12.3.5.1.1.2",),
        state=f"{APC}.1.1.12.3.5.1.1.4",
        states={1: ON, 2: OFF},
        on=(f"{APC}.1.1.12.3.3.1.1.4", 1),
        off=(f"{APC}.1.1.12.3.3.1.1.4", 2),
    ),
    # rPDU2OutletSwitchedStatusName, rPDU2OutletSwitchedStatusState (off is 1 there),
    # rPDU2OutletSwitchedControlCommand (off is 2 here)
    "apc-rpdu2": Family(
        mib="PowerNet-MIB",
        systems=(f"{APC}.1.3.4.6", f"{APC}.1.3.4.8", f"{APC}.1.3.4.9"),
        names=(f"{APC}.1.1.26.9.2.3.1.3",),
        state=f"{APC}.1.1.26.9.2.3.1.5",
        states={1: OFF, 2: ON},
        on=(f"{APC}.1.1.26.9.2.4.1.5", 1),
        off=(f"{APC}.1.1.26.9.2.4.1.5", 2),
    ),
    # ePDUOutletStatusOutletName, ePDUOutletStatusOutletState, ePDUOutletControlOutletCommand
    "cyberpower-epdu": Family(
        mib="CPS-MIB",
        systems=(f"{CYBERPOWER}.1.1.3",),
        names=(f"{CYBERPOWER}.1.1.3.3.5.1.1.2",),
        state=f"{CYBERPOWER}.1.1.3.3.5.1.1.4",
        states={1: ON, 2: OFF},
        on=(f"{CYBERPOWER}.1.1.3.3.3.1.1.4", 1),
        off=(f"{CYBERPOWER}.1.1.3.3.3.1.1.4", 2),
    ),
    # ePDU2OutletSwitchedStatusName, ...StatusState, ePDU2OutletSwitchedControlCommand
    "cyberpower-epdu2": Family(
        mib="CPS-MIB",
        systems=(f"{CYBERPOWER}.1.1.6",),
        names=(f"{CYBERPOWER}.1.1.6.6.1.4.1.4",),
        state=f"{CYBERPOWER}.1.1.6.6.1.4.1.5",
        states={1: ON, 2: OFF},
        on=(f"{CYBERPOWER}.1.1.6.6.1.5.1.5", 1),
        off=(f"{CYBERPOWER}.1.1.6.6.1.5.1.5", 2),
    ),
    # outletName, outletControlStatus, outletControlOnCmd and outletControlOffCmd (seconds from
    # now), outletControlSwitchable. Rows: strappingIndex.outletIndex
    "eaton-epdu": Family(
        mib="EATON-EPDU-MIB",
        systems=(EATON,),
        names=(f"{EATON}.6.1.1.3",),
        state=f"{EATON}.6.6.1.2",
        states={0: OFF, 1: ON},
        on=(f"{EATON}.6.6.1.4", 0),
        off=(f"{EATON}.6.6.1.3", 0),
        locked=(f"{EATON}.6.6.1.9", frozenset({2})),
    ),
    # outletLabel, outletOperationalState
    "raritan-px": Family(
        mib="PDU-MIB (Raritan)",
        systems=(f"{RARITAN}.4",),
        names=(f"{RARITAN}.4.1.2.2.1.2",),
        state=f"{RARITAN}.4.1.2.2.1.3",
        states={0: OFF, 1: ON},
        on=(f"{RARITAN}.4.1.2.2.1.3", 1),
        off=(f"{RARITAN}.4.1.2.2.1.3", 0),
    ),
    # outletName and outletLabel, outletSwitchingState (SensorStateEnumeration),
    # switchingOperation, outletSwitchable (TruthValue). Rows: pduId.outletId
    "raritan-px2": Family(
        mib="PDU2-MIB",
        systems=(f"{RARITAN}.6",),
        names=(f"{RARITAN}.6.3.5.3.1.3", f"{RARITAN}.6.3.5.3.1.2"),
        state=f"{RARITAN}.6.4.1.2.1.3",
        states={7: ON, 8: OFF},
        on=(f"{RARITAN}.6.4.1.2.1.2", 1),
        off=(f"{RARITAN}.6.4.1.2.1.2", 0),
        locked=(f"{RARITAN}.6.3.5.3.1.28", frozenset({2})),
    ),
    # outletName and outletID, outletStatus, outletControlAction, outletControlState (lockedOff,
    # lockedOn). Rows: towerIndex.infeedIndex.outletIndex
    "servertech-sentry3": Family(
        mib="Sentry3-MIB",
        systems=(f"{SERVERTECH}.3",),
        names=(f"{SERVERTECH}.3.2.3.1.3", f"{SERVERTECH}.3.2.3.1.2"),
        state=f"{SERVERTECH}.3.2.3.1.5",
        states={0: OFF, 1: ON},
        on=(f"{SERVERTECH}.3.2.3.1.11", 1),
        off=(f"{SERVERTECH}.3.2.3.1.11", 2),
        locked=(f"{SERVERTECH}.3.2.3.1.10", frozenset({6, 7})),
    ),
    # st4OutletName and st4OutletID, st4OutletState (DeviceState), st4OutletControlAction,
    # st4OutletControlState (fixedOn, lockedOff, lockedOn). Rows: unit.cord.outlet
    "servertech-sentry4": Family(
        mib="Sentry4-MIB",
        systems=(f"{SERVERTECH}.4",),
        names=(f"{SERVERTECH}.4.1.8.2.1.3", f"{SERVERTECH}.4.1.8.2.1.2"),
        state=f"{SERVERTECH}.4.1.8.3.1.1",
        states={1: ON, 2: OFF},
        on=(f"{SERVERTECH}.4.1.8.5.1.2", 1),
        off=(f"{SERVERTECH}.4.1.8.5.1.2", 2),
        locked=(f"{SERVERTECH}.4.1.8.5.1.1", frozenset({1, 14, 15})),
    ),
    # tlpPduOutletName, tlpPduOutletState, tlpPduOutletCommand (always reads 0),
    # tlpPduOutletControllable (TruthValue). Rows: tlpDeviceIndex.tlpPduOutletIndex
    "tripplite": Family(
        mib="TRIPPLITE-PRODUCTS",
        systems=(f"{TRIPPLITE}.1",),
        names=(f"{TRIPPLITE}.1.1.3.2.3.3.1.1.2",),
        state=f"{TRIPPLITE}.1.1.3.2.3.3.1.1.4",
        states={1: OFF, 2: ON},
        on=(f"{TRIPPLITE}.1.1.3.2.3.3.1.1.6", 2),
        off=(f"{TRIPPLITE}.1.1.3.2.3.3.1.1.6", 1),
        locked=(f"{TRIPPLITE}.1.1.3.2.3.3.1.1.5", frozenset({2})),
    ),
    # pduOutletSwitchLabel and pduOutletSwitchName, pduOutletSwitchState, pduOutletSwitchControl
    "vertiv": Family(
        mib="VERTIV-V5-MIB",
        systems=(VERTIV,),
        names=(f"{VERTIV}.3.5.1.3", f"{VERTIV}.3.5.1.2"),
        state=f"{VERTIV}.3.5.1.4",
        states={1: ON, 2: OFF},
        on=(f"{VERTIV}.3.5.1.6", 2),
        off=(f"{VERTIV}.3.5.1.6", 4),
    ),
}


def family_of(system: str) -> Family | None:
    """The family whose sysObjectID this is or begins with; the longest such start."""
    fitting = [
        (len(start), family)
        for family in FAMILIES.values()
        for start in family.systems
        if f"{system}.".startswith(f"{start}.")
    ]
    return max(fitting, key=lambda one: one[0])[1] if fitting else None
