"""What libvirt's error to an agent command means: not sent, refused by the agent, or unknown.

libvirt has one code for most of them, so its texts (src/qemu/qemu_agent.c) decide. What is not
known for sure is unknown.
"""

from __future__ import annotations

import libvirt

from lab.backend import AgentError, AgentSilent, AgentUnreachable

_NOT_SENT = {
    libvirt.VIR_ERR_NO_DOMAIN,  # off
    libvirt.VIR_ERR_OPERATION_INVALID,  # off, stopped or crashed
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,  # the domain has no agent
    libvirt.VIR_ERR_OPERATION_TIMEOUT,  # something else keeps the domain busy
}
_NOT_CONNECTED = ("is not connected", "is not available due to an error")
_REFUSED = "unable to execute QEMU agent command"


def agent_error(error: libvirt.libvirtError, what: str) -> AgentError:
    """The exception to raise; `what` says which command was for whom."""
    said = error.get_error_message() or str(error)
    code = error.get_error_code()
    if code in _NOT_SENT or any(text in said for text in _NOT_CONNECTED):
        return AgentUnreachable(f"{what}: not sent: {said}")
    if _REFUSED in said:
        return AgentError(said.partition("': ")[2] or said)
    return AgentSilent(f"{what}: no answer, nobody knows whether it was carried out: {said}")
