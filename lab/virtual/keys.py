"""Key names of contracts as Linux key codes (<linux/input-event-codes.h>)."""

from __future__ import annotations

from collections.abc import Sequence

from lab.backend import BackendError

_ROWS = {
    2: "1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p left-bracket"
    " right-bracket enter left-ctrl a s d f g h j k l semicolon apostrophe grave left-shift"
    " backslash z x c v b n m comma dot slash right-shift keypad-asterisk left-alt space caps-lock"
    " f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 num-lock scroll-lock",
    87: "f11 f12",
    97: "right-ctrl",
    99: "print-screen right-alt",
    102: "home up page-up left right end down page-down insert delete",
    125: "left-windows right-windows menu",
}
KEY_CODES = {
    "escape": 1,
    **{
        name: code
        for first, names in _ROWS.items()
        for code, name in enumerate(names.split(), first)
    },
}


def key_codes(names: Sequence[str]) -> list[int]:
    """Raises BackendError naming what is no key."""
    if unknown := sorted(set(names) - KEY_CODES.keys()):
        raise BackendError(
            f"no key is called {', '.join(unknown)}; the names are {', '.join(sorted(KEY_CODES))}"
        )
    return [KEY_CODES[name] for name in names]
