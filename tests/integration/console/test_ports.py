"""A port that stays open: bytes, marks, watchers, holders, and what goes wrong with a line."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from lab.console.log import FollowedLog, Log, entries
from lab.console.port import PortHeld
from lab.console.sac import Sac, SacUnreachable
from lab.console.settings import ConsoleSettings
from lab.console.transport import ConsoleError, ConsoleGone, Line, open_transport
from lab.console.watcher import NotExpectedError
from lab.signals import DeadlineError, MachineCrashed, SignalKind
from tests.integration.console.conftest import DEADLINE, Bench, marks
from tests.support.small_store import mount_namespace
from tests.support.waiting import wait_for

EVERY_BYTE = bytes(range(256)) * 16


def logged(log: Log, data: bytes) -> None:
    """Waits until a log is exactly that."""
    wait_for("the bytes", lambda: log.size >= len(data), DEADLINE, interval=0.005)
    assert log.path.read_bytes() == data


def test_every_byte_is_logged_as_it_came_with_times(bench: Bench) -> None:
    machine = bench.machine()
    port = bench.port(str(machine.device))
    machine.say(EVERY_BYTE)
    logged(port.log, EVERY_BYTE)
    machine.say(b"more")
    logged(port.log, EVERY_BYTE + b"more")
    told = entries(port.log.times)
    assert told[0]["event"] == "connected"
    assert told[0]["gap_seconds"] is None
    pieces = [entry for entry in told if "event" not in entry]
    assert pieces[0]["offset"] == 0
    assert len(EVERY_BYTE) in [piece["offset"] for piece in pieces]
    times = [datetime.fromisoformat(entry["at"]) for entry in told]
    assert times == sorted(times)


def test_typing_goes_to_the_machine_and_into_the_index(bench: Bench) -> None:
    machine = bench.machine()
    port = bench.port(str(machine.device))
    port.write(EVERY_BYTE[:256])
    assert machine.hear(256) == EVERY_BYTE[:256]
    assert marks(port.log, "typed")[0]["length"] == 256


def test_watchers_take_nothing_from_each_other(bench: Bench) -> None:
    machine = bench.machine()
    port = bench.port(str(machine.device))
    machine.say(b"one two ")
    logged(port.log, b"one two ")
    late, early = bench.watch(port.log), bench.watch(port.log, 0)
    machine.say(b"three four")
    assert late.expect(b"three", DEADLINE).start == 8
    assert early.expect(b"two", DEADLINE).before == b"one "
    assert early.expect(b"f(o)ur", DEADLINE).match[1] == b"o"
    wait_for("the rest", lambda: late.offset + len(late.read()) == 18, DEADLINE)
    # Another process, too.
    followed = FollowedLog(bench.folder)
    followed.look()
    assert followed.read(0) == b"one two three four"
    with pytest.raises(TypeError, match="another process"):
        followed.add(b"x")


def test_what_does_not_come_is_told_with_what_came(bench: Bench) -> None:
    machine = bench.machine()
    watcher = bench.watch(bench.port(str(machine.device)).log)
    machine.say(b"something \x80else")
    with pytest.raises(NotExpectedError, match=r"SAC>. on the console; it said 15 bytes") as found:
        watcher.expect(b"SAC>", 0.5)
    assert found.value.said == b"something \x80else"
    assert watcher.read() == b"something \x80else"  # it has not moved
    with pytest.raises(NotExpectedError, match="it said nothing"):
        watcher.expect(b"SAC>", 0.1)


def test_a_crash_ends_every_wait(bench: Bench) -> None:
    port = bench.port(str(bench.machine().device))
    boot = bench.signals.add(SignalKind.POWER_ON, "test").boot
    watcher = bench.watch(port.log)
    from_boot = type(watcher)(port.log, bench.signals, boot=boot)
    timer = threading.Timer(0.2, lambda: bench.signals.add(SignalKind.BUG_CHECK, "test"))
    timer.start()
    with pytest.raises(MachineCrashed):
        from_boot.expect(b"never", DEADLINE)
    with pytest.raises(MachineCrashed):
        from_boot.silence(DEADLINE, 2 * DEADLINE)
    with pytest.raises(NotExpectedError):
        from_boot.regardless_of_boot().expect(b"never", 0.05)
    timer.join()


def test_silence_is_a_witness(bench: Bench) -> None:
    machine = bench.machine()
    watcher = bench.watch(bench.port(str(machine.device)).log)
    watcher.silence(0.3, DEADLINE)
    stop = threading.Event()

    def talk() -> None:
        while not stop.wait(0.02):
            machine.say(b".")

    talker = threading.Thread(target=talk)
    talker.start()
    watcher.expect(rb"\.\.", DEADLINE)
    with pytest.raises(DeadlineError, match="silence on the console"):
        watcher.silence(0.5, 1.0)
    stop.set()
    talker.join()
    watcher.silence(0.3, DEADLINE)


def test_a_console_server_that_dies_and_comes_back(bench: Bench) -> None:
    machine = bench.machine()
    server, number = bench.ser2net(machine.device)
    port = bench.port(f"socket://127.0.0.1:{number}")
    machine.say(b"before")
    logged(port.log, b"before")
    server.kill()
    wait_for("the loss", lambda: not port.connected, DEADLINE)
    assert port.trouble
    with pytest.raises(ConsoleGone, match="is not connected"):
        port.write(b"x")
    wait_for("attempts", lambda: "running?" in port.trouble, DEADLINE)
    server.start()
    port.retry()
    wait_for("the connection", lambda: port.connected, DEADLINE)
    machine.say(b"after")
    wait_for("bytes", lambda: port.log.read(0).endswith(b"after"), DEADLINE)
    lost, again = marks(port.log, "lost"), marks(port.log, "connected")
    assert len(lost) == 1
    assert len(again) == 2
    assert lost[0]["offset"] == again[1]["offset"] == 6
    passed = datetime.fromisoformat(str(again[1]["at"])) - datetime.fromisoformat(
        str(lost[0]["at"])
    )
    assert again[1]["gap_seconds"] == pytest.approx(passed.total_seconds(), abs=0.05)


def test_a_port_that_is_gone_at_power_off(bench: Bench) -> None:
    link = bench.folder / "adapter"
    adapter = bench.process(
        ["socat", f"PTY,link={link},raw,echo=0,b115200", "SYSTEM:cat"], link.exists
    )
    port = bench.port(str(link))
    port.write(b"echo")
    logged(port.log, b"echo")
    adapter.kill()
    link.unlink(missing_ok=True)
    wait_for("the loss", lambda: "plugged in?" in port.trouble, DEADLINE)
    adapter.start()
    wait_for("the connection", lambda: port.connected, DEADLINE)
    port.write(b"again")
    logged(port.log, b"echoagain")
    assert len(marks(port.log, "connected")) == 2


def test_a_server_that_replays_its_buffer_is_marked_and_nothing_is_dropped(bench: Bench) -> None:
    kept = b"".join(b"line %03d\r\n" % n for n in range(20))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = bench.unconnected(f"socket://127.0.0.1:{server.getsockname()[1]}")
        first, _ = server.accept()
        with first:
            first.sendall(kept)
            logged(port.log, kept)
        wait_for("the loss", lambda: len(marks(port.log, "lost")) == 1, DEADLINE)
        second, _ = server.accept()
        with second:
            for piece in (kept[100:150], kept[150:], b"what is new\r\n"):
                second.sendall(piece)
                wait_for("it", lambda: port.log.read(0).endswith(piece), DEADLINE)  # noqa: B023
            logged(port.log, kept + kept[100:] + b"what is new\r\n")
            replay = marks(port.log, "looks-replayed")
            assert replay[-1]["offset"] == len(kept)
            assert replay[-1]["length"] == len(kept) - 100
        wait_for("the loss", lambda: len(marks(port.log, "lost")) == 2, DEADLINE)
        third, _ = server.accept()
        with third:
            third.sendall(b"something else that was never said before, and at length\r\n")
            wait_for("it", lambda: port.log.read(0).endswith(b"length\r\n"), DEADLINE)
        assert marks(port.log, "looks-replayed") == replay


def test_garbage_at_the_wrong_speed_is_kept_and_named(bench: Bench) -> None:
    machine = bench.machine()
    port = bench.port(str(machine.device))
    garbage = bytes((byte * 7 + 129) % 256 for byte in range(400))
    sac = Sac(bench.watch(port.log), lambda _: machine.say(garbage), deadline=0.6)
    with pytest.raises(SacUnreachable, match=r"is the speed \(baud\) right\?"):
        sac.identity()
    assert port.log.path.read_bytes().startswith(garbage)


def test_two_holders_of_one_port_are_refused_by_name(bench: Bench) -> None:
    device = bench.machine().device
    first = bench.port(str(device), holder="run 20261126-1")
    held = rf"held by run 20261126-1 \(process {os.getpid()}\)"
    with pytest.raises(PortHeld, match=held):
        bench.unconnected(str(device), Log(bench.folder, "second"))
    with pytest.raises(PortHeld):  # other options make no other port
        bench.unconnected(f"{device}?x=1", Log(bench.folder, "third"))
    first.close()
    bench.port(str(device), Log(bench.folder, "fourth"))


def test_another_program_that_has_the_device_is_named(bench: Bench) -> None:
    device = bench.machine().device
    ready = bench.folder / "ready"
    code = (
        "import serial, sys, pathlib, signal; port = serial.Serial(sys.argv[1], exclusive=True);"
        " pathlib.Path(sys.argv[2]).touch(); signal.pause()"
    )
    other = bench.process([sys.executable, "-c", code, str(device), ready], ready.exists)
    port = bench.unconnected(str(device))
    wait_for("the refusal", lambda: f"(process {other.pid})" in port.trouble, DEADLINE)
    assert "end that first" in port.trouble
    other.kill()
    wait_for("the connection", lambda: port.connected, DEADLINE)


def test_the_right_to_a_port_ends_with_its_holder(bench: Bench) -> None:
    device, ready = bench.machine().device, bench.folder / "ready"
    code = (
        "import sys, pathlib, signal; from lab.console.port import PortHold;"
        " hold = PortHold(pathlib.Path(sys.argv[1]), sys.argv[2], 'a dead one');"
        " pathlib.Path(sys.argv[3]).touch(); signal.pause()"
    )
    command: list[str | Path] = [
        sys.executable,
        "-c",
        code,
        bench.folder / "locks",
        str(device),
        ready,
    ]
    other = bench.process(command, ready.exists)
    with pytest.raises(PortHeld, match="held by a dead one"):
        bench.unconnected(str(device))
    other.kill()
    bench.port(str(device))


def test_a_log_that_is_gone_on_with_has_its_gap(bench: Bench) -> None:
    machine = bench.machine()
    with bench.port(str(machine.device)) as port:
        machine.say(b"first")
        logged(port.log, b"first")
    again = bench.port(str(machine.device), Log(bench.folder))
    machine.say(b"second")
    logged(again.log, b"firstsecond")
    lost, connected = marks(again.log, "lost"), marks(again.log, "connected")
    assert [one["why"] for one in lost] == ["the lab closed it"]
    gap = connected[1]["gap_seconds"]
    assert isinstance(gap, float)
    assert 0 < gap < DEADLINE


def test_a_full_disk_holds_the_line_and_loses_nothing(bench: Bench) -> None:
    machine = bench.machine()
    said = b"".join(b"%07d\n" % n for n in range(300_000))  # 2.4 MB
    with mount_namespace() as mounts:
        folder = bench.folder / "small"
        mounts.small_folder(folder, 1)
        port = bench.port(str(machine.device), Log(mounts.seen(folder)))
        speaker = threading.Thread(target=machine.say, args=(said,))
        speaker.start()
        wait_for("no room", lambda: "cannot be written" in port.trouble, DEADLINE)
        assert os.strerror(errno.ENOSPC) in port.trouble
        mounts.resize(folder, 16)
        speaker.join()
        logged(port.log, said)
        assert port.trouble == ""
        port.close()


def test_urls_that_are_none(bench: Bench) -> None:
    for url, told in {
        "telnet://x:1": "expected a device file or one of rfc2217://",
        "socket://x": "expected socket://HOST:PORT",
        "sol://": "expected sol://HOST",
    }.items():
        with pytest.raises(ConsoleError, match=told):
            open_transport(Line(url))
        with pytest.raises(ValueError, match=told):
            ConsoleSettings(url=url)
    port = bench.unconnected("/dev/serial/by-id/none")
    wait_for("the reason", lambda: "is the adapter plugged in?" in port.trouble, DEADLINE)


def test_an_index_being_written_is_read_up_to_its_last_whole_line(bench: Bench) -> None:
    log = bench.log()
    log.add(b"x")
    with log.times.open("a") as times:
        times.write('{"offset": 1, "at"')
    assert [entry["offset"] for entry in entries(log.times)] == [0]
    assert log.last_entry() == datetime.fromisoformat(
        json.loads(log.times.read_text().splitlines()[0])["at"]
    )
