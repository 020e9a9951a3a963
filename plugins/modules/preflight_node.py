#!/usr/bin/python
# Copyright Campus JupyterHub contributors
# BSD-3-Clause (see LICENSE)
"""Examine a node before anything is changed on it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import gzip
import ipaddress
import os
import pathlib
import re
import socket
import ssl
import struct
import time

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: preflight_node
short_description: Tells what keeps a server from being a node of the cluster
description:
  - Looks at distribution, kernel, memory, disk, ports, peers and directory servers, and changes nothing.
  - Finds problems instead of failing, so that those of all nodes can be shown together.
author: Campus JupyterHub contributors (@campus-jupyterhub)
options:
  distributions:
    description: ID of os-release → oldest VERSION_ID that is supported.
    type: dict
    required: true
  needs_buildx:
    description: Whether Docker's buildx plugin has to come from the distribution. Debian has it from 13 on.
    type: bool
    default: false
  memory_mb:
    description: Least memory of the node.
    type: int
    default: 0
  disk_mb:
    description: Least free space on each of O(disk_paths).
    type: int
    default: 0
  disk_paths:
    description: Directories that will be filled; they need not exist yet.
    type: list
    elements: str
    default: []
  quota_path:
    description: Directory whose file system has to have user quotas; empty for none. It need not exist yet.
    type: str
    default: ""
  ports:
    description: TCP ports that nobody but Docker and its containers may listen on.
    type: list
    elements: int
    default: []
  peers:
    description: Name → address of the other nodes.
    type: dict
    default: {}
  peer_ports:
    description: TCP ports to try on peers; a refusal is an answer too.
    type: list
    elements: int
    default: [7946, 2377, 22]
  ldap_servers:
    description: Directory servers to greet, as host, host:port, ldaps:// or ldap:// URL.
    type: list
    elements: str
    default: []
  ldap_port:
    description: Their port, 0 for the protocol's own.
    type: int
    default: 0
  ldap_tls:
    description: How the connection is encrypted.
    type: str
    choices: [ldaps, starttls]
    default: ldaps
  ldap_ca:
    description: PEM of the CA of the directory servers, empty for the system's.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for a connection.
    type: int
    default: 5
  control_time:
    description: The control node's clock when the task was sent.
    type: float
    required: true
"""

EXAMPLES = r"""
- name: Examine the node
  campus.jupyterhub.preflight_node:
    distributions:
      debian: "12"
    control_time: "{{ now().timestamp() }}"
  register: __preflight_node
"""

RETURN = r"""
problems:
  description: Sentences.
  returned: always
  type: list
  elements: str
clock_offset:
  description: Seconds by which this node's clock is ahead of the control node's, transfer included.
  returned: always
  type: float
hostname:
  description: What the node calls itself.
  returned: always
  type: str
machine_id:
  description: Content of /etc/machine-id.
  returned: always
  type: str
routes:
  description: Networks that the node reaches other than by its default route, without Docker's own.
  returned: always
  type: list
  elements: dict
  contains:
    destination:
      description: The network, in CIDR notation.
      type: str
    interface:
      description: The interface by which it is reached.
      type: str
    on_link:
      description: Whether it is reached without a gateway.
      type: bool
"""

# Feature → (its purpose, paths of which one exists once it is there, its module, its configuration option).
FEATURES = {
    "overlay": ("container images", (), "overlay", "CONFIG_OVERLAY_FS"),
    "nfs4": ("homes on NFS", (), "nfsv4", "CONFIG_NFS_V4"),
    "vxlan": ("networks between nodes", ("/sys/module/vxlan",), "vxlan", "CONFIG_VXLAN"),
    "ip_vs": ("swarm's load balancing", ("/proc/net/ip_vs", "/sys/module/ip_vs"), "ip_vs", "CONFIG_IP_VS"),
}
# When built in, these show; vxlan may not.
ALWAYS_VISIBLE = ("overlay", "nfs4", "ip_vs")
# Docker's names for its bridges and for the ends of containers' links on them.
DOCKER_INTERFACE = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}|veth.*")
# linux/route.h.
RTF_UP, RTF_GATEWAY, RTF_REJECT = 0x1, 0x2, 0x200
STARTTLS_OID = b"1.3.6.1.4.1.1466.20037"


def read(path):
    """Return a file's text, empty when it cannot be read."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def version(text):
    """Return a version as numbers that compare."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def distribution_problems(distributions, os_release, needs_buildx=False):
    """Check the distribution.

    Args:
        distributions: ID → oldest version.
        os_release: Content of /etc/os-release.
        needs_buildx: Whether it has to bring Docker's buildx plugin.

    Returns:
        Sentences. A release in the making (Debian testing) has no VERSION_ID and is taken for a new one.
    """
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    name = release.get("PRETTY_NAME") or release.get("ID") or "an unknown system"
    oldest = distributions.get(release.get("ID", ""))
    wanted = " or ".join(f"{key.capitalize()} {value}" for key, value in sorted(distributions.items()))
    if oldest is None:
        return [f"runs {name}, which is not supported: install {wanted} or newer."]
    if release.get("VERSION_ID") and version(release["VERSION_ID"]) < version(str(oldest)):
        return [f"runs {name}, which is too old: install {wanted} or newer."]
    if needs_buildx and release.get("VERSION_ID") and version(release["VERSION_ID"]) < (13,):
        return [
            f"runs {name}, which has no package of Docker's buildx plugin and cannot build images: put "
            "another host into the group builder, or set docker_source to upstream."
        ]
    return []


def kernel_problems(release):
    """Check that the running kernel has what the cluster needs, built in or as a module.

    A feature counts as missing only when that is sure: it is not there now, no module of that name can be
    loaded, and the kernel's configuration, where it can be read, does not have it.

    Args:
        release: The kernel's release, as uname tells it.

    Returns:
        Sentences.
    """
    file_systems = set(read("/proc/filesystems").split())
    modules = "".join(read(f"/lib/modules/{release}/modules.{kind}") for kind in ("dep", "builtin"))
    config = kernel_config(release)
    found = []
    for feature, (purpose, paths, module, option) in FEATURES.items():
        if feature in file_systems or any(pathlib.Path(path).exists() for path in paths):
            continue
        if re.search(rf"/{module}\.ko\b", modules) or f"\n{option}=y\n" in config:
            continue
        if not modules and f"\n{option}=m\n" in config:
            found.append(
                f"has no modules for its running kernel {release}, so {feature} cannot be loaded: reboot "
                "it, or install them."
            )
        elif modules or config or feature in ALWAYS_VISIBLE:
            found.append(
                f"has a kernel ({release}) without {feature}, needed for {purpose}: install the "
                "distribution's standard kernel."
            )
    return found


def kernel_config(release):
    """Return the kernel's configuration, empty when it is not published."""
    with contextlib.suppress(OSError), gzip.open("/proc/config.gz", "rt") as file:
        return file.read()
    return read(f"/boot/config-{release}")


def memory_problems(memory_mb):
    """Check the memory.

    Args:
        memory_mb: The least.

    Returns:
        Sentences.
    """
    match = re.search(r"^MemTotal:\s+(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    total = int(match.group(1)) // 1024 if match else 0
    return [f"has {total} MB of memory, {memory_mb} MB are needed."] if match and total < memory_mb else []


def disk_problems(paths, disk_mb):
    """Check the free space of the file systems on which directories are or will be.

    Args:
        paths: The directories.
        disk_mb: The least.

    Returns:
        Sentences, one for each file system.
    """
    found = {}
    for path in paths:
        existing = pathlib.Path(path)
        while not existing.exists():
            existing = existing.parent
        state = os.statvfs(existing)
        free = state.f_bavail * state.f_frsize // 2**20
        if free < disk_mb:
            problem = f"has {free} MB free for {path}, {disk_mb} MB are needed."
            found.setdefault(existing.stat().st_dev, problem)
    return list(found.values())


def quota_problems(path, mountinfo):
    """Check that the file system on which a directory is or will be has user quotas.

    Args:
        path: The directory; empty: nothing is checked.
        mountinfo: Content of /proc/self/mountinfo.

    Returns:
        Sentences.
    """
    if not path:
        return []
    existing = pathlib.Path(path)
    while not existing.exists():
        existing = existing.parent
    device = existing.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            kind, source, options = rest.split()[:3]
            # Of all names of the option, in xfs(5) and ext4(5), the kernel shows these.
            names = {option.partition("=")[0] for option in options.split(",")}
            if names & {"usrquota", "usrjquota"}:
                return []
            return [
                f"has no user quotas on the file system of {path} ({kind} on {source}): mount it with the "
                "option usrquota, or set no quota in nfs_quota and courses."
            ]
    return [f"has quotas that cannot be seen for {path}: set no quota in nfs_quota and courses."]


def routes(table):
    """List the networks that the node has a route to.

    Args:
        table: Content of /proc/net/route, with addresses in the machine's byte order.

    Returns:
        Destination, interface and whether it is on link, for each route but the default one and Docker's own.
    """
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        interface, flags = fields[0], int(fields[3], 16)
        address, mask = (socket.inet_ntoa(struct.pack("=I", int(fields[i], 16))) for i in (1, 7))
        destination = ipaddress.ip_network(f"{address}/{mask}", strict=False)
        usable = flags & (RTF_UP | RTF_REJECT) == RTF_UP and not DOCKER_INTERFACE.fullmatch(interface)
        if usable and destination.prefixlen:
            on_link = not flags & RTF_GATEWAY
            found.append({"destination": str(destination), "interface": interface, "on_link": on_link})
    return found


def listeners(ports):
    """Find who listens on TCP ports.

    Args:
        ports: The ports.

    Returns:
        Port → inode numbers of its sockets. Format: Linux, Documentation/networking/proc_net_tcp.rst.
    """
    found = {}
    for table in ("tcp", "tcp6"):
        for line in read(f"/proc/net/{table}").splitlines()[1:]:
            fields = line.split()
            port = int(fields[1].rpartition(":")[2], 16)
            if fields[3] == "0A" and port in ports:
                found.setdefault(port, set()).add(fields[9])
    return found


def port_problems(ports):
    """Check that ports are free, or Docker's already.

    Args:
        ports: The ports.

    Returns:
        Sentences.
    """
    taken = listeners(set(ports))
    if not taken:
        return []
    owners = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # Processes end, and without root others' cannot be looked into.
            for link in (process / "fd").iterdir():
                match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
                if match:
                    owners.setdefault(match.group(1), set()).add(process.name)
    found = []
    for port, inodes in sorted(taken.items()):
        processes = set().union(*(owners.get(inode, set()) for inode in inodes))
        foreign = sorted(
            {read(f"/proc/{pid}/comm").strip() for pid in processes if not is_docker(pid)} - {""}
        )
        if foreign:
            found.append(
                f"has port {port} taken by {', '.join(foreign)}: stop it, the cluster needs this port."
            )
        elif not processes and port == 2049 and pathlib.Path("/proc/fs/nfsd").is_dir():
            found.append(
                "has port 2049 taken by the kernel's NFS server: disable nfs-kernel-server, the cluster "
                "brings its own."
            )
    return found


def is_docker(pid):
    """Tell whether a process is Docker's or runs in one of its containers."""
    return "docker" in read(f"/proc/{pid}/cgroup") or read(f"/proc/{pid}/comm").startswith(
        ("dockerd", "docker-", "containerd")
    )


def answers(address, port, timeout):
    """Try a connection.

    Args:
        address: The host.
        port: The port.
        timeout: Seconds to wait.

    Returns:
        None when there was an answer, be it a refusal, else the reason.
    """
    try:
        socket.create_connection((address, port), timeout).close()
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return (
            "no answer"
            if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT
            else error.strerror or str(error)
        )
    return None


def peer_problems(peers, ports, timeout):
    """Check that the other nodes can be reached, all at the same time.

    Args:
        peers: Name → address.
        ports: Ports to try; one that answers is enough, since nothing may listen yet.
        timeout: Seconds to wait.

    Returns:
        Sentences.
    """
    attempts = [(name, port) for name in peers for port in ports]
    if not attempts:
        return []
    with concurrent.futures.ThreadPoolExecutor(min(len(attempts), 64)) as pool:
        results = list(pool.map(lambda attempt: answers(peers[attempt[0]], attempt[1], timeout), attempts))
    found = []
    for name, address in sorted(peers.items()):
        reasons = [result for (peer, _), result in zip(attempts, results, strict=True) if peer == name]
        if all(reasons):
            found.append(
                f"does not reach {name} at {address} (TCP {', '.join(map(str, ports))}: {reasons[0]}): "
                "check route and firewall."
            )
    return found


def split_server(server, port, tls):
    """Return host, port and whether StartTLS is needed, of an entry such as ldaps://ldap.example.org:1636."""
    scheme, separator, rest = server.partition("://")
    rest = (rest if separator else server).rstrip("/")
    match = re.fullmatch(r"\[(.+)\](?::(\d+))?", rest) or re.fullmatch(r"([^:]+)(?::(\d+))?", rest)
    host, own_port = match.groups() if match else (rest, None)
    start_tls = tls == "starttls" and scheme != "ldaps"
    return host, int(own_port or port or (389 if start_tls else 636)), start_tls


def start_tls_request():
    """Return LDAP's request to begin TLS (RFC 4511, sections 4.12 and 4.14), in BER."""
    operation = b"\x80" + bytes([len(STARTTLS_OID)]) + STARTTLS_OID
    message = b"\x02\x01\x01" + b"\x77" + bytes([len(operation)]) + operation
    return b"\x30" + bytes([len(message)]) + message


def greet(server, port, tls, authority, timeout):
    """Connect to a directory server and verify its certificate.

    Args:
        server: The entry.
        port: Port of entries without one, 0 for the protocol's own.
        tls: ldaps or starttls.
        authority: PEM of its CA, empty for the system's.
        timeout: Seconds to wait.

    Returns:
        A sentence, or None when all is well.
    """
    host, port, start_tls = split_server(server, port, tls)
    name = f"the directory server {host}:{port}"
    try:
        context = ssl.create_default_context(cadata=authority or None)
    except (ssl.SSLError, ValueError):
        return "cannot read the directory's CA (hub_ldap_ca): it takes the content of a PEM file."
    try:
        with socket.create_connection((host, port), timeout) as plain:
            if start_tls:
                plain.sendall(start_tls_request())
                # ExtendedResponse [APPLICATION 24] with resultCode (ENUMERATED) 0.
                if not re.search(rb"\x78.{1,5}?\x0a\x01\x00", plain.recv(4096), re.DOTALL):
                    return f"cannot use {name}: it refuses StartTLS; is hub_ldap_tls to be ldaps?"
            with context.wrap_socket(plain, server_hostname=host):
                return None
    except socket.gaierror:
        return f"cannot find {name}: the name does not resolve; see hub_ldap_servers."
    except ssl.SSLCertVerificationError as error:
        return f"does not trust {name}: {error.verify_message}; see hub_ldap_ca."
    except ssl.SSLError as error:
        return f"finds no TLS at {name} ({error.reason or error}); see hub_ldap_tls."
    except TimeoutError:
        return f"cannot reach {name}: no answer within {timeout} s; see hub_ldap_servers, or a firewall."
    except OSError as error:
        return f"cannot reach {name}: {error.strerror or error}; see hub_ldap_servers, or a firewall."


def main():
    """Examine the node."""
    module = AnsibleModule(
        argument_spec={
            "distributions": {"type": "dict", "required": True},
            "needs_buildx": {"type": "bool", "default": False},
            "memory_mb": {"type": "int", "default": 0},
            "disk_mb": {"type": "int", "default": 0},
            "disk_paths": {"type": "list", "elements": "str", "default": []},
            "quota_path": {"type": "str", "default": ""},
            "ports": {"type": "list", "elements": "int", "default": []},
            "peers": {"type": "dict", "default": {}},
            "peer_ports": {"type": "list", "elements": "int", "default": [7946, 2377, 22]},
            "ldap_servers": {"type": "list", "elements": "str", "default": []},
            "ldap_port": {"type": "int", "default": 0},
            "ldap_tls": {"type": "str", "choices": ["ldaps", "starttls"], "default": "ldaps"},
            "ldap_ca": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 5},
            "control_time": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    clock_offset = time.time() - module.params["control_time"]
    options = module.params
    problems = distribution_problems(
        options["distributions"], read("/etc/os-release"), options["needs_buildx"]
    )
    if not pathlib.Path("/run/systemd/system").is_dir():
        problems.append("does not run systemd, which starts Docker and the firewall.")
    problems += kernel_problems(os.uname().release)
    problems += memory_problems(options["memory_mb"])
    problems += disk_problems(options["disk_paths"], options["disk_mb"])
    problems += quota_problems(options["quota_path"], read("/proc/self/mountinfo"))
    problems += port_problems(options["ports"])
    problems += peer_problems(options["peers"], options["peer_ports"], options["timeout"])
    for server in options["ldap_servers"]:
        problem = greet(
            server, options["ldap_port"], options["ldap_tls"], options["ldap_ca"], options["timeout"]
        )
        if problem:
            problems.append(problem)
    module.exit_json(
        changed=False,
        problems=problems,
        clock_offset=clock_offset,
        hostname=socket.gethostname(),
        machine_id=read("/etc/machine-id").strip(),
        routes=routes(read("/proc/net/route")),
    )


if __name__ == "__main__":
    main()
