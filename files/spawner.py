"""A JupyterHub spawner for Docker Swarm whose servers run as their user's own NFS identity.

``NfsSwarmSpawner`` asks an account service for the user's UID, GID, groups and home, and starts one swarm
service per start with ``nfs4`` volumes, under exactly that identity. It differs from
``dockerspawner.SwarmSpawner`` in that

- every start has a service name of its own, so that a start never meets the task of an earlier one,
- ``stop`` returns when the container is gone, not when Docker has noted the wish,
- what Docker says about a task that cannot run ends the attempt at once, as one sentence for the user,
- named volumes carry driver options, and a digest of them in their name,
- a hub that was interrupted finds its services by their labels.

States of a task and their order: https://docs.docker.com/engine/swarm/how-swarm-mode-works/swarm-task-states/
"""

import asyncio
import hashlib
import json
import os
import re
import secrets
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import quote
from weakref import WeakValueDictionary

from docker.errors import APIError, DockerException
from docker.types import (
    ContainerSpec,
    DriverConfig,
    EndpointSpec,
    Healthcheck,
    Mount,
    Placement,
    Resources,
    RestartPolicy,
    TaskTemplate,
)
from dockerspawner import SwarmSpawner
from jupyterhub import orm
from jupyterhub.spawner import SpawnException
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from traitlets import (
    Bool,
    CaselessStrEnum,
    Dict,
    Float,
    Int,
    List,
    TraitError,
    Unicode,
    default,
    observe,
    validate,
)
from urllib3.util.retry import Retry

NAME_MAX = 63  # a DNS label, RFC 1035 2.3.4; swarm has the same limit for service names
LABEL = "org.jupyterhub."
SAFE = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"  # a name as part of a path or of a list
NFS_PORT = 2049  # RFC 7530 3.1; Linux mounts it unless told otherwise
REPORTED = {"accepted", "preparing", "ready", "starting", "running"}  # states that only a task's node tells
ASK_AGAIN = 2  # seconds between two questions to a node whether it is there
PROBE = 2  # seconds for a connection that only shows whether somebody is there
LATE = 1  # seconds after which a time-out tells of a hub that stood still, and not of whom it asked
OLD_NEWS = 60  # seconds after which the swarm itself knows of a lost node, or of one that is back
REASON_FIRST = 2  # seconds for which a failed start's removal may hold up the reason
REMOVE_AGAIN = [
    2,
    4,
    8,
    16,
]  # seconds between attempts to remove what a failed start left, before `sweep` does
SLOW_END = 1  # seconds after which an account may have been locked or moved while an earlier server ended
STORAGE_DOUBT = 4  # seconds of bad answers only, until the storage counts as gone
OLD_DOUBT = 10  # seconds after which a bad answer says nothing about the next one
SETTLE_MAX = 60  # seconds for which an answer of the account service may hold up a start
NO_ANSWER = 599  # tornado's HTTP status for none
WAS_LOST = 8  # seconds after which a request that got no answer is no more carried out by Docker
CONNECT = 2  # seconds for a connection to Docker over the network: a lost manager does not refuse one
ENDED = {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
NO_STORAGE = "Your home directory's storage is not available at the moment."
# What Docker writes into a log that it cannot read, such as that of a container which never ran.
NO_LOG = r"Error grabbing logs|warning: incomplete log stream"
MOUNT_KEYS = {"name", "device", "target", "read_only", "groups", "options", "server"}
BIND_KEYS = {"source", "target", "read_only", "groups"}
# Who reaches Docker's socket or the system's settings rules the node: no allow-list opens these, nor what
# holds them. Sockets are in /run, devices and the kernel's switches in /dev, /proc and /sys.
NEVER_BOUND = [
    *("/boot", "/dev", "/etc", "/proc", "/root", "/run", "/sys"),
    *("/var/lib/containerd", "/var/lib/docker", "/var/run"),
]

# What Docker writes into a task's Status.Err, and what a student can pass on. First match wins.
DOCKER_SAYS = [
    (
        "image",
        r"No such image|manifest (for|unknown)|pull access denied|(repository|image) .* not found",
        "The image of your server is missing on {node}.",
    ),
    (
        "storage",
        r"(mount|volume).*(connection refused|timed out|no route|host is down|unreachable|input/output)",
        NO_STORAGE,
    ),
    (
        "mount",
        r"mount.*no such file or directory",
        "A directory of your server does not exist on the storage.",
    ),
    (
        "mount",
        r"mount.*(permission denied|operation not permitted|access denied)",
        "The storage refuses to let {node} mount your directories.",
    ),
    (
        "mount",
        r"mount.*(protocol not supported|no such device|invalid argument)",
        "{node} and the storage do not agree on an NFS version.",
    ),
    (
        "mount",
        r"failed to mount|error while mounting|invalid mount|mount config",
        "A directory of your server could not be mounted on {node}.",
    ),
    (
        "constraint",
        r"no suitable node.*(scheduling constraints|unsupported platform|max replicas)",
        "No node of the cluster is allowed to run your server.",
    ),
    (
        "capacity",
        r"no suitable node.*insufficient resources",
        "No node of the cluster has enough free memory or CPU for your server.",
    ),
    ("capacity", r"no suitable node", "No node of the cluster can take your server."),
    (
        "network",
        r"network .*not found|could not find .*network|no available .*address|address pool",
        "The cluster has no network address for your server.",
    ),
    (
        "command",
        r"executable file not found|(directory|permission denied): unknown|non-zero exit \(12[67]\)",
        "The image of your server does not contain the program that starts it.",
    ),
    (
        "memory",
        r"non-zero exit \(137\)|out of memory",
        "Your server was ended by force on {node}, most likely because it used more memory than it may.",
    ),
    ("exit", r"non-zero exit \((?P<code>-?\d+)\)", "Your server ended at once with exit code {code}."),
]


class SpawnFailed(SpawnException):
    """A start or stop that failed for a reason that can be told to the user.

    Args:
        message: one sentence for the user.
        reason: a short label for metrics.
        detail: what the log gets besides, for example Docker's own words.
        status_code: HTTP status of the page that shows it.
    """

    def __init__(self, message, *, reason, detail="", status_code=503):
        """See the class."""
        super().__init__(
            message,
            reason=reason,
            log_message=f"{message} [{detail}]" if detail else message,
            status_code=status_code,
        )
        self.jupyterhub_message = message


def slug(text, length):
    """Readable part of a name: lower-case ASCII letters, digits and single hyphens, nothing at the ends.

    Args:
        text: any text.
        length: most characters of the result, which may be empty.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:length].rstrip("-")


def digest(value, length):
    """Hexadecimal digest of any JSON value, the same for equal values.

    Args:
        value: what to digest.
        length: number of digits.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def server_directory(name):
    """Name of a directory for a named server: no two servers of a user share one.

    Args:
        name: the server's name; empty for the one that has none.

    Returns:
        str: `default`, or the name, with a digest if it is not safe in a path as it is.
    """
    if not name:
        return "default"
    readable = slug(name, 32)
    return readable if readable == name != "default" else join_name(readable, digest(name, 8))


def join_name(*parts):
    """Join the parts that are not empty with hyphens."""
    return "-".join(part for part in parts if part)


def printable(text):
    """The text with everything that a terminal would obey percent-encoded; tools show labels as they are."""
    return "".join(char if char.isprintable() else quote(char, errors="replace") for char in text)


def latest_task(tasks):
    """The task that counts among a service's tasks, or None."""
    return max(tasks, key=lambda task: task.get("CreatedAt", ""), default=None)


def task_state(task):
    """A task's observed state in lower case."""
    return task.get("Status", {}).get("State", "new").lower()


def task_ended(task):
    """Whether a task's container is gone or never was."""
    return task_state(task) in ENDED


def task_unwanted(task):
    """Whether the swarm has given a task up, as it does when its node is lost."""
    return task.get("DesiredState", "running") not in {"running", "ready"}


def explain_task(task, node="the node"):
    """Translate a task's error.

    Args:
        task: the task as the Docker API gives it.
        node: name of its node.

    Returns:
        (reason, sentence, Docker's own words)
    """
    status = task.get("Status", {})
    said = status.get("Err", "")
    for reason, pattern, sentence in DOCKER_SAYS:
        match = re.search(pattern, said, re.IGNORECASE | re.DOTALL)
        if match:
            text = sentence.format(node=node, **match.groupdict())
            return reason, text[0].upper() + text[1:], said
    if task_state(task) == "complete":
        return "exit", "Your server ended at once without an error.", status.get("Message", "")
    if task_ended(task) or said:
        words = printable(said or status.get("Message", "") or task_state(task))[:200]
        return "docker", f"Docker could not run your server: {words}.", said
    return "unknown", f"Your server is not running (state {task_state(task)}).", said


def below(path, directory):
    """Whether an absolute path is a directory or something in it."""
    return PurePosixPath(path).is_relative_to(directory)


def inside(source, around):
    """Whether a path is deeper than another; a field in the other's last part may stand for any name.

    Args:
        source: absolute path or template.
        around: absolute path, or template with fields in its last part only.
    """
    path, other = PurePosixPath(source), PurePosixPath(around)
    return other.parent in path.parents[1:] if "{" in other.name else other in path.parents


def is_plain(path):
    """Whether a path is absolute, without `.`, `..`, empty parts and control characters."""
    return (
        path.isprintable() and path.startswith("/") and path == "/" + "/".join(PurePosixPath(path).parts[1:])
    )


def check_bind(source, allowed):
    """Refuse a directory of a node that must not be mounted into a server.

    Args:
        source: absolute path, or a template of one whose last part alone has fields.
        allowed: directories of which one must hold it.

    Raises:
        ValueError: with the reason.
    """
    if not is_plain(source) or ".." in source:
        raise ValueError(f"{source!r} is not a plain absolute path")
    if any(below(source, never) or below(never, source) for never in NEVER_BOUND):
        raise ValueError(f"{source!r} would open the node itself")
    if not any(below(source, directory) for directory in allowed):
        raise ValueError(f"{source!r} is in none of allowed_bind_paths")
    if "{" in str(PurePosixPath(source).parent):
        # its owner could put a symlink in the place of what comes behind
        raise ValueError(f"{source!r} has a field before its last part")


def spec_changes(old, new, path=""):
    """Where two task specs differ, without the values: an environment holds tokens.

    Args:
        old: a spec as the Docker API gives it.
        new: another.
        path: what stands before each name.

    Returns:
        Names such as `ContainerSpec.Image`, sorted.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [one for key in keys for one in spec_changes(old.get(key), new.get(key), join_path(path, key))]
    return [] if old == new else [path or "everything"]


def join_path(*parts):
    """Join the parts that are not empty with dots."""
    return ".".join(part for part in parts if part)


def node_address(node):
    """A node's address, or an empty text; a leading manager's own status may say 0.0.0.0."""
    address = node["Status"].get("Addr", "")
    if address in {"", "0.0.0.0", "127.0.0.1"}:  # noqa: S104  # compared, not bound
        address = node.get("ManagerStatus", {}).get("Addr", "").rpartition(":")[0].strip("[]")
    return address


async def listens(host, port, *, refusal=False):
    """Whether a connection to a port comes about within `PROBE` seconds.

    Args:
        host: name or address.
        port: TCP port.
        refusal: whether a refusal counts as well: somebody is there to refuse.
    """
    try:
        async with asyncio.timeout(PROBE):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return refusal
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


class TaskWatch:
    """The tasks of many services, asked for together.

    When a lecture begins, hundreds of starts look at their tasks several times a second. Questions that come
    while Docker is being asked wait and go out as one, so that every answer is younger than its question.

    Args:
        docker: calls a method of docker-py's client by its name, in a thread.
    """

    MOST = 100  # services in one question: their names travel in its URL

    def __init__(self, docker):
        """See the class."""
        self._docker = docker
        self._waiting = {}
        self._asking = None

    async def tasks(self, service_id, name):
        """All tasks of a service that swarm remembers; none if there is no such service.

        Args:
            service_id: its ID.
            name: its name, by which Docker finds the tasks without complaining of a service that is gone.
        """
        if service_id not in self._waiting:
            self._waiting[service_id] = (name, asyncio.get_running_loop().create_future())
        answer = self._waiting[service_id][1]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._ask())
        # others may wait for the same answer
        return await asyncio.shield(answer)

    async def _ask(self):
        while self._waiting:
            asked = {key: self._waiting.pop(key) for key in list(self._waiting)[: self.MOST]}
            try:
                found = await self._docker("tasks", filters={"name": [name for name, _ in asked.values()]})
            except Exception as error:
                for _, answer in asked.values():
                    answer.set_exception(error)
                continue
            for service_id, (_, answer) in asked.items():
                answer.set_result([task for task in found if task.get("ServiceID") == service_id])


def explain_docker_error(error):
    """Translate an exception of docker-py or of the connection below it into a SpawnFailed."""
    said = str(getattr(error, "explanation", None) or error)
    if re.search(r"does not have a leader|no elected primary|not a swarm manager|context deadline", said):
        message, reason = "The cluster has no leader at the moment: no server can start or stop.", "leader"
    elif re.search(r"network .*not found", said):
        message, reason = "The network of the notebook servers does not exist.", "network"
    # swarm says 500 to a constraint that it cannot read
    elif isinstance(error, APIError) and ((error.status_code or 500) < 500 or "constraint expected" in said):
        message, reason = f"Docker refused to make your server: {printable(said)[:200]}.", "docker"
    else:
        message, reason = "The cluster does not answer at the moment.", "docker"
    return SpawnFailed(message, reason=reason, detail=said)


class NfsSwarmSpawner(SwarmSpawner):
    """Runs each user's server as a swarm service under the user's own NFS UID, GID and groups."""

    # one client and one pool of threads for all servers of the hub, never shared with other spawner classes
    _executor = None
    _client = None
    _client_lock = threading.Lock()
    _locks: ClassVar = WeakValueDictionary()
    _nodes: ClassVar = {}
    _silence: ClassVar = {}
    _watch = None
    _background: ClassVar = set()  # removals that nobody waits for
    _moved: ClassVar = {}  # when a task was last seen to leave `new`, or to run on a node
    _accounts_answered: ClassVar = {}  # when the account service last did, by method
    _storage_good = 0.0  # when the account service last said so
    _storage_bad = (0.0, 0.0)  # since when it has not, and when it was last asked in vain
    _storage_asked = None  # the question that is under way
    _under_way: ClassVar = {}  # services that start: name → ID of the node, empty before there is one
    _turnstile = asyncio.Lock()
    _sweeping = None  # the look for left-over services that goes on

    accounts_url = Unicode(
        "http://accounts:8080",
        config=True,
        help="""
        Base URL of the account service.

        `PUT /accounts/{username}` with `{"groups": [], "uid": n?, "gid": n?}` answers
        `{"account", "uid", "gid", "groups": {name: gid}, "home"}`, the same for the same user every time, and
        `settle`, if the storage needs so many seconds more to know groups that have changed.
        """,
    )

    accounts_token_file = Unicode(
        "/run/secrets/accounts_token",
        config=True,
        help="""
        File with the account service's bearer token, for example a Docker secret.
        """,
    )

    accounts_token = Unicode(
        config=True,
        help="""
        Bearer token of the account service.

        Default: the environment variable ACCOUNTS_TOKEN, else the content of `accounts_token_file`.
        """,
    )

    @default("accounts_token")
    def _default_accounts_token(self):
        token = os.environ.get("ACCOUNTS_TOKEN", "")
        path = Path(self.accounts_token_file)
        return token or (path.read_text().strip() if path.is_file() else "")

    accounts_timeout = Float(
        5.0,
        min=0.1,
        config=True,
        help="""
        Seconds after which the account service, and with it the storage, counts as not available.
        """,
    )

    directory_ids = CaselessStrEnum(
        ["never", "if-present", "required"],
        default_value="if-present",
        config=True,
        help="""
        Whether `uid` and `gid` of the user's auth_state are handed to the account service.

        - never: the account service allocates all of them
        - if-present: the directory's where it has them, else allocated. Until the user has logged in once,
          the hub does not know them, and nobody else can start a first server in the user's name
        - required: a user without them is refused
        """,
    )

    storage_groups = List(
        Unicode(),
        config=True,
        help="""
        Hub groups that are groups on the storage too: names or shell patterns such as `course-*`.

        All other hub groups of the user stay unknown to the storage.
        """,
    )

    identity = CaselessStrEnum(
        ["direct", "root"],
        default_value="direct",
        config=True,
        help="""
        How the server gets its user's identity.

        - direct: the container's user is UID:GID from the start, with no capabilities at all
        - root: the container starts as root with NB_USER, NB_UID, NB_GID, NB_GROUP and NB_UMASK, and the
          image's start script becomes the user, as docker-stacks images do
        """,
    )

    minimum_id = Int(
        1000,
        min=1,
        config=True,
        help="""
        Lowest UID and GID that a server may run with, whatever the account service says.
        """,
    )

    build_group_gid = Int(
        990,
        config=True,
        help="""
        GID of the group that may write the image's environment (`pip install`): a supplementary group of
        every server. Negative: none. It is 100 (`users`) for docker-stacks images.
        """,
    )

    umask = Unicode(
        "007",
        config=True,
        help="""
        The server's umask, octal. Handed to the image's start script as NB_UMASK.
        """,
    )

    @validate("umask")
    def _validate_umask(self, proposal):
        if not re.fullmatch(r"0?[0-7]{3}", proposal.value):
            raise TraitError(f"umask must be octal such as '007', got {proposal.value!r}")
        return proposal.value

    root_capabilities = List(
        Unicode(),
        default_value=[
            "CAP_AUDIT_WRITE",
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETPCAP",
            "CAP_SETUID",
        ],
        config=True,
        help="""
        Capabilities that are left when `identity` is `root`.

        Changing users needs SETUID and SETGID, emptying the bounding set SETPCAP, rewriting the user database
        CHOWN, DAC_OVERRIDE and FOWNER, sudo AUDIT_WRITE, and passing the stop signal on to the user's
        process KILL.
        """,
    )

    role_images = Dict(
        value_trait=Unicode(),
        key_trait=Unicode(),
        config=True,
        help="""
        Image by hub group, in order: the first group that the user is in decides, else `image` is used.
        An image that the user chose among `allowed_images` comes first.
        """,
    )

    nfs_server = Unicode(
        config=True,
        help="""
        Address of the NFS server as the nodes reach it.
        """,
    )

    nfs_port = Int(
        NFS_PORT,
        config=True,
        help="""
        TCP port of `nfs_server`.
        """,
    )

    nfs_options = Unicode(
        "nfsvers=4.2,hard,noatime,nosuid,nodev",
        config=True,
        help="""
        Mount options besides the address. Keep a version in them: without, Linux mounts 4.0.
        """,
    )

    home_device = Unicode(
        ":{home}",
        config=True,
        help="""
        NFS path of the home. Fields: {account} {home} {uid} {gid} {server}. Empty: no home is mounted.
        """,
    )

    home_target = Unicode(
        "/home/{account}",
        config=True,
        help="""
        Where the home is in the container. Same fields as `home_device`.
        """,
    )

    home_dir = Unicode(
        config=True,
        help="""
        The server's HOME. Same fields as `home_device`. Empty: `home_target`.

        With `home_target = "/home/jovyan/work"` and `home_dir = "/home/jovyan"` only `work` is on the
        storage; what else lies in HOME ends with the server. Jupyter shows `home_target` either way.
        """,
    )

    nfs_mounts = List(
        Dict(),
        config=True,
        help="""
        Further NFS volumes: a list of dicts with

        - name: readable part of the volume's name
        - device, target: templates with the fields of `home_device`, and {group} where `groups` is given
        - groups (optional): names or patterns of hub groups; one mount for each matching group of the user
        - read_only (False), options (`nfs_options`), server (`nfs_server`)
        """,
    )

    @validate("nfs_mounts")
    def _validate_nfs_mounts(self, proposal):
        for mount in proposal.value:
            missing = {"name", "device", "target"} - set(mount)
            unknown = set(mount) - MOUNT_KEYS
            if missing or unknown:
                raise TraitError(f"nfs_mounts: {mount}: missing {sorted(missing)}, unknown {sorted(unknown)}")
        return proposal.value

    allowed_bind_paths = List(
        Unicode(),
        config=True,
        help="""
        Directories of the nodes that `bind_mounts` may mount, or mount something of. Empty: none.

        The node itself is never among them: no Docker socket, no /etc, no /.
        """,
    )

    @validate("allowed_bind_paths")
    def _validate_allowed_bind_paths(self, proposal):
        for path in proposal.value:
            if "{" in path:
                raise TraitError(f"allowed_bind_paths: {path!r} has a field")
            self._refuse_bind("allowed_bind_paths", path, [path])
        return proposal.value

    bind_mounts = List(
        Dict(),
        config=True,
        help="""
        Directories of the nodes: a list of dicts with

        - source: path on the node, in one of `allowed_bind_paths`; its last part may have the fields of
          `home_device` but {home}
        - target: template of the path in the container
        - groups (optional): as in `nfs_mounts`
        - read_only (True)
        """,
    )

    @validate("bind_mounts")
    def _validate_bind_mounts(self, proposal):
        writable = [mount["source"] for mount in proposal.value if not mount.get("read_only", True)]
        for mount in proposal.value:
            missing, unknown = {"source", "target"} - set(mount), set(mount) - BIND_KEYS
            if missing or unknown:
                raise TraitError(
                    f"bind_mounts: {mount}: missing {sorted(missing)}, unknown {sorted(unknown)}"
                )
            self._refuse_bind("bind_mounts", mount["source"], self.allowed_bind_paths)
            around = [path for path in writable if inside(mount["source"], path)]
            if around:
                # who writes there could put a symlink in its place
                raise TraitError(
                    f"bind_mounts: {mount['source']!r} is in {around[0]!r}, which servers may write"
                )
        return proposal.value

    @staticmethod
    def _refuse_bind(trait, source, allowed):
        try:
            check_bind(source, allowed)
        except ValueError as error:
            raise TraitError(f"{trait}: {error}") from error

    tmpfs_mounts = Dict(
        value_trait=Unicode(),
        key_trait=Unicode(),
        config=True,
        help="""
        Directories in memory: target to size such as `64M`, or to an empty text for no limit of their own.
        Targets are templates with the fields of `home_device`. What a server needs to write when
        `read_only_rootfs` is set comes on top.
        """,
    )

    volume_prefix = Unicode(
        "jupyter",
        config=True,
        help="""
        First part of the names of volumes.
        """,
    )

    read_only_rootfs = Bool(
        False,
        config=True,
        help="""
        Mount the container's root file system read-only.
        """,
    )

    no_new_privileges = Bool(
        True,
        config=True,
        help="""
        Forbid the server to gain privileges by setuid programs. Engines before 25 ignore it.
        """,
    )

    init = Bool(
        True,
        config=True,
        help="""
        Run Docker's init as the container's first process, to reap children.
        """,
    )

    pids_limit = Int(
        0,
        min=0,
        config=True,
        help="""
        Most processes and threads of a server. 0: no limit.
        """,
    )

    generic_resources = Dict(
        config=True,
        help="""
        Generic resources such as `{"gpu": 1}` that a node must have free.
        """,
    )

    placement_constraints = List(
        Unicode(),
        config=True,
        help="""
        Swarm placement constraints such as `node.labels.notebooks==true`. All must hold.
        """,
    )

    placement_preferences = List(
        Unicode(),
        config=True,
        help="""
        Node labels to spread servers over, such as `node.labels.rack`, the most important first.
        """,
    )

    log_driver = Unicode(
        config=True,
        help="""
        Docker logging driver of the servers. Empty: the daemon's own.
        """,
    )

    log_options = Dict(
        config=True,
        help="""
        Options of `log_driver`, such as `{"max-size": "10m"}`.
        """,
    )

    log_lines = Int(
        5,
        min=0,
        config=True,
        help="""
        How many of the last log lines of a server that ended during its start its user is shown. 0: none.
        """,
    )

    stop_grace_period = Float(
        10.0,
        min=0,
        config=True,
        help="""
        Seconds between SIGTERM and SIGKILL.
        """,
    )

    stop_timeout = Float(
        60.0,
        min=1,
        config=True,
        help="""
        Seconds after which `stop` gives up waiting for a container and names its node.
        """,
    )

    docker_threads = Int(
        16,
        min=1,
        config=True,
        help="""
        Number of Docker calls that run at the same time, for the whole hub.
        """,
    )

    sweep_interval = Float(
        300.0,
        min=0.1,
        config=True,
        help="""
        Seconds between two looks for services that belong to no server in the hub's database. What two looks
        in a row find is removed. Hubs that share a swarm need different values of `prefix`.
        """,
    )

    task_poll_interval = Float(
        0.1,
        min=0.01,
        config=True,
        help="""
        Seconds between two looks at a starting task, or the first two at a stopping one.

        They grow to `task_poll_maximum` with the number of servers that start, or the time that a stop takes.
        """,
    )

    task_poll_maximum = Float(
        1.0,
        min=0.01,
        config=True,
        help="""
        Longest time in seconds between two looks at a task.
        """,
    )

    patience = Float(
        8.0,
        min=0,
        config=True,
        help="""
        Seconds that a task may be without a node, an address or its volumes before the start is given up, or
        the reason is looked for elsewhere. Swarm itself would wait for ever.
        """,
    )

    node_probe_port = Int(
        443,
        min=0,
        max=65535,
        config=True,
        help="""
        TCP port on which a living node answers or refuses, to notice a lost node before the swarm does. A
        node that never answered, behind a firewall perhaps, is left to the swarm. 0: all are.
        """,
    )

    node_patience = Float(
        6.0,
        min=0,
        config=True,
        help="""
        Seconds that a node may be silent before a start on it is given up and other starts avoid it.
        """,
    )

    wait_for_server = Bool(
        True,
        config=True,
        help="""
        Whether a start ends when the server's port answers, so that one that dies before is noticed at once.
        Needs a hub that is on the servers' network.
        """,
    )

    support_hint = Unicode(
        "Please try again in a few minutes; if it stays so, tell your administrator.",
        config=True,
        help="""
        What follows every sentence about a failed start.
        """,
    )

    start_id = Unicode(help="Names one start of this server.")

    task_id = Unicode(help="The task of this start: a service that is left alone never has another.")

    @default("poll_interval")
    def _default_poll_interval(self):
        # with the 15 to 20 seconds that swarm takes to call a node down: within a minute
        return 20

    @default("server_token_scopes")
    def _default_server_token_scopes(self):
        # what the hub calls, and awaits, at the beginning of a start
        return self.wait_turn

    @default("start_timeout")
    def _default_start_timeout(self):
        # an image may have to come to a node first
        return 180

    @default("cmd")
    def _default_cmd(self):
        # upstream inspects the image, which a manager need not have; the image's entry point stays in front
        return ["jupyterhub-singleuser"]

    @default("client_kwargs")
    def _default_client_kwargs(self):
        return {"timeout": 12, "max_pool_size": self.docker_threads}

    @default("object_name")
    def _object_name_default(self):
        # a name belongs to a start
        return ""

    @observe("image")
    def _image_changed(self, change):
        """Upstream renames the service when the image changes; here its name stays with its start."""

    def __init__(self, **kwargs):
        """Take the hub's arguments as they are."""
        super().__init__(**kwargs)
        self.account = {}
        self._image_before = self._image_chosen = self.image  # the next start is not to inherit this one's
        self._starting = False
        self._given_up = False  # the last start did: nothing runs, whatever is still to be removed
        self._creating = None  # the call that makes the service, which outlives a cancelled start
        self._cleanup = None  # what removes the service of a cancelled start
        self._stages = []
        self._stage_changed = asyncio.Event()
        self._begun = time.monotonic()

    # -- Docker client --

    @property
    def executor(self):
        """The hub's threads for Docker calls."""
        cls = self.__class__
        if cls._executor is None:
            cls._executor = ThreadPoolExecutor(self.docker_threads, thread_name_prefix="docker")
        return cls._executor

    @property
    def client(self):
        """The hub's Docker client, with as many connections as threads."""
        cls = self.__class__
        if cls._client is None:
            with cls._client_lock:
                if cls._client is None:
                    self._make_client()
        return cls._client

    def _make_client(self):
        client = super().client
        # A proxy closes idle connections at any moment: repeat what may be repeated, never the POST
        retry = Retry(total=2, connect=2, read=1, backoff_factor=0.1)
        if client.base_url.startswith("http://"):
            client.timeout = (CONNECT, client.timeout)
            client.mount("http://", HTTPAdapter(pool_maxsize=self.docker_threads, max_retries=retry))

    @property
    def watch(self):
        """The hub's questions for the tasks of servers that start."""
        cls = self.__class__
        if cls._watch is None:
            cls._watch = TaskWatch(self.docker)
        return cls._watch

    # -- names and labels --

    @property
    def server_key(self):
        """Digest of hub, user and server name: what is the same for all starts of one server."""
        return self.key_of(self.user.name, self.name)

    def key_of(self, user, server):
        """The `server_key` of any user's server.

        Args:
            user: the user's name.
            server: the server's name; empty for the one that has none.
        """
        return digest([self.prefix, user, server or ""], 32)

    def make_service_name(self, start_id):
        """Name of the service of one start: readable, unique, a DNS label.

        Args:
            start_id: hexadecimal digits.
        """
        head = slug(self.prefix, 16)
        tail = join_name(self.server_key[:8], start_id)
        room = NAME_MAX - len(tail) - len(head) - 2
        readable = slug(join_name(self.user.name, self.name or ""), room)
        return join_name(head, readable, tail)

    @property
    def labels(self):
        """Labels of the service and its container. `key` is what everything is found by."""
        return {
            LABEL + "prefix": printable(self.prefix),
            LABEL + "key": self.server_key,
            LABEL + "user": printable(self.user.name),
            LABEL + "server": printable(self.name or ""),
            LABEL + "start": self.start_id,
        }

    def volume_name(self, readable, options):
        """Name of a volume: readable part and a digest of everything that decides what is mounted.

        Args:
            readable: any text.
            options: the driver's options.
        """
        return join_name(slug(self.volume_prefix, 16), slug(readable, 28), digest(options, 12))

    # -- account --

    @property
    def group_names(self):
        """Names of the user's hub groups."""
        return sorted(group.name for group in self.user.groups)

    @property
    def storage_group_names(self):
        """Names of the user's groups on the storage."""
        return [name for name in self.group_names if any(fnmatchcase(name, p) for p in self.storage_groups)]

    async def get_directory_ids(self):
        """UID and GID of the directory, as far as they are wanted and there.

        Returns:
            A dict with `uid` and `gid`, or an empty one.

        Raises:
            SpawnFailed: they are required and missing.
        """
        if self.directory_ids == "never":
            return {}
        auth_state = await self.user.get_auth_state() or {}
        ids = {key: auth_state[key] for key in ("uid", "gid") if isinstance(auth_state.get(key), int)}
        if self.directory_ids == "required" and len(ids) < 2:
            raise SpawnFailed(
                "Your directory entry has no user and group number, which this hub needs.",
                reason="account",
                status_code=403,
            )
        return ids

    async def directory_unknown(self):
        """Whether the directory's numbers count and the hub has not seen them: the user never logged in."""
        return (
            self.directory_ids != "never"
            and getattr(self.authenticator, "enable_auth_state", False)
            and await self.user.get_auth_state() is None
        )

    async def get_account(self):
        """The user's account on the storage; made if it is new.

        Returns:
            The account service's answer, checked.

        Raises:
            SpawnFailed: there is none, with the reason.
        """
        path = f"/accounts/{quote(self.user.name, safe='')}"
        if await self.directory_unknown():
            if self.directory_ids == "required":
                # the account that is there may have another number than the directory's
                message = "The hub does not know the directory's numbers: the user has to log in once before."
                raise SpawnFailed(message, reason="account", status_code=403)
            # an account made now might have another number than the directory's
            return self.check_account(await self.fetch_accounts("GET", path))
        body = {"groups": self.storage_group_names, **await self.get_directory_ids()}
        return self.check_account(await self.fetch_accounts("PUT", path, body))

    async def fetch_accounts(self, method, path, body=None):
        """Ask the account service, and ask again while it is only busy.

        When a lecture begins, its answer to one of hundreds may come too late, or the hub itself stand still
        until the time is over. Who has to be told that it is away is told by the first answer that stays out
        while nobody else gets one.

        Args:
            method: HTTP method.
            path: path below `accounts_url`.
            body: JSON value to send, or None.

        Returns:
            The answer's body.

        Raises:
            SpawnFailed: no answer, or one that is not a success.
        """
        answered = self._accounts_answered
        while True:
            asked = time.monotonic()
            try:
                said = await self.request_accounts(method, path, body)
            except HTTPClientError as error:
                late = time.monotonic() - asked > self.accounts_timeout + LATE
                if error.code != NO_ANSWER or not (late or answered.get(method, 0) > asked):
                    raise self.explain_accounts(error) from error
                self.log.warning("The account service is busy: %s for %s again", method, self._log_name)
            except OSError as error:
                raise SpawnFailed(NO_STORAGE, reason="storage", detail=f"account service: {error}") from error
            else:
                answered[method] = time.monotonic()
                return said

    async def request_accounts(self, method, path, body):
        """Ask the account service once, with the arguments of `fetch_accounts`.

        Raises:
            HTTPClientError: no answer in time, or one that is not a success.
            OSError: no connection.
        """
        client = AsyncHTTPClient(force_instance=True)
        try:
            response = await client.fetch(
                self.accounts_url.rstrip("/") + path,
                method=method,
                headers={"Authorization": f"Bearer {self.accounts_token}"},
                body=None if body is None else json.dumps(body),
                connect_timeout=self.accounts_timeout,
                request_timeout=self.accounts_timeout,
            )
            return response.body
        finally:
            client.close()

    def explain_accounts(self, error):
        """Translate an HTTP error of the account service into a SpawnFailed."""
        try:
            said = json.loads(error.response.body)["reason"]
        except (AttributeError, KeyError, TypeError, ValueError):
            # not the account service's own words; the status is what counts
            said = error.message or ""
        said, code = printable(str(said)).rstrip(". "), error.code
        detail = f"account service: {code} {said}"
        if code == 400:
            message = f"You cannot get a storage account: {said[:200]}."
            return SpawnFailed(message, reason="account", detail=detail, status_code=403)
        if code == 403:
            message = f"Your account is locked, so no server was started: {said[:200]}."
            return SpawnFailed(message, reason="account", detail=detail, status_code=403)
        if code == 404:
            message = "There is no storage account yet: the user has to log in once before."
            return SpawnFailed(message, reason="account", detail=detail, status_code=403)
        if code == 409:
            message = f"Your account on the storage cannot be used: {said[:200]}."
            return SpawnFailed(message, reason="account", detail=detail, status_code=409)
        if code in {502, 503, 504, 599}:
            return SpawnFailed(NO_STORAGE, reason="storage", detail=detail)
        return SpawnFailed("The hub could not get your storage account.", reason="account", detail=detail)

    def check_account(self, answer):
        """Refuse an answer that could mean somebody else's files, or root.

        Args:
            answer: the account service's answer as JSON.

        Returns:
            The account as a dict, reduced to what is used.

        Raises:
            SpawnFailed: it is refused.
        """
        try:
            account = json.loads(answer)
            if account.get("locked"):
                # asked for without making it (directory_unknown), so nothing has refused it yet
                message = "This account is locked, so no server was started; an administrator can unlock it."
                raise SpawnFailed(message, reason="account", status_code=403)
            return self._checked(account)
        except (ValueError, TypeError, AttributeError) as error:
            message = "The account service gave no usable account."
            raise SpawnFailed(message, reason="account", detail=repr(answer)[:500]) from error

    def _checked(self, account):
        groups = account.get("groups") or {}
        numbers = [account.get("uid"), account.get("gid"), *groups.values()]
        name, home = str(account.get("account", "")), str(account.get("home", ""))
        if (
            not all(type(number) is int and self.minimum_id <= number < 2**32 - 1 for number in numbers)
            or not re.fullmatch(SAFE, name)
            or not re.fullmatch(r"(/[A-Za-z0-9_@+=~.-]+)+", home)
            or {".", ".."} & set(home.split("/"))
        ):
            raise ValueError("not an account")
        settle = min(max(float(account.get("settle", 0)), 0), SETTLE_MAX)
        return {
            "account": name,
            "uid": numbers[0],
            "gid": numbers[1],
            "groups": groups,
            "home": home,
            "settle": settle,
        }

    async def check_storage(self):
        """Ask whether the storage is there; a mount of one that is not may hang without a word.

        Starts that wait ask together, and one bad answer is none: in a rush it may only have come too late.

        Returns:
            Whether it is. In doubt it is not.

        Raises:
            SpawnFailed: it is not, and has not been for `STORAGE_DOUBT`.
        """
        cls = self.__class__
        if cls._storage_asked is None or cls._storage_asked.done():
            if time.monotonic() - cls._storage_good <= ASK_AGAIN:
                return True
            cls._storage_asked = asyncio.ensure_future(self._ask_storage())
        failure = await asyncio.shield(cls._storage_asked)
        if failure and time.monotonic() - cls._storage_bad[0] > STORAGE_DOUBT:
            raise failure
        return not failure

    async def _ask_storage(self):
        """The reason why the storage is not there, None if it is."""
        cls, asked = self.__class__, time.monotonic()
        try:
            await self.fetch_accounts("GET", "/healthz")
        except SpawnFailed as failure:
            since, last = cls._storage_bad
            cls._storage_bad = (asked if asked - last > OLD_DOUBT else since, time.monotonic())
            return failure
        cls._storage_good, cls._storage_bad = time.monotonic(), (0.0, 0.0)
        return None

    # -- service spec --

    def format_account(self, template, **more):
        """Fill a template of the configuration. All fields are safe in a path.

        Args:
            template: text with fields.
            more: further fields.
        """
        fields = {key: self.account[key] for key in ("account", "uid", "gid", "home")}
        return template.format(**fields, server=server_directory(self.name or ""), **more)

    def nfs_mount(self, name, device, target, read_only=False, options=None, server=None, **more):
        """One NFS volume as a mount.

        Args:
            name: template of the readable part of the volume's name.
            device: template of the NFS path.
            target: template of the path in the container.
            read_only: whether it is.
            options: mount options instead of `nfs_options`.
            server: address instead of `nfs_server`; its port is in the options, or the usual one.
            more: further fields for the templates.

        Raises:
            SpawnFailed: no server is configured.
        """
        if not (server or self.nfs_server):
            raise SpawnFailed(
                "The hub does not know its storage.", reason="mount", detail="nfs_server is empty"
            )
        port = f",port={self.nfs_port}" if not server and self.nfs_port != NFS_PORT else ""
        driver_options = {
            "type": "nfs4",
            "o": f"addr={server or self.nfs_server}{port},{options or self.nfs_options}",
            "device": self.format_account(device, **more),
        }
        volume = self.volume_name(self.format_account(name, **more), driver_options)
        return Mount(
            target=self.format_account(target, **more),
            source=volume,
            type="volume",
            read_only=read_only,
            # without, Docker copies the image's files into an empty directory, as root
            no_copy=True,
            # by it playbooks/clean_volumes.yml knows the volume for the spawner's
            labels={LABEL + "volume": digest(driver_options, 12)},
            driver_config=DriverConfig("local", driver_options),
        )

    def bind_mount(self, source, target, read_only=True, **more):
        """A directory of the node as a mount.

        Args:
            source: template of its path on the node.
            target: template of the path in the container.
            read_only: whether it is.
            more: further fields for the templates.

        Raises:
            SpawnFailed: the path is not allowed.
        """
        path = self.format_account(source, **more)
        try:
            check_bind(path, self.allowed_bind_paths)
            if PurePosixPath(path).parent != PurePosixPath(source).parent:
                raise ValueError(f"{path!r} is deeper than {source!r}")
        except ValueError as error:
            message = "A directory that your server would mount is not allowed."
            raise SpawnFailed(message, reason="mount", detail=f"bind_mounts: {error}") from error
        return Mount(self.format_account(target, **more), path, type="bind", read_only=read_only)

    def each_mount(self, mounts):
        """The arguments of every mount that the user gets: once, or once for each group that fits.

        Args:
            mounts: `nfs_mounts` or `bind_mounts`.
        """
        for mount in mounts:
            rest = {key: value for key, value in mount.items() if key != "groups"}
            if "groups" not in mount:
                yield rest
                continue
            for group in self.group_names:
                if any(fnmatchcase(group, pattern) for pattern in mount["groups"]):
                    yield {**rest, "group": self.safe_group(group)}

    @property
    def needed_tmpfs(self):
        """What a server writes besides its home when the root file system is read-only."""
        if not self.read_only_rootfs:
            return {}
        # HOME itself, if the storage is only a directory in it
        home = {} if below(self.home_dir or self.home_target, self.home_target) else {self.home_dir: ""}
        return {"/tmp": "", "/run": "16M", "/var/lib/extrausers": "1M", **home}  # noqa: S108  # the container's own

    @property
    def mounts(self):
        """All mounts: home, further NFS volumes, directories of the node, memory."""
        mounts = []
        if self.home_device:
            mounts.append(self.nfs_mount("home-{account}", self.home_device, self.home_target))
        mounts += [self.nfs_mount(**mount) for mount in self.each_mount(self.nfs_mounts)]
        mounts += [self.bind_mount(**mount) for mount in self.each_mount(self.bind_mounts)]
        for template, size in sorted({**self.needed_tmpfs, **self.tmpfs_mounts}.items()):
            target = self.format_account(template)
            mounts.append(Mount(target, None, type="tmpfs", tmpfs_size=size or None, tmpfs_mode=0o1777))
        return mounts

    def safe_group(self, group):
        """A group's name as part of a path, or a refusal: it comes from the directory."""
        if not re.fullmatch(SAFE, group):
            raise SpawnFailed(f"The group {printable(group)!r} cannot have a directory.", reason="account")
        return group

    @property
    def supplementary_groups(self):
        """GIDs besides the primary one, in order: the build group, then the storage's groups."""
        gids = [self.build_group_gid] if self.build_group_gid >= 0 else []
        gids += sorted(set(self.account["groups"].values()) - {self.account["gid"], *gids})
        return [str(gid) for gid in gids]

    def get_env(self):
        """The server's environment: upstream's, and the identity for the image's start script."""
        env = super().get_env()
        ours = {
            "HOME": self.format_account(self.home_dir or self.home_target),
            "NB_USER": self.account["account"],
            "NB_UID": str(self.account["uid"]),
            "NB_GID": str(self.account["gid"]),
            "NB_GROUP": self.primary_group,
            "NB_UMASK": self.umask,
            # for the image's start script, so that `id` knows names
            "NB_GROUPS": ",".join(
                f"{name}:{gid}"
                for name, gid in sorted(self.account["groups"].items())
                if re.fullmatch(SAFE, name)
            ),
        }
        if not self.notebook_dir:
            ours["JUPYTERHUB_ROOT_DIR"] = self.format_account(self.home_target)
        # what the administrator wrote into `environment` comes first, as upstream has it
        env.update({key: value for key, value in ours.items() if key not in self.environment})
        for key, value in env.items():
            if "\0" in f"{key}{value}":
                message = f"The value of {printable(key)} cannot be given to a server."
                raise SpawnFailed(message, reason="environment")
        return env

    @property
    def primary_group(self):
        """Name of the primary group: the account's own unless it is one of the storage's groups."""
        names = {gid: name for name, gid in self.account["groups"].items()}
        return names.get(self.account["gid"], self.account["account"])

    def identity_spec(self):
        """The part of the container's spec that says as whom it runs."""
        spec = {"groups": self.supplementary_groups, "cap_drop": ["ALL"], "workdir": "/"}
        if self.identity == "root":
            return {**spec, "user": "0:0", "cap_add": list(self.root_capabilities)}
        return {**spec, "user": f"{self.account['uid']}:{self.account['gid']}"}

    async def container_spec(self):
        """The container's spec."""
        kwargs = {
            "image": self.image,
            "args": await self.get_command(),
            "env": self.get_env(),
            "labels": self.labels,
            "mounts": self.mounts,
            "init": self.init,
            "read_only": self.read_only_rootfs,
            # with an image's own, swarm would call a server "starting" until it is healthy: the hub looks
            "healthcheck": Healthcheck(test=["NONE"]),
            "stop_grace_period": int(self.stop_grace_period * 1e9),
            # docker-py's Privileges class does not know this field yet
            "privileges": {"NoNewPrivileges": True} if self.no_new_privileges else None,
            **self.identity_spec(),
        }
        return ContainerSpec(**{**kwargs, **self.extra_container_spec})

    def resources_spec(self):
        """Limits and reservations."""
        kwargs = {
            "mem_limit": self.mem_limit or None,
            "mem_reservation": self.mem_guarantee or None,
            "cpu_limit": int(self.cpu_limit * 1e9) if self.cpu_limit else None,
            "cpu_reservation": int(self.cpu_guarantee * 1e9) if self.cpu_guarantee else None,
            "generic_resources": self.generic_resources or None,
        }
        spec = Resources(**{**kwargs, **self.extra_resources_spec})
        if self.pids_limit:
            # docker-py has no argument for it
            spec.setdefault("Limits", {})["Pids"] = self.pids_limit
        return spec

    def placement_spec(self):
        """Where it may run."""
        kwargs = {
            "constraints": [*self.placement_constraints, *(f"node.id!={key}" for key in self.silent_nodes)]
            or None,
            "preferences": [("spread", label) for label in self.placement_preferences] or None,
        }
        return Placement(**{**kwargs, **self.extra_placement_spec})

    async def task_spec(self):
        """The task's template: exactly one task, never started again by the swarm."""
        kwargs = {
            "container_spec": await self.container_spec(),
            "resources": self.resources_spec(),
            "restart_policy": RestartPolicy(condition="none"),
            "placement": self.placement_spec(),
            "networks": self.networks or None,
            "log_driver": DriverConfig(self.log_driver, self.log_options) if self.log_driver else None,
        }
        return TaskTemplate(**{**kwargs, **self.extra_task_spec})

    async def service_spec(self):
        """Arguments of docker-py's `create_service`."""
        spec = {
            "name": self.object_name,
            "labels": self.labels,
            "mode": "replicated",
            "task_template": await self.task_spec(),
            # virtual IPs would use up the subnet twice as fast, and would answer for a task that is gone
            "endpoint_spec": EndpointSpec(**{"mode": "dnsrr", **self.extra_endpoint_spec}),
        }
        return {**spec, **self.extra_create_kwargs}

    @property
    def networks(self):
        """Names of the overlay networks that the server is on. The hub looks for it on `network_name`."""
        return [self.network_name] if self.network_name else []

    def choose_image(self):
        """The image of the user's first role that has one, else the default."""
        groups = set(self.group_names)
        return next((image for role, image in self.role_images.items() if role in groups), self.image)

    # -- state --

    def load_state(self, state):
        """Take up what `get_state` gave."""
        super().load_state(state)
        self.start_id = state.get("start_id", "")
        self.task_id = state.get("task_id", "")

    def get_state(self):
        """What a restarted hub needs to find the server."""
        state = super().get_state()
        if self.object_id:
            state |= {"start_id": self.start_id, "task_id": self.task_id}
        return state

    def clear_state(self):
        """Forget the start; the next one has another name."""
        super().clear_state()
        self.object_id = self.object_name = self.start_id = self.task_id = ""

    # -- progress --

    def stage(self, percent, message):
        """Tell the progress page, once per stage.

        Args:
            percent: how far the start is.
            message: one sentence.
        """
        if self._stages and self._stages[-1]["stage"] == message:
            return
        elapsed = time.monotonic() - self._begun
        text = f"{message} ({elapsed:.1f} s)"
        self._stages.append({"progress": percent, "stage": message, "message": text})
        self.log.debug("%s: %s after %.1f s", self._log_name, message, elapsed)
        self._stage_changed.set()
        self._stage_changed = asyncio.Event()

    async def progress(self):
        """The stages of the start as they come. The hub ends the generator with the start."""
        stages, seen = self._stages, 0
        while True:
            if stages is not self._stages:
                stages, seen = self._stages, 0
            changed = self._stage_changed
            for event in stages[seen:]:
                seen += 1
                yield {key: event[key] for key in ("progress", "message")}
            if seen == len(stages):
                await changed.wait()

    # -- start --

    @property
    def start_lock(self):
        """One start at a time for one server, even if the hub has two spawner objects for it."""
        return self._locks.setdefault(self.server_key, asyncio.Lock())

    def wait_turn(self, _spawner):
        """Let starts begin one by one, and the hub answer others between them.

        A start begins with some 20 ms of JupyterHub's own work, most of it for its database and at a stretch.
        When 200 users press start together, the hub would do that for all of them before its next look at the
        network, and answer nobody for seconds.

        Returns:
            An awaitable of no scopes, by which JupyterHub takes those of its role `server`.
        """
        # the page of pending starts is open by now, and must not tell the start before
        self._stages = []
        # JupyterHub calls this amid changes of its database. Another request, met while this one waits, would
        # roll them back; so they are kept now, and not when the awaitable's turn comes.
        self.user.db.commit()
        return self._turn()

    async def _turn(self):
        """Pass the turnstile."""
        async with self._turnstile:
            await asyncio.sleep(0)
        return []

    async def start(self):
        """Start the server; see the module's description.

        Returns:
            (host, port) on the servers' network.

        Raises:
            SpawnFailed: with a sentence for the user. What the start has left is removed meanwhile.
        """
        self.begin_sweeping()
        lock = self.start_lock
        async with lock:
            self._starting, self._begun, self._stages = True, time.monotonic(), []
            self._given_up, self._creating = False, None
            try:
                # the hub's own deadline knows no reason
                async with asyncio.timeout(max(1, self.start_timeout - 2 * REASON_FIRST)):
                    return await self.start_service()
            except asyncio.CancelledError:
                # The hub waits one second before it calls stop(), which settles this
                self._cleanup = self.in_background(self.clean_up(self.object_name, self._creating))
                raise
            except Exception as error:
                failure = self.explain(error)
                self.log.error("Start of %s failed: %s", self._log_name, failure.log_message)
                self._given_up = True
                removal = self.in_background(self.discard(self.object_name, self._creating))
                await asyncio.wait([removal], timeout=REASON_FIRST)
                raise failure from (error if failure is not error else None)
            finally:
                self._starting = False

    async def start_service(self):
        """Account, leftovers, service, task, server: the steps of a start."""
        await self.settle()
        if self.image == self._image_chosen:
            # by the start before, and not by a hook since
            self.image = self._image_before
        self._image_before = self.image
        if self.user_options.get("image"):
            self.image = await self.check_allowed(self.user_options["image"])
        else:
            self.image = self.choose_image()
        self._image_chosen = self.image
        self.start_id = secrets.token_hex(4)
        self.object_name = self.make_service_name(self.start_id)
        self.stage(5, "Asking the storage for your account")
        clearing = asyncio.ensure_future(self.clear_services())
        try:
            self.account = await self.get_account()
            answered = time.monotonic()
            if await clearing and time.monotonic() - answered > SLOW_END:
                self.account = await self.get_account()
        finally:
            # without an account there is no start, and nothing of it may go on
            clearing.cancel()
        while self.account["settle"]:
            # earlier, the NFS server would refuse what the groups allow, and the node remember the refusal
            self.stage(12, "Waiting until the storage knows your new groups")
            await asyncio.sleep(self.account["settle"])
            # the account may be on its way to other numbers by now
            self.account = await self.get_account()
        self.stage(15, f"Your account is {self.account['account']}, user number {self.account['uid']}")
        # shielded: a service that Docker is about to make has to be known to whoever removes it
        self._creating = asyncio.ensure_future(self.create_object())
        service = await asyncio.shield(self._creating)
        self.object_id = service[self.object_id_key]
        self.log.info("Created service %s for %s from %s", self.object_name, self._log_name, self.image)
        self.stage(25, "Your home's volume and your server are requested")
        self._under_way[self.object_name] = ""
        try:
            await self.start_object()
        finally:
            self._under_way.pop(self.object_name, None)
        return await self.get_ip_and_port()

    async def create_object(self):
        """Create the service."""
        return await self.docker("create_service", **await self.service_spec())

    async def start_object(self):
        """Wait until the task runs and its server answers.

        Raises:
            SpawnFailed: it never will.
        """
        since, state = time.monotonic(), None
        while True:
            task = await self.get_starting_task()
            # swarm keeps the tasks of a service that is gone until their containers are
            if task is None or task.get("DesiredState") == "remove":
                raise SpawnFailed("Your server was removed while it started.", reason="removed")
            self._under_way[self.object_name] = task.get("NodeID", "")
            if task_state(task) != state:
                since, state = time.monotonic(), task_state(task)
                self.note_move(task)
            node = await self.node_name(task)
            self.stage(*self.describe(state, node))
            if task_ended(task) or task_unwanted(task):
                await self.fail(task, node)
            if state == "running" and await self.server_answers():
                self.task_id = task.get("ID", "")
                self.stage(95, "Your server answers")
                return
            if await self.node_lost(task):
                raise SpawnFailed(f"Node {node} was lost while your server started there.", reason="node")
            if time.monotonic() - since > self.patience:
                await self.check_stuck(task, node, since)
            # a tenth more for each that starts: one is looked at closely, a lecture's worth is no load
            pause = self.task_poll_interval * (1 + len(self._under_way) / 10)
            await asyncio.sleep(min(pause, self.task_poll_maximum))

    def note_move(self, task):
        """Remember that a task got on: who waits behind it in a rush is not stuck, and its node is there."""
        state, node_id = task_state(task), task.get("NodeID", "")
        if state != "new":
            self._moved["new"] = time.monotonic()
        if state == "running":
            self._moved[node_id] = time.monotonic()
        if state in REPORTED and node_id in self._silence:
            # a busy node may have no time for who only knocks
            self._silence[node_id]["since"] = None

    def stands_still(self, place, since):
        """Whether nobody has got on for `patience`.

        Args:
            place: `new`, or the ID of a node.
            since: when this start began to wait there.
        """
        return time.monotonic() - max(since, self._moved.get(place, 0)) > self.patience

    def hangs(self, task, since):
        """Whether a task that mounts and starts seems to hang, and is not only slow.

        A container takes a second or two, a busy node some for each that starts there: it gets a quarter of
        `patience` more for each, and for one that is not ours.

        Args:
            task: a task in state `starting`.
            since: when it came into it.
        """
        place = task.get("NodeID", "")
        together = list(self._under_way.values()).count(place)
        return self.stands_still(place, since + self.patience / 4 * (together + 1))

    @staticmethod
    def describe(state, node):
        """Percent and sentence of a task's state."""
        return {
            "new": (30, "Waiting for a network address"),
            "pending": (35, "Waiting for a free node"),
            "assigned": (45, f"Placed on node {node}"),
            "accepted": (45, f"Placed on node {node}"),
            "preparing": (55, f"Node {node} gets the image and makes the container"),
            "ready": (65, f"Container made on node {node}"),
            "starting": (70, f"Node {node} mounts your home and starts the container"),
            "running": (85, f"Container runs on node {node}, waiting for the server in it"),
        }.get(state, (90, f"Docker reports the state {state}"))

    async def check_stuck(self, task, node, since):
        """Look for the reason why a task does not get on; swarm does not always say.

        Args:
            task: the task, in one state for longer than `patience`.
            node: name of its node.
            since: when it came into its state.

        Raises:
            SpawnFailed: a reason was found that will not pass.
        """
        state = task_state(task)
        if state == "pending" and task["Status"].get("Err"):
            await self.fail(task, node)
        if state == "new" and self.stands_still("new", since):
            raise SpawnFailed(
                "The cluster has no network address for your server.",
                reason="network",
                detail="task is in state new: address pool empty?",
            )
        # images come from a registry beside it, and a server that reads its home from a dead one hangs
        good = state in {"preparing", "starting", "running"} and await self.check_storage()
        mounts = self.home_device or self.nfs_mounts
        if good and mounts and state == "starting" and self.hangs(task, since):
            raise SpawnFailed(f"Node {node} does not get your directories mounted.", reason="mount")

    async def fail(self, task, node):
        """Raise what a task's end means.

        Raises:
            SpawnFailed: always.
        """
        reason, message, said = explain_task(task, f"node {node}")
        # a task that was told to end and has: one that fails by itself is never in this state
        if task_state(task) == "shutdown" or (not task_ended(task) and task_unwanted(task)):
            what = "lost" if await self.node_lost(task) else "closed by an administrator"
            reason, message = "node", f"Node {node} was {what} while your server started there."
        if reason in {"exit", "command"}:
            lines = await self.last_lines()
            if lines:
                message = f'{message} Its last words: "{lines}".'
        raise SpawnFailed(message, reason=reason, detail=said)

    async def last_lines(self):
        """The last lines of the server's log in one, or an empty text if Docker does not tell in time."""
        if not self.log_lines:
            return ""
        try:
            async with asyncio.timeout(3):
                text = await asyncio.wrap_future(self.executor.submit(self._service_log))
        except (DockerException, RequestException, TimeoutError) as error:
            self.log.warning("No log of %s: %s", self.object_name, error)
            return ""
        lines = [line.strip() for line in text.splitlines() if not re.match(NO_LOG, line)]
        return " · ".join(printable(line) for line in lines if line)[-500:]

    def _service_log(self):
        # is_tty spares docker-py another call
        chunks = self.client.service_logs(
            self.object_name, stdout=True, stderr=True, tail=self.log_lines, is_tty=False
        )
        return b"".join(chunks).decode(errors="replace")

    async def server_answers(self):
        """Whether something listens at the server's port: this start's, since the name is its own."""
        if not self.wait_for_server:
            return True
        return await listens(*await self.get_ip_and_port())

    async def get_ip_and_port(self):
        """The service's name is the server's address on the network."""
        return self.object_name, self.port

    def explain(self, error):
        """Turn whatever ended a start into a SpawnFailed with the hint for the user."""
        if isinstance(error, SpawnFailed):
            failure = error
        elif isinstance(error, (DockerException, RequestException)):
            failure = explain_docker_error(error)
        elif isinstance(error, TimeoutError):
            last = self._stages[-1]["stage"] if self._stages else "the start"
            message = f"Your server was not ready in time; its last stage was: {last}."
            failure = SpawnFailed(message, reason="timeout", status_code=504)
        elif isinstance(error, SpawnException) or getattr(error, "status_code", 500) < 500:
            return error
        else:
            self.log.exception("Unexpected error in the start of %s", self._log_name)
            failure = SpawnFailed("Your server could not be started.", reason="error", detail=repr(error))
        if self.support_hint and self.support_hint not in failure.jupyterhub_message:
            failure.message = failure.jupyterhub_message = f"{failure.jupyterhub_message} {self.support_hint}"
        return failure

    async def discard(self, name, creating):
        """Remove the service of a start that failed, even one that Docker is just making.

        Args:
            name: the service. One that has taken its place meanwhile is not this start's to remove.
            creating: the call that makes it, or None if that was not begun.
        """
        if creating is None:
            return
        await asyncio.wait([creating])
        # an answer that was lost leaves a service, too, perhaps a while later
        lost = isinstance(creating.exception(), RequestException)
        for pause in [0, *REMOVE_AGAIN]:
            await asyncio.sleep(pause)
            try:
                if await self.remove_service(name) or not lost or pause > WAS_LOST:
                    return
            except (DockerException, RequestException) as error:
                self.log.warning("Service %s is left over: %s", name, error)
        self.log.error("Service %s of %s stays for now", name, self._log_name)

    async def clean_up(self, name, creating):
        """Remove the service of a start that was cancelled, and wait until its container is gone.

        Args:
            name: the service.
            creating: the call that makes it, or None if that was not begun.
        """
        await self.discard(name, creating)
        if creating is not None:
            try:
                await self.wait_gone()
            except (SpawnFailed, DockerException, RequestException) as error:
                self.log.warning("Server of %s may still be there: %s", self._log_name, error)

    def in_background(self, work):
        """Begin what goes on although nobody may wait for it; the loop itself keeps no hold of it.

        Args:
            work: a coroutine.

        Returns:
            Its task.
        """
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def settle(self):
        """Wait until the removal after an earlier start is through, for `stop_timeout` at most."""
        if self._cleanup is not None:
            await asyncio.wait([self._cleanup], timeout=self.stop_timeout)
            self._cleanup = None

    # -- stop --

    async def stop(self, now=False):
        """Stop the server and return when its container is gone.

        Raises:
            SpawnFailed: a node does not answer within `stop_timeout`, or Docker does not.
        """
        await self.settle()
        try:
            await self.clear_services()
        except (SpawnFailed, DockerException, RequestException) as error:
            failure = error if isinstance(error, SpawnFailed) else explain_docker_error(error)
            # JupyterHub tells nobody, and takes the server for stopped: `sweep` finds what is left of it
            self.log.error("Stop of %s failed: %s", self._log_name, failure.log_message)
            raise failure from (error if failure is not error else None)
        self.clear_state()

    async def clear_services(self):
        """Remove all services of this server, whoever left them, and wait until their tasks are gone.

        Returns:
            Whether there was anything.
        """
        there = await self.remove_services()
        return await self.wait_gone() or there

    async def find_services(self):
        """All services of this server. The label is a digest: an empty value would match every server."""
        return await self.docker("services", filters={"label": f"{LABEL}key={self.server_key}"})

    async def remove_services(self):
        """Remove all services of this server.

        Returns:
            Whether there were any.
        """
        services = await self.find_services()
        for service in services:
            self.log.info("Removing service %s of %s", service["Spec"]["Name"], self._log_name)
            await self.remove_service(service["ID"])
        return bool(services)

    async def remove_service(self, service_id):
        """Remove one service; that it is gone already is as good.

        Returns:
            Whether it was there.
        """
        try:
            await self.docker("remove_service", service_id)
        except APIError as error:
            if error.status_code != 404:
                raise
            return False
        return True

    def begin_sweeping(self):
        """Have services that are nobody's any more looked for, for as long as the hub runs."""
        cls = self.__class__
        if cls._sweeping is None or cls._sweeping.done():
            cls._sweeping = asyncio.ensure_future(self.sweep())

    async def sweep(self):
        """Remove, every now and then, the services of servers that the hub does not know.

        They are left by a stop or a failed start that Docker could not carry out, since JupyterHub takes its
        server for stopped then, and by a hub that ended meanwhile. Two looks in a row have to find a service,
        so that one which is just beginning or ending is left alone.
        """
        strays = set()
        while True:
            await asyncio.sleep(self.sweep_interval)
            try:
                found = await self.find_strays()
                for service_id in strays & found.keys():
                    self.log.warning("Removing service %s, of a server that is no more", found[service_id])
                    await self.remove_service(service_id)
                strays = found.keys() - strays
            except (DockerException, RequestException) as error:
                self.log.warning("No look for left-over services: %s", error)
            except SQLAlchemyError as error:
                # the session is the whole hub's
                self.user.db.rollback()
                self.log.warning("No look for left-over services: %s", error)

    async def find_strays(self):
        """Services of this hub that belong to no server in its database, as ID → name."""
        ours = (LABEL + "prefix", printable(self.prefix))
        services = await self.docker("services", filters={"label": "=".join(ours)})
        rows = (
            self.user.db.query(orm.User.name, orm.Spawner.name, orm.Spawner.state)
            .join(orm.User, orm.Spawner.user_id == orm.User.id)
            .filter(orm.Spawner.server_id.isnot(None))
            .all()
        )
        # no transaction stays open until the hub's next change: the database may be restarted in the meantime
        self.user.db.commit()
        known = set()
        for user, server, state in rows:
            # the ID as well: users may be renamed while their servers run
            known |= {self.key_of(user, server), (state or {}).get("object_id")}
        strays = {}
        for service in services:
            labels = service["Spec"].get("Labels") or {}
            # Docker takes an empty value for any
            if ours in labels.items() and not known & {service["ID"], labels.get(LABEL + "key")}:
                strays[service["ID"]] = service["Spec"]["Name"]
        return strays

    async def remove_object(self):
        """Remove the service of this start."""
        await self.remove_service(self.object_id or self.object_name)

    async def wait_gone(self):
        """Wait until no task of this server has a container.

        Tasks on nodes that are down cannot be waited for: swarm removes them when the node is back.

        Returns:
            Whether there were any to wait for.

        Raises:
            SpawnFailed: a node that is up does not end its task within `stop_timeout`.
        """
        deadline, waited = time.monotonic() + self.stop_timeout, False
        async for _ in self.ticks():
            tasks = await self.docker("tasks", filters={"label": f"{LABEL}key={self.server_key}"})
            alive = [task for task in tasks if not task_ended(task)]
            lost = [task for task in alive if await self.node_lost(task)]
            if len(lost) == len(alive):
                for task in lost:
                    self.log.warning(
                        "Node %s does not answer: the server of %s there ends when it is back",
                        await self.node_name(task),
                        self._log_name,
                    )
                break
            waited = True
            if self._starting:
                self.stage(10, "Waiting until your previous server has ended")
            if time.monotonic() > deadline:
                nodes = sorted({await self.node_name(task) for task in alive})
                raise SpawnFailed(
                    f"Your previous server has not ended yet on {', '.join(nodes)}.",
                    reason="stop",
                    detail=f"after {self.stop_timeout:.0f} s",
                )
        return waited

    # -- looking --

    async def poll(self):
        """Whether the server runs.

        Returns:
            None while it runs, starts, or Docker cannot tell; 0 if there is nothing of it; else its exit
            code, or 1 if that is 0, since nobody asked it to end, or unknown.
        """
        self.begin_sweeping()
        if self._given_up:
            return 0
        if self._starting or (self._cleanup and not self._cleanup.done()):
            return None
        try:
            if not self.object_name:
                # never started, or by a hub that was interrupted before it could know: begin anew
                if not self.start_lock.locked():
                    await self.remove_services()
                return 0
            task = await self.get_task()
            if task is None:
                await self.remove_object()
                return 0
            lost = not task_ended(task) and (task_unwanted(task) or await self.node_down(task))
            if not task_ended(task) and not lost:
                await self.notice_change(task)
                return None
            node = await self.node_name(task)
            sentence = f"node {node} was lost or closed" if lost else explain_task(task, f"node {node}")[1]
            self.log.warning("Server of %s is gone: %s", self._log_name, sentence)
            # the hub does not call stop() for a server that is not running
            await self.remove_object()
        except (DockerException, RequestException) as error:
            # A route that is taken away from a server that runs costs its user more than one that stays
            self.log.warning("Docker does not say whether the server of %s runs: %s", self._log_name, error)
            return None
        return task["Status"].get("ContainerStatus", {}).get("ExitCode") or 1

    async def notice_change(self, task):
        """Log, once and by name, that somebody updated the service: the hub never does.

        Args:
            task: the task that runs now.
        """
        before, self.task_id = self.task_id, task.get("ID", "")
        if before in {"", self.task_id}:
            return
        old = next((one for one in await self.get_tasks() if one.get("ID") == before), {})
        changed = spec_changes(old.get("Spec"), task.get("Spec")) or ["the number of its tasks"]
        self.log.warning(
            "Service %s of %s was updated by somebody else and swarm replaced its task; changed: %s. "
            "The next start has the hub's own configuration again",
            self.object_name,
            self._log_name,
            ", ".join(changed),
        )

    async def get_tasks(self):
        """All tasks of this start's service that swarm remembers."""
        return await self.docker("tasks", filters={"service": self.object_id or self.object_name})

    async def get_task(self):
        """The task of this start, or None if the service is gone or has none."""
        try:
            tasks = await self.get_tasks()
        except APIError as error:
            if error.status_code == 404:
                return None
            raise
        if not tasks and self._starting:
            # the orchestrator has not made it yet
            return {"Status": {"State": "new"}, "DesiredState": "running"}
        return latest_task(tasks)

    async def get_starting_task(self):
        """The task of this start, asked for together with all others that start, or None if it is gone."""
        tasks = await self.watch.tasks(self.object_id, self.object_name)
        # none yet, or none any more: only the service itself tells
        return latest_task(tasks) if tasks else await self.get_task()

    async def get_node(self, task):
        """What the swarm says about a task's node, not older than 5 seconds.

        Returns:
            {"name", "state", "address"}; state and address are empty if they are unknown.
        """
        node_id = task.get("NodeID", "")
        if not node_id:
            return {"name": "(none yet)", "state": "", "address": ""}
        known = self._nodes.get(node_id)
        if known and time.monotonic() - known["time"] < 5:
            return known
        try:
            node = await self.docker("inspect_node", node_id)
            found = {"name": node["Description"]["Hostname"], "state": node["Status"]["State"]}
            found["address"] = node_address(node)
        except (DockerException, RequestException, KeyError) as error:
            self.log.warning("Node %s is unknown: %s", node_id, error)
            found = {"name": node_id[:12], "address": "", **(known or {}), "state": ""}
        self._nodes[node_id] = {**found, "time": time.monotonic()}
        return self._nodes[node_id]

    async def node_name(self, task):
        """Host name of a task's node."""
        return (await self.get_node(task))["name"]

    async def node_down(self, task):
        """Whether the swarm has lost a task's node."""
        return (await self.get_node(task))["state"] == "down"

    async def node_lost(self, task):
        """Whether a task's node is down, or silent for so long that it will be.

        Swarm calls a node down after three missed heartbeats, with its defaults 15 to 20 seconds.
        """
        node = await self.get_node(task)
        return node["state"] == "down" or (
            bool(node["address"] and self.node_probe_port)
            and await self.silence(task["NodeID"], node["address"]) > self.node_patience
        )

    async def silence(self, node_id, address):
        """For how long a node does not answer any more.

        Args:
            node_id: its ID.
            address: its address.

        Returns:
            Seconds; 0 for a node that never answered, since a firewall may be between.
        """
        known = self._silence.setdefault(node_id, {"asked": 0.0, "answered": False, "since": None})
        now = time.monotonic()
        if now - known["asked"] > ASK_AGAIN:
            if now - known["asked"] > OLD_NEWS:
                known["since"] = None
            known["asked"] = now
            if await listens(address, self.node_probe_port, refusal=True):
                known.update(answered=True, since=None)
            elif time.monotonic() - now > PROBE + LATE:
                known["since"] = None
            elif known["answered"] and known["since"] is None:
                known["since"] = now
        return time.monotonic() - known["since"] if known["since"] else 0

    @property
    def silent_nodes(self):
        """IDs of the nodes that the swarm may still believe in."""
        now = time.monotonic()
        return [
            node_id
            for node_id, known in self._silence.items()
            if known["since"]
            and now - known["since"] > self.node_patience
            and now - known["asked"] < OLD_NEWS
        ]

    async def ticks(self):
        """Yield at growing intervals: quick at first, when most starts and stops are decided."""
        interval = self.task_poll_interval
        while True:
            yield
            await asyncio.sleep(interval)
            interval = min(interval * 1.3, self.task_poll_maximum)
