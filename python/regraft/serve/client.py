"""One server of `regraft serve`: the weights of its models."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit


class ServerError(Exception):
    """A server refused a request, or did not answer.

    `status` is HTTP's, and `None` when there was no answer. `problems` are pairs of a name and what is
    wrong with it.
    """

    def __init__(self, server: str, status: int | None, answer: Mapping[str, Any]) -> None:
        self.server = server
        self.status = status
        self.problems = [(problem["name"], problem["what"]) for problem in answer.get("problems", [])]
        lines = [f"{server}: {answer.get('error', f'status {status}')}"]
        lines += [f"  {name}  {what}" for name, what in self.problems]
        if "help" in answer:
            lines.append(f"  help: {answer['help']}")
        super().__init__("\n".join(lines))


class Client:
    """The weights of the models of one server.

    Args:
        server: `host:port`, or a URL with `http` or `https`.
        token: a token with the right to change weights, where the server asks for one.
        timeout: seconds that a request may take.
        context: how TLS is checked; the system's certificates by default.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        timeout: float = 600.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.server = server
        parts = urlsplit(server if "://" in server else f"http://{server}")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"`{server}` is not a server: expected HOST:PORT, or http://HOST:PORT")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._secure else 8000)
        self._token, self._timeout, self._context = token, timeout, context

    def status(self, model: str) -> dict[str, Any]:
        """What serves, what is staged and what was done.

        Raises:
            ServerError: the server refuses, or does not answer.
        """
        return self._call("GET", model, "status")

    def stage(
        self,
        model: str,
        weights: str | Path | bytes | None = None,
        *,
        kind: str = "weights",
        file: str | None = None,
        adapters: Mapping[str, float] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Makes a generation, which does not serve yet.

        Gives the server's answer; `["staged"]["digest"]` tells what would serve.

        Args:
            model: its name.
            weights: what is sent: a file in the format of safetensors, or a delta of `regraft delta`, or its
                bytes.
            kind: what that is: `weights`, `delta` or `adapter`.
            file: instead, a file below the server's folder of weights.
            adapters: the adapters from now on with their scales, of the server's folder of adapters.
            **options: as the server takes them: `partial`, `ignore_unknown`, `reject_non_finite`, ...

        Raises:
            ServerError: the weights do not fit; all problems are listed, and nothing has changed.
        """
        if weights is None:
            body: dict[str, Any] = dict(options, kind=kind)
            if file is not None:
                body["file"] = file
            if adapters is not None:
                body["adapters"] = [{"name": name, "scale": scale} for name, scale in adapters.items()]
            return self._call("POST", model, "stage", json.dumps(body).encode(), "application/json")
        if file is not None or adapters is not None:
            raise ValueError("weights that are sent go alone: neither with `file` nor with `adapters`")
        words = {
            name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()
        }
        query = urlencode({"kind": kind, **words})
        data = weights if isinstance(weights, bytes) else Path(weights).read_bytes()
        return self._call("POST", model, f"stage?{query}", data, "application/octet-stream")

    def publish(self, model: str, digest: str | None = None) -> dict[str, Any]:
        """Makes what was staged serve; with its `digest` the call may be repeated.

        Raises:
            ServerError: nothing is staged, or something else is.
        """
        return self._call("POST", model, "publish", _expecting(digest), "application/json")

    def rollback(self, model: str, digest: str | None = None) -> dict[str, Any]:
        """Makes the generation before serve again.

        Raises:
            ServerError: none was kept.
        """
        return self._call("POST", model, "rollback", _expecting(digest), "application/json")

    def discard(self, model: str) -> dict[str, Any]:
        """Lets go of what is staged.

        Raises:
            ServerError: the server refuses, or does not answer.
        """
        return self._call("DELETE", model, "stage")

    def _call(
        self, method: str, model: str, path: str, body: bytes | None = None, content_type: str | None = None
    ) -> dict[str, Any]:
        headers = {"Content-Type": content_type} if content_type else {}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection: http.client.HTTPConnection
        if self._secure:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            connection.request(method, f"/v2/models/{model}/weights/{path}", body, headers)
            answer = connection.getresponse()
            data, status = answer.read(), answer.status
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(self.server, None, {"error": f"no answer: {error}"}) from error
        finally:
            connection.close()
        try:
            value = json.loads(data)
        except ValueError:
            value = {}
        if status != 200 or not isinstance(value, dict):
            raise ServerError(self.server, status, value if isinstance(value, dict) else {})
        return value


def _expecting(digest: str | None) -> bytes:
    return json.dumps({} if digest is None else {"digest": digest}).encode()
