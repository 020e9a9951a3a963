"""Filters of playbooks/users.yml: whose account is locked, whose home is archived, and how that is told."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

# What files/leavers.py says of a user, in the words of the report.
SAID = {
    "present": "still in the directory",
    "gone": "not in the directory any more",
    "not allowed": "in none of the groups that may use the hub",
    "": "not asked for in the directory",
}
LEFT = ("gone", "not allowed")


def names_of(asked):
    """Return the names in a list, or in a text with commas.

    Args:
        asked (list | str): names as they are said on the command line.
    """
    names = asked if isinstance(asked, list) else str(asked).split(",")
    # As accounts have them: letters can be composed in several ways.
    stripped = (unicodedata.normalize("NFC", str(name)).strip() for name in names)
    return list(dict.fromkeys(name for name in stripped if name))


def users_plan(accounts, said, lock="", unlock="", delete="", limit=33):
    """Say what is to be done, and why it cannot be.

    Args:
        accounts (list[dict]): ``username``, ``account``, ``uid``, and since when it is ``locked``.
        said (dict[str, str] | None): what the directory says of each user; None when it was not asked.
        lock (list | str): users to lock; the text ``all`` for all who have left.
        unlock (list | str): users to unlock.
        delete (list | str): users whose home is removed.
        limit (int): percent of the accounts in use that may look as if their user had left.

    Returns:
        dict: the users to ``lock`` and to ``unlock``, the ``homes`` to archive and to remove, whose they are
        (``users``), the ``report`` in lines, and ``problems``, sentences for what cannot be done.
    """
    known = {account["username"]: account for account in accounts}
    status = {name: (said or {}).get(name, "") for name in known}
    left = [name for name in known if status[name] in LEFT]
    used = [name for name in known if not known[name]["locked"]]
    newly_left = [name for name in left if name in used]
    everybody = lock == "all"
    lock = left if everybody else names_of(lock)
    unlock, delete = names_of(unlock), names_of(delete)
    locked = {*lock, *(name for name in known if known[name]["locked"])} - {*unlock}

    problems = [
        f"{option} names {name}, who has no account."
        for option, names in (("users_lock", lock), ("users_unlock", unlock), ("users_delete_homes", delete))
        for name in names
        if name not in known
    ]
    problems += [f"{name} cannot be both locked and unlocked." for name in lock if name in unlock]
    if everybody and said is None:
        problems.append("users_lock=all takes a directory that is asked (users_ask_directory).")
    for name in delete:
        if name in known and name not in locked:
            problems.append(f"The home of {name} stays: the account is not locked; name it in users_lock.")
        elif status.get(name) == "present":
            problems.append(f"The home of {name} stays: the user is still in the directory.")
    if (lock or delete) and len(newly_left) * 100 > limit * len(used):
        problems.append(
            f"{len(newly_left)} of {len(used)} accounts in use look as if their users had left, which is "
            f"more than {limit} percent: if the directory is right, say so with users_max_percent=100."
        )

    def line(name):
        parts = [f"locked since {known[name]['locked']}"] if known[name]["locked"] else []
        parts += [SAID[status[name]]] if said is not None else []
        todo = ["lock the account and archive the home"] if name in lock else []
        todo += ["remove the home"] if name in delete else []
        todo += ["unlock the account"] if name in unlock else []
        return f"{name}: {', '.join(parts) or 'in use'}{' → ' * bool(todo)}{', '.join(todo)}"

    told = [name for name in known if name in {*left, *lock, *unlock, *delete} or known[name]["locked"]]
    summary = f"{len(known)} accounts, {len(known) - len(used)} of them locked"
    if said is not None:
        gone, barred = ([name for name in left if status[name] == kind] for kind in LEFT)
        summary += (
            f"; {len(gone)} users are not in the directory any more, "
            f"{len(barred)} in none of the groups that may use the hub"
        )
    return {
        "lock": lock,
        "unlock": unlock,
        "homes": [
            {
                "account": known[name]["account"],
                "uid": known[name]["uid"],
                "archive": name in lock,
                "delete": name in delete,
            }
            for name in known
            if name in lock or name in delete
        ],
        "users": [name for name in known if name in lock or name in delete],
        "report": [line(name) for name in sorted(told)] + [f"{summary}."],
        "problems": problems,
    }


def user_label(name):
    """Write a user's name as the spawner writes it into labels.

    Args:
        name (str): user of the hub.
    """
    return "".join(char if char.isprintable() else quote(char) for char in name)


def users_with_servers(servers, users):
    """Return the users who have servers, as their labels have them.

    Args:
        servers (list[dict]): services and containers as the Docker API has them.
        users (list[str]): users of the hub.
    """
    labels = {user_label(name) for name in users}
    found = {(one.get("Spec", one).get("Labels") or {}).get("org.jupyterhub.user") for one in servers}
    return sorted(labels & found)


def homes_report(homes, directory, check=False):
    """Tell what became of homes.

    Args:
        homes (list[dict]): ``account``, ``state`` and ``archive`` of each.
        directory (str): where the archives are.
        check (bool): whether it only would have become of them.

    Returns:
        list[str]: a line for each.
    """
    words = {
        "absent": "has no home",
        "current": "has not changed since it was archived",
        "archived": "would be archived" if check else "was archived",
        "deleted": "would be removed" if check else "was removed",
    }
    return [
        f"{home['account']}: {words[home['state']]}{home['archive'] and f', {directory}/' + home['archive']}"
        for home in homes
    ]


class FilterModule:
    """Ansible's entry point."""

    def filters(self):
        """Return the filters by name."""
        return {
            "users_plan": users_plan,
            "user_label": user_label,
            "users_with_servers": users_with_servers,
            "homes_report": homes_report,
        }
