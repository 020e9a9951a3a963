#!/usr/bin/env python3
"""Say what stands in the way of a lab on this machine, or of ending it, before anything is changed.

    check_host.py up|down

The question is JSON on standard input (see tasks/preflight.yml and, for ``down``, tasks/down.yml), the answer
a JSON list of sentences, empty when all is well. Changes nothing, and needs no root.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROC = Path("/proc")
TUN = Path("/dev/net/tun")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# Disk that is taken while a kernel is built, by the node image, by the builder's images, and by a node with a
# cluster on it: measured, rounded up.
KERNEL_BYTES = 4 << 30
IMAGE_BYTES = 2 << 30
BUILDER_BYTES = 4 << 30
NODE_BYTES = 4 << 30
# Capabilities, by bit number (linux/capability.h), without which root is root in name only (most containers).
CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}


def size(text: str) -> int:
    """Return a size in bytes.

    Args:
        text: A number and a unit, such as ``2560M``.

    Raises:
        ValueError: It is something else.
    """
    match = re.fullmatch(r"([1-9][0-9]*)([KMGT])", str(text))
    if not match:
        raise ValueError(text)
    return int(match[1]) * UNITS[match[2]]


def gib(number: int) -> str:
    """Return a number of bytes for people."""
    return f"{number / (1 << 30):.1f} GiB"


def settings(question: dict) -> list[str]:
    """Check the variables by themselves."""
    problems = []
    if not re.fullmatch(r"[a-z][a-z0-9]{0,11}", question["name"]):
        problems.append(
            f"lab_name is '{question['name']}': it becomes part of an interface's name, "
            "so it must be 1 to 12 lower-case letters and digits, a letter first."
        )
    try:
        if ipaddress.IPv4Network(question["subnet"]).prefixlen != 24:
            raise ValueError
    except ValueError:
        problems.append(f"lab_subnet is '{question['subnet']}': it must be a /24 such as 198.51.100.0/24.")
    names = question["nodes"]
    plain = all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", str(name)) for name in names)
    if not plain or not 1 <= len(names) <= 100 or len(set(names)) != len(names):
        problems.append(f"lab_nodes is {names}: it must be a list of 1 to 100 different host names.")
    for variable in ("memory", "disk"):
        try:
            size(question[variable])
        except ValueError:
            problems.append(
                f"lab_node_{variable} is '{question[variable]}': "
                "it must be a number and a unit, such as 2560M."
            )
    return problems


def rights(_question: dict) -> list[str]:
    """Check that root's work can be done, as root or through sudo without a password."""
    if os.geteuid() != 0:
        needs = "The lab's network and disks need root: run it as root, or"
        if not shutil.which("sudo"):
            return [f"{needs} install sudo and allow this user to use it without a password."]
        if subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
            return [f"{needs} allow this user sudo without a password."]
        return []
    status = (PROC / "self/status").read_text(encoding="ascii", errors="replace")
    effective = int(re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16)
    missing = [name for bit, name in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return [f"root has no {' and no '.join(missing)} here (a container?), which the lab's network needs."]
    return []


def tun(_question: dict) -> list[str]:
    """Check for the device behind the nodes' network cards."""
    if TUN.is_char_device():
        return []
    return ["There is no /dev/net/tun, on which the nodes' network cards rest: load the kernel module tun."]


def living(lab: str) -> list[tuple[str, str]]:
    """Return the names and disks of the nodes that run in all labs of one name, whoever started them."""
    prefix, found = f"campus-{lab}-", []
    for path in PROC.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().decode(errors="replace").split("\0")
            values = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
            if values.get("umid", "").startswith(prefix) and "ubd0" in values:
                found.append((values["umid"].removeprefix(prefix), values["ubd0"]))
    return found


def is_own(question: dict, disk: str) -> bool:
    """Say whether a disk is this lab's, as processes.py does: the same directory in other words is not."""
    return disk.startswith(f"{question['state_dir']}/nodes/")


def others(question: dict) -> list[str]:
    """Check that no lab of this name runs whose files are elsewhere: the two would share one network.

    Args:
        question: The lab's ``name`` and ``state_dir``.
    """
    nodes = living(question["name"])
    found = {disk.removesuffix(f"/nodes/{node}/disk") for node, disk in nodes if not is_own(question, disk)}
    if not found:
        return []
    return [
        f"Another lab named '{question['name']}' runs on this machine, started from another directory, "
        f"{' and '.join(sorted(found))}: end it there with `make lab-down` as the user who started it, "
        "or give this lab another lab_name and lab_subnet."
    ]


def running(question: dict) -> set[str]:
    """Return the names of the lab's own nodes that run already."""
    return {node for node, disk in living(question["name"]) if is_own(question, disk)}


def memory(question: dict) -> list[str]:
    """Check that the nodes which are to be started fit into what is free."""
    new = len(set(question["nodes"]) - running(question))
    needed = new * size(question["memory"])
    meminfo = (PROC / "meminfo").read_text(encoding="ascii")
    free = int(re.search(r"MemAvailable:\s*(\d+)", meminfo)[1]) << 10
    if needed > free:
        return [
            f"{new} nodes of {question['memory']} need {gib(needed)} of memory, and {gib(free)} are free: "
            "lower lab_node_memory or the number of nodes, or end another lab."
        ]
    return []


def disk(question: dict) -> list[str]:
    """Check that what is still to be made fits onto its file systems."""
    needs: dict[int, tuple[Path, int]] = {}

    def need(directory: str, amount: int) -> None:
        path = Path(directory)
        while not path.is_dir():
            path = path.parent
        device = path.stat().st_dev
        first, before = needs.get(device, (path, 0))
        needs[device] = (first, before + amount)

    cache, state = question["cache_dir"], question["state_dir"]
    if not any(Path(cache, "kernel").glob(f"linux-*-{question['kernel_digest']}")):
        need(cache, KERNEL_BYTES)
    if not any(Path(cache, "image").glob("node-*.ext4")):
        need(cache, IMAGE_BYTES)
    if question["builder"] and not Path(cache, "builder", "data").is_dir():
        need(cache, BUILDER_BYTES)
    new = sum(not Path(state, "nodes", name, "disk").exists() for name in question["nodes"])
    need(state, new * NODE_BYTES)
    return [
        f"The lab needs {gib(amount)} on the file system of {path}, "
        f"and {gib(shutil.disk_usage(path).free)} are free."
        for path, amount in needs.values()
        if amount > shutil.disk_usage(path).free
    ]


def routes() -> dict[ipaddress.IPv4Network, str]:
    """Return the networks that the kernel has routes to, and through which interface.

    Read from the kernel, because a new machine may not have the program ``ip`` yet.
    """
    found = {}
    for line in (PROC / "net/route").read_text(encoding="ascii").splitlines()[1:]:
        interface, destination, _, _, _, _, _, mask, *_ = line.split()
        # Numbers in the machine's own order of bytes, which on x86-64 is the lowest first.
        address, netmask = (
            ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(text), "little"))
            for text in (destination, mask)
        )
        found[ipaddress.IPv4Network(f"{address}/{netmask}")] = interface.replace("*", "no interface")
    return found


def addresses() -> dict[ipaddress.IPv4Network, str]:
    """Return the networks of this machine's own addresses; all that have no route are on loopback or down."""
    found = {}
    if shutil.which("ip"):
        for link in json.loads(subprocess.check_output(["ip", "-json", "-4", "address", "show"]) or "[]"):
            for address in link.get("addr_info", []):
                if "local" in address:
                    network = ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}").network
                    found[network] = link["ifname"]
    return found


def subnet(question: dict) -> list[str]:
    """Check that no other network of this machine overlaps the lab's."""
    taken = {network: interface for network, interface in routes().items() if network.prefixlen}
    taken |= addresses()
    wanted = ipaddress.IPv4Network(question["subnet"])
    return [
        f"lab_subnet {wanted} overlaps {network}, which this machine reaches through {interface}: "
        "choose another."
        for network, interface in taken.items()
        if interface != question["interface"] and network.overlaps(wanted)
    ]


def uplink(question: dict) -> list[str]:
    """Check that there is a way out, for packages."""
    problems = []
    if not question["uplink"]:
        problems.append("This machine has no default route for IPv4, so the nodes could fetch nothing.")
    if not question["nameservers"]:
        problems.append("This machine knows only name servers on its own loopback: set lab_nameservers.")
    return problems


def unchanged(question: dict) -> list[str]:
    """Check that a lab which is there already is the one that is asked for."""
    try:
        made = json.loads(Path(question["state_dir"], "lab.json").read_text(encoding="utf-8"))
    except OSError:
        return []
    end = f"end the lab '{question['name']}' with lab_down.yml first."
    problems = [
        f"The lab was made with {variable} {made[key]}, and {question[key]} is asked for: {end}"
        for key, variable in (("subnet", "lab_subnet"), ("disk", "lab_node_disk"), ("suite", "lab_suite"))
        if made[key] != question[key]
    ]
    if made["nodes"] != question["nodes"][: len(made["nodes"])]:
        problems.append(
            f"The lab was made with the nodes {', '.join(made['nodes'])}; "
            f"more may follow them, but none may go or move: {end}"
        )
    return problems


def main() -> None:
    """Read the question, print the answer."""
    parser = argparse.ArgumentParser(description="Say what stands in the way of a lab, or of ending it.")
    parser.add_argument("verb", choices=["up", "down"])
    verb, question = parser.parse_args().verb, json.load(sys.stdin)
    if verb == "down":
        problems = others(question)
    elif platform.system() != "Linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        problems = [f"The lab runs on Linux on x86-64 only, and this is {here}."]
    else:
        # Beside another lab of this name, the rest would only confuse.
        problems = settings(question) or others(question)
        if not problems:
            checks = (rights, tun, memory, disk, subnet, uplink, unchanged)
            problems = [problem for check in checks for problem in check(question)]
    print(json.dumps(problems))


if __name__ == "__main__":
    main()
