"""The probe that runs a program: exit 0 is healthy, its last line of output is the cause.

No shell, no input, and an environment of its own (PATH, LANG, TCPGATE_ADDRESS, TCPGATE_HOST, TCPGATE_PORT), since the
gateway's may hold secrets. The program leads a session of its own, so whatever it started is in its process group and
is killed with it: at the deadline, on cancellation, and when it exits too. Output is read as it comes, and only its
end is kept.

Source: HAProxy "option external-check"; setsid(2), kill(2). Owner: the endpoint's task; cancelled, it leaves no
process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import attrs
import trio

from tcpgate.control.probe import Asking, Failed, excerpt
from tcpgate.units import HostPort, parse_endpoint

OUTPUT_KEPT = 4096
LAST_WORDS = 0.1
"""How long to wait for the rest of the output once the program and its group are gone (seconds): a process that left
the group may hold the pipe for ever."""
FAREWELL = 1.0
"""How long a killed program may take to be gone (seconds); it is dead by then but for one stuck in the kernel."""


@attrs.define
class _Output:
    """The end of what a program wrote."""

    tail: bytes = b""
    size: int = 0

    async def read_all(self, stream: trio.abc.ReceiveStream) -> None:
        """Read until the last writer is gone."""
        async for data in stream:
            self.size += len(data)
            self.tail = (self.tail + data)[-OUTPUT_KEPT:]

    def last_line(self) -> str:
        """The last line that holds anything, "" if none does."""
        return excerpt(self.tail.strip().rpartition(b"\n")[2].strip())


async def ask_exec(asking: Asking) -> str:
    """The program exits with 0."""
    asking.phase = "exec"
    try:
        process = await trio.lowlevel.open_process(
            list(asking.spec.exec),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(asking.address),
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as exc:
        raise Failed(f"cannot start {asking.spec.exec[0]}: {exc.strerror}") from exc
    output = _Output()
    try:
        code = await _run(process, output)
    finally:
        _kill_group(process)
        with trio.move_on_after(FAREWELL, shield=True):
            await trio.aclose_forcefully(_stdout(process))
            await process.wait()
    asking.size = output.size
    ended = f"exit {code}" if code >= 0 else f"killed by {_signal_name(-code)}"
    seen = ": ".join(text for text in (ended, output.last_line()) if text)
    if code != 0:
        raise Failed(seen)
    return seen


async def _run(process: trio.Process, output: _Output) -> int:
    """The program's exit code, once its output is read."""
    async with trio.open_nursery() as reading:
        reading.start_soon(output.read_all, _stdout(process))
        code = await process.wait()
        _kill_group(process)
        reading.cancel_scope.deadline = trio.current_time() + LAST_WORDS
    return code


def _stdout(process: trio.Process) -> trio.abc.ReceiveStream:
    assert process.stdout is not None  # it was started with a pipe
    return process.stdout


def _kill_group(process: trio.Process) -> None:
    # The group's id stays taken while one process of it lives, and no new process gets the number of a dead leader in
    # the moment between its exit and this call: the kernel hands numbers out in a circle.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    """As "SIGKILL"; most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment(address: str) -> dict[str, str]:
    endpoint = parse_endpoint(address)
    host, port = (endpoint.host, str(endpoint.port)) if isinstance(endpoint, HostPort) else ("", "")
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TCPGATE_ADDRESS": address,
        "TCPGATE_HOST": host,
        "TCPGATE_PORT": port,
    }
