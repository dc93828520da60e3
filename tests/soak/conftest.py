"""The soak runs on the machines of the integration tests."""

from tests.integration.conftest import contract, libvirt

__all__ = ["contract", "libvirt"]
