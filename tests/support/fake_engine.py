"""A Python that stands in the engine's place: the worker's protocol without Microsoft's engine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from crashdump_analysis.engines.windows import ENGINE_VARIABLE, PYTHON_VARIABLE

_SCRIPT = """\
#!{python}
import json, os, signal, sys
answers = json.loads({answers!r})

def send(message):
    print(json.dumps(message), flush=True)

with open({starts!r}, "a") as file:
    file.write("start\\n")
send({{"hello": {{"protocol": 2, "engine": {{"name": "dbgeng", "version": "1.2.3.4"}}}}}})
for line in sys.stdin:
    request = json.loads(line)
    method, parameters = request["method"], request["params"]
    if method in answers:
        answer = answers[method]
    elif method == "read":
        answer = {{"result": {{"data": [None] * len(parameters["ranges"])}}}}
    elif method == "lookup":
        place = dict.fromkeys(("module", "function", "displacement", "file", "line"))
        place.update(symbols="none", symbols_mismatch=False, symbol_file="", loaded_image="")
        answer = {{"result": {{"places": [place] * len(parameters["addresses"])}}}}
    elif method == "command":
        text = "The call to LoadLibrary(ext) failed, Win32 error 0n2"
        answer = {{"result": {{"output": text, "hresult": 0}}}}
    else:
        answer = {{"result": {{}}}}
    if answer == "killed":
        print("wine: out of memory", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if answer == "rubbish":
        print("rubbish", flush=True)
        continue
    send({{"id": request["id"], **answer}})
    if method == "quit":
        break
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **answers: object) -> Path:
    """Makes lab triage use a fake engine; gives a file with a line for each of its starts.

    answers: what it says to each of the worker's methods: a message without its id, or "killed" or
    "rubbish". Without one it has no memory, no names and no !analyze.
    """
    starts = folder / "starts"
    starts.touch()
    program = folder / "python-with-engine"
    program.write_text(
        _SCRIPT.format(python=sys.executable, answers=json.dumps(answers), starts=str(starts))
    )
    program.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, os.fspath(program))
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    return starts


def error(kind: str, message: str) -> dict[str, object]:
    """An answer that refuses."""
    return {"error": {"kind": kind, "message": message, "hresult": None}}
