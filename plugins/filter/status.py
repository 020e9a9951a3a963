"""Filter of playbooks/status.yml: one page from what the servers told."""

from __future__ import annotations

import calendar
import time

# Certificates are issued anew by a run when fewer days are left; see the role certificates.
SOON_DAYS = 30


def table(title, rows):
    """Return lines of a table.

    Args:
        title (str): what stands above it.
        rows (list[list]): the first one is the header.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(texts[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in texts
    ]
    return [title, *(line.rstrip() for line in lines), ""]


def size(number):
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"


def ago(seconds):
    """Return a length of time for people."""
    for length, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(max(seconds, 0))} seconds"


def first(servers, part):
    """Return the first server's answer of a kind: a whole one, else the reason why there is none."""
    answers = [answer[part] for answer in servers.values() if answer.get(part)]
    return next((one for one in answers if "error" not in one), answers[0] if answers else {})


def host_of(node, servers, addresses):
    """Return the inventory's name of a node of the swarm, empty if it has none."""
    for host, answer in servers.items():
        if answer.get("engine", {}).get("node") == node["id"]:
            return host
    named = (host for host in servers if node["address"] == addresses.get(host) or node["name"] == host)
    return next(named, "")


def nodes_lines(servers, swarm, addresses):
    """Return the table of nodes, and sentences about servers that are none or do not answer."""
    header = ["NODE", "ROLE", "AVAILABILITY", "STATE", "MANAGER", "ENGINE", "NOTEBOOKS", "ANSWERS"]
    rows, known = [header], set()
    for node in sorted(swarm.get("nodes", []), key=lambda one: (one["role"], one["name"])):
        host = host_of(node, servers, addresses)
        known.add(host)
        name = node["name"] if host in (node["name"], "") else f"{node['name']} ({host})"
        answers = "yes" if servers.get(host) else "no" if host else "not in the inventory"
        rows.append(
            [name]
            + [node[key] for key in ("role", "availability", "state", "manager", "engine", "notebooks")]
            + [answers]
        )
    for host in servers:
        if host not in known:
            rows.append([host, *[""] * 6, "yes" if servers[host] else "no"])
    return table("Nodes", rows)


def services_lines(swarm):
    """Return the table of the stacks' services."""
    services = [one for one in swarm.get("services", []) if not one["notebook"]]
    rows = [["SERVICE", "RUNNING", "TROUBLE"]]
    for one in sorted(services, key=lambda one: one["name"]):
        trouble = one["error"] or "-" if one["running"] < one["desired"] else ""
        rows.append([one["name"], f"{one['running']}/{one['desired']}", trouble])
    return table("Services", rows)


def images_lines(servers, swarm, now):
    """Return the table of images in use: of services, of running containers, and of notebooks to come."""
    names = {one["image"] for one in swarm.get("services", [])} | set(swarm.get("wanted", []))
    used = {name for answer in servers.values() for name in answer.get("engine", {}).get("used", [])}
    found = {}
    for host, answer in servers.items():
        for image in answer.get("engine", {}).get("images", []):
            if image["id"] in used or names & set(image["names"]):
                known = found.setdefault(image["id"], {**image, "names": set(), "hosts": []})
                known["names"] |= set(image["names"])
                known["hosts"].append(host)
    answering = sum(1 for answer in servers.values() if answer)
    rows = [["IMAGE", "AGE", "SIZE", "ON"]]
    for image in sorted(found.values(), key=lambda one: sorted(one["names"])):
        shown = min(image["names"], key=lambda name: ("@" in name, name), default=image["id"])
        hosts = "all" if len(image["hosts"]) == answering > 1 else ", ".join(image["hosts"])
        rows.append([short(shown), ago(now - image["created"]), size(image["size"]), hosts])
    everywhere = {name for image in found.values() for name in image["names"]}
    rows += [[short(name), "", "", "no server that answers"] for name in sorted(names - everywhere)]
    return table("Images in use", rows)


def short(image):
    """Return an image's name without its registry, with a digest's first figures."""
    name, at, digest = image.rpartition("/")[2].partition("@")
    return f"{name}{at}{digest[:19]}"


def storage_lines(storage):
    """Return what there is to say about the storage."""
    if "error" in storage or not storage:
        return ["Storage", f"  {storage.get('error', 'the storage node does not answer')}", ""]
    used = 100 * storage["used"] // max(storage["used"] + storage["free"], 1)
    return [
        "Storage",
        f"  {storage['path']}: {size(storage['size'])}, {used} % used, {size(storage['free'])} free",
        f"  {storage['accounts']} accounts, {storage['locked']} of them locked; {storage['homes']} homes; "
        f"{storage['archives']} archives",
        "",
    ]


def certificates_lines(certificates, remedies, now):
    """Return the table of certificates, with a remedy for those that end soon."""
    rows = [["CERTIFICATE", "VALID UNTIL", "LEFT"]]
    for name, not_after in certificates.items():
        if not not_after:
            rows.append([name, "", "missing"])
            continue
        end = calendar.timegm(time.strptime(not_after, "%Y%m%d%H%M%SZ"))
        days = int((end - now) // 86400)
        hint = f" ({remedies.get(name, 'make run')})" if days < SOON_DAYS else ""
        left = "EXPIRED" if end < now else f"{days} days{hint}"
        rows.append([name, time.strftime("%Y-%m-%d", time.gmtime(end)), left])
    return table("Certificates", rows)


def hub_lines(hub, url):
    """Return whether the hub answers."""
    if hub.get("status") == 200:
        return [f"Hub: {url} answers in {hub['seconds']} s", ""]
    why = f"status {hub['status']}" if "status" in hub else hub.get("error", "no manager could be asked")
    return [f"Hub: {url} does not answer ({why})", ""]


def status_report(servers, addresses, certificates, url, remedy, now):
    """Return the page.

    Args:
        servers (dict[str, dict]): what the module status_info returned, or how it failed, by host.
        addresses (dict[str, str]): the hosts' addresses in the swarm.
        certificates (dict[str, str]): until when each is valid, empty if it is missing.
        url (str): where the hub is opened.
        remedy (str): what to do when the certificate that browsers are shown ends soon.
        now (float): seconds since 1970.

    Returns:
        str: lines of text.
    """
    silent = {host: answer for host, answer in servers.items() if "engine" not in answer}
    servers = {host: {} if host in silent else answer for host, answer in servers.items()}
    swarm = first(servers, "swarm")
    lines = nodes_lines(servers, swarm, addresses)
    if not swarm.get("nodes"):
        lines += [f"Swarm: {swarm.get('error', 'no manager answers')}", ""]
    else:
        lines += services_lines(swarm)
    lines += images_lines(servers, swarm, now)
    lines += storage_lines(first(servers, "storage"))
    lines += certificates_lines(certificates, {url: remedy}, now)
    lines += hub_lines(first(servers, "hub"), url)
    for host, answer in silent.items():
        why = str(answer.get("msg") or "not asked").strip().splitlines()[-1].rpartition("ssh: ")[2]
        lines.append(f"{host} does not answer, so nothing is known of its images ({why}).")
    for host, answer in servers.items():
        if "error" in answer.get("engine", {}):
            lines.append(f"{host}: Docker does not answer: {answer['engine']['error']}")
    return "\n".join(lines).strip() + "\n"


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {"status_report": status_report}
