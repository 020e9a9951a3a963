"""What is wrong with an inventory or with its nodes, as sentences.

Everything here is a function from data to a list of sentences, so that all problems are found in one go
and can be tested without a cluster. A sentence says what is wrong, where, and what to do; it never repeats
a password.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import itertools
import pathlib
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping

import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.errors import ArgumentTypeError, ElementError

try:  # Tells file and line of a variable. Not a public interface: without it sentences are shorter.
    from ansible._internal._datatag._tags import Origin
except ImportError:  # pragma: no cover
    Origin = None

PLACEHOLDER = re.compile(
    r"^\W*(change[-_ ]?(me|it|this)|fix[-_ ]?me|to[-_ ]?do"
    r"|((example|your)[-_ ]?)?(password|secret|token)|x{3,})\W*$",
    re.IGNORECASE,
)
UNFILLED = re.compile(r"CHANGE[-_ ]?(ME|IT|THIS)", re.IGNORECASE)
SECRET_NAME = re.compile(r"[._](password|secret|token|passphrase)$")
PASSWORD_NAME = re.compile(r"[._](password|passphrase)$")
SUBNET_NAME = re.compile(r"_(subnet|subnets|address_pool|address_pools|default_addr_pool)$")
# RFC 1123, section 2.1.
HOST_LABEL = re.compile(r"^(?!-)[a-z0-9-]{1,63}(?<!-)$", re.IGNORECASE)

MIN_PASSWORD = 8
# RFC 5280, appendix A.1: ub-common-name.
MAX_COMMON_NAME = 64
BOOLEAN_TEXTS = {"yes", "no", "true", "false", "on", "off"}
# A generated secret that was taken for a host.
SECRET_HOST = re.compile(r"[0-9A-Za-z]{32,}")
# How Ansible reaches a host.
CONNECTION_NAMES = (
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_password",
    "ansible_ssh_private_key_file",
    "ansible_become_password",
)
# Subnets that hold the nodes on purpose.
NODE_SUBNETS = {"lab_subnet"}


def is_host_name(name: str) -> bool:
    """Tell whether a text can be a host name.

    Args:
        name: The text.

    Returns:
        True when it is a name as RFC 1123, section 2.1, allows it.
    """
    return 0 < len(name) <= 253 and all(HOST_LABEL.match(label) for label in name.rstrip(".").split("."))


def is_address(text: str) -> bool:
    """Tell whether a text is an IPv4 or IPv6 address.

    Args:
        text: The text.

    Returns:
        True when it is an address.
    """
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def names(hosts: Iterable[str]) -> str:
    """Join names the way a sentence does.

    Args:
        hosts: The names.

    Returns:
        `a`, `a and b` or `a, b and c`.
    """
    *most, last = sorted(hosts)
    return f"{', '.join(most)} and {last}" if most else last


def variable(variables: Mapping, name: str, default=None):
    """Return a host's variable, or the default when it is not set or cannot be evaluated yet."""
    try:
        return variables[name] or default
    except Exception:  # whatever a template raises
        return default


def node_address(variables: Mapping) -> str:
    """Return the address under which the other nodes reach a node.

    Args:
        variables: The node's variables.

    Returns:
        `swarm_address`, else `ansible_host`, else its name.
    """
    names = ("swarm_address", "ansible_host", "inventory_hostname")
    return next((str(value) for name in names if (value := variable(variables, name))), "")


def node_addresses(variables: Mapping) -> list[str]:
    """Return all addresses of a node that the inventory knows.

    Args:
        variables: The node's variables.

    Returns:
        That of `node_address`, and `ansible_host` unless it is a name.
    """
    host = str(variable(variables, "ansible_host", ""))
    return list(dict.fromkeys([node_address(variables), *([host] if is_address(host) else [])]))


def node_ssh_ports(variables: Mapping) -> list[int]:
    """Return the TCP ports at which a node's SSH server is reached.

    Args:
        variables: The node's variables.

    Returns:
        Ansible's own, and `firewall_ssh_port` where that is another one.
    """
    own = int(variable(variables, "ansible_port", 22))
    return list(dict.fromkeys([own, int(variable(variables, "firewall_ssh_port", own))]))


class Inventory:
    """The variables of an inventory, read with care.

    Args:
        hostvars: Host → variables. Values may be templates that are evaluated on access.
        groups: Group → hosts.
        specs: Role → options of its argument specification.
    """

    def __init__(self, hostvars: Mapping, groups: Mapping, specs: Mapping[str, Mapping]):
        """Take the inventory as Ansible has it."""
        self.specs = specs
        self.groups = {name: list(hosts) for name, hosts in groups.items()}
        self.options = {name: option for role in specs.values() for name, option in role.items()}
        members = [
            *self.group("managers"),
            *self.group("workers"),
            *self.group("swarm"),
            *self.group("storage"),
        ]
        self.hosts = list(dict.fromkeys([*members, *self.group("builder")]))
        self.nodes = list(dict.fromkeys(members))
        # Ansible puts a host's variables together anew at each access.
        self.hostvars = {host: hostvars[host] for host in self.hosts if host in hostvars}
        # Not a public interface of Ansible's: without it a template is not seen as one.
        raw_get = getattr(hostvars, "raw_get", hostvars.get)
        self.written = {host: raw_get(host) for host in self.hostvars}

    def group(self, name: str) -> list[str]:
        """Return the hosts of a group, none when there is no such group."""
        return self.groups.get(name, [])

    def get(self, host: str, name: str, default=None):
        """Return a host's variable, or the default when it is not set or cannot be evaluated yet."""
        try:
            return self.hostvars[host][name]
        except (
            Exception
        ):  # Whatever a template raises: a file that a later role makes, a fact not gathered yet.
            return default

    @functools.cached_property
    def names(self) -> dict[str, tuple[str, list[str]]]:
        """Return the name of every variable, with the name as written (it knows its file) and its hosts."""
        found: dict[str, tuple[str, list[str]]] = {}
        for host in self.hosts:
            for name in self.hostvars.get(host, {}):
                found.setdefault(str(name), (name, []))[1].append(host)
        return found

    def values(self, name: str) -> list[tuple[object, list[str]]]:
        """Return the different values of a variable, each with its hosts; else its role's default."""
        found: list[tuple[object, list[str]]] = []
        for host in self.hosts:
            value = self.get(host, name)
            if value is None:
                continue
            for other, hosts in found:
                if type(other) is type(value) and other == value:
                    hosts.append(host)
                    break
            else:
                found.append((value, [host]))
        default = self.options.get(name, {}).get("default")
        if not found and default is not None and "{{" not in str(default):
            found.append((default, self.hosts))
        return found

    def value(self, name: str, default=None):
        """Return the value of a variable that is the same for the whole cluster."""
        return next((value for value, _ in self.values(name)), default)

    def where(self, name: str, hosts: Iterable[str]) -> str:
        """Return where a variable is set: file and line, else the hosts unless it is all of them."""
        key = self.names.get(name, (name, []))[0]
        origin = Origin.get_tag(key) if Origin else None
        if origin and origin.path:
            path = pathlib.Path(origin.path)
            short = path.relative_to(pathlib.Path.cwd()) if path.is_relative_to(pathlib.Path.cwd()) else path
            return f" ({short}{f':{origin.line_num}' if origin.line_num else ''})"
        return f" (of {names(hosts)})" if set(hosts) != set(self.hosts) else ""

    def address(self, host: str) -> str:
        """Return the address under which the other nodes reach a node."""
        return node_address(self.hostvars.get(host, {})) or host


def group_problems(inventory: Inventory) -> Iterator[str]:
    """Check who is what in the cluster.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    managers, workers, storage = (inventory.group(name) for name in ("managers", "workers", "storage"))
    swarm = {*managers, *workers}
    if not managers:
        yield "The group managers has no host: a swarm needs at least one manager."
    if len(storage) != 1:
        found = f"has {len(storage)} hosts ({names(storage)})" if storage else "has no host"
        yield f"The group storage {found}: it takes exactly one, the node that keeps homes and database."
    for host in sorted({*storage} - swarm):
        yield f"The storage host {host} is in neither managers nor workers: it must be a member of the swarm."
    if not inventory.group("builder"):
        yield "The group builder has no host: name one that can build images, such as localhost or a manager."
    for host in sorted({*managers} & {*workers}):
        yield f"{host} is in managers and in workers: a node is one of them."
    missing = swarm - {*inventory.group("swarm")}
    if missing:
        yield f"The group swarm lacks {names(missing)}: make managers and workers its children."
    if any(SECRET_HOST.fullmatch(host) for host in inventory.group("ungrouped")):
        yield (
            "Files of the secrets' directory were read as an inventory, so that secrets became hosts: "
            "put `ignore_patterns = ^secrets$` under [inventory] in ansible.cfg, or give -i its file."
        )
    strangers = {*inventory.group("swarm")} - swarm
    if strangers:
        yield f"The group swarm has {names(strangers)}, in neither managers nor workers."


def address_problems(inventory: Inventory) -> Iterator[str]:
    """Check names and addresses of the nodes.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    by_address: dict[str, list[str]] = {}
    for host in inventory.nodes:
        address = inventory.address(host)
        by_address.setdefault(address, []).append(host)
        if not (is_host_name(host) or is_address(host)):
            yield f"{host!r} cannot be the name of a node: letters, digits, hyphens and dots only."
        if not is_address(address):
            yield (
                f"The address of {host} is {address!r}: set swarm_address to the IP address that the "
                "other nodes use."
            )
        elif ipaddress.ip_address(address).version == 6:
            yield (
                f"The address of {host} is {address}: the nodes reach each other by IPv4. Set swarm_address "
                "to such an address."
            )
        elif ipaddress.ip_address(address).is_loopback or ipaddress.ip_address(address).is_unspecified:
            yield f"The address of {host} is {address}, which other nodes cannot reach: set swarm_address."
    for address, hosts in by_address.items():
        if len(hosts) > 1:
            yield f"{names(hosts)} have the same address, {address}."
    domain = inventory.value("campus_domain")
    if domain is not None and len(str(domain)) > MAX_COMMON_NAME:
        yield (
            f"campus_domain has {len(str(domain))} characters: a certificate's common name takes "
            f"{MAX_COMMON_NAME}"
            f"{inventory.where('campus_domain', inventory.hosts)}."
        )
    elif domain is not None and not (is_host_name(str(domain)) or is_address(str(domain))):
        where = inventory.where("campus_domain", inventory.hosts)
        yield (
            f"campus_domain is {str(domain)!r}, which is no host name: give the name alone, without "
            f"https:// or a path{where}."
        )


def connection_problems(inventory: Inventory) -> Iterator[str]:
    """Check that a task of one node can be delegated to another one.

    Ansible evaluates the connection's variables of the host that a task is delegated to with the
    `inventory_hostname` of the host that delegates
    (https://github.com/ansible/ansible/issues/71198).

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    for name in CONNECTION_NAMES:
        hosts = [
            host
            for host in inventory.nodes
            if "inventory_hostname" in str(inventory.written.get(host, {}).get(name, ""))
        ]
        if hosts and len(inventory.hosts) > 1:
            yield (
                f"{name} is a template with inventory_hostname, and where one host asks another, Ansible "
                "fills in the name of the one that asks: write it out for each host"
                f"{inventory.where(name, hosts)}."
            )


def subnets_of(inventory: Inventory) -> Iterator[tuple[str, list[str], str]]:
    """Collect the networks that the cluster makes for itself.

    Args:
        inventory: The inventory.

    Yields:
        Variable, its hosts, and a network as it is written there.
    """
    candidates = {*inventory.options, *(name for name in inventory.names if name.startswith("network_"))}
    for name in sorted(name for name in candidates if SUBNET_NAME.search(name) and name not in NODE_SUBNETS):
        for value, hosts in inventory.values(name):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, Mapping):  # As in Docker's default-address-pools.
                    text = text.get("base")
                if text:
                    yield name, hosts, str(text)


def subnet_problems(inventory: Inventory) -> Iterator[str]:
    """Check that no network of the cluster hides another one, or the nodes themselves.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    subnets: dict[str, list] = {}
    for name, hosts, text in subnets_of(inventory):
        try:
            subnets.setdefault(name, []).append(ipaddress.ip_network(text))
        except ValueError as error:
            yield f"{name} is no subnet: {error}{inventory.where(name, hosts)}."
    for name, nets in subnets.items():
        for net in nets:
            inside = [
                host
                for host in inventory.nodes
                if is_address(inventory.address(host))
                and ipaddress.ip_address(inventory.address(host)) in net
            ]
            if inside:
                addresses = names(inventory.address(host) for host in inside)
                where = inventory.where(name, inventory.hosts)
                yield (
                    f"{name} {net} overlaps the nodes' own network: {names(inside)} ({addresses}) would be "
                    f"lost in it{where}."
                )
    for (one, ones), (other, others) in itertools.combinations(subnets.items(), 2):
        for a, b in itertools.product(ones, others):
            if a.version == b.version and a.overlaps(b):
                yield f"{one} {a} and {other} {b} overlap: give each network a range of its own."


def variable_problems(
    inventory: Inventory, renamed: Mapping[str, str] | None = None, known: Iterable[str] = ()
) -> Iterator[str]:
    """Check names and values of variables against the argument specifications of all roles.

    Args:
        inventory: The inventory.
        renamed: Old name → what to do instead.
        known: Names that look like a role's variable and are something else.

    Yields:
        Sentences.
    """
    renamed = renamed or {}
    roles = sorted(inventory.specs, key=len, reverse=True)
    for name, (_, hosts) in sorted(inventory.names.items()):
        if name in renamed:
            yield f"{name} is no longer a variable: {renamed[name]}{inventory.where(name, hosts)}."
        elif name in inventory.options:
            yield from value_problems(inventory, name)
        elif name not in known and (
            role := next((role for role in roles if name.startswith(f"{role}_")), None)
        ):
            close = difflib.get_close_matches(name, inventory.options, n=1, cutoff=0.75)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else f"a variable of your own takes a name that does not begin with {role}_."
            )
            yield f"{name} is not a variable of the role {role}{inventory.where(name, hosts)}; {hint}"


def value_problems(inventory: Inventory, name: str) -> Iterator[str]:
    """Check the values of one variable against its specification.

    Args:
        inventory: The inventory.
        name: A variable that a role specifies.

    Yields:
        Sentences.
    """
    option = inventory.options[name]
    for value, hosts in inventory.values(name):
        where = inventory.where(name, hosts)
        if option.get("type") == "bool" and isinstance(value, str) and value.lower() in BOOLEAN_TEXTS:
            yield (
                f"{name} is the text {str(value)!r}: write true or false without quotes, "
                f"in a YAML file{where}."
            )
            continue
        spec = {key: item for key, item in option.items() if key not in ("default", "required")}
        # The validator converts what it is given, so lists and dictionaries are copied.
        result = ArgumentSpecValidator({name: spec}).validate({name: plain(value)})
        for error in result.errors.errors:
            if isinstance(error, ArgumentTypeError):
                # who writes a mapping for a list may have written passwords into it
                hidden = SECRET_NAME.search(name) or isinstance(value, (Mapping, list, tuple))
                shown = "no" if hidden else f"{value!r}, which is no"
                yield f"{name} is {shown} {option['type']}{where}."
            elif isinstance(error, ElementError):
                yield f"{name} has an element that is no {option['elements']}{where}."
            else:
                yield f"{error.msg.rstrip('.')}{where}."


def plain(value):
    """Return a copy of a value in Python's own containers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def password_problems(inventory: Inventory) -> Iterator[str]:
    """Check that no password is a placeholder or too short, and that nothing was left to fill in.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    prefixes = (*(f"{role}_" for role in inventory.specs), "campus_")
    for name in sorted(inventory.names):
        secret = bool(SECRET_NAME.search(name))
        if not secret and not name.startswith(prefixes):
            continue
        for value, on in inventory.values(name):
            for path, text in texts(value, name):
                where = inventory.where(name, on)
                if UNFILLED.search(text) or (SECRET_NAME.search(path) and PLACEHOLDER.match(text)):
                    yield f"{path} still is a placeholder: give it a value of your own{where}."
                elif (
                    name in inventory.options and PASSWORD_NAME.search(path) and 0 < len(text) < MIN_PASSWORD
                ):
                    yield f"{path} is shorter than {MIN_PASSWORD} characters{where}."


def texts(value, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text within a value, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from texts(item, f"{path}[{index}]")


def ldap_problems(inventory: Inventory) -> Iterator[str]:
    """Check the rules across the variables of the login.

    The combinations are those of jupyterhub-ldapauthenticator: a DN comes from a template, or from a search.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    if "hub" not in inventory.specs:
        return

    def where(name: str) -> str:
        return inventory.where(name, inventory.hosts)

    servers = inventory.value("hub_ldap_servers", [])
    tls = inventory.value("hub_ldap_tls", "ldaps")
    for server in servers if isinstance(servers, (list, tuple)) else []:
        scheme, separator, rest = str(server).partition("://")
        if separator and scheme not in ("ldap", "ldaps"):
            yield (
                f"hub_ldap_servers has {str(server)!r}: a host name, ldaps:// or ldap:// with "
                f"StartTLS{where('hub_ldap_servers')}."
            )
        elif separator and scheme == "ldap" and tls != "starttls":
            yield (
                f"hub_ldap_servers has {str(server)!r}, which would send passwords in the clear: write "
                "ldaps://, "
                f"or set hub_ldap_tls to starttls{where('hub_ldap_servers')}."
            )
        elif separator and scheme == "ldaps" and tls == "starttls":
            yield (
                f"hub_ldap_servers has {str(server)!r} and hub_ldap_tls is starttls: choose "
                f"one{where('hub_ldap_tls')}."
            )
        elif not re.fullmatch(
            r"\[[0-9a-fA-F:]+\](:\d+)?/?|[^/\s:@]+(:\d+)?/?", rest if separator else str(server)
        ):
            yield f"hub_ldap_servers has {str(server)!r}, which names no host{where('hub_ldap_servers')}."

    templates = inventory.value("hub_ldap_bind_dn_template", [])
    for template in [templates] if isinstance(templates, str) else templates:
        try:
            fields = {
                field for _, field, _, _ in string.Formatter().parse(str(template)) if field is not None
            }
        except ValueError:
            fields = set()
        if fields != {"username"}:
            yield (
                f"hub_ldap_bind_dn_template has {str(template)!r}: it takes {{username}}, and nothing "
                "else in braces"
                f"{where('hub_ldap_bind_dn_template')}."
            )
    if inventory.value("hub_ldap_lookup_dn", False) is True:
        if not inventory.value("hub_ldap_user_search_base"):
            yield (
                "hub_ldap_lookup_dn is on, but hub_ldap_user_search_base does not say where to "
                f"search{where('hub_ldap_lookup_dn')}."
            )
        if inventory.value("hub_ldap_search_user") and not inventory.value("hub_ldap_search_password"):
            yield (
                "hub_ldap_search_user is set without "
                f"hub_ldap_search_password{where('hub_ldap_search_user')}."
            )
    else:
        if inventory.value("hub_ldap_search_user"):
            yield (
                "hub_ldap_search_user is set, but hub_ldap_lookup_dn is off: nothing would be searched with "
                f"it{where('hub_ldap_search_user')}."
            )
        if servers and not templates:
            yield (
                "Nobody could log in: set hub_ldap_bind_dn_template, or hub_ldap_lookup_dn with "
                "hub_ldap_user_search_base"
                f"{where('hub_ldap_servers')}."
            )
    ca = inventory.value("hub_ldap_ca", "")
    if ca and "-----BEGIN CERTIFICATE-----" not in str(ca):
        yield (
            "hub_ldap_ca is no certificate: it takes the content of a PEM file, not its "
            f"name{where('hub_ldap_ca')}."
        )


# What no default can know, and playbooks/vars/wiring.yml neither.
REQUIRED = {
    "campus_domain": "at which host name users find the hub",
    "hub_ldap_servers": "which servers have the directory",
    "hub_ldap_groups": "which of the directory's groups may use the hub",
}


def required_problems(inventory: Inventory) -> Iterator[str]:
    """Check that the inventory says what only it can.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    for name, meaning in REQUIRED.items():
        if not inventory.value(name):
            yield f"{name} is missing: it says {meaning}."


def registry_problems(inventory: Inventory) -> Iterator[str]:
    """Check that the firewall lets the builder reach the registry.

    Args:
        inventory: The inventory.

    Yields:
        Sentences.
    """
    outside = [host for host in inventory.group("builder") if host not in inventory.nodes]
    if outside and not inventory.value("firewall_registry_clients"):
        yield (
            f"The builder {names(outside)} is no node, and firewall_registry_clients does not have the "
            "address from which it comes: it could not push images into the registry."
        )


CHECKS: tuple[Callable[[Inventory], Iterator[str]], ...] = (
    group_problems,
    address_problems,
    connection_problems,
    subnet_problems,
    password_problems,
    ldap_problems,
    required_problems,
    registry_problems,
)


def preflight_problems(
    hostvars: Mapping,
    groups: Mapping,
    specs: Mapping[str, Mapping],
    renamed: Mapping[str, str] | None = None,
    known: Iterable[str] = (),
) -> list[str]:
    """Find everything that is wrong with an inventory.

    Args:
        hostvars: Host → variables.
        groups: Group → hosts.
        specs: Role → options, as `preflight_specs` returns them.
        renamed: Old name of a variable → what to do instead.
        known: Names of variables that look like a role's and are not.

    Returns:
        Sentences, none twice.
    """
    inventory = Inventory(hostvars, groups, specs)
    found = [*itertools.chain.from_iterable(check(inventory) for check in CHECKS)]
    found += variable_problems(inventory, renamed, known)
    return list(dict.fromkeys(found))


def preflight_warnings(groups: Mapping) -> list[str]:
    """Find what works, but not as well as somebody may expect.

    Args:
        groups: Group → hosts.

    Returns:
        Sentences. A swarm keeps its leader as long as more than half of its managers are there (Raft).
    """
    managers = len(groups.get("managers", []))
    if managers == 2:
        return [
            "Two managers survive the loss of neither: without both there is no leader, and no "
            "server starts. "
            "Three survive the loss of one; one is simpler and no less safe than two."
        ]
    if managers > 2 and managers % 2 == 0:
        return [
            f"{managers} managers survive the loss of {(managers - 1) // 2}, as {managers - 1} do: "
            "take an odd number."
        ]
    return []


def preflight_specs(roles_dir: str) -> dict[str, dict]:
    """Read the argument specifications of all roles.

    Args:
        roles_dir: The directory of the roles.

    Returns:
        Role → options of its entry points.

    Raises:
        AnsibleFilterError: There is no specification at all, so names could not be compared with anything.
    """
    specs: dict[str, dict] = {}
    for path in sorted(pathlib.Path(roles_dir).glob("*/meta/argument_specs.yml")):
        entry_points = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("argument_specs", {})
        specs[path.parent.parent.name] = {
            name: option
            for entry in entry_points.values()
            for name, option in (entry.get("options") or {}).items()
        }
    if not specs:
        raise AnsibleFilterError(f"{roles_dir} has no */meta/argument_specs.yml")
    return specs


def preflight_subnets(
    hostvars: Mapping, groups: Mapping, specs: Mapping[str, Mapping]
) -> dict[str, list[str]]:
    """Name the networks that the cluster makes for itself.

    Args:
        hostvars: Host → variables.
        groups: Group → hosts.
        specs: Role → options, as `preflight_specs` returns them.

    Returns:
        Variable → its networks.
    """
    found: dict[str, list[str]] = {}
    for name, _, text in subnets_of(Inventory(hostvars, groups, specs)):
        found.setdefault(name, []).append(text)
    return found


def route_problems(routes: Iterable[Mapping], subnets: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Check that containers reach what their node has a route to.

    A route through a gateway that only contains a network of the cluster (10.0.0.0/8, say) is as little a
    contradiction as the default route is: it says where to go when nothing better is known.

    Args:
        routes: What the module `preflight_node` found: destination, interface, and whether it is on link.
        subnets: What `preflight_subnets` returned.

    Yields:
        Sentences.
    """
    nets = [(name, ipaddress.ip_network(text)) for name, texts in subnets.items() for text in texts]
    for route, (name, net) in itertools.product(routes, nets):
        there = ipaddress.ip_network(route["destination"])
        if net.version != there.version or not net.overlaps(there):
            continue
        if route["on_link"] or there.subnet_of(net):
            yield (
                f"reaches {there} by {route['interface']}, and {name} {net} would hide it from "
                f"containers: give {name} another range."
            )


def preflight_node_problems(
    results: Mapping[str, Mapping],
    clock_seconds: float,
    subnets: Mapping[str, Iterable[str]] | None = None,
) -> list[str]:
    """Put together what the nodes have reported.

    Args:
        results: Node → result of the module `preflight_node`.
        clock_seconds: How far apart clocks may be.
        subnets: What `preflight_subnets` returned.

    Returns:
        Sentences.
    """
    found = []
    clocks: dict[str, float] = {}
    by_hostname: dict[str, list[str]] = {}
    by_machine: dict[str, list[str]] = {}
    for host, result in sorted(results.items()):
        if "problems" not in result:
            lines = str(result.get("module_stderr") or result.get("msg") or "no answer").strip().splitlines()
            reason = lines[-1].removeprefix("Task failed: ")
            if result.get("unreachable"):
                found.append(f"{host}: cannot be reached by SSH: {reason}")
            else:
                hint = " (is python3 installed?)" if result.get("rc") == 127 else ""
                found.append(f"{host}: could not be examined{hint}: {reason}")
            continue
        found += [
            f"{host}: {problem}"
            for problem in (*result["problems"], *route_problems(result["routes"], subnets or {}))
        ]
        clocks[host] = float(result["clock_offset"])
        by_hostname.setdefault(result["hostname"], []).append(host)
        if result.get("machine_id"):
            by_machine.setdefault(result["machine_id"], []).append(host)
    if clocks:
        behind, ahead = min(clocks, key=clocks.__getitem__), max(clocks, key=clocks.__getitem__)
        gap = clocks[ahead] - clocks[behind]
        if gap > clock_seconds:
            found.append(
                f"The clock of {ahead} is {gap:.0f} s ahead of {behind}'s: keep them by NTP (at most "
                f"{clock_seconds} s apart)."
            )
    for hostname, hosts in by_hostname.items():
        if len(hosts) > 1:
            found.append(
                f"{names(hosts)} all call themselves {hostname}: give each node a host name of its own."
            )
    for hosts in by_machine.values():
        if len(hosts) > 1:
            found.append(
                f"{names(hosts)} have the same /etc/machine-id, or are the same machine: cloned nodes "
                "need a new one."
            )
    return found


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable]:
        """Return name → function."""
        return {
            "node_address": node_address,
            "node_addresses": node_addresses,
            "node_ssh_ports": node_ssh_ports,
            "preflight_problems": preflight_problems,
            "preflight_warnings": preflight_warnings,
            "preflight_specs": preflight_specs,
            "preflight_subnets": preflight_subnets,
            "preflight_node_problems": preflight_node_problems,
        }
