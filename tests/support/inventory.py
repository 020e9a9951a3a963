"""An Ansible inventory as plain Python, with its expressions evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parents[2]

init_plugin_loader([str(ROOT / "collections")])


class Inventory:
    """Groups and variables of one inventory directory.

    Args:
        path: Directory or file, as for `ansible -i`.
        extra: Variables that win over all others, as for `ansible -e`.
    """

    def __init__(self, path: Path, extra: dict[str, Any] | None = None) -> None:
        """Read the inventory."""
        self.path = path
        self._loader = DataLoader()
        self._loader.set_basedir(str(ROOT / "playbooks"))
        self._inventory = InventoryManager(loader=self._loader, sources=[str(path)])
        self._variables = VariableManager(loader=self._loader, inventory=self._inventory)
        self._variables._extra_vars = dict(extra or {})
        self._variables._hostvars = HostVars(self._inventory, self._variables, self._loader)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the hosts of every group."""
        return {
            name: [host.name for host in group.get_hosts()] for name, group in self._inventory.groups.items()
        }

    def load(self, path: Path) -> dict[str, Any]:
        """Read a file of variables, its expressions left to be evaluated later."""
        return self._loader.load_from_file(str(path), trusted_as_template=True) or {}

    def variables(self, host: str) -> dict[str, Any]:
        """Variables of a host, not evaluated."""
        return self._variables.get_vars(host=self._inventory.get_host(host))

    def templar(self, host: str, **more: Any) -> Templar:
        """An evaluator with the variables of a host; `more` is weaker than the inventory."""
        return Templar(loader=self._loader, variables={**more, **self.variables(host)})

    def value(self, host: str, expression: str, default: Any = None) -> Any:
        """Evaluate a Jinja expression for a host.

        Args:
            host: Name of the host in the inventory.
            expression: What stands between the braces.
            default: Result when a variable in it is not defined.
        """
        missing = "\0"
        template = trust_as_template("{{ (" + expression + ") | default('" + missing + "') }}")
        result = self.templar(host).template(template)
        return default if result == missing else result
