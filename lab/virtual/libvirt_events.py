"""The one event loop of libvirt's client in this process, in a thread of its own.

libvirt wants it registered before the first connection is opened, and once only. Its callbacks run
in that thread: they must not block, and make no calls to libvirt.
"""

from __future__ import annotations

import threading

import libvirt

_lock = threading.Lock()
_thread: threading.Thread | None = None


def start_event_loop() -> None:
    """Starts it unless it runs already."""
    global _thread  # noqa: PLW0603 - libvirt's registration is process-wide, too
    with _lock:
        if _thread is None:
            libvirt.virEventRegisterDefaultImpl()
            # Errors are raised; libvirt would print each to standard error, too.
            libvirt.registerErrorHandler(lambda *_: None, None)
            _thread = threading.Thread(target=_run, name="libvirt events", daemon=True)
            _thread.start()


def _run() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
