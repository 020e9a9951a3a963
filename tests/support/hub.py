"""The hub as its users see it: login page, API, notebook server, kernels.

All through the edge, over HTTPS with the CA verified.
"""

from __future__ import annotations

import html
import json
import re
import ssl
import time
import uuid
from typing import Any

import requests
import websocket
from cluster import wait_for

# A lab node makes a server's container, mounts its home and starts Python in well under a minute.
START_TIMEOUT = 240
STOP_TIMEOUT = 120
REQUEST_TIMEOUT = 60


class LoginRefused(AssertionError):  # noqa: N818 - reads as what happened
    """The login page came back; the message is the one that it shows."""


class SpawnFailed(AssertionError):  # noqa: N818
    """The server did not start; the message is the one that the user reads."""


class HubUser:
    """One user in one browser session.

    Args:
        url: Address of the hub without a path.
        ca: File of the CA certificate.
        name: User name.
        password: Password, by default that of the demo directory.
    """

    def __init__(self, url: str, ca: str, name: str, password: str | None = None) -> None:
        """Prepare a session; nothing is sent yet."""
        self.url = url
        self.ca = ca
        self.name = name
        self.password = f"{name}-lab-password" if password is None else password
        self.session = requests.Session()
        # Else a REQUESTS_CA_BUNDLE of the environment would take the place of the cluster's CA.
        self.session.trust_env = False
        self.session.verify = ca
        self.token = ""
        self._kernel: Kernel | None = None

    def get(self, path: str, **options: Any) -> requests.Response:
        """Get a page with the session's cookies."""
        return self.session.get(f"{self.url}{path}", timeout=REQUEST_TIMEOUT, **options)

    def login(self) -> HubUser:
        """Log in by the form, as a browser does, and make an API token of the user's own.

        Raises:
            LoginRefused: With the page's message.
        """
        page = self.get("/hub/login")
        page.raise_for_status()
        form = {
            "username": self.name,
            "password": self.password,
            "_xsrf": self.session.cookies.get("_xsrf", path="/hub/"),
        }
        answer = self.session.post(
            f"{self.url}/hub/login?next=%2Fhub%2Fhome",
            data=form,
            timeout=REQUEST_TIMEOUT,
            allow_redirects=False,
        )
        if answer.status_code != 302:
            raise LoginRefused(login_message(answer.text) or f"{answer.status_code} {page_text(answer.text)}")
        # The home page gives the session's own XSRF cookie; the login page's was an anonymous one.
        self.get("/hub/home").raise_for_status()
        answer = self.session.post(
            f"{self.url}/hub/api/users/{self.name}/tokens",
            json={"note": "tests", "expires_in": 7200},
            headers={"X-XSRFToken": self.session.cookies.get("_xsrf", path="/hub/")},
            timeout=REQUEST_TIMEOUT,
        )
        answer.raise_for_status()
        self.token = answer.json()["token"]
        return self

    def logged_in(self) -> bool:
        """Whether the session's cookie still opens the home page."""
        return self.get("/hub/home", allow_redirects=False).status_code == 200

    def api(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask the hub or the user's server with the token, without cookies."""
        headers = {"Authorization": f"token {self.token}"}
        timeout = options.pop("timeout", REQUEST_TIMEOUT)
        return requests.request(
            method, f"{self.url}{path}", headers=headers, verify=self.ca, timeout=timeout, **options
        )

    def model(self) -> dict[str, Any]:
        """The user as the hub's API shows it."""
        answer = self.api("GET", f"/hub/api/users/{self.name}")
        answer.raise_for_status()
        return answer.json()

    @property
    def server(self) -> dict[str, Any] | None:
        """The default server's model, None when it is stopped."""
        return self.model()["servers"].get("")

    def start(self) -> HubUser:
        """Start the server unless it runs, and wait until it answers.

        Raises:
            SpawnFailed: With the messages the user reads on the progress page.
        """
        server = self.server
        if server and server["ready"]:
            return self
        self.spawn()
        wait_for("the server's own API", self._answers, timeout=START_TIMEOUT)
        return self

    def request_start(self, options: dict[str, Any] | None = None) -> requests.Response:
        """Press the start button: 201 when the server is ready, 202 while it starts, else why not.

        Args:
            options: The form's answers, `user_options` of the spawner.
        """
        path = f"/hub/api/users/{self.name}/server"
        # Without options the hub would take those of the last start.
        body = {"user_options": options or {}}
        return self.api("POST", path, json=body, timeout=START_TIMEOUT)

    def spawn(self, options: dict[str, Any] | None = None) -> list[str]:
        """Start the server and return when the hub calls it ready.

        Args:
            options: The form's answers, `user_options` of the spawner.

        Returns:
            The messages of the progress page, as far as there was time to show them.

        Raises:
            SpawnFailed: With the messages the user reads on the progress page.
        """
        answer = self.request_start(options)
        if answer.status_code >= 400:
            raise SpawnFailed(json_message(answer))
        # after a failed start JupyterHub 6.1 says 201, although the server only begins to start
        return self.follow_progress()

    def request_stop(self) -> requests.Response:
        """Press the stop button: 204 when the server is gone, 202 while it ends, 400 if there is none."""
        return self.api("DELETE", f"/hub/api/users/{self.name}/server", timeout=STOP_TIMEOUT)

    def follow_progress(self) -> list[str]:
        """Read the progress events until the server is ready, as the spawn page does."""
        deadline = time.monotonic() + START_TIMEOUT
        messages: list[str] = []
        path = f"/hub/api/users/{self.name}/server/progress"
        # The stream sends empty lines while nothing happens, so a read always ends.
        with self.api("GET", path, stream=True) as stream:
            if stream.status_code == 400:
                return messages  # ended meanwhile; whether well is for the caller to see
            stream.raise_for_status()
            for line in stream.iter_lines(decode_unicode=True):
                assert time.monotonic() < deadline, f"the server is not ready: {messages}"
                if not line.startswith("data:"):
                    continue
                event = json.loads(line.removeprefix("data:"))
                messages.append(event.get("message", ""))
                if event.get("failed"):
                    raise SpawnFailed("\n".join(messages))
                if event.get("ready"):
                    return messages
        raise SpawnFailed("the progress ended without a result:\n" + "\n".join(messages))

    def _answers(self) -> bool:
        return self.notebook_api("GET", "status").status_code == 200

    def stop(self) -> None:
        """Stop the server if there is one and wait until it is gone."""
        answer = self.request_stop()
        assert answer.status_code in (202, 204, 400), answer.text
        wait_for("the server's end", lambda: self.server is None, timeout=STOP_TIMEOUT)

    def notebook_api(self, method: str, path: str, **options: Any) -> requests.Response:
        """Ask the user's own server, through the proxy."""
        return self.api(method, f"/user/{self.name}/api/{path}", **options)

    def kernel(self, name: str = "python3") -> Kernel:
        """Start a kernel, by its kernelspec's name."""
        answer = self.notebook_api("POST", "kernels", json={"name": name})
        answer.raise_for_status()
        return Kernel(self, answer.json()["id"])

    def run(self, code: str, timeout: float = 90) -> str:
        """Run code in a Python kernel and return what it prints.

        All goes to one kernel of the server, as a notebook's cells do: a kernel takes seconds to start.

        Raises:
            AssertionError: When the code raises.
        """
        if self._kernel is None or not self._kernel.runs():
            self._kernel = self.kernel()
        return self._kernel.run(code, timeout)

    def shell(self, command: str, timeout: float = 120) -> str:
        """Run a command of the shell in the server, and return what it prints, errors included.

        Raises:
            AssertionError: When it fails.
        """
        code = (
            "import subprocess\n"
            f"done = subprocess.run({command!r}, shell=True, text=True, stdout=subprocess.PIPE, "
            "stderr=subprocess.STDOUT)\n"
            "print(done.stdout)\n"
            "assert done.returncode == 0, f'exit code {done.returncode}: {done.stdout}'"
        )
        return self.run(code, timeout)

    def json(self, code: str, timeout: float = 90) -> Any:
        """Run code that prints JSON, and decode it."""
        return json.loads(self.run(code, timeout))


class Kernel:
    """A running kernel, spoken to over a websocket through edge and proxy."""

    def __init__(self, user: HubUser, identifier: str) -> None:
        """Remember whose kernel it is; `run` connects."""
        self.user = user
        self.id = identifier

    def run(self, code: str, timeout: float = 90) -> str:
        """Execute code and return what it prints, together with the value of its last line.

        Args:
            code: In the kernel's language.
            timeout: Seconds until the kernel must be idle again.

        Raises:
            AssertionError: When the code raises, or at the deadline.
        """
        address = self.user.url.replace("https:", "wss:", 1)
        session = uuid.uuid4().hex
        connection = websocket.create_connection(
            f"{address}/user/{self.user.name}/api/kernels/{self.id}/channels?session_id={session}",
            header={"Authorization": f"token {self.user.token}"},
            sslopt={"ca_certs": self.user.ca, "cert_reqs": ssl.CERT_REQUIRED},
            timeout=timeout,
        )
        try:
            return self._execute(connection, session, code, timeout)
        finally:
            connection.close()

    def _execute(self, connection: websocket.WebSocket, session: str, code: str, timeout: float) -> str:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "session": session,
            "username": self.user.name,
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": header, "content": content, "channel": "shell"}
        connection.send(json.dumps({**message, "parent_header": {}, "metadata": {}, "buffers": []}))
        deadline = time.monotonic() + timeout
        printed: list[str] = []
        replied = idle = False
        while not (replied and idle):
            assert time.monotonic() < deadline, f"the kernel still works after {timeout} s: {printed}"
            try:
                answer = json.loads(connection.recv())
            except websocket.WebSocketTimeoutException as error:
                raise AssertionError(f"the kernel is silent for {timeout} s: {printed}") from error
            if answer.get("parent_header", {}).get("msg_id") != header["msg_id"]:
                continue
            kind, content = answer["msg_type"], answer["content"]
            if kind == "stream":
                printed.append(content["text"])
            elif kind == "execute_result":
                printed.append(content["data"]["text/plain"])
            elif kind == "error":
                raise AssertionError("\n".join(content["traceback"]))
            elif kind == "execute_reply":
                replied = True
            elif kind == "status":
                idle = content["execution_state"] == "idle"
        return "".join(printed)

    def runs(self) -> bool:
        """Whether the user's server has this kernel; one that was started since has not."""
        return self.user.notebook_api("GET", f"kernels/{self.id}").status_code == 200

    def shutdown(self) -> None:
        """End the kernel."""
        self.user.notebook_api("DELETE", f"kernels/{self.id}")


def login_message(page: str) -> str:
    """What the login page tells the user, empty if nothing."""
    found = re.search(r'class="[^"]*login_error[^"]*"[^>]*>(.*?)<', page, re.DOTALL)
    return " ".join(html.unescape(found.group(1)).split()) if found else ""


def page_text(page: str) -> str:
    """What a page says, without its elements."""
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def json_message(answer: requests.Response) -> str:
    """The message of an API error."""
    try:
        return answer.json()["message"]
    except (ValueError, KeyError):
        return answer.text
