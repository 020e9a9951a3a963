"""Processes of this machine that a benchmark starts on loopback, and ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from inventory import Inventory

from benchmarks import ROOT

ADDRESS = "127.0.0.1"
CLONE_NEWNET = 0x40000000  # sched.h


def enter_lab(inventory: Path) -> None:
    """Move this process into the network namespace of the inventory's lab.

    Raises:
        SystemExit: There is none.
        OSError: It cannot, as for want of root.
    """
    found = Inventory(inventory)
    namespace = Path("/run/netns", f"campus-{found.value(found.groups['managers'][0], 'lab_name', '')}")
    if not namespace.exists():
        raise SystemExit(f"{inventory} has no lab that runs here: there is no {namespace}.")
    with namespace.open() as file:
        # os.setns is Python 3.12's
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(namespace))


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.create_server((ADDRESS, 0)) as server:
        return server.getsockname()[1]


def wait_until(url: str, process: subprocess.Popen[bytes], log: Path, timeout: float = 60) -> None:
    """Wait until a process answers at a URL.

    Args:
        url: Any answer from there counts, an error's too.
        process: It.
        log: Where its output goes, for the message.
        timeout: Seconds.

    Raises:
        SystemExit: It ended, or did not answer in time.
    """
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{url} does not answer; the last lines of {log}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(
    command: list[str], url: str, log: Path, cpu: int | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program for the length of a block.

    Args:
        command: Arguments for Python.
        url: It runs when this answers.
        log: File for its output.
        cpu: The core it may use; None: all.
        environment: Variables besides this process's own.
    """
    pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*pinned, sys.executable, *command],
            cwd=log.parent,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(url, process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Accounts:
    """A directory for the accounts service: its files, its homes and its token.

    Attributes:
        token: The bearer token.
    """

    def __init__(self, directory: Path) -> None:
        """Make it without accounts.

        Raises:
            SystemExit: Homes cannot be given to other users here.
        """
        if os.geteuid():
            raise SystemExit("The accounts service gives homes to their users: run this as root.")
        self.directory = directory
        self.state, self.homes = directory / "state", directory / "homes"
        self.token = secrets.token_hex(16)
        for path in (self.state, self.homes):
            path.mkdir(parents=True)
        (self.homes / ".campus-storage").touch()
        (directory / "token").write_text(self.token, encoding="utf-8")
        for name in ("passwd", "group"):
            (self.state / name).touch()

    @contextlib.contextmanager
    def service(self, cpu: int | None = None) -> Iterator[tuple[str, int]]:
        """Run the service for the length of a block.

        Args:
            cpu: The core it may use.

        Yields:
            Its URL and the ID of its process.
        """
        port = free_port()
        command = [
            str(ROOT / "files/accounts.py"),
            *("--homes-dir", str(self.homes), "--state-dir", str(self.state)),
            *("--token-file", str(self.directory / "token"), "--host", ADDRESS, "--port", str(port)),
        ]
        url = f"http://{ADDRESS}:{port}"
        with running(command, f"{url}/healthz", self.directory / "accounts.log", cpu) as process:
            yield url, process.pid
