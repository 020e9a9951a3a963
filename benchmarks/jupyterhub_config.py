"""The hub that a benchmark drives: one for each side, alike but for the spawner.

In the lab it is the deployed hub's configuration with what follows on top, in a service of its own from the
same image (lab.py). On loopback it starts from nothing (burst.py). `BENCH` has the settings as JSON:

side: "ours" or "upstream".
deployed: whether it is in the lab.
token: of the service that presses the buttons.
directory: where its files may lie.
bind_url, connect_url: where it listens, and how servers reach it.
accounts_url, accounts_token: on loopback, the accounts service.
constraints: in the lab, where all servers start.
"""

import gc
import json
import os

from jupyterhub.proxy import Proxy

settings = json.loads(os.environ["BENCH"])
ours = settings["side"] == "ours"
constraints = settings.get("constraints", [])

c = get_config()  # noqa: F821 - JupyterHub's loader provides it
if settings["deployed"]:
    load_subconfig("/etc/jupyterhub/jupyterhub_config.py")  # noqa: F821

# as in the deployed hub, see there
gc.collect()
gc.freeze()
gc.set_threshold(10_000, 10, 20)


class NoProxy(Proxy):
    """Remembers routes and leads nobody anywhere: no browser comes to this hub."""

    should_start = False

    def __init__(self, **kwargs):
        """Start without routes."""
        super().__init__(**kwargs)
        self.known = {}

    async def add_route(self, routespec, target, data):
        """Remember a route."""
        self.known[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec):
        """Forget a route."""
        self.known.pop(routespec, None)

    async def get_all_routes(self):
        """All routes."""
        return self.known


# --- The road is the same for both -------------------------------------------
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.enable_auth_state = False
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "bench", "api_token": settings["token"]}]
c.JupyterHub.load_roles = [
    {
        "name": "bench",
        "services": ["bench"],
        "scopes": ["admin:users", "admin:groups", "admin:servers", "read:hub"],
    }
]
# in memory: how long a disk takes for a commit is neither side's
c.JupyterHub.db_url = "sqlite:///:memory:"
c.JupyterHub.cookie_secret_file = f"{settings['directory']}/cookie_secret"
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.hub_bind_url = settings["bind_url"]
c.JupyterHub.hub_connect_url = settings["connect_url"]
# the answer to a start is when the server is ready
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 900, "slow_stop_timeout": 900}
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.active_server_limit = 0
c.Spawner.start_timeout = c.Spawner.http_timeout = 800


def take_traits(spawner):
    """Set the traits that a start's options have, and put back those of the start before."""
    for name, value in getattr(spawner, "traits_before", {}).items():
        setattr(spawner, name, value)
    wanted = spawner.user_options.get("traits", {})
    spawner.traits_before = {name: getattr(spawner, name) for name in wanted}
    for name, value in wanted.items():
        setattr(spawner, name, value)


c.Spawner.pre_spawn_hook = take_traits

# --- The side ----------------------------------------------------------------
if not settings["deployed"]:
    from dockerspawner import SwarmSpawner
    from spawner import NfsSwarmSpawner

    from benchmarks.docker_api import PORT, address_of

    class Loopback:
        """Servers are not on a network with names but each at an address that its name gives."""

        async def get_ip_and_port(self):
            """Address and port of this start's server."""
            return address_of(self.object_name), PORT

    class OurSpawner(Loopback, NfsSwarmSpawner):
        """Ours, on loopback."""

    class UpstreamSpawner(Loopback, SwarmSpawner):
        """Upstream's, on loopback."""

    c.JupyterHub.spawner_class = OurSpawner if ours else UpstreamSpawner
    c.NfsSwarmSpawner.image = "notebook"
    c.NfsSwarmSpawner.network_name = "notebooks"
    c.NfsSwarmSpawner.nfs_server = "127.0.0.1"
    c.NfsSwarmSpawner.accounts_url = settings["accounts_url"]
    c.NfsSwarmSpawner.accounts_token = settings["accounts_token"]
elif not ours:
    c.JupyterHub.spawner_class = "dockerspawner.SwarmSpawner"

spawner = c.NfsSwarmSpawner if ours else c.SwarmSpawner
spawner.prefix = f"bench-{settings['side']}"
if ours:
    spawner.placement_constraints = constraints
else:
    # Not for ours, which is a subclass and would take it all over.
    spawner.extra_placement_spec = {"constraints": constraints} if constraints else {}
    spawner.image = c.NfsSwarmSpawner.image
    spawner.network_name = c.NfsSwarmSpawner.network_name
    spawner.use_internal_ip = True
    spawner.cmd = ["jupyterhub-singleuser"]
    # Some UID and the build group: as in ours nothing has to be chowned, and there is no home to be mounted.
    spawner.extra_container_spec = {"user": "65000:65000", "groups": ["990"]}
