"""A stand-in for Docker's Engine API with a swarm behind it, on loopback and as slow as a real one.

It answers what both spawners ask (https://docs.docker.com/reference/api/engine/): services, tasks, nodes,
version. Each request takes as long as one of its kind took on a real swarm, and each task goes through its
states as a real one did; both are in docker_latencies.json, recorded by `benchmarks.burst --record`. Unlike a
real engine it does not slow down under load, so what is measured with it is the hub.

A service's server answers at an address of its own on loopback (`address_of`), and nothing listens there
before its container would.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

LATENCIES = Path(__file__).with_name("docker_latencies.json")
PORT = 8888
NODES = ["node1", "node2", "node3"]
# Kinds of requests, as they are recorded; first match wins.
KINDS = [
    ("create", "POST", r"/services/create"),
    ("remove", "DELETE", r"/services/.+"),
    ("service", "GET", r"/services/.+"),
    ("services", "GET", r"/services"),
    ("tasks", "GET", r"/tasks.*"),
    ("node", "GET", r"/nodes/.+"),
]


def kind_of(method: str, path: str) -> str:
    """Kind of a request.

    Args:
        method: HTTP method.
        path: Path, with or without the API's version in front.

    Returns:
        A name, empty for what is not recorded.
    """
    path = re.sub(r"^/v[0-9.]+", "", path)
    return next((kind for kind, verb, form in KINDS if verb == method and re.fullmatch(form, path)), "")


def address_of(service: str) -> str:
    """Address of a service's server: one of 127.1.0.0/16 to 127.254.0.0/16, for 16 million names."""
    first, second, third = hashlib.sha256(service.encode()).digest()[:3]
    return f"127.{first % 254 + 1}.{second}.{third % 254 + 1}"


class Latencies:
    """What was recorded, drawn in an order that depends on nothing but how many were drawn before."""

    def __init__(self, recorded: dict[str, Any], seed: int = 1) -> None:
        """Shuffle the recorded values.

        Args:
            recorded: `requests`: seconds by kind; `starts`: for each start a list of [state, seconds since
                the request]; `ends`: seconds from a service's removal until its task is gone.
            seed: Of the order.
        """
        order = random.Random(seed)  # noqa: S311 - no secret

        def shuffled(values: list[Any]) -> Iterator[Any]:
            return itertools.cycle(order.sample(values, len(values)))

        self._requests = {kind: shuffled(values) for kind, values in recorded["requests"].items()}
        self._starts = shuffled(recorded["starts"])
        self._ends = shuffled(recorded["ends"])

    def request(self, kind: str) -> float:
        """Seconds that the next request of a kind takes."""
        return next(self._requests[kind]) if kind in self._requests else 0.0

    def start(self) -> list[tuple[str, float]]:
        """The states of the next start, in order, the last one `answers`."""
        return [(state, seconds) for state, seconds in next(self._starts)]

    def end(self) -> float:
        """Seconds that the next end takes."""
        return next(self._ends)


class Service:
    """A service with its one task."""

    def __init__(self, spec: dict[str, Any], states: list[tuple[str, float]], node: str) -> None:
        """Begin a start.

        Args:
            spec: As the client sent it.
            states: What its task goes through.
            node: ID of the node that it is placed on.
        """
        self.id, self.task_id = secrets.token_hex(13)[:25], secrets.token_hex(13)[:25]
        self.spec, self.node = spec, node
        self.name: str = spec["Name"]
        self.created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self.removed = False
        self._begun, self._states = time.monotonic(), states

    @property
    def labels(self) -> dict[str, str]:
        """Its own labels and its container's."""
        container = self.spec["TaskTemplate"]["ContainerSpec"].get("Labels") or {}
        return {**(self.spec.get("Labels") or {}), **container}

    def has(self, wanted: str) -> bool:
        """Whether it has a label, `NAME` or `NAME=VALUE`."""
        name, equals, value = wanted.partition("=")
        return name in self.labels and (not equals or self.labels[name] == value)

    @property
    def state(self) -> str:
        """Its task's state by now."""
        elapsed = time.monotonic() - self._begun
        passed = [state for state, seconds in self._states if seconds <= elapsed and state != "answers"]
        return passed[-1] if passed else "new"

    def as_json(self) -> dict[str, Any]:
        """The service as the API shows it."""
        return {
            "ID": self.id,
            "Version": {"Index": 1},
            "CreatedAt": self.created,
            "UpdatedAt": self.created,
            "Spec": self.spec,
            "Endpoint": {"Spec": self.spec.get("EndpointSpec") or {}},
        }

    def task(self) -> dict[str, Any]:
        """Its task as the API shows it."""
        state = self.state
        placed = {} if state in ("new", "pending") else {"NodeID": self.node}
        return {
            "ID": self.task_id,
            "Version": {"Index": 1},
            "CreatedAt": self.created,
            "UpdatedAt": self.created,
            "Labels": {},
            "Spec": self.spec["TaskTemplate"],
            "ServiceID": self.id,
            "Slot": 1,
            **placed,
            "Status": {"Timestamp": self.created, "State": state, "Message": state},
            "DesiredState": "remove" if self.removed else "running",
        }


class Swarm:
    """The stand-in's services.

    Attributes:
        requests: How many requests of each kind there were.
        most: The most that were under way at once.
    """

    def __init__(self, latencies: Latencies) -> None:
        """Start without services."""
        self.latencies = latencies
        self.services: dict[str, Service] = {}  # by ID, the removed ones until their tasks are gone
        self.requests: dict[str, int] = {}
        self.most = 0
        self._under_way = 0
        self._nodes = itertools.cycle(NODES)
        self._work: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._delay], client_max_size=2**22)
        for prefix in ("", "/v{version:[0-9.]+}"):
            app.router.add_get(f"{prefix}/version", self.version)
            app.router.add_post(f"{prefix}/services/create", self.create)
            app.router.add_get(f"{prefix}/services", self.list_services)
            app.router.add_get(f"{prefix}/services/{{id}}", self.inspect)
            app.router.add_delete(f"{prefix}/services/{{id}}", self.remove)
            app.router.add_get(f"{prefix}/tasks", self.tasks)
            app.router.add_get(f"{prefix}/nodes/{{id}}", self.node)
        app.router.add_get("/counts", self.counts)
        app.on_cleanup.append(self._end)
        return app

    @web.middleware
    async def _delay(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Takes as long as the real one, and turns errors into Docker's form."""
        kind = kind_of(request.method, request.path)
        if kind:
            self.requests[kind] = self.requests.get(kind, 0) + 1
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            await asyncio.sleep(self.latencies.request(kind))
            self._under_way -= 1
        try:
            return await handler(request)
        except web.HTTPException as error:
            return web.json_response({"message": error.text}, status=error.status)

    # -- what Docker answers

    async def version(self, _request: web.Request) -> web.Response:
        """GET /version."""
        return web.json_response({"Version": "26.1.5", "ApiVersion": "1.45", "MinAPIVersion": "1.24"})

    async def create(self, request: web.Request) -> web.Response:
        """POST /services/create."""
        spec = await request.json()
        if any(one.name == spec["Name"] and not one.removed for one in self.services.values()):
            raise web.HTTPConflict(text="rpc error: code = AlreadyExists desc = name conflicts")
        states = self.latencies.start()
        service = Service(spec, states, next(self._nodes))
        self.services[service.id] = service
        self._begin(self._serve(service, states[-1][1]))
        return web.json_response({"ID": service.id}, status=201)

    async def list_services(self, request: web.Request) -> web.Response:
        """GET /services, filtered by label."""
        found = (one for one in self._filtered(request) if not one.removed)
        return web.json_response([one.as_json() for one in found])

    async def inspect(self, request: web.Request) -> web.Response:
        """GET /services/{id}, by ID or name."""
        return web.json_response(self._find(request.match_info["id"]).as_json())

    async def remove(self, request: web.Request) -> web.Response:
        """DELETE /services/{id}: gone at once, its task a while later."""
        service = self._find(request.match_info["id"])
        service.removed = True
        self._begin(self._forget(service))
        return web.Response()

    async def tasks(self, request: web.Request) -> web.Response:
        """GET /tasks, filtered by label, service, the names' beginnings and desired state."""
        wanted = self._filter(request, "desired-state")
        found = [one.task() for one in self._filtered(request)]
        return web.json_response([one for one in found if not wanted or one["DesiredState"] in wanted])

    async def node(self, request: web.Request) -> web.Response:
        """GET /nodes/{id}."""
        name = request.match_info["id"]
        if name not in NODES:
            raise web.HTTPNotFound(text=f"node {name} not found")
        return web.json_response(
            {
                "ID": name,
                "Description": {"Hostname": name},
                "Status": {"State": "ready", "Addr": f"127.0.0.{NODES.index(name) + 2}"},
                "Spec": {"Availability": "active"},
            }
        )

    def _find(self, key: str) -> Service:
        for service in self.services.values():
            if key in (service.id, service.name) and not service.removed:
                return service
        raise web.HTTPNotFound(text=f"service {key} not found")

    @staticmethod
    def _filter(request: web.Request, name: str) -> list[str]:
        """Values of one filter, which is a list or an object (`{"a=b": true}`)."""
        return list(json.loads(request.query.get("filters", "{}")).get(name, []))

    def _filtered(self, request: web.Request) -> list[Service]:
        services, labels = self._filter(request, "service"), self._filter(request, "label")
        names = tuple(self._filter(request, "name"))
        found = [self._find(key) for key in services] if services else self.services.values()
        return [
            one
            for one in found
            if all(one.has(label) for label in labels) and (not names or one.name.startswith(names))
        ]

    # -- the servers

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _serve(self, service: Service, after: float) -> None:
        """Listens in the place of a service's server as soon as it would, until the service is removed."""
        await asyncio.sleep(after)
        if service.removed:
            return
        server = await asyncio.start_server(self._answer, address_of(service.name), PORT)
        async with server:
            while not service.removed:
                await asyncio.sleep(0.2)

    @staticmethod
    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers as a notebook server does that runs: the hub looks at the version header."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nX-JupyterHub-Version: 6\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    async def _forget(self, service: Service) -> None:
        await asyncio.sleep(self.latencies.end())
        del self.services[service.id]

    async def _end(self, _app: web.Application) -> None:
        for task in self._work:
            task.cancel()

    async def counts(self, _request: web.Request) -> web.Response:
        """GET /counts: requests since the last time, and the most that were under way at once."""
        counted = {"requests": self.requests, "most": self.most, "services": len(self.services)}
        self.requests, self.most = {}, 0
        return web.json_response(counted)


def main() -> None:
    """Run it until it is told to stop."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.docker_api", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latencies", type=Path, default=LATENCIES)
    options = parser.parse_args()
    latencies = Latencies(json.loads(options.latencies.read_text(encoding="utf-8")))
    web.run_app(
        Swarm(latencies).app(),
        host="127.0.0.1",
        port=options.port,
        access_log=None,
        print=None,
        shutdown_timeout=1,
    )


if __name__ == "__main__":
    main()
