"""Presses start and stop, from where the hub is: in its container, or beside it on loopback.

Reads one JSON request a line and answers each with one line:

{"do": "users", "names": [], "groups": []}
    Makes hub users, members of these hub groups.
{"do": "start", "names": [], "options": {}}
    Starts all their servers at once. Answers `seconds` by name until ready, `failed` by name, `took` from the
    first to the last, `cpu` seconds of the hub, and `health`: seconds of each answer of /hub/health, asked at
    fixed times meanwhile, whether or not it has answered before.
{"do": "stop", "names": []}
    Stops them all, and returns when Docker has no task of theirs any more.
{"do": "spec", "name": ""}
    Remembers the spec of the service of a user's server that runs now.
{"do": "raw", "change": {}}
    Creates a service of that spec, its container's spec changed, without a hub. Answers `seconds` until its
    port answers, `http` until it answers as a server does that the hub calls ready, `requests` (seconds by
    kind), `states` ([state, seconds] in order, `answers` at last) and `end` (seconds from its removal).

Standard library and aiohttp only: the hub's image has nothing else for it.
"""

import asyncio
import copy
import json
import os
import secrets
import sys
import time

import aiohttp

HEALTH_PAUSE, HEALTH_MOST = 0.1, 10_000
LOOK_PAUSE = 0.05
PORT = 8888
PREFIX = "JUPYTERHUB_SERVICE_PREFIX="


def cpu_seconds(pid):
    """Processor time that a process has used so far (proc_pid_stat(5): utime and stime)."""
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def variable(task, start):
    """What follows `start` in a task's environment, or None."""
    environment = task["Spec"].get("ContainerSpec", {}).get("Env") or []
    return next((one.removeprefix(start) for one in environment if one.startswith(start)), None)


async def listens(host):
    """Whether a server's port takes a connection."""
    try:
        _, writer = await asyncio.open_connection(host, PORT)
    except OSError:
        return False
    writer.close()
    return True


class Driver:
    """A client of the hub's API, and of Docker's.

    Args:
        hub: URL of the hub, up to `/hub`.
        token: a service's token.
        pid: the hub's process.
        docker: URL of Docker's API.
    """

    def __init__(self, hub, token, pid, docker):
        """See the class."""
        self.hub, self.pid, self.docker = hub, pid, docker
        self.spec = None
        self.session = aiohttp.ClientSession(
            headers={"Authorization": f"token {token}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=1000),
        )

    async def api(self, method, path, body=None):
        """Ask the hub; returns the status and the text."""
        async with self.session.request(method, f"{self.hub}/api/{path}", json=body) as answer:
            return answer.status, await answer.text()

    async def users(self, names, groups):
        """See the module."""
        status, text = await self.api("POST", "users", {"usernames": names})
        if status not in (201, 409):
            raise RuntimeError(f"{status} {text}")
        for group in groups:
            await self.api("POST", f"groups/{group}")
            status, text = await self.api("POST", f"groups/{group}/users", {"users": names})
            if status != 200:
                raise RuntimeError(f"{status} {text}")
        return {}

    async def start(self, names, options):
        """See the module."""
        seconds, failed, probes = {}, {}, []

        async def press(name):
            try:
                status, text = await self.api("POST", f"users/{name}/server", {"user_options": options})
            except (aiohttp.ClientError, TimeoutError) as error:
                status, text = 0, repr(error)
            if status == 201:
                seconds[name] = time.monotonic() - begun
            else:
                failed[name] = f"{status} {text[:300]}"

        async def probe():
            asked = time.monotonic()
            async with self.session.get(f"{self.hub}/health") as answer:
                await answer.read()
            return time.monotonic() - asked

        async def ask_health():
            while len(probes) < HEALTH_MOST:
                probes.append(asyncio.create_task(probe()))
                await asyncio.sleep(begun + len(probes) * HEALTH_PAUSE - time.monotonic())

        cpu, begun = cpu_seconds(self.pid), time.monotonic()
        asking = asyncio.create_task(ask_health())
        await asyncio.gather(*(press(name) for name in names))
        took, cpu = time.monotonic() - begun, cpu_seconds(self.pid) - cpu
        asking.cancel()
        # the slowest may still be under way
        health = await asyncio.gather(*probes)
        return {"seconds": seconds, "failed": failed, "took": took, "cpu": cpu, "health": health}

    async def stop(self, names):
        """See the module."""
        answers = await asyncio.gather(*(self.api("DELETE", f"users/{name}/server") for name in names))
        for name, (status, text) in zip(names, answers, strict=True):
            if status not in (202, 204, 400, 404):
                raise RuntimeError(f"stop of {name}: {status} {text}")
        # upstream's stop returns while the server still runs
        prefixes = {f"/user/{name}/" for name in names}
        while any(variable(task, PREFIX) in prefixes for task in await self.tasks()):
            await asyncio.sleep(0.2)
        return {}

    # -- without the hub

    async def engine(self, method, path, body=None, **query):
        """Ask Docker; returns the answer's JSON, and the seconds that it took."""
        begun = time.monotonic()
        params = {key: json.dumps(value) for key, value in query.items()}
        async with self.session.request(method, f"{self.docker}/{path}", json=body, params=params) as answer:
            text = await answer.text()
        took = time.monotonic() - begun
        if answer.status >= 400:
            raise RuntimeError(f"Docker: {answer.status} {text}")
        return (json.loads(text) if text.strip() else None), took

    async def tasks(self):
        """All tasks of the swarm that have not ended."""
        found, _ = await self.engine("GET", "tasks")
        ended = {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
        return [task for task in found if task["Status"]["State"] not in ended]

    async def remember(self, name):
        """See the module: `spec`."""
        (task,) = [one for one in await self.tasks() if variable(one, PREFIX) == f"/user/{name}/"]
        service, _ = await self.engine("GET", f"services/{task['ServiceID']}")
        self.spec = service["Spec"]
        return {"spec": self.spec}

    async def raw(self, change):
        """See the module."""
        spec, key = copy.deepcopy(self.spec), secrets.token_hex(8)
        container = spec["TaskTemplate"]["ContainerSpec"]
        container.update(change)
        spec["Name"], spec["Labels"] = f"bench-raw-{key}", {"bench-raw": key}
        container["Labels"] = dict(spec["Labels"])
        url = f"http://{spec['Name']}:{PORT}{variable({'Spec': spec['TaskTemplate']}, PREFIX)}api"
        mine = {"label": [f"bench-raw={key}"]}
        timings, states, begun = {}, [], time.monotonic()

        async def timed(kind, *request, **query):
            answer, took = await self.engine(*request, **query)
            timings.setdefault(kind, []).append(took)
            return answer

        created = await timed("create", "POST", "services/create", spec)
        try:
            task = await self.follow(timed, mine, spec["Name"], states, begun)
            seconds = time.monotonic() - begun
            states.append(["answers", seconds])
            while not await self.answers(url):
                await asyncio.sleep(LOOK_PAUSE)
            http = time.monotonic() - begun
            # what the spawners ask besides
            await timed("service", "GET", f"services/{created['ID']}")
            await timed("node", "GET", f"nodes/{task['NodeID']}")
            await timed("services", "GET", "services", filters=mine)
        finally:
            begun = time.monotonic()
            await timed("remove", "DELETE", f"services/{created['ID']}")
            while (await self.engine("GET", "tasks", filters=mine))[0]:
                await asyncio.sleep(LOOK_PAUSE)
        end = time.monotonic() - begun
        return {"seconds": seconds, "http": http, "requests": timings, "states": states, "end": end}

    async def follow(self, timed, mine, host, states, begun):
        """Watch a task until its server's port answers.

        Args:
            timed: asks Docker and keeps the time.
            mine: filter for the task.
            host: name of the service.
            states: takes [state, seconds].
            begun: when the service was asked for.

        Returns:
            The task.
        """
        while True:
            tasks = await timed("tasks", "GET", "tasks", filters=mine)
            state = tasks[0]["Status"]["State"] if tasks else "new"
            if not states or states[-1][0] != state:
                states.append([state, time.monotonic() - begun])
            if state in ("rejected", "failed", "complete"):
                raise RuntimeError(f"raw start: {tasks[0]['Status']}")
            if state == "running" and await listens(host):
                return tasks[0]
            await asyncio.sleep(LOOK_PAUSE)

    async def answers(self, url):
        """Whether a server answers what the hub asks of one that is to be ready."""
        try:
            async with self.session.get(url) as answer:
                return answer.status < 500
        except aiohttp.ClientError:
            return False


async def main():
    """Answer requests until standard input ends."""
    driver = Driver(**json.loads(sys.argv[1]))
    calls = {
        "users": driver.users,
        "start": driver.start,
        "stop": driver.stop,
        "spec": driver.remember,
        "raw": driver.raw,
    }
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            request = json.loads(line)
            try:
                answer = await calls[request.pop("do")](**request)
            except Exception as error:
                answer = {"error": repr(error)}
            print(json.dumps(answer), flush=True)
    finally:
        await driver.session.close()


if __name__ == "__main__":
    asyncio.run(main())
