"""Bad inventories and the sentences they give."""

from __future__ import annotations

import copy
import datetime
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = pathlib.Path(__file__).parents[2]


def load(path: pathlib.Path):
    """Import a plugin by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


preflight = load(ROOT / "plugins" / "filter" / "preflight.py")

SPECS = {
    "hub": {
        "hub_ldap_servers": {"type": "list", "elements": "str", "default": []},
        "hub_ldap_tls": {"type": "str", "choices": ["ldaps", "starttls"], "default": "ldaps"},
        "hub_ldap_ca": {"type": "str", "default": ""},
        "hub_ldap_bind_dn_template": {"type": "list", "elements": "str", "default": []},
        "hub_ldap_groups": {"type": "dict"},
        "hub_ldap_lookup_dn": {"type": "bool", "default": False},
        "hub_ldap_search_user": {"type": "str", "default": ""},
        "hub_ldap_search_password": {"type": "str", "default": ""},
        "hub_ldap_user_search_base": {"type": "str", "default": ""},
        "hub_ldap_membership": {
            "type": "str",
            "choices": ["member", "memberof", "ad-nested"],
            "default": "member",
        },
        "hub_identity": {"type": "str", "choices": ["direct", "root"], "default": "direct"},
        "hub_named_servers": {"type": "bool", "default": False},
        "hub_uid": {"type": "int", "default": 991},
    },
    "network": {
        "network_notebook_subnet": {"type": "str", "default": "10.40.0.0/20"},
        "network_control_subnet": {"type": "str", "default": "10.41.0.0/24"},
    },
    "firewall": {"firewall_registry_clients": {"type": "list", "elements": "str", "default": []}},
    "directory": {"directory_users": {"type": "list", "elements": "dict", "default": []}},
    "lab": {"lab_subnet": {"type": "str", "default": "192.0.2.0/24"}},
}
GROUPS = {
    "managers": ["node1"],
    "workers": ["node2", "node3"],
    "swarm": ["node1", "node2", "node3"],
    "storage": ["node1"],
    "builder": ["localhost"],
}
VARIABLES = {
    "campus_domain": "hub.example.org",
    "hub_ldap_servers": ["ldap.example.org"],
    "hub_ldap_bind_dn_template": ["uid={username},ou=people,dc=example,dc=org"],
    "hub_ldap_groups": {"students": "cn=students,ou=groups,dc=example,dc=org"},
    "firewall_registry_clients": ["192.0.2.1"],
}


def problems(variables=None, groups=None, hosts=None, **options) -> list[str]:
    """Return the problems of the good inventory with some changes."""
    hostvars = {
        name: {
            "inventory_hostname": name,
            "ansible_host": f"192.0.2.{number}",
            **VARIABLES,
            **(variables or {}),
        }
        for number, name in enumerate(["node1", "node2", "node3"], 11)
    }
    hostvars["localhost"] = {"inventory_hostname": "localhost", **VARIABLES, **(variables or {})}
    for host, changes in (hosts or {}).items():
        hostvars.setdefault(host, {"inventory_hostname": host, **VARIABLES}).update(changes)
    return preflight.preflight_problems(hostvars, {**GROUPS, **(groups or {})}, SPECS, **options)


def test_a_good_inventory_has_no_problems():
    assert problems() == []


BAD_GROUPS = {
    "no manager": (
        {"managers": [], "swarm": ["node2", "node3"], "storage": ["node2"]},
        "The group managers has no host: a swarm needs at least one manager.",
    ),
    "no storage": (
        {"storage": []},
        "The group storage has no host: it takes exactly one, the node that keeps homes and database.",
    ),
    "two storage hosts": (
        {"storage": ["node1", "node2"]},
        "The group storage has 2 hosts (node1 and node2): it takes exactly one, the node that "
        "keeps homes and database.",
    ),
    "storage outside": (
        {"storage": ["nas"]},
        "The storage host nas is in neither managers nor workers: it must be a member of the swarm.",
    ),
    "no builder": (
        {"builder": []},
        "The group builder has no host: name one that can build images, such as localhost or a manager.",
    ),
    "manager and worker": (
        {"workers": ["node1", "node2", "node3"]},
        "node1 is in managers and in workers: a node is one of them.",
    ),
    "swarm incomplete": (
        {"swarm": ["node1"]},
        "The group swarm lacks node2 and node3: make managers and workers its children.",
    ),
    "secrets read as hosts": (
        {"ungrouped": ["localhost", "0123456789abcdef" * 4]},
        "Files of the secrets' directory were read as an inventory, so that secrets became hosts: "
        "put `ignore_patterns = ^secrets$` under [inventory] in ansible.cfg, or give -i its file.",
    ),
    "stranger in swarm": (
        {"workers": ["node2"]},
        "The group swarm has node3, in neither managers nor workers.",
    ),
}


@pytest.mark.parametrize(("groups", "sentence"), BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_groups(groups, sentence):
    # A host outside has an address of its own, so that there is one problem.
    assert problems(groups=groups, hosts={"nas": {"ansible_host": "192.0.2.99"}}) == [sentence]


def test_missing_groups_are_empty_groups():
    hostvars = {"node1": {"ansible_host": "192.0.2.1"}}
    sentences = preflight.preflight_problems(hostvars, {"all": ["node1"]}, SPECS)
    assert [sentence.split(" has")[0] for sentence in sentences[:3]] == [
        "The group managers",
        "The group storage",
        "The group builder",
    ]


BAD_VARIABLES = {
    "typo": (
        {"hub_ldapp_servers": []},
        "hub_ldapp_servers is not a variable of the role hub; did you mean hub_ldap_servers?",
    ),
    "unknown": (
        {"network_wifi": 1},
        "network_wifi is not a variable of the role network; a variable of your own takes a name "
        "that does not begin with network_.",
    ),
    "no name": (
        {"campus_domain": None},
        "campus_domain is missing: it says at which host name users find the hub.",
    ),
    "no groups": (
        {"hub_ldap_groups": {}},
        "hub_ldap_groups is missing: it says which of the directory's groups may use the hub.",
    ),
    "builder outside": (
        {"firewall_registry_clients": []},
        "The builder localhost is no node, and firewall_registry_clients does not have the address from "
        "which it comes: it could not push images into the registry.",
    ),
    "boolean as text": (
        {"hub_named_servers": "no"},
        "hub_named_servers is the text 'no': write true or false without quotes, in a YAML file.",
    ),
    "text for a number": ({"hub_uid": "many"}, "hub_uid is 'many', which is no int."),
    "dictionary for a list": (
        {"hub_ldap_servers": {"a": 1}},
        "hub_ldap_servers is no list.",
    ),
    "text in a list": ({"directory_users": ["alice"]}, "directory_users has an element that is no dict."),
    "unknown value": (
        {"hub_identity": "rot"},
        "value of hub_identity must be one of: direct, root, got: rot.",
    ),
    "tls off": (
        {"hub_ldap_tls": "none"},
        "value of hub_ldap_tls must be one of: ldaps, starttls, got: none.",
    ),
    "unknown membership": (
        {"hub_ldap_membership": "memberOf"},
        "value of hub_ldap_membership must be one of: member, memberof, ad-nested, got: memberOf.",
    ),
    "placeholder": (
        {"hub_ldap_search_password": "CHANGE_ME"},
        "hub_ldap_search_password still is a placeholder: give it a value of your own.",
    ),
    "placeholder in a text": (
        {"campus_domain": "changeme.example.org"},
        "campus_domain still is a placeholder: give it a value of your own.",
    ),
    "example password": (
        {"site_backup_password": "example password"},
        "site_backup_password still is a placeholder: give it a value of your own.",
    ),
    "nested placeholder": (
        {"directory_users": [{"name": "alice", "password": "changeme"}]},
        "directory_users[0].password still is a placeholder: give it a value of your own.",
    ),
    "short password": (
        {"hub_ldap_search_password": "abc"},
        "hub_ldap_search_password is shorter than 8 characters.",
    ),
    "plain LDAP": (
        {"hub_ldap_servers": ["ldap://ldap.example.org"]},
        "hub_ldap_servers has 'ldap://ldap.example.org', which would send passwords in the "
        "clear: write ldaps://, "
        "or set hub_ldap_tls to starttls.",
    ),
    "web address": (
        {"hub_ldap_servers": ["https://ldap.example.org"]},
        "hub_ldap_servers has 'https://ldap.example.org': a host name, ldaps:// or ldap:// with StartTLS.",
    ),
    "ldaps and StartTLS": (
        {"hub_ldap_servers": ["ldaps://ldap.example.org"], "hub_ldap_tls": "starttls"},
        "hub_ldap_servers has 'ldaps://ldap.example.org' and hub_ldap_tls is starttls: choose one.",
    ),
    "no host": ({"hub_ldap_servers": ["ldaps://"]}, "hub_ldap_servers has 'ldaps://', which names no host."),
    "template without name": (
        {"hub_ldap_bind_dn_template": ["uid=%s,dc=example"]},
        "hub_ldap_bind_dn_template has 'uid=%s,dc=example': it takes {username}, and nothing else in braces.",
    ),
    "template with another name": (
        {"hub_ldap_bind_dn_template": ["uid={user},dc=example"]},
        "hub_ldap_bind_dn_template has 'uid={user},dc=example': it takes {username}, and nothing "
        "else in braces.",
    ),
    "no way to log in": (
        {"hub_ldap_bind_dn_template": []},
        "Nobody could log in: set hub_ldap_bind_dn_template, or hub_ldap_lookup_dn with "
        "hub_ldap_user_search_base.",
    ),
    "search without base": (
        {"hub_ldap_lookup_dn": True},
        "hub_ldap_lookup_dn is on, but hub_ldap_user_search_base does not say where to search.",
    ),
    "search without password": (
        {
            "hub_ldap_lookup_dn": True,
            "hub_ldap_user_search_base": "dc=example",
            "hub_ldap_search_user": "cn=hub",
        },
        "hub_ldap_search_user is set without hub_ldap_search_password.",
    ),
    "search account without search": (
        {"hub_ldap_search_user": "cn=hub", "hub_ldap_search_password": "passwordless-not"},
        "hub_ldap_search_user is set, but hub_ldap_lookup_dn is off: nothing would be searched with it.",
    ),
    "name of a CA file": (
        {"hub_ldap_ca": "/etc/ssl/ca.pem"},
        "hub_ldap_ca is no certificate: it takes the content of a PEM file, not its name.",
    ),
    "subnet of the nodes": (
        {"network_notebook_subnet": "192.0.2.0/24"},
        "network_notebook_subnet 192.0.2.0/24 overlaps the nodes' own network: node1, node2 and node3 "
        "(192.0.2.11, 192.0.2.12 and 192.0.2.13) would be lost in it.",
    ),
    "overlapping subnets": (
        {"network_notebook_subnet": "10.41.0.0/16"},
        "network_control_subnet 10.41.0.0/24 and network_notebook_subnet 10.41.0.0/16 overlap: "
        "give each network a range of its own.",
    ),
    "no subnet": (
        {"network_control_subnet": "10.41.0.1/24"},
        "network_control_subnet is no subnet: 10.41.0.1/24 has host bits set.",
    ),
    "long domain": (
        {"campus_domain": f"{'a' * 60}.example.org"},
        "campus_domain has 72 characters: a certificate's common name takes 64.",
    ),
    "domain with scheme": (
        {"campus_domain": "https://hub.example.org"},
        "campus_domain is 'https://hub.example.org', which is no host name: give the name alone, "
        "without https:// or a path.",
    ),
}


@pytest.mark.parametrize(("variables", "sentence"), BAD_VARIABLES.values(), ids=BAD_VARIABLES)
def test_variables(variables, sentence):
    assert problems(variables) == [sentence]


BAD_HOSTS = {
    "same address": (
        {"node3": {"ansible_host": "192.0.2.11"}},
        "node1 and node3 have the same address, 192.0.2.11.",
    ),
    "name for an address": (
        {"node2": {"ansible_host": "node2.example.org"}},
        "The address of node2 is 'node2.example.org': set swarm_address to the IP address that "
        "the other nodes use.",
    ),
    "loopback": (
        {"node2": {"swarm_address": "127.0.0.1"}},
        "The address of node2 is 127.0.0.1, which other nodes cannot reach: set swarm_address.",
    ),
    "template for a delegated task": (
        {"node2": {"ansible_user": "{{ inventory_hostname }}-admin"}},
        "ansible_user is a template with inventory_hostname, and where one host asks another, Ansible fills "
        "in the name of the one that asks: write it out for each host (of node2).",
    ),
    "one host's value": (
        {"node2": {"hub_named_servers": "yes"}},
        "hub_named_servers is the text 'yes': write true or false without quotes, in a YAML file (of node2).",
    ),
}


@pytest.mark.parametrize(("hosts", "sentence"), BAD_HOSTS.values(), ids=BAD_HOSTS)
def test_hosts(hosts, sentence):
    assert problems(hosts=hosts) == [sentence]


def test_a_name_that_is_no_host_name():
    groups = copy.deepcopy(GROUPS)
    groups["workers"].append("node_4")
    groups["swarm"].append("node_4")
    found = problems(groups=groups, hosts={"node_4": {"ansible_host": "192.0.2.14"}})
    assert found == ["'node_4' cannot be the name of a node: letters, digits, hyphens and dots only."]


def test_nodes_reach_each_other_by_ipv4():
    found = problems(hosts={"node2": {"swarm_address": "2001:db8::12"}})
    assert found == [
        "The address of node2 is 2001:db8::12: the nodes reach each other by IPv4. Set swarm_address to such "
        "an address."
    ]


def test_all_addresses_and_ssh_ports_of_a_node():
    node = {"inventory_hostname": "n", "ansible_host": "192.0.2.1", "swarm_address": "10.0.0.1"}
    assert preflight.node_addresses(node) == ["10.0.0.1", "192.0.2.1"]
    assert preflight.node_addresses({**node, "ansible_host": "n.example.org"}) == ["10.0.0.1"]
    assert preflight.node_addresses({"inventory_hostname": "192.0.2.9"}) == ["192.0.2.9"]
    assert preflight.node_ssh_ports(node) == [22]
    assert preflight.node_ssh_ports({**node, "ansible_port": "2222"}) == [2222]
    assert preflight.node_ssh_ports({**node, "ansible_port": 2222, "firewall_ssh_port": 22}) == [2222, 22]


def test_renamed_variables_tell_their_new_name():
    found = problems({"hub_ldap_url": "x"}, renamed={"hub_ldap_url": "use hub_ldap_servers"})
    assert found == ["hub_ldap_url is no longer a variable: use hub_ldap_servers."]


def test_known_names_are_left_alone():
    assert problems({"hub_colour": "red"}, known=["hub_colour"]) == []


GOOD_VARIABLES = {
    "search": {
        "hub_ldap_bind_dn_template": [],
        "hub_ldap_lookup_dn": True,
        "hub_ldap_user_search_base": "dc=example",
        "hub_ldap_search_user": "cn=hub",
        "hub_ldap_search_password": "passwordless-not",
    },
    "StartTLS": {"hub_ldap_servers": ["ldap://ldap.example.org:1389", "other"], "hub_ldap_tls": "starttls"},
    "IPv6 server": {"hub_ldap_servers": ["ldaps://[2001:db8::1]:636"]},
    "lab password": {"directory_users": [{"name": "alice", "password": "alice-lab-password"}]},
    "other names": {"ansible_user": "admin", "docker_notes": "own", "hubble": 1},
    "number as text": {"hub_uid": "991"},
    "no password": {"hub_ldap_search_password": ""},
}


@pytest.mark.parametrize("variables", GOOD_VARIABLES.values(), ids=GOOD_VARIABLES)
def test_no_false_alarm(variables):
    assert problems(variables) == []


def test_a_template_that_cannot_be_evaluated_yet_is_no_problem():
    class Later(dict):
        def __getitem__(self, name):
            if name == "hub_ldap_ca":
                raise RuntimeError("the file is not there yet")
            return super().__getitem__(name)

    hostvars = {
        name: Later(VARIABLES, ansible_host=f"192.0.2.{n}", hub_ldap_ca="")
        for n, name in enumerate(GROUPS["swarm"], 1)
    }
    assert preflight.preflight_problems(hostvars, {**GROUPS, "builder": ["node1"]}, SPECS) == []


def test_passwords_are_never_repeated():
    user = {"name": "alice", "password": "s3cret"}
    found = problems(
        {"hub_ldap_search_password": ["s3cret"], "site_password": "changeme", "directory_users": user}
    )
    assert len(found) == 3
    assert "s3cret" not in str(found)
    assert "changeme" not in str(found)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, None),
        (2, "survive the loss of neither"),
        (3, None),
        (4, "4 managers survive the loss of 1, as 3 do"),
        (5, None),
    ],
)
def test_warnings(count, words):
    found = preflight.preflight_warnings({"managers": [f"node{n}" for n in range(count)]})
    assert (words in found[0]) if words else found == []


def result(**changes) -> dict:
    """Return what a healthy node reports."""
    return {
        "problems": [],
        "clock_offset": 0.5,
        "hostname": "a",
        "machine_id": "",
        "routes": [],
        **changes,
    }


def test_healthy_nodes():
    results = {"node1": result(), "node2": result(hostname="b", clock_offset=2.0)}
    assert preflight.preflight_node_problems(results, 15) == []


def test_node_problems_are_put_together():
    results = {
        "node1": result(problems=["has no disk."], clock_offset=90, machine_id="x"),
        "node2": result(hostname="b", machine_id="y"),
        "node3": result(hostname="b", machine_id="y"),
        "node4": {
            "rc": 127,
            "module_stderr": "/bin/sh: 1: /usr/bin/python3: not found\n",
            "msg": "see stderr",
        },
        "node5": {"unreachable": True, "msg": "Task failed: Connection timed out"},
    }
    assert preflight.preflight_node_problems(results, 15) == [
        "node1: has no disk.",
        "node4: could not be examined (is python3 installed?): /bin/sh: 1: /usr/bin/python3: not found",
        "node5: cannot be reached by SSH: Connection timed out",
        "The clock of node1 is 90 s ahead of node2's: keep them by NTP (at most 15 s apart).",
        "node2 and node3 all call themselves b: give each node a host name of its own.",
        "node2 and node3 have the same /etc/machine-id, or are the same machine: cloned nodes "
        "need a new one.",
    ]


@pytest.mark.parametrize(
    ("destination", "on_link", "hidden"),
    [
        ("10.40.3.0/24", False, True),
        ("10.40.3.0/24", True, True),
        ("10.0.0.0/8", True, True),
        # Says no more than the default route.
        ("10.0.0.0/8", False, False),
        ("192.0.2.0/24", True, False),
        ("fd00::/8", True, False),
    ],
)
def test_a_network_that_a_node_has_a_route_to(destination, on_link, hidden):
    hostvars = {name: {"inventory_hostname": name, **VARIABLES} for name in GROUPS["swarm"]}
    subnets = preflight.preflight_subnets(hostvars, GROUPS, SPECS)
    assert subnets.pop("network_control_subnet") == ["10.41.0.0/24"]
    assert subnets == {"network_notebook_subnet": ["10.40.0.0/20"]}
    route = {"destination": destination, "interface": "eth1", "on_link": on_link}
    sentence = (
        f"node1: reaches {destination} by eth1, and network_notebook_subnet 10.40.0.0/20 would hide it "
        "from containers: give network_notebook_subnet another range."
    )
    found = preflight.preflight_node_problems({"node1": result(routes=[route])}, 15, subnets)
    assert found == ([sentence] if hidden else [])


def test_the_address_of_a_node():
    host = {"inventory_hostname": "192.0.2.7"}
    assert preflight.node_address(host) == "192.0.2.7"
    host["ansible_host"] = "192.0.2.8"
    assert preflight.node_address(host) == "192.0.2.8"
    host["swarm_address"] = "10.1.0.8"
    assert preflight.node_address(host) == "10.1.0.8"


def test_specs_of_the_collection_are_read():
    specs = preflight.preflight_specs(str(ROOT / "roles"))
    assert "preflight_memory_mb" in specs["preflight"]


INVENTORY = {
    "all": {
        "children": {
            "swarm": {
                "children": {
                    "managers": {"hosts": {"node1": {"ansible_host": "192.0.2.1"}}},
                    "workers": {"hosts": {}},
                }
            },
            "storage": {"hosts": {"node1": {}}},
            "builder": {"hosts": {"localhost": {"ansible_connection": "local"}}},
        }
    }
}
PLAYBOOK = [
    {
        "hosts": "swarm",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.import_role": {"name": "campus.jupyterhub.preflight"}}],
    }
]


def play(directory: pathlib.Path, inventory: dict, variables: dict) -> subprocess.CompletedProcess:
    """Run the role on an inventory whose nodes do not exist."""
    (directory / "group_vars").mkdir()
    (directory / "hosts.yml").write_text(yaml.safe_dump(inventory))
    (directory / "group_vars" / "all.yml").write_text(yaml.safe_dump(variables))
    (directory / "play.yml").write_text(yaml.safe_dump(PLAYBOOK))
    return playbook("-i", directory / "hosts.yml", directory / "play.yml")


def playbook(*arguments: pathlib.Path | str) -> subprocess.CompletedProcess:
    """Run ansible-playbook."""
    command = [pathlib.Path(sys.executable).with_name("ansible-playbook"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


PLAYS = {
    "variables": (
        lambda inventory: None,
        {"preflight_memroy_mb": 1, "certificates_days": "many", "site_password": "changeme"},
        [
            "preflight_memroy_mb is not a variable of the role preflight (",
            "did you mean preflight_memory_mb?",
            "group_vars/all.yml:",
            "certificates_days is 'many', which is no int",
            "site_password still is a placeholder",
        ],
    ),
    "no manager": (
        lambda inventory: inventory["all"]["children"]["swarm"]["children"].update(
            managers={"hosts": {}}, workers={"hosts": {"node1": {"ansible_host": "192.0.2.1"}}}
        ),
        {},
        ["The group managers has no host"],
    ),
    "template for a delegated task": (
        lambda inventory: None,
        {"ansible_port": "{{ 2200 + (inventory_hostname[4:] | int) }}"},
        ["ansible_port is a template with inventory_hostname", "group_vars/all.yml:"],
    ),
    "storage outside": (
        lambda inventory: inventory["all"]["children"].update(
            storage={"hosts": {"nas": {"ansible_host": "192.0.2.9"}}}
        ),
        {},
        ["The storage host nas is in neither managers nor workers"],
    ),
}


@pytest.mark.parametrize(("change", "variables", "sentences"), PLAYS.values(), ids=PLAYS)
def test_a_play_stops_before_it_touches_a_node(tmp_path, change, variables, sentences):
    inventory = copy.deepcopy(INVENTORY)
    change(inventory)
    done = play(tmp_path, inventory, variables)
    assert done.returncode != 0
    assert "Examine the node" not in done.stdout
    text = " ".join(done.stdout.split())
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert "changeme" not in text


@pytest.mark.parametrize("inventory", [{}, {"all": {"children": {"managers": {"hosts": {"node1": {}}}}}}])
def test_an_inventory_without_the_groups_is_no_deployment(tmp_path, inventory):
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(inventory))
    for path in ("hosts.yml", "mistyped"):
        done = playbook("-i", tmp_path / path, "playbooks/preflight.yml")
        assert done.returncode != 0
        text = " ".join(done.stdout.split())
        assert f"{path} has no hosts in the groups managers and swarm: is it the path" in text


def site_pair(days: int = 90, passphrase: str = "") -> dict[str, str]:
    """The site's own certificate, which ends in so many days, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hub.example.org")])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(end - datetime.timedelta(days=90)).not_valid_after(end)
    secret = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return {"edge_tls": "site", "edge_certificate": certificate.decode(), "edge_key": private.decode()}


CLUSTERS = ("test", "two_nodes")
RULES = {
    "as it is": ({}, None),
    "images": ({"images_references": {"nonesuch": "x"}}, "images_references names nonesuch"),
    "storage": ({"nfs_grace_period": 1}, "nfs_grace_period not be shorter than nfs_lease_lifetime"),
    "directory": (
        {"campus_directory": True, "directory_groups": [{"name": "students", "members": ["zoe"]}]},
        "directory_groups has members that are not in directory_users: zoe",
    ),
    "networks": (
        {"network_notebook_subnet": "172.20.5.0/24"},
        "which needs a /23: more than network_notebook_subnet 172.20.5.0/24 holds",
    ),
    "sizes": (
        {"hub_notebook_memory_guarantee": "512m"},
        "hub_notebook_memory_guarantee is 512m, which is no size such as 512M",
    ),
    "a size without a unit": (
        {"hub_notebook_memory_limit": "1073741824"},
        "hub_notebook_memory_limit is 1073741824, which is no size",
    ),
    "sizes in bytes": ({"hub_notebook_memory_limit": 1073741824, "hub_notebook_memory_guarantee": 0}, None),
    "no sizes": ({"hub_notebook_memory_limit": "", "hub_notebook_memory_guarantee": ""}, None),
    "hub": ({"hub_notebook_image": "nonesuch"}, "and hub_course_grader_image name nonesuch"),
    "courses": ({"courses": [{"name": "Algo 1"}]}, "courses: 'Algo 1' is no name: small letters"),
    "edge": ({"edge_tls": "site", "edge_key": ""}, "edge_certificate and edge_key must hold"),
    "the site's pair": (site_pair(), None),
    "the old key": (site_pair() | {"edge_key": site_pair()["edge_key"]}, "edge_key is not the key of"),
    "a passphrase": (site_pair(passphrase="secret"), "or has a passphrase"),
    "the old certificate": (site_pair(days=-1), "edge_certificate was valid until"),
}


@pytest.mark.parametrize(("variables", "sentence"), RULES.values(), ids=RULES)
def test_rules_across_variables_are_checked_without_a_node(tmp_path, variables, sentence):
    """The last play of preflight.yml, for nodes that do not exist."""
    rules = yaml.safe_load((ROOT / "playbooks/preflight.yml").read_text())[-1]
    rules["vars_files"] = [str(ROOT / "playbooks/vars/wiring.yml")]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump([rules]))
    arguments = ("-i", "tests/inventories/variants", "-e", f"certificates_dir={tmp_path}")
    done = playbook(*arguments, "-e", json.dumps(variables), tmp_path / "rules.yml")
    assert (done.returncode == 0) == (sentence is None), done.stdout
    assert (sentence or "failed=0") in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "inventory", ["inventories/lab", *(f"tests/inventories/{name}" for name in CLUSTERS)]
)
def test_our_own_inventories_have_no_problems(tmp_path, inventory):
    """With the roles' own defaults, and without a look at a node."""
    play = {
        "hosts": "swarm:builder",
        "gather_facts": False,
        "vars_files": [str(ROOT / "playbooks/vars/wiring.yml")],
        "tasks": [
            {
                "ansible.builtin.import_role": {
                    "name": "campus.jupyterhub.preflight",
                    "tasks_from": "inventory",
                }
            }
        ],
    }
    (tmp_path / "look.yml").write_text(yaml.safe_dump([play]))
    done = playbook("-i", inventory, tmp_path / "look.yml")
    assert done.returncode == 0, done.stdout
    assert "failed=0" in done.stdout
