#!/usr/bin/env python3
"""Start and end exactly the lab's own long-running processes.

A process is known by its command line, read from /proc: process ids are reused, files that hold them are left
behind, and names belong to others too. What is wanted is a JSON list on standard input of objects with

- ``name``: what people call it;
- ``argv``, ``environment``, ``log``: the command, and where its output goes;
- ``identity``: arguments of ``argv`` that together tell it from every other process;
- ``mark``: in the place of all these, for what a task starts by itself: a setting of the environment
  (``NAME=value``) that the process, and every process below it, was started with;
- ``netns``: the network namespace that it runs in. One that sits in another (the name was removed and made
  again) is cut off and counts as dead;
- ``family``: prefixes of arguments by which helpers are known that may outlive it (containerd and its shims);
- ``remove``: what a dead process leaves behind and a new one trips over;
- ``unmount``: directories that it may leave mounted;
- ``create``: directories that a new one needs.

Prints a JSON object ``{"changed": bool, "started": [names], "stopped": [names]}``.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_SECONDS = 15
# Labs share a builder: of two that come up at once, one starts it. A lock on a directory needs no file that
# somebody else could own.
LOCKED = Path("/run")


def processes() -> dict[int, list[str]]:
    """Return the arguments of every process but this one, the kernel's own and those that are gone."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                if arguments != [""]:
                    found[int(entry.name)] = arguments
    return found


def environment(pid: int) -> list[str]:
    """Return the settings that a process was started with: none when it is gone or out of reach."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def members(spec: dict) -> list[int]:
    """Return the ids of the processes with the whole identity, or the mark, whatever program they run."""
    if "mark" in spec:
        return [pid for pid in processes() if spec["mark"] in environment(pid)]
    return [pid for pid, arguments in processes().items() if set(spec["identity"]) <= set(arguments[1:])]


def relatives(spec: dict) -> list[int]:
    """Return the ids of helpers that the process started and that may have outlived it."""
    prefixes = tuple(spec.get("family", []))
    return [
        pid
        for pid, arguments in processes().items()
        if prefixes
        and Path(arguments[0]).name.startswith("containerd")
        and any(argument.startswith(prefixes) for argument in arguments[1:])
    ]


def connected(spec: dict, pid: int) -> bool:
    """Say whether a process sits in the network namespace that its specification names."""
    if not spec.get("netns"):
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").samefile(f"/run/netns/{spec['netns']}")
    return False


def end(spec: dict, find: Callable[[dict], list[int]], first: signal.Signals) -> None:
    """End the processes that ``find`` gives: the signal ``first``, and SIGKILL for those that it did not end.

    Args:
        spec: The specification.
        find: ``members`` or ``relatives``. Asked again before every signal, so that a reused id is never hit.
        first: The signal to begin with.

    Raises:
        SystemExit: A process does not end.
    """
    for number in (first, signal.SIGKILL):
        pids = find(spec)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while pids and time.monotonic() < deadline:
            time.sleep(0.1)
            pids = find(spec)
        if not pids:
            return
    sys.exit(f"{spec['name']}: the processes {pids} do not end.")


def clean(spec: dict) -> None:
    """Remove what a dead process left behind, mounts first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for name in (*spec.get("unmount", []), *spec.get("remove", [])):
        for mount in sorted((mount for mount in mounts if Path(mount).is_relative_to(name)), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
    for path in map(Path, spec.get("remove", [])):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def start(spec: dict) -> None:
    """Start the process in a session of its own, so that it outlives this one.

    Args:
        spec: The specification.

    Raises:
        SystemExit: It ended at once.
    """
    command = spec["argv"]
    if spec.get("netns"):
        # Unlike `ip netns exec` this leaves the mounts alone.
        command = ["nsenter", f"--net=/run/netns/{spec['netns']}", "--", *command]
    log_path = Path(spec["log"])
    for directory in (log_path.parent, *map(Path, spec.get("create", []))):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **spec.get("environment", {})},
            cwd="/",
            start_new_session=True,
        )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
        tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        sys.exit(f"{spec['name']} ended at once. The end of {log_path}: {' | '.join(tail)}")


def main() -> None:
    """Bring the processes on standard input into the wanted state."""
    parser = argparse.ArgumentParser(description="Start or end the lab's own processes.")
    parser.add_argument("state", choices=["started", "stopped"])
    parser.add_argument("--check", action="store_true", help="change nothing, say what would change")
    parser.add_argument("--signal", default="KILL", help="the signal to begin with")
    options = parser.parse_args()
    specs, first = json.load(sys.stdin), signal.Signals[f"SIG{options.signal}"]
    lock = os.open(LOCKED, os.O_RDONLY)
    if not options.check:
        fcntl.flock(lock, fcntl.LOCK_EX)
    started, stopped = bring(specs, options.state, first, check=options.check)
    print(json.dumps({"changed": bool(started or stopped), "started": started, "stopped": stopped}))


def bring(
    specs: list[dict], state: str, first: signal.Signals, *, check: bool
) -> tuple[list[str], list[str]]:
    """Start or end the processes that are not as wanted.

    Args:
        specs: The specifications.
        state: "started" or "stopped".
        first: The signal to begin with.
        check: Change nothing.

    Returns:
        Names of those that were started and stopped, or would be.

    Raises:
        SystemExit: A process does not end, or ended at once.
    """
    started, stopped = [], []
    for spec in specs:
        running = members(spec)
        if state == "started":
            if running and all(connected(spec, pid) for pid in running):
                continue
            started.append(spec["name"])
        elif running or relatives(spec):
            stopped.append(spec["name"])
        if check:
            continue
        end(spec, members, first)
        end(spec, relatives, signal.SIGKILL)
        clean(spec)
        if state == "started":
            start(spec)
    return started, stopped


if __name__ == "__main__":
    main()
