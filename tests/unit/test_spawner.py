"""The spawner against a Docker of its own that answers what a real swarm did, see `tests/unit/recorded`.

What the engine's states and words are is recorded. A test puts recorded tasks together as it needs them, such
as one that stays in a state; what is written by hand instead says why.
"""

import asyncio
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import docker.errors
import pytest
import requests
import spawner as module
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jupyterhub import orm
from recording import cases, node, pack, recorded, refused, unpack
from spawner import LABEL, NAME_MAX, NO_STORAGE, NfsSwarmSpawner, SpawnFailed
from tornado.httpclient import HTTPClientError, HTTPResponse
from traitlets import TraitError

ROOT = Path(__file__).resolve().parents[2]
ANY = "0.0.0.0"  # noqa: S104 - as a leading manager says
ACCOUNT = {
    "username": "alice",
    "account": "alice",
    "uid": 100000,
    "gid": 100000,
    "groups": {"students": 20001, "course-logic": 20003},
    "home": "/homes/alice",
}


def api_error(case):
    """What docker-py raised in a recorded case."""
    said = refused(case)
    response = requests.Response()
    response.status_code = said["status"]
    return docker.errors.APIError("", response, said["explanation"])


def until(state, case="runs"):
    """A recorded case as far as the first task in a state, which then stays."""
    tasks = recorded(case)
    return tasks[: [module.task_state(task) for task in tasks].index(state) + 1]


def ended(case):
    """The last that Docker told in a recorded case."""
    return recorded(case)[-1]


def by_hand(task, **status):
    """A recorded task whose status was changed by hand."""
    return {**task, "Status": {**task["Status"], **status}}


def host_of(task):
    """Name of a recorded task's node."""
    return node(task["NodeID"])["Description"]["Hostname"] if task.get("NodeID") else "(none yet)"


class FakeDocker:
    """As much of docker-py's APIClient as the spawner uses.

    A new service goes through the tasks of `script`, one per look; the last one stays. A removed one goes
    through those of `ending`, until there is none.
    """

    def __init__(self):
        """See the class."""
        self.script, self.ending = recorded("runs"), recorded("runs", "removed")
        self.live, self.going, self.calls, self.specs = {}, {}, [], []
        self.node_state = "ready"
        self.errors = {}
        self.log = b"ModuleNotFoundError: No module named 'jupyterhub'\n"
        self.ids = itertools.count(1)
        self.most = 0

    def call(self, method):
        """Note a call, and fail if it has to."""
        self.calls.append(method)
        if method in self.errors:
            raise self.errors[method]

    def create_service(self, **spec):
        """POST /services/create."""
        self.call("create_service")
        self.specs.append(spec)
        service_id = f"service{next(self.ids)}"
        # swarm tells all tasks that a service ever had, each as it is now
        self.live[service_id] = {"spec": spec, "script": iter(self.script), "tasks": {}}
        self.most = max(self.most, len(self.live) + len(self.going))
        return {"ID": service_id}

    def services(self, filters):
        """GET /services."""
        self.call("services")
        return [
            {
                "ID": service_id,
                "Spec": {"Name": service["spec"]["name"], "Labels": service["spec"].get("labels", {})},
            }
            for service_id, service in self.live.items()
            if self.matches(service, filters["label"])
        ]

    def find(self, name):
        """The ID of a service by ID or name, as the engine takes both."""
        return next((key for key, one in self.live.items() if name in {key, one["spec"]["name"]}), name)

    def remove_service(self, service_id):
        """DELETE /services/{id}."""
        self.call("remove_service")
        service_id = self.find(service_id)
        if service_id not in self.live:
            raise api_error("service not found")
        service = self.live.pop(service_id)
        if not all(module.task_ended(task) for task in service["tasks"].values()):
            self.going[service_id] = {**service, "script": iter(self.ending)}

    def tasks(self, filters):
        """GET /tasks: a service's own, or by label those whose service is gone."""
        self.call("tasks")
        if "name" in filters:
            there = [key for key, one in self.live.items() if one["spec"]["name"] in filters["name"]]
            return [task for key in there for task in self.tasks({"service": key})]
        if "service" in filters:
            service_id = self.find(filters["service"])
            if service_id not in self.live:
                raise api_error("tasks of no service")
            service = self.live[service_id]
            for task in itertools.islice(service["script"], 1):
                service["tasks"][task["ID"]] = {**task, "ServiceID": service_id}
            return list(service["tasks"].values())
        answer = []
        for service_id, service in list(self.going.items()):
            if self.matches(service, filters["label"]):
                task = next(service["script"], None)
                if task is not None:
                    answer.append({**task, "ServiceID": service_id})
                if task is None or module.task_ended(task):
                    del self.going[service_id]
        return answer

    def inspect_node(self, node_id):
        """GET /nodes/{id}."""
        self.call("inspect_node")
        return node(node_id, self.node_state)

    def service_logs(self, service, **kwargs):
        """GET /services/{id}/logs."""
        self.call("service_logs")
        return iter([self.log])

    @staticmethod
    def matches(service, label):
        """Whether a service has a label."""
        key, _, value = label.partition("=")
        return service["spec"]["labels"].get(key) == value


class User(SimpleNamespace):
    """As much of JupyterHub's user as the spawner uses."""

    auth_state = None
    db = SimpleNamespace(commit=lambda: None)

    async def get_auth_state(self):
        """As the hub's."""
        return self.auth_state


def make(name="alice", groups=("students",), server="", auth_state=None, account=ACCOUNT, **traits):
    """A spawner that is not connected to anything."""
    user = User(
        name=name,
        url=f"/user/{name}",
        escaped_name=name,
        groups=[SimpleNamespace(name=group) for group in groups],
        auth_state=auth_state,
    )
    hub = SimpleNamespace(public_host="", api_url="http://127.0.0.1:8081/hub/api", base_url="/hub/")
    settings = {
        "image": "registry.example:5000/notebook@sha256:0",
        "nfs_server": "192.0.2.1",
        "network_name": "notebooks",
        "accounts_token": "t0ken",
        "storage_groups": ["students", "teachers", "course-*"],
        "hub_connect_url": "http://hub:8081",
        "task_poll_interval": 0.01,
        "task_poll_maximum": 0.01,
        "patience": 0.05,
        "wait_for_server": False,
        # the recorded nodes have addresses, which no test may ask
        "node_probe_port": 0,
        **traits,
    }
    spawner = Spawner(user=user, hub=hub, orm_spawner=None, **settings)
    spawner.server_name = server
    spawner.answer = account
    spawner.user_options = {}
    spawner.oauth_client_id = "client"
    return spawner


class Spawner(NfsSwarmSpawner):
    """With the account service's answers at hand instead of HTTP."""

    server_name = ""
    answer = None

    @property
    def name(self):
        """The server's name, without a database."""
        return self.server_name

    async def fetch_accounts(self, method, path, body=None):
        """Answer from memory."""
        self.asked = (method, path, body)
        if isinstance(self.answer, Exception):
            raise self.answer
        return json.dumps(self.answer).encode()


@pytest.fixture
def swarm(monkeypatch):
    """A fresh Docker behind all spawners of a test."""
    Spawner._client = FakeDocker()
    Spawner._nodes, Spawner._silence, Spawner._moved = {}, {}, {}
    Spawner._watch, Spawner._storage_good = None, 0.0
    Spawner._turnstile = asyncio.Lock()
    Spawner._under_way = {}
    Spawner._sweeping = None
    Spawner._storage_bad, Spawner._storage_asked = (0.0, 0.0), None
    monkeypatch.setattr(module, "STORAGE_DOUBT", 0.05)
    monkeypatch.setattr(module, "REMOVE_AGAIN", [0.01, 0.01])
    yield Spawner._client
    Spawner._client = None


async def spec_of(spawner):
    spawner.account = spawner.check_account(json.dumps(spawner.answer))
    spawner.start_id, spawner.object_name = "0123abcd", spawner.make_service_name("0123abcd")
    spawner.image = spawner.choose_image()
    return json.loads(json.dumps(await spawner.service_spec()))


def get(spec, path):
    for key in path.split("."):
        spec = spec[int(key)] if key.isdigit() else spec[key]
    return spec


CONTAINER = "task_template.ContainerSpec."


# --- the service's spec ---


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        (
            {},
            {
                CONTAINER + "User": "100000:100000",
                CONTAINER + "Groups": ["990", "20001", "20003"],
                CONTAINER + "CapabilityDrop": ["ALL"],
                CONTAINER + "Privileges": {"NoNewPrivileges": True},
                CONTAINER + "Init": True,
                CONTAINER + "ReadOnly": False,
                CONTAINER + "Healthcheck.Test": ["NONE"],
                CONTAINER + "Dir": "/",
                CONTAINER + "Args": ["jupyterhub-singleuser"],
                CONTAINER + "Command": None,
                CONTAINER + "StopGracePeriod": 10_000_000_000,
                "task_template.Networks": [{"Target": "notebooks"}],
                "task_template.RestartPolicy.Condition": "none",
                "endpoint_spec": {"Mode": "dnsrr"},
                "mode": "replicated",
            },
        ),
        (
            {"identity": "root"},
            {
                CONTAINER + "User": "0:0",
                CONTAINER + "CapabilityDrop": ["ALL"],
                CONTAINER + "Dir": "/",
            },
        ),
        ({"build_group_gid": 100}, {CONTAINER + "Groups": ["100", "20001", "20003"]}),
        ({"build_group_gid": -1}, {CONTAINER + "Groups": ["20001", "20003"]}),
        (
            {"read_only_rootfs": True},
            {
                CONTAINER + "ReadOnly": True,
                CONTAINER + "Mounts.1.Target": "/run",
                CONTAINER + "Mounts.1.TmpfsOptions": {"SizeBytes": 16 * 2**20, "Mode": 0o1777},
                CONTAINER + "Mounts.3.Target": "/var/lib/extrausers",
            },
        ),
        (
            {"mem_limit": "1G", "mem_guarantee": "256M", "cpu_limit": 1.5, "cpu_guarantee": 0.1},
            {
                "task_template.Resources": {
                    "Limits": {"MemoryBytes": 2**30, "NanoCPUs": 1_500_000_000},
                    "Reservations": {"MemoryBytes": 2**28, "NanoCPUs": 100_000_000},
                }
            },
        ),
        ({"pids_limit": 300}, {"task_template.Resources": {"Limits": {"Pids": 300}}}),
        (
            {"generic_resources": {"gpu": 1}},
            {
                "task_template.Resources.Reservations.GenericResources": [
                    {"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}
                ]
            },
        ),
        (
            {
                "placement_constraints": ["node.labels.notebooks==true"],
                "placement_preferences": ["node.labels.rack"],
            },
            {
                "task_template.Placement.Constraints": ["node.labels.notebooks==true"],
                "task_template.Placement.Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.rack"}}],
            },
        ),
        (
            {"log_driver": "local", "log_options": {"max-size": "5m"}},
            {"task_template.LogDriver": {"Name": "local", "Options": {"max-size": "5m"}}},
        ),
        (
            {"home_target": "/home/jovyan/work", "home_dir": "/home/jovyan", "read_only_rootfs": True},
            {
                CONTAINER + "Mounts.0.Target": "/home/jovyan/work",
                CONTAINER + "Mounts.1.Target": "/home/jovyan",
                CONTAINER + "Mounts.1.Type": "tmpfs",
            },
        ),
        (
            {"tmpfs_mounts": {"/home/{account}/.cache": "64M"}},
            {
                CONTAINER + "Mounts.1.Target": "/home/alice/.cache",
                CONTAINER + "Mounts.1.TmpfsOptions": {"SizeBytes": 64 * 2**20, "Mode": 0o1777},
            },
        ),
        ({"args": ["--debug"]}, {CONTAINER + "Args": ["jupyterhub-singleuser", "--debug"]}),
        ({"extra_container_spec": {"hostname": "lab"}}, {CONTAINER + "Hostname": "lab"}),
        ({"no_new_privileges": False, "init": False}, {CONTAINER + "Init": False}),
        (
            {"role_images": {"teachers": "teacher:1", "students": "student:1"}},
            {CONTAINER + "Image": "student:1"},
        ),
    ],
)
async def test_service_spec(traits, expected):
    spec = await spec_of(make(**traits))
    for path, value in expected.items():
        assert get(spec, path) == value, path


async def test_root_keeps_only_what_changing_users_needs():
    spec = await spec_of(make(identity="root"))
    kept = set(spec["task_template"]["ContainerSpec"]["CapabilityAdd"])
    assert {"CAP_SETUID", "CAP_SETGID", "CAP_KILL"} <= kept
    assert not kept & {"CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT"}


async def test_home_is_an_nfs_volume_with_its_options_in_its_name():
    spec = await spec_of(make())
    (home,) = spec["task_template"]["ContainerSpec"]["Mounts"]
    options = home["VolumeOptions"]["DriverConfig"]["Options"]
    assert home["Target"] == "/home/alice"
    assert home["Type"] == "volume"
    assert home["ReadOnly"] is False
    assert home["VolumeOptions"]["NoCopy"] is True
    assert options["type"] == "nfs4"
    assert options["device"] == ":/homes/alice"
    assert options["o"].startswith("addr=192.0.2.1,nfsvers=4.2,hard")
    assert re.fullmatch(r"jupyter-home-alice-[0-9a-f]{12}", home["Source"])

    async def source(**traits):
        return (await spec_of(make(**traits)))["task_template"]["ContainerSpec"]["Mounts"][0]["Source"]

    assert await source() == home["Source"]
    assert await source(nfs_server="192.0.2.2") != home["Source"]
    assert await source(nfs_options="nfsvers=4.1,hard") != home["Source"]


async def test_another_port_of_the_storage():
    """It is that of the storage, and not of another server that a mount names."""
    mounts = [{"name": "data", "device": ":/data", "target": "/data", "server": "192.0.2.9"}]
    spec = await spec_of(make(nfs_port=20490, nfs_mounts=mounts))
    home, data = (
        mount["VolumeOptions"]["DriverConfig"]["Options"]["o"]
        for mount in spec["task_template"]["ContainerSpec"]["Mounts"]
    )
    assert home.startswith("addr=192.0.2.1,port=20490,nfsvers=4.2")
    assert data.startswith("addr=192.0.2.9,nfsvers=4.2")


async def test_further_mounts_by_group():
    mounts = [
        {"name": "exchange", "device": ":/exchange", "target": "/srv/exchange"},
        {
            "name": "{group}",
            "device": ":/courses/{group}",
            "target": "/courses/{group}",
            "groups": ["course-*"],
            "read_only": True,
        },
    ]
    spawner = make(groups=["students", "course-logic", "course-art"], nfs_mounts=mounts)
    made = (await spec_of(spawner))["task_template"]["ContainerSpec"]["Mounts"]
    assert [(mount["Target"], mount["ReadOnly"]) for mount in made] == [
        ("/home/alice", False),
        ("/srv/exchange", False),
        ("/courses/course-art", True),
        ("/courses/course-logic", True),
    ]
    outside = make(groups=["course-/../../homes/bob"], nfs_mounts=mounts)
    with pytest.raises(SpawnFailed, match="cannot have a directory"):
        await spec_of(outside)


async def test_bind_mounts_by_group():
    mounts = [
        {"source": "/data/sets", "target": "/data"},
        {
            "source": "/scratch/{group}",
            "target": "/scratch/{group}",
            "groups": ["course-*"],
            "read_only": False,
        },
    ]
    allowed = {"allowed_bind_paths": ["/data", "/scratch"], "bind_mounts": mounts}
    made = get(await spec_of(make(groups=["students", "course-logic"], **allowed)), CONTAINER + "Mounts")[1:]
    assert [(mount["Type"], mount["Source"], mount["Target"], mount["ReadOnly"]) for mount in made] == [
        ("bind", "/data/sets", "/data", True),
        ("bind", "/scratch/course-logic", "/scratch/course-logic", False),
    ]


@given(st.one_of(st.text(max_size=30), st.sampled_from(["..", ".", "a/../../etc", "/etc", "a\0b", ""])))
def test_no_account_leads_a_bind_mount_elsewhere(account):
    mounts = [{"source": "/scratch/{account}", "target": "/scratch"}]
    spawner = make(allowed_bind_paths=["/scratch"], bind_mounts=mounts)
    spawner.account = {**ACCOUNT, "account": account}
    try:
        (mount,) = (mount for mount in spawner.mounts if mount["Type"] == "bind")
    except SpawnFailed:
        return
    assert Path(mount["Source"]).parent == Path("/scratch")
    assert Path(mount["Source"]).name not in {"", ".", ".."}


# Sources that no list allows, whatever is in it.
NODE_ITSELF = ["/", "/etc", "/etc/docker", "/run/docker.sock", "/var/run", "/var", "/proc/1", "/root/.ssh"]


def test_the_role_refuses_what_the_spawner_refuses():
    role = yaml.safe_load((ROOT / "roles/hub/vars/main.yml").read_text())
    assert role["__hub_never_bound"] == sorted(module.NEVER_BOUND)


@pytest.mark.parametrize("path", [*NODE_ITSELF, "data", "/data/../etc", "//data", "/data/", "/{account}"])
def test_paths_that_no_list_may_allow(path):
    with pytest.raises(TraitError, match="allowed_bind_paths"):
        make(allowed_bind_paths=[path])


@pytest.mark.parametrize(
    ("mounts", "reason"),
    [
        ([{"source": "/elsewhere", "target": "/x"}], "in none of allowed_bind_paths"),
        ([{"source": "/database", "target": "/x"}], "in none of allowed_bind_paths"),
        ([{"source": "/data/{account}/x", "target": "/x"}], "before its last part"),
        ([{"source": "/data/x", "target": "/x", "rw": True}], "unknown"),
        ([{"source": "/data/x"}], "missing"),
        (
            [
                {"source": "/data", "target": "/x", "read_only": False},
                {"source": "/data/sets", "target": "/y"},
            ],
            "which servers may write",
        ),
    ],
)
def test_bind_mounts_that_are_refused(mounts, reason):
    with pytest.raises(TraitError, match=reason):
        make(allowed_bind_paths=["/data"], bind_mounts=mounts)


@pytest.mark.parametrize(
    "traits",
    [
        {"umask": "rwx"},
        {"umask": "99"},
        {"identity": "sudo"},
        {"nfs_mounts": [{"name": "x", "device": ":/x"}]},
        {"nfs_mounts": [{"name": "x", "device": ":/x", "target": "/x", "readonly": True}]},
    ],
)
def test_bad_configuration_is_refused(traits):
    with pytest.raises(TraitError):
        make(**traits)


async def test_environment():
    spawner = make(environment={"NB_UMASK": "077"})
    spec = await spec_of(spawner)
    env = dict(pair.split("=", 1) for pair in spec["task_template"]["ContainerSpec"]["Env"])
    assert env["JUPYTERHUB_API_URL"] == "http://hub:8081/hub/api"
    assert env["JUPYTERHUB_ACTIVITY_URL"].startswith("http://hub:8081/")
    assert env["HOME"] == env["JUPYTERHUB_ROOT_DIR"] == "/home/alice"
    assert (env["NB_USER"], env["NB_UID"], env["NB_GID"], env["NB_GROUP"]) == (
        "alice",
        "100000",
        "100000",
        "alice",
    )
    assert env["NB_GROUPS"] == "course-logic:20003,students:20001"
    assert env["NB_UMASK"] == "077", "the administrator's own environment comes first"
    assert "t0ken" not in json.dumps(spec)


async def test_environment_refuses_what_no_process_can_be_given():
    with pytest.raises(SpawnFailed, match="NOTE"):
        await spec_of(make(environment={"NOTE": "a\0b"}))


async def test_primary_group_of_a_role():
    spec = await spec_of(make(account={**ACCOUNT, "gid": 20001}))
    assert get(spec, CONTAINER + "User") == "100000:20001"
    assert get(spec, CONTAINER + "Groups") == ["990", "20003"]
    assert "NB_GROUP=students" in get(spec, CONTAINER + "Env")


# --- names ---

HARD_NAMES = [
    "o'brien",
    "Jörg",
    "a.b+c@example.org",
    "x" * 300,
    "../../etc",
    "-rf",
    "root",
    "12345",
    "",
    "李",
    "\n\x1b",
]


@given(
    st.one_of(st.text(max_size=400), st.sampled_from(HARD_NAMES)), st.text(max_size=80), st.text(max_size=40)
)
def test_service_names_are_dns_labels(user, server, prefix):
    spawner = make(name=user, server=server, prefix=prefix)
    name = spawner.make_service_name("0123abcd")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= NAME_MAX
    assert name.endswith(f"{spawner.server_key[:8]}-0123abcd")


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=2, max_size=2, unique=True))
def test_two_servers_never_share_a_key(pair):
    one, two = (make(name=user, server=server) for user, server in pair)
    assert one.server_key != two.server_key
    assert one.make_service_name("0") != two.make_service_name("0")


def test_similar_names_stay_apart():
    pairs = [("a", "b-c"), ("a-b", "c"), ("a--b", "c"), ("A", "b-c"), ("ä", ""), ("a", "")]
    assert len({make(name=user, server=server).server_key for user, server in pairs}) == len(pairs)


@given(st.lists(st.text(max_size=40), min_size=2, max_size=2, unique=True))
@example(["A b", "a-b"])
@example(["", "数据"])
@example(["", "default"])
@example(["数据", "数学"])
@example(["x" * 32, "x" * 33])
def test_two_servers_of_a_user_never_share_a_directory(names):
    one, two = (module.server_directory(name) for name in names)
    assert one != two
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", one)


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["type", "o", "device"]), st.text(max_size=40)))
def test_volume_names(readable, options):
    name = make().volume_name(readable, options)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", name)
    assert len(name) <= NAME_MAX


@given(st.text(max_size=60))
def test_labels_hold_nothing_that_a_terminal_obeys(user):
    labels = make(name=user).labels
    assert all(value.isprintable() for value in labels.values())
    assert labels[LABEL + "key"], "an empty value would match every server"


# --- the account ---


async def test_account_is_asked_for_with_storage_groups_and_directory_ids():
    spawner = make(
        name="a/b?c",
        groups=["students", "hub-admins", "course-logic"],
        auth_state={"uid": 5003, "gid": 5003, "ldap_groups": []},
    )
    await spawner.get_account()
    assert spawner.asked == (
        "PUT",
        "/accounts/a%2Fb%3Fc",
        {"groups": ["course-logic", "students"], "uid": 5003, "gid": 5003},
    )


@pytest.mark.parametrize(
    ("mode", "auth_state", "ids"),
    [
        ("never", {"uid": 5003, "gid": 5003}, {}),
        ("if-present", None, {}),
        ("if-present", {"uid": 5003}, {"uid": 5003}),
        ("if-present", {"uid": "5003"}, {}),
        ("required", {"uid": 5003, "gid": 5004}, {"uid": 5003, "gid": 5004}),
        ("required", {"uid": 5003}, None),
        ("required", None, None),
    ],
)
async def test_directory_ids(mode, auth_state, ids):
    spawner = make(directory_ids=mode, auth_state=auth_state)
    if ids is None:
        with pytest.raises(SpawnFailed, match="directory entry"):
            await spawner.get_directory_ids()
    else:
        assert await spawner.get_directory_ids() == ids


@pytest.mark.parametrize(
    ("enabled", "mode", "auth_state", "method"),
    [
        (True, "if-present", None, "GET"),
        (True, "if-present", {}, "PUT"),
        (True, "never", None, "PUT"),
        (False, "if-present", None, "PUT"),
    ],
)
async def test_no_account_is_made_before_the_directorys_numbers_are_known(enabled, mode, auth_state, method):
    """An administrator starts the server of somebody who never logged in."""
    spawner = make(directory_ids=mode, auth_state=auth_state)
    spawner.authenticator = SimpleNamespace(enable_auth_state=enabled)
    await spawner.get_account()
    assert spawner.asked[0] == method


async def test_required_numbers_that_are_unknown_start_nothing():
    """The account that is there may have got its number before the directory's were required."""
    spawner = make(directory_ids="required")
    spawner.authenticator = SimpleNamespace(enable_auth_state=True)
    with pytest.raises(SpawnFailed, match="has to log in once") as raised:
        await spawner.get_account()
    assert raised.value.status_code == 403


@pytest.mark.parametrize(
    "change",
    [
        {"uid": 0},
        {"gid": 0},
        {"uid": 999},
        {"uid": 2**32 - 1},
        {"uid": "100000"},
        {"uid": True},
        {"uid": None},
        {"groups": {"wheel": 0}},
        {"groups": ["students"]},
        {"account": "../bob"},
        {"account": "-rf"},
        {"account": ""},
        {"home": "/homes/../etc"},
        {"home": "homes/alice"},
        {"home": "/homes/alice,soft"},
        {"home": "/"},
    ],
)
async def test_unusable_accounts_are_refused(change):
    with pytest.raises(SpawnFailed, match="no usable account"):
        await make(account={**ACCOUNT, **change}).get_account()
    with pytest.raises(SpawnFailed, match="no usable account"):
        make().check_account(b"<html>")


async def test_a_locked_account_that_was_only_looked_up_starts_nothing():
    """An administrator starts the server of somebody who is locked and never logged in."""
    with pytest.raises(SpawnFailed, match="is locked"):
        await make(account={**ACCOUNT, "locked": True}).get_account()
    assert await make(account={**ACCOUNT, "locked": False}).get_account()


@pytest.mark.parametrize(
    ("code", "body", "message", "status"),
    [
        (599, None, NO_STORAGE, 503),
        (503, b'{"reason": "The storage of the homes is not mounted."}', NO_STORAGE, 503),
        (502, b"<html>", NO_STORAGE, 503),
        (
            400,
            b'{"reason": "The name \'root\' is the system\'s own."}',
            "The name 'root' is the system's own.",
            403,
        ),
        (409, b'{"reason": "playbooks/renumber.yml moves its files."}', "playbooks/renumber.yml moves", 409),
        (403, b'{"reason": "The account alice is locked since today."}', "locked since today.", 403),
        (404, b'{"reason": "There is no account alice."}', "has to log in once before", 403),
        (401, b'{"reason": "The bearer token is missing."}', "could not get your storage account", 503),
        (500, b"[]", "could not get your storage account", 503),
    ],
)
async def test_account_service_errors(monkeypatch, code, body, message, status):
    response = body and SimpleNamespace(body=body)
    failure = make().explain_accounts(HTTPClientError(code, "said", response))
    assert message in failure.jupyterhub_message
    assert failure.status_code == status
    assert "<html>" not in failure.jupyterhub_message


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), HTTPClientError(599, "Timeout")])
async def test_account_service_is_away(monkeypatch, swarm, error):
    class Client:
        def __init__(self, **_):
            """Like tornado's."""

        async def fetch(self, url, **_) -> HTTPResponse:
            raise error

        def close(self):
            """Like tornado's."""

    monkeypatch.setattr(module, "AsyncHTTPClient", Client)
    monkeypatch.setattr(Spawner, "fetch_accounts", NfsSwarmSpawner.fetch_accounts)
    with pytest.raises(SpawnFailed) as raised:
        await make().start()
    assert raised.value.jupyterhub_message.startswith(NO_STORAGE)
    assert raised.value.jupyterhub_message.endswith("tell your administrator.")
    assert "create_service" not in swarm.calls


@pytest.mark.parametrize("busy", ["the service", "the hub"])
async def test_a_busy_account_service_is_asked_again(monkeypatch, busy):
    """Others get their answers meanwhile, or the hub stood still: nobody is told that the storage is away."""
    spawner, asked = make(accounts_timeout=0.1), []
    monkeypatch.setattr(Spawner, "fetch_accounts", NfsSwarmSpawner.fetch_accounts)
    monkeypatch.setattr(Spawner, "_accounts_answered", {})
    monkeypatch.setattr(module, "LATE", 0.1)

    async def request(method, path, body):
        asked.append((method, path))
        if len(asked) == 1:
            if busy == "the service":
                await asyncio.sleep(0.01)
                spawner._accounts_answered["PUT"] = module.time.monotonic()
            else:
                await asyncio.sleep(0.3)
            raise HTTPClientError(599, "Timeout during request")
        return json.dumps(ACCOUNT).encode()

    monkeypatch.setattr(spawner, "request_accounts", request)
    assert (await spawner.get_account())["uid"] == ACCOUNT["uid"]
    assert asked == [("PUT", "/accounts/alice")] * 2


@pytest.mark.parametrize(
    ("error", "others"),
    [
        (HTTPClientError(599, "Timeout"), {}),
        # that it is alive says nothing of the storage
        (HTTPClientError(599, "Timeout"), {"GET": float("inf")}),
        (HTTPClientError(599, "Timeout"), {"PUT": -1.0}),
        (HTTPClientError(503, "no storage"), {"PUT": float("inf")}),
        (ConnectionRefusedError(111, "refused"), {"PUT": float("inf")}),
    ],
)
async def test_an_account_service_that_is_away_is_asked_once(monkeypatch, error, others):
    spawner, asked = make(), []
    monkeypatch.setattr(Spawner, "fetch_accounts", NfsSwarmSpawner.fetch_accounts)
    monkeypatch.setattr(Spawner, "_accounts_answered", others)

    async def request(*question):
        asked.append(question)
        raise error

    monkeypatch.setattr(spawner, "request_accounts", request)
    with pytest.raises(SpawnFailed, match=NO_STORAGE):
        await spawner.get_account()
    assert len(asked) == 1


def test_accounts_token(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text("from-file\n")
    traits = {"accounts_token_file": str(path)}
    monkeypatch.delenv("ACCOUNTS_TOKEN", raising=False)
    assert NfsSwarmSpawner(**traits).accounts_token == "from-file"
    monkeypatch.setenv("ACCOUNTS_TOKEN", "from-env")
    assert NfsSwarmSpawner(**traits).accounts_token == "from-env"


# --- the states of a task ---

# What a student reads while a task is in a state.
STAGES = {
    "new": "Waiting for a network address",
    "pending": "Waiting for a free node",
    "assigned": "Placed on node {node}",
    "accepted": "Placed on node {node}",
    "preparing": "Node {node} gets the image and makes the container",
    "ready": "Container made on node {node}",
    "starting": "Node {node} mounts your home and starts the container",
    "running": "Container runs on node {node}, waiting for the server in it",
}
NO_IMAGE = ("image", "The image of your server is missing on node {node}.")
NO_EXPORT = ("mount", "A directory of your server does not exist on the storage.")
NO_VERSION = ("mount", "Node {node} and the storage do not agree on an NFS version.")
NOT_MOUNTED = ("mount", "A directory of your server could not be mounted on node {node}.")
REFUSED_MOUNT = ("mount", "The storage refuses to let node {node} mount your directories.")
NOT_ALLOWED = ("constraint", "No node of the cluster is allowed to run your server.")
NOT_FREE = ("capacity", "No node of the cluster has enough free memory or CPU for your server.")
NO_PROGRAM = ("command", "The image of your server does not contain the program that starts it.")
NO_MEMORY = (
    "memory",
    "Your server was ended by force on node {node}, most likely because it used more memory than it may.",
)
# What Docker's own words in the last task of each case mean: reason and sentence.
EXPLAINED = {
    "image missing by digest": NO_IMAGE,
    "image missing by tag": NO_IMAGE,
    "image missing without registry": NO_IMAGE,
    "mount connection refused": ("storage", NO_STORAGE),
    "mount no route": ("storage", NO_STORAGE),
    "mount no such directory": NO_EXPORT,
    "mount protocol": NO_VERSION,
    "mount invalid argument": NO_VERSION,
    "mount no such device": NO_VERSION,
    "mount no such source": NOT_MOUNTED,
    "mount target invalid": NOT_MOUNTED,
    "volume driver missing": ("capacity", "No node of the cluster can take your server."),
    "constraint": NOT_ALLOWED,
    "platform": NOT_ALLOWED,
    "memory guarantee": NOT_FREE,
    "CPU guarantee": NOT_FREE,
    "generic resource": NOT_FREE,
    "exit code 0": ("exit", "Your server ended at once without an error."),
    "exit code 3": ("exit", "Your server ended at once with exit code 3."),
    "exit code 126": NO_PROGRAM,
    "exit code 127": NO_PROGRAM,
    "ends after a while": ("exit", "Your server ended at once with exit code 1."),
    "killed": NO_MEMORY,
    "out of memory": NO_MEMORY,
    "no such program": NO_PROGRAM,
    "no such program without init": NO_PROGRAM,
    "no program without init": NO_PROGRAM,
    "no permission without init": NO_PROGRAM,
    "directory": NO_PROGRAM,
    "directory without init": NO_PROGRAM,
    "no such working directory": (
        "docker",
        "Docker could not run your server: Cannot mkdir: /etc/passwd is not a directory.",
    ),
}
# Cases whose last task does not tell itself why the start fails.
SEEN_FROM_OUTSIDE = {
    "address pool empty": ("network", "The cluster has no network address for your server."),
    "closed": ("node", "Node {node} was closed by an administrator while your server started there."),
    "node lost": ("node", "Node {node} was lost while your server started there."),
}
SUCCEEDS = {"runs", "mount that works", "updated"}


def test_every_recorded_case_is_looked_at():
    assert sorted([*EXPLAINED, *SEEN_FROM_OUTSIDE, *SUCCEEDS]) == cases()


@pytest.mark.parametrize("case", cases())
def test_recorded_tasks_hold_no_secrets_and_are_not_shortened(case):
    tasks = recorded(case)
    assert unpack(pack(tasks)) == tasks
    env = [pair for task in tasks for pair in task["Spec"]["ContainerSpec"].get("Env", [])]
    assert [pair for pair in env if "TOKEN" in pair and not pair.endswith("=REDACTED")] == []


@pytest.mark.parametrize("case", EXPLAINED)
def test_what_docker_says_about_a_task(case):
    task = ended(case)
    reason, sentence = EXPLAINED[case]
    said = task["Status"].get("Err") or task["Status"]["Message"]
    assert module.explain_task(task, "node X") == (reason, sentence.format(node="X"), said)


@pytest.mark.parametrize("case", cases())
def test_when_a_task_has_ended(case):
    """Once and for all, and what swarm gives up before that is unwanted."""
    tasks = [task for task in recorded(case) if task["ID"] == ended(case)["ID"]]
    over = [module.task_ended(task) for task in tasks]
    assert over == sorted(over)
    assert over[-1] == (ended(case)["Status"]["State"] in {"complete", "failed", "rejected", "shutdown"})
    given_up = [module.task_unwanted(task) for task in tasks if not module.task_ended(task)]
    assert given_up == [False] * (len(given_up) - 1) + [case == "node lost"]
    assert all(module.task_unwanted(task) for task in recorded(case, "removed"))


@pytest.mark.parametrize("case", [case for case in cases() if case != "updated"])
async def test_a_recorded_start(swarm, monkeypatch, case):
    """Its stages as they came, and its end in one sentence."""
    monkeypatch.setattr(Spawner, "server_answers", lambda self: asyncio.sleep(0, case in SUCCEEDS))
    # the lost node was well until the swarm gave its task up
    played = recorded(case)[-1:] if case == "node lost" else recorded(case)
    swarm.script, swarm.node_state = played, "down" if case == "node lost" else "ready"
    spawner = make()
    if case in SUCCEEDS:
        assert await spawner.start() == (spawner.object_name, 8888)
        assert swarm.live.keys() == {spawner.object_id}
        assert await spawner.poll() is None
    else:
        with pytest.raises(SpawnFailed) as raised:
            await spawner.start()
        reason, sentence = {**EXPLAINED, **SEEN_FROM_OUTSIDE}[case]
        assert raised.value.reason == reason
        assert raised.value.jupyterhub_message.startswith(sentence.format(node=host_of(ended(case))))
        assert ended(case)["Status"].get("Err", "") in raised.value.log_message
        last_words = 'Its last words: "ModuleNotFoundError' in raised.value.jupyterhub_message
        assert last_words == (reason in {"exit", "command"})
        assert not swarm.live, "the service of a failed start is removed"
        assert await spawner.poll() == 0
    told = [event["stage"] for event in spawner._stages]
    assert told[:3] == [
        "Asking the storage for your account",
        "Your account is alice, user number 100000",
        "Your home's volume and your server are requested",
    ]
    states = [task for task in played if module.task_state(task) in STAGES]
    expected = dict.fromkeys(STAGES[module.task_state(task)].format(node=host_of(task)) for task in states)
    assert told[3 : 3 + len(expected)] == list(expected)
    assert (told[-1] == "Your server answers") == (case in SUCCEEDS)
    percents = [event["progress"] for event in spawner._stages]
    assert percents == sorted(percents)


# Not recorded: an NFS server that drops packets keeps the kernel for minutes, and none of the lab refuses a
# client by its address. The words around are those of a recorded refusal, the kernel's are its own.
@pytest.mark.parametrize(
    ("words", "reason", "sentence"),
    [
        ("connection timed out", "storage", NO_STORAGE),
        ("operation not permitted", *REFUSED_MOUNT),
        ("permission denied", *REFUSED_MOUNT),
    ],
)
def test_what_the_kernel_says_about_a_mount(words, reason, sentence):
    task = ended("mount connection refused")
    said = task["Status"]["Err"].replace("connection refused", words)
    assert said != task["Status"]["Err"]
    told = module.explain_task(by_hand(task, Err=said), "node X")
    assert told == (reason, sentence.format(node="X"), said)


def test_docker_says_something_new():
    """Not recorded, since nobody knows it: it is passed on, without what a terminal obeys."""
    task = by_hand(ended("image missing by tag"), Err="something <b>new</b>\x1b[31m")
    assert module.explain_task(task)[1] == "Docker could not run your server: something <b>new</b>%1B[31m."


async def test_a_log_that_docker_cannot_read_is_nobodys_last_words(swarm):
    swarm.script = recorded("no such program without init")
    swarm.log = b"Error grabbing logs: rpc error: code = Unknown desc = warning: incomplete log stream.\n"
    with pytest.raises(SpawnFailed) as raised:
        await make().start()
    assert "last words" not in raised.value.jupyterhub_message


async def test_a_free_node_may_take_a_moment(swarm):
    waiting = {**recorded("runs")[0], "Status": ended("memory guarantee")["Status"]}
    swarm.script = [waiting, waiting, *recorded("runs")]
    await make(patience=5).start()


async def test_node_is_lost_during_the_start(swarm):
    """Before the swarm gives the task up."""
    swarm.script = until("running", "node lost")
    swarm.node_state = "down"
    with pytest.raises(SpawnFailed, match=f"Node {host_of(ended('node lost'))} was lost"):
        await make(wait_for_server=True, port=9).start()
    assert not swarm.live


@pytest.mark.parametrize("task", recorded("constraint", "removed")[:1] + recorded("runs", "removed")[:1])
async def test_somebody_removes_the_service_during_the_start(swarm, task):
    """Swarm keeps its tasks until their containers are gone; no node was closed."""
    swarm.script = [*until("preparing"), task]
    with pytest.raises(SpawnFailed, match="Your server was removed while it started"):
        await make(wait_for_server=True).start()


async def test_node_falls_silent_during_the_start(swarm, monkeypatch):
    """The next start goes elsewhere, although the swarm still believes in the node."""
    answers, task = iter([True]), until("starting")[-1]
    address = node(task["NodeID"])["Status"]["Addr"]

    async def listens(host, port, *, refusal=False):
        assert (host, port, refusal) == (address, 443, True)
        return next(answers, False)

    monkeypatch.setattr(module, "listens", listens)
    monkeypatch.setattr(module, "ASK_AGAIN", 0)
    monkeypatch.setattr(module, "OLD_NEWS", 0.5)
    swarm.script = until("starting")
    with pytest.raises(SpawnFailed, match=f"Node {host_of(task)} was lost while your server started there"):
        await make(patience=60, node_patience=0.05, node_probe_port=443).start()
    assert not swarm.live
    traits = {"node_patience": 0.05, "node_probe_port": 443}
    spawner = make(placement_constraints=["node.labels.notebooks==true"], **traits)
    placed = "task_template.Placement.Constraints"
    assert get(await spec_of(spawner), placed) == [
        "node.labels.notebooks==true",
        f"node.id!={task['NodeID']}",
    ]
    await asyncio.sleep(module.OLD_NEWS)
    assert get(await spec_of(spawner), placed) == ["node.labels.notebooks==true"]


async def test_a_hub_that_stood_still_takes_no_node_for_silent(swarm, monkeypatch):
    """Its own time-outs are over before it looks."""
    answers = iter([True])

    async def listens(*_, **__):
        await asyncio.sleep(0.03)
        return next(answers, False)

    monkeypatch.setattr(module, "listens", listens)
    monkeypatch.setattr(module, "ASK_AGAIN", 0)
    monkeypatch.setattr(module, "PROBE", 0.01)
    monkeypatch.setattr(module, "LATE", 0.01)
    spawner = make(node_probe_port=443)
    for _ in range(5):
        assert await spawner.silence("node", "192.0.2.1") == 0
    monkeypatch.setattr(module, "LATE", 1)
    await spawner.silence("node", "192.0.2.1")
    assert await spawner.silence("node", "192.0.2.1") > 0


async def test_a_node_whose_tasks_get_on_is_not_silent(swarm, monkeypatch):
    """It has no time for a question, and starts one server after the other."""
    answers = iter([True])

    async def listens(*_, **__):
        return next(answers, False)

    monkeypatch.setattr(module, "listens", listens)
    monkeypatch.setattr(module, "ASK_AGAIN", 0)
    spawner, task = make(node_probe_port=443), until("starting")[-1]
    for _ in range(3):
        await spawner.silence(task["NodeID"], "192.0.2.1")
    assert await spawner.silence(task["NodeID"], "192.0.2.1") > 0
    spawner.note_move(until("assigned")[-1])
    assert Spawner._silence[task["NodeID"]]["since"], "that is the manager's word"
    spawner.note_move(task)
    assert not Spawner._silence[task["NodeID"]]["since"]


async def test_a_node_that_never_answers_is_left_to_the_swarm(swarm, monkeypatch):
    async def listens(host, port, *, refusal=False):
        return False

    monkeypatch.setattr(module, "listens", listens)
    await make(node_patience=0, node_probe_port=443).start()
    assert swarm.live


@pytest.mark.parametrize(
    ("node", "address"),
    [
        ({"Status": {"Addr": "192.0.2.3"}}, "192.0.2.3"),
        ({"Status": {"Addr": ANY}, "ManagerStatus": {"Addr": "192.0.2.1:2377"}}, "192.0.2.1"),
        ({"Status": {"Addr": ANY}, "ManagerStatus": {"Addr": "[2001:db8::1]:2377"}}, "2001:db8::1"),
        ({"Status": {}}, ""),
    ],
)
def test_node_address(node, address):
    assert module.node_address(node) == address


async def test_listens():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await module.listens("127.0.0.1", port)
    server.close()
    await server.wait_closed()
    assert not await module.listens("127.0.0.1", port)
    assert await module.listens("127.0.0.1", port, refusal=True)


@pytest.mark.parametrize("state", ["preparing", "starting", "running"])
async def test_storage_is_lost_during_the_start(swarm, state):
    """A pull, a mount or a server may hang without a word: the account service knows."""
    swarm.script = until(state)
    spawner = make(wait_for_server=True, port=9)
    asked = spawner.fetch_accounts

    async def fetch(method, path, body=None):
        if path == "/healthz":
            raise SpawnFailed(NO_STORAGE, reason="storage")
        return await asked(method, path, body)

    spawner.fetch_accounts = fetch
    with pytest.raises(SpawnFailed, match="storage is not available"):
        await spawner.start()


async def test_a_late_answer_of_the_storage_is_no_outage(swarm, monkeypatch):
    """Many starts ask once, and one bad answer between good ones ends none of them."""
    monkeypatch.setattr(module, "STORAGE_DOUBT", 60)
    monkeypatch.setattr(module, "ASK_AGAIN", 0)
    spawners, asked = [make(name=f"user{number}") for number in range(20)], []

    async def fetch(method, path, body=None):
        asked.append(path)
        await asyncio.sleep(0.01)
        if len(asked) == 2:
            raise SpawnFailed(NO_STORAGE, reason="storage")

    for spawner in spawners:
        spawner.fetch_accounts = fetch
    for good in (True, False, True):
        answers = await asyncio.gather(*(spawner.check_storage() for spawner in spawners))
        assert answers == [good] * len(spawners)
    assert asked == ["/healthz"] * 3
    assert Spawner._storage_bad == (0.0, 0.0)


async def test_an_outage_of_long_ago_says_nothing_about_this_one(swarm, monkeypatch):
    """The doubt begins anew."""
    monkeypatch.setattr(module, "STORAGE_DOUBT", 60)
    now = module.time.monotonic()
    Spawner._storage_bad = (now - 3600, now - 3500)
    spawner = make()

    async def fetch(method, path, body=None):
        raise SpawnFailed(NO_STORAGE, reason="storage")

    spawner.fetch_accounts = fetch
    assert not await spawner.check_storage()


async def test_a_mount_that_hangs_on_one_node(swarm):
    """The storage is well, and yet the container does not start."""
    swarm.script = until("starting")
    with pytest.raises(SpawnFailed, match=f"Node {host_of(swarm.script[-1])} does not get your directories"):
        await make().start()
    assert not swarm.live


async def test_a_server_without_mounts_does_not_hang_in_one(swarm):
    """Such a node is slow, and that passes."""
    starting = until("starting")[-1:] * 20
    swarm.script = [*starting, *until("running")[-1:]]
    await make(patience=0.05, task_poll_interval=0.01, home_device="", home_dir="/tmp").start()  # noqa: S108


async def test_a_busy_node_is_not_one_whose_mounts_hang(swarm):
    """The more start on a node, the longer each of them takes."""
    swarm.script = until("starting")[-1:]
    Spawner._under_way = {f"other-{number}": swarm.script[0]["NodeID"] for number in range(9)}
    begun = module.time.monotonic()
    with pytest.raises(SpawnFailed, match="does not get your directories mounted"):
        await make(patience=0.1).start()
    assert module.time.monotonic() - begun > 0.1 + 11 * 0.025


@pytest.mark.parametrize(("case", "state"), [("address pool empty", "new"), ("runs", "starting")])
async def test_a_rush_is_no_standstill(swarm, case, state):
    """While others get on, a start waits behind them."""
    swarm.script = until(state, case)[-1:]
    place = swarm.script[0].get("NodeID", "new")
    starting = asyncio.ensure_future(make(patience=0.1).start())
    for _ in range(20):
        await asyncio.sleep(0.02)
        Spawner._moved[place] = module.time.monotonic()
        assert not starting.done()
    with pytest.raises(SpawnFailed):
        await starting


async def test_many_starts_ask_together(swarm):
    """One question at a time for all that wait, and none is answered with what was known before it came."""
    first, others = make(name="first"), [make(name=f"user{number}") for number in range(60)]
    for spawner in [first, *others]:
        spawner.object_name = spawner.make_service_name("0")
        spawner.object_id = swarm.create_service(name=spawner.object_name, labels=spawner.labels)["ID"]
    tasks = swarm.tasks

    def slow_tasks(filters):
        module.time.sleep(0.05)
        return tasks(filters)

    swarm.tasks = slow_tasks
    asking = asyncio.ensure_future(first.get_starting_task())
    await asyncio.sleep(0.02)
    swarm.calls.clear()
    found = await asyncio.gather(*(spawner.get_starting_task() for spawner in others))
    assert [task["ServiceID"] for task in found] == [spawner.object_id for spawner in others]
    assert (await asking)["ServiceID"] == first.object_id
    # FakeDocker notes the question and, inside it, one for each service
    assert swarm.calls.count("tasks") == 1 + 1 + 1 + len(others)


async def test_an_error_reaches_all_who_asked(swarm):
    swarm.errors["tasks"] = api_error("no leader")
    spawners = [make(name=f"user{number}") for number in range(3)]
    found = await asyncio.gather(*(one.start() for one in spawners), return_exceptions=True)
    assert all("has no leader" in one.jupyterhub_message for one in found)


async def test_start_has_a_deadline_with_a_reason(swarm):
    swarm.script = until("preparing")
    with pytest.raises(SpawnFailed, match=r"not ready in time.*gets the image"):
        await make(start_timeout=3).start()
    assert not swarm.live


async def test_start_waits_for_the_port(swarm, monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(Spawner, "server_answers", lambda self: asyncio.sleep(0, next(answers)))
    await make().start()
    assert next(answers, None) is None


# What docker-py raises where Docker refuses a service, and what a student reads then.
REFUSALS = {
    "no leader": "has no leader",
    "leader is late": "has no leader",
    "not a manager": "has no leader",
    "network not found": "network of the notebook servers does not exist",
    "name conflict": "Docker refused to make your server: .*service .* already exists",
    "name invalid": "Docker refused to make your server: .*name must be valid",
    "mount type invalid": "Docker refused to make your server: invalid MountType",
    "mount target twice": "Docker refused to make your server: .*duplicate mount point: /x",
    "memory invalid": "Docker refused to make your server: .*invalid memory value 1",
    "image invalid": "Docker refused to make your server: .*not a valid repository/tag",
    "constraint invalid": "Docker refused to make your server: .*constraint expected one operator",
}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        *((api_error(case), sentence) for case, sentence in REFUSALS.items()),
        (requests.exceptions.ConnectionError("refused"), "cluster does not answer"),
        (requests.exceptions.ReadTimeout("slow"), "cluster does not answer"),
        (RuntimeError("bug"), "could not be started"),
    ],
)
async def test_docker_refuses(swarm, error, sentence):
    swarm.errors["create_service"] = error
    with pytest.raises(SpawnFailed, match=sentence):
        await make().start()


async def test_starts_begin_one_by_one(swarm):
    """Between two of many that come at once, everybody else has a turn."""
    begun, seen = [], set()

    async def begin(spawner, number):
        assert await spawner.server_token_scopes(spawner) == []
        begun.append(number)

    async def others():
        while len(begun) < 50:
            seen.add(len(begun))
            await asyncio.sleep(0)

    spawners = [make(name=f"user{number}") for number in range(50)]
    await asyncio.gather(*(begin(one, number) for number, one in enumerate(spawners)), others())
    assert begun == list(range(50))
    assert seen >= set(range(1, 50))


async def test_a_start_that_waits_does_not_tell_the_stages_of_the_last_one(swarm):
    """The directory may be asked for seconds before anything else happens."""
    spawner = make()
    await spawner.start()
    assert spawner._stages
    await spawner.server_token_scopes(spawner)
    assert spawner._stages == []


async def test_what_the_hub_has_changed_is_kept_before_the_turn(swarm):
    """In the call itself: the awaitable is a task of its own, and another request may come before it."""
    kept, spawner = [], make()
    spawner.user.db = SimpleNamespace(commit=lambda: kept.append(True))
    turn = spawner.server_token_scopes(spawner)
    assert kept == [True]
    assert await turn == []


async def test_a_service_that_docker_makes_after_all(swarm, monkeypatch):
    """The answer to its creation is lost, and the first removal comes too early."""
    create, made = swarm.create_service, []

    def slow_create(**spec):
        made.append(spec)
        raise requests.exceptions.ReadTimeout("slow")

    monkeypatch.setattr(swarm, "create_service", slow_create)
    monkeypatch.setattr(module, "REASON_FIRST", 0)
    monkeypatch.setattr(module, "REMOVE_AGAIN", [0.1, 0.1, 0.1])
    with pytest.raises(SpawnFailed, match="cluster does not answer"):
        await make().start()
    await asyncio.sleep(0.05)
    create(**made[0])
    await asyncio.wait(set(Spawner._background))
    assert not swarm.live


async def test_a_reason_does_not_wait_for_docker(swarm, monkeypatch):
    """Nobody waits for the removal of what a failed start left, and it is tried until Docker is back."""
    monkeypatch.setattr(module, "REASON_FIRST", 0.05)
    monkeypatch.setattr(module, "REMOVE_AGAIN", [0.05] * 20)
    swarm.script = recorded("killed")
    swarm.errors["remove_service"] = api_error("no leader")
    spawner = make()
    with pytest.raises(SpawnFailed, match="ended by force"):
        await spawner.start()
    assert swarm.live
    swarm.calls.clear()
    assert await spawner.poll() == 0
    assert swarm.calls == []
    del swarm.errors["remove_service"]
    await asyncio.wait(set(Spawner._background))
    assert not swarm.live


async def test_new_groups_are_waited_for(swarm):
    spawner = make(account={**ACCOUNT, "settle": 0.3})
    starting = asyncio.ensure_future(spawner.start())
    await asyncio.sleep(0.1)
    spawner.answer = {**ACCOUNT, "uid": 7001}
    assert spawner._stages[-1]["stage"] == "Waiting until the storage knows your new groups"
    assert "create_service" not in swarm.calls
    await starting
    (spec,) = swarm.specs
    assert spec["task_template"]["ContainerSpec"]["User"] == "7001:100000", "asked again after the wait"
    assert make().check_account(json.dumps({**ACCOUNT, "settle": 10**6}))["settle"] == module.SETTLE_MAX


async def test_an_account_is_asked_for_again_after_a_slow_end(swarm, monkeypatch):
    """Meanwhile it may have been locked, or be on its way to another number."""
    monkeypatch.setattr(module, "SLOW_END", 0.1)
    swarm.ending = [recorded("runs", "removed")[0]] * 3 + recorded("runs", "removed")
    spawner = make(task_poll_interval=0.1)
    await spawner.start()
    answers = iter([json.dumps(ACCOUNT), json.dumps({**ACCOUNT, "locked": True})])

    async def fetch(*_):
        return next(answers)

    monkeypatch.setattr(spawner, "fetch_accounts", fetch)
    with pytest.raises(SpawnFailed, match="is locked"):
        await spawner.start()
    assert not swarm.live


async def test_a_refused_account_ends_the_whole_start(swarm):
    """Whatever is still to be cleared away is left to the next start."""
    swarm.ending = itertools.repeat(recorded("runs", "removed")[0])
    old = make()
    await old.start()
    failing = make(account=SpawnFailed("No.", reason="account", status_code=403))
    with pytest.raises(SpawnFailed, match=r"No\."):
        await failing.start()
    swarm.calls.clear()
    await asyncio.sleep(0.1)
    assert swarm.calls == []


async def test_choice_among_allowed_images(swarm):
    traits = {"allowed_images": {"Small": "small:1"}, "role_images": {"students": "student:1"}}
    spawner = make(**traits)
    spawner.user_options = {"image": "Small"}
    await spawner.start()
    assert swarm.specs[0]["task_template"]["ContainerSpec"]["Image"] == "small:1"
    spawner = make(**traits)
    spawner.user_options = {"image": "evil:1"}
    with pytest.raises(Exception, match="not in allowed list") as raised:
        await spawner.start()
    assert raised.value.status_code == 400


# --- stop, leftovers, interruptions ---


async def test_stop_returns_when_the_task_is_gone(swarm):
    assert len(swarm.ending) > 1
    spawner = make()
    await spawner.start()
    name = spawner.object_name
    await spawner.stop()
    assert not swarm.live
    assert not swarm.going
    assert swarm.calls.count("remove_service") == 1
    assert spawner.get_state() == {}
    await spawner.start()
    assert spawner.object_name != name


async def test_stop_names_the_node_that_does_not_end(swarm):
    swarm.ending = itertools.repeat(recorded("runs", "removed")[0])
    spawner = make(stop_timeout=1)
    await spawner.start()
    with pytest.raises(SpawnFailed, match=f"not ended yet on {host_of(ended('runs'))}"):
        await spawner.stop()


@pytest.mark.parametrize("error", [api_error("no leader"), requests.exceptions.ConnectionError()])
async def test_a_stop_that_docker_cannot_carry_out_is_logged(swarm, caplog, error):
    """JupyterHub takes the server for stopped and tells nobody why it is not."""
    spawner = make()
    await spawner.start()
    swarm.errors["remove_service"] = error
    with pytest.raises(SpawnFailed) as refused:
        await spawner.stop()
    assert f"Stop of alice failed: {refused.value.jupyterhub_message}" in caplog.text


@pytest.fixture
def database():
    """A hub's database in memory."""
    session = orm.new_session_factory("sqlite:///:memory:")()
    yield session
    session.close()


def keep(database, spawner, server=None):
    """Write into the hub's database that a server runs, as the hub does while it starts."""
    user = orm.User(name=spawner.user.name)
    row = orm.Spawner(user=user, name=server or "", server=orm.Server(), state=spawner.get_state())
    database.add(row)
    database.commit()
    return row


def test_hubs_with_similar_prefixes_tell_their_services_apart():
    """Names have room for the beginning only; a label has it all."""
    one, other = (make(prefix=f"campus-jupyterhub-{number}") for number in (1, 2))
    assert one.labels[module.LABEL + "prefix"] != other.labels[module.LABEL + "prefix"]


async def test_services_that_belong_to_no_server_are_removed(swarm, database, monkeypatch, caplog):
    """What a stop without a leader left; all others stay, another hub's too."""
    monkeypatch.setattr(User, "db", database)
    alice, bob, renamed, other = (
        make(sweep_interval=0.1),
        make(name="bob"),
        make(name="carol", server="second"),
        make(name="dora", prefix="other"),
    )
    rows = {}
    for spawner in (alice, bob, renamed, other):
        await spawner.start()
        if spawner is not other:
            rows[spawner] = keep(database, spawner, spawner.name)
    alice._sweeping.cancel()
    rows[renamed].user.name = "caroline"
    database.commit()
    assert await alice.find_strays() == {}
    # JupyterHub's own end of a stop, whatever came of it
    database.delete(rows[alice].server)
    database.commit()
    assert await alice.find_strays() == {alice.object_id: alice.object_name}

    looks = []
    find = Spawner.find_strays

    async def looked(self):
        found = await find(self)
        looks.append((set(found), set(swarm.live)))
        return found

    monkeypatch.setattr(Spawner, "find_strays", looked)
    Spawner._sweeping = None
    alice.begin_sweeping()
    async with asyncio.timeout(10):
        while len(looks) < 3:
            await asyncio.sleep(0.01)
    alice._sweeping.cancel()
    left, everything = {alice.object_id}, {one.object_id for one in (alice, bob, renamed, other)}
    assert looks[0] == (left, everything)
    assert looks[1] == (left, everything)
    assert looks[2] == (set(), everything - left)
    assert f"Removing service {alice.object_name}, of a server that is no more" in caplog.text


async def test_stop_does_not_wait_for_a_lost_node(swarm, caplog):
    swarm.script = until("running", "node lost")
    swarm.ending = itertools.repeat(recorded("node lost", "removed")[0])
    spawner = make()
    await spawner.start()
    Spawner._nodes.clear()
    swarm.node_state = "down"
    await spawner.stop()
    assert f"{host_of(swarm.script[-1])} does not answer" in caplog.text


async def test_stop_of_what_is_gone_is_no_error(swarm):
    spawner = make()
    await spawner.start()
    swarm.live.clear()
    await spawner.stop()


async def test_start_clears_what_another_hub_left(swarm):
    left = make()
    await left.start()
    neighbour = make(server="second")
    await neighbour.start()
    spawner = make()
    await spawner.start()
    assert swarm.live.keys() == {spawner.object_id, neighbour.object_id}
    assert await left.poll() == 0
    assert await spawner.poll() is None


async def test_hub_that_was_interrupted_before_it_saved_its_state(swarm):
    await make().start()
    restarted = make()
    restarted.load_state({})
    assert await restarted.poll() == 0
    assert not swarm.live


async def test_state_survives_the_hub(swarm):
    spawner = make()
    await spawner.start()
    restarted = make()
    restarted.load_state(json.loads(json.dumps(spawner.get_state())))
    assert (restarted.object_name, restarted.start_id) == (spawner.object_name, spawner.start_id)
    assert await restarted.poll() is None
    await restarted.stop()
    assert not swarm.live
    assert not swarm.going


async def test_two_starts_at_once_leave_one_server(swarm):
    one, two = make(), make()
    await asyncio.gather(one.start(), two.start())
    assert len(swarm.live) == 1
    assert sorted([await one.poll() is None, await two.poll() is None]) == [False, True]
    assert swarm.most == 1, "there was never a second one beside the first"


@pytest.mark.parametrize("delay", [0, 0.005, 0.02, 0.05, 0.08])
async def test_cancelled_start_leaves_nothing(swarm, delay):
    spawner = make()
    create = swarm.create_service

    def slow_create(**spec):
        # a hub under load is cancelled while Docker is making the service
        module.time.sleep(0.05)
        return create(**spec)

    swarm.create_service = slow_create
    starting = asyncio.ensure_future(spawner.start())
    await asyncio.sleep(delay)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    # the hub calls stop() only while poll() says that something is there
    while await spawner.poll() is None:
        await asyncio.sleep(0.01)
    assert not swarm.going
    await spawner.stop()
    assert not swarm.live
    assert not swarm.going
    assert await spawner.poll() == 0


async def test_many_stops_and_starts(swarm):
    spawner = make()
    names = set()
    for _ in range(20):
        await spawner.start()
        names.add(spawner.object_name)
        assert len(swarm.live) == 1
        await spawner.stop()
    assert len(names) == 20
    assert not swarm.live


# --- poll ---


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (ended("killed"), 137),
        (ended("exit code 0"), 1),
        (ended("closed"), 143),
        # not recorded: it takes a lost node a day to make an orphan of its task
        (by_hand(ended("runs"), State="orphaned"), 1),
    ],
)
async def test_poll_removes_what_has_ended(swarm, task, expected):
    """The hub does not call stop for a server that is not running."""
    spawner = make()
    await spawner.start()
    swarm.live[spawner.object_id].update(tasks={}, script=iter([task]))
    assert await spawner.poll() == expected
    assert not swarm.live


async def test_poll_notices_a_lost_node(swarm):
    swarm.script = until("running", "node lost")
    spawner = make()
    await spawner.start()
    Spawner._nodes.clear()
    swarm.node_state = "down"
    assert await spawner.poll() == 1
    assert not swarm.live


@pytest.mark.parametrize("error", [api_error("no leader"), requests.exceptions.ConnectionError()])
async def test_poll_keeps_the_server_when_docker_is_away(swarm, error):
    spawner = make()
    await spawner.start()
    swarm.errors["tasks"] = error
    assert await spawner.poll() is None
    assert swarm.live


async def test_poll_names_what_somebody_else_changed(swarm, caplog):
    tasks = recorded("updated")
    first = len([task for task in tasks if task["ID"] == tasks[0]["ID"] and not module.task_unwanted(task)])
    swarm.script = tasks[:first]
    spawner = make()
    await spawner.start()
    assert await spawner.poll() is None
    assert caplog.text == ""
    (service,) = swarm.live.values()
    # swarm gives up the old task and makes the new one at the same moment, as their times show
    old, new, *later = tasks[first:]
    assert old["UpdatedAt"][:23] == new["CreatedAt"][:23]
    service["tasks"] = {old["ID"]: old, new["ID"]: new}
    service["script"] = iter(later)
    for _ in tasks:
        assert await spawner.poll() is None
    (record,) = caplog.records
    assert "changed: ContainerSpec.Env." in record.getMessage()
    assert "MOTTO" not in record.getMessage(), "an environment holds tokens"


async def test_poll_of_a_server_that_never_started(swarm):
    assert await make().poll() == 0


# --- progress, threads ---


async def test_progress_ends_with_the_start_and_misses_nothing(swarm):
    spawner = make()
    events = []

    async def listen():
        async for event in spawner.progress():
            events.append(event)

    listener = asyncio.ensure_future(listen())
    await spawner.start()
    await asyncio.sleep(0.01)
    listener.cancel()
    assert [event["progress"] for event in events] == [event["progress"] for event in spawner._stages]
    assert re.fullmatch(r"Your server answers \(\d+\.\d s\)", events[-1]["message"])


async def test_docker_calls_do_not_queue_behind_one_thread(swarm):
    Spawner._executor = None
    spawner = make(docker_threads=4)
    barrier = module.threading.Barrier(4, timeout=5)
    swarm.inspect_node = lambda node: barrier.wait() >= 0
    assert await asyncio.gather(*(spawner.docker("inspect_node", str(i)) for i in range(4))) == [True] * 4
    Spawner._executor.shutdown()
    Spawner._executor = None


async def test_a_start_does_not_inherit_the_image_of_the_one_before(swarm):
    """A hook's own image, set between two starts, stays."""
    spawner = make(groups=("teachers",), role_images={"teachers": "theirs"})
    await spawner.start()
    await spawner.stop()
    spawner.user.groups = []
    await spawner.start()
    await spawner.stop()
    spawner.image = "a-hooks"
    await spawner.start()
    images = [get(spec, CONTAINER + "Image") for spec in swarm.specs]
    assert images == ["theirs", "registry.example:5000/notebook@sha256:0", "a-hooks"]


def test_every_trait_has_help():
    own = {name for name in vars(NfsSwarmSpawner) if name in NfsSwarmSpawner.class_traits(config=True)}
    assert own
    for name in own:
        assert NfsSwarmSpawner.class_traits()[name].help.strip(), name
