"""Locks and unlocks accounts, and lists them all (playbooks/users.yml).

Reads ``{"lock": [username, …], "unlock": [username, …]}`` from standard input, since names are data and some
begin like an option. Prints all accounts, and whose lock was changed; with ``--check``, whose would be. A
locked account keeps its UID, its groups and its home.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable

from accounts import Account, RefusedError, Settings, Store, clean_name, sync_directory


def find(store: Store, usernames: Iterable[str]) -> list[Account]:
    """Finds accounts.

    Args:
        store: The account files.
        usernames: The users' names in the directory.

    Returns:
        The accounts, each once.

    Raises:
        RefusedError: one of them is no user who has an account.
    """
    accounts = store.index().by_username
    names = list(dict.fromkeys(clean_name(name) for name in usernames))
    if unknown := [name for name in names if name not in accounts]:
        raise RefusedError(404, f"There is no account of the name {', '.join(map(repr, unknown))}.")
    return [accounts[name] for name in names]


def change(store: Store, lock: list[Account], unlock: list[Account], *, check: bool) -> list[str]:
    """Makes and removes locks.

    Args:
        store: The account files.
        lock: Accounts to be locked.
        unlock: Accounts to be unlocked.
        check: True: change nothing.

    Returns:
        The users whose lock was, or has to be, changed.

    Raises:
        OSError: a lock cannot be made or removed.
        RefusedError: an account is to be locked and unlocked.
    """
    if both := [account.account for account in lock if account in unlock]:
        raise RefusedError(400, f"The account {both[0]} cannot be both locked and unlocked.")
    lock = [account for account in lock if not store.locked(account)]
    unlock = [account for account in unlock if store.locked(account)]
    changed = [account.username for account in (*lock, *unlock)]
    if check or not changed:
        return changed
    directory = store.lock_file((lock + unlock)[0]).parent
    directory.mkdir(mode=0o700, exist_ok=True)
    sync_directory(directory.parent)
    for account in lock:
        store.lock_file(account).touch(mode=0o600)
    for account in unlock:
        store.lock_file(account).unlink(missing_ok=True)
    sync_directory(directory)
    return changed


def run(asked: dict[str, list[str]], settings: Settings, *, check: bool) -> dict[str, object]:
    """Does what is asked.

    Args:
        asked: Lists of users by what is to be done: `lock`, `unlock`.
        settings: Where the account files are.
        check: True: change nothing.

    Returns:
        The users whose lock changed, and all accounts: username, account, uid, and since when it is locked.

    Raises:
        OSError: a file cannot be read or changed.
        RefusedError: it cannot be done.
    """
    store = Store(settings)
    lock, unlock = find(store, asked.get("lock", [])), find(store, asked.get("unlock", []))
    changed = change(store, lock, unlock, check=check)
    accounts = [
        {
            "username": account.username,
            "account": account.account,
            "uid": account.uid,
            "locked": store.locked(account),
        }
        for account in store.index().by_username.values()
    ]
    return {"changed": changed, "accounts": accounts}


def main() -> None:
    """Reads what is asked, does it, and prints JSON or a sentence on standard error."""
    parser = argparse.ArgumentParser(prog="lock.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say what would change")
    check = parser.parse_args().check
    try:
        print(json.dumps(run(json.load(sys.stdin), Settings.from_arguments([]), check=check)))
    except RefusedError as refused:
        sys.exit(refused.reason)
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}.")


if __name__ == "__main__":
    main()
