"""The other end of driver.py: a process on loopback, or in a hub's container in the lab."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

SCRIPT = Path(__file__).with_name("driver.py")


class Driver:
    """Asks a driver process, and ends it with the block."""

    def __init__(self, command: list[str]) -> None:
        """Start the process.

        Args:
            command: That of `script`, or one that runs it elsewhere.
        """
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @staticmethod
    def script(python: str, settings: dict[str, Any]) -> list[str]:
        """The command that runs driver.py.

        Args:
            python: An interpreter that has aiohttp.
            settings: Arguments of driver.py's Driver.
        """
        return [python, "-c", SCRIPT.read_text(encoding="utf-8"), json.dumps(settings)]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for its answer; driver.py describes them.

        Raises:
            RuntimeError: It could not be done.
        """
        assert self._process.stdin is not None  # noqa: S101 - by the arguments above
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line or '{"error": "the driver ended"}')
        if "error" in answer:
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer

    def start(self, name: str, **traits: Any) -> float:
        """Start one user's server with traits of the spawner.

        Returns:
            Seconds until it is ready.

        Raises:
            RuntimeError: It did not start.
        """
        answer = self.ask("start", names=[name], options={"traits": traits})
        if answer["failed"]:
            raise RuntimeError(f"{name} did not start: {answer['failed'][name]}")
        return answer["seconds"][name]

    def stop(self, name: str) -> None:
        """Stop one user's server; returns when it is gone."""
        self.ask("stop", names=[name])

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process: its standard input ends."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
