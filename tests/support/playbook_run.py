"""Runs the playbooks as an administrator does, to their end or not.

As a program it kills a playbook at several moments: `playbook_run.py INVENTORY PLAYBOOK MOMENT...`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def playbook(inventory: Path, name: str, *arguments: str, timeout: float = 1800) -> str:
    """Run a playbook, and return what it prints.

    Args:
        inventory: As for `ansible-playbook -i`.
        name: File in `playbooks/`.
        arguments: Further ones of `ansible-playbook`.
        timeout: Seconds until it is ended.

    Raises:
        AssertionError: When it fails.
    """
    command, options = prepare(inventory, name, *arguments)
    done = subprocess.run(command, **options, input="", capture_output=True, timeout=timeout)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def interrupt(inventory: Path, name: str, moment: str, *arguments: str, delay: float = 0) -> None:
    """Run a playbook until it prints a text, and kill it then, as the machine's end would.

    Args:
        inventory: As for `ansible-playbook -i`.
        name: File in `playbooks/`.
        moment: What is waited for, such as a task's name.
        arguments: Further ones of `ansible-playbook`.
        delay: Seconds between the text and the end.

    Raises:
        AssertionError: When it ended before.
    """
    command, options = prepare(inventory, name, *arguments)
    # Else a task's name comes with its first result, and not before it begins.
    options["env"]["ANSIBLE_DISPLAY_SKIPPED_HOSTS"] = "true"
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **options, **pipes, start_new_session=True) as running:
        said = []
        for line in running.stdout:
            said.append(line)
            if moment in line:
                time.sleep(delay)
                os.killpg(running.pid, signal.SIGKILL)
                return
    raise AssertionError(f"{moment!r} never came:\n{''.join(said)}")


def prepare(inventory: Path, name: str, *arguments: str) -> tuple[list[str], dict[str, Any]]:
    """The command that runs a playbook, and the options of its process."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment.pop("ANSIBLE_FORCE_COLOR", None)
    command = [program, "-i", str(inventory), f"playbooks/{name}", *arguments]
    return command, {"cwd": ROOT, "env": environment, "text": True}


if __name__ == "__main__":
    for text in sys.argv[3:]:
        # Some seconds, so that the task is at work.
        interrupt(Path(sys.argv[1]), sys.argv[2], text, delay=4)
