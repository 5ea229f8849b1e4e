"""The server as a process of its own, for tests and rehearsals."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

API_KEY_VARIABLE = "DSPEX_LOOPBACK_API_KEY"
_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that is running. `base_url` ends in `/v1`, as clients of OpenAI want it."""

    base_url: str
    pid: int

    def stats(self) -> dict[str, Any]:
        """Return what it has counted since its start or its last reset."""
        return self._call("/stats")

    def control(self, **options: object) -> dict[str, Any]:
        """Change how it behaves (`reset=True`: and count anew), and return all options as they are now.

        Raises `urllib.error.HTTPError` for what is no option or no value of it.
        """
        return self._call("/control", json.dumps(options).encode())

    def _call(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        url = self.base_url.removesuffix("/v1") + path
        # Not by the environment's proxy, which is for elsewhere.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, body, timeout=_DEADLINE_S) as response:
            return json.load(response)


@contextlib.contextmanager
def serving(*, api_key: str = "", answers: str = "hashed", port: int = 0, **options: object) -> Generator[Server]:
    """Run a server until the end of the block, or of this process however that comes about.

    *options* are the fields of `Behaviour`; *answers* is what `--answers` takes. Raises RuntimeError where the server
    does not start, which says why on standard error.
    """
    command = [sys.executable, "-m", "dspex_pipelines.loopback", "--until-stdin-ends"]
    command += ["--port", str(port), "--answers", answers]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(flag)
        elif value is not False:
            command.append(f"{flag}={value}")
    # By the environment, because command lines are for all to see.
    environment = {name: value for name, value in os.environ.items() if name != API_KEY_VARIABLE}
    if api_key:
        environment[API_KEY_VARIABLE] = api_key
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        base_url = process.stdout.readline().decode().strip()
        if not base_url:
            raise RuntimeError(f"the server ended with status {process.wait()} before it served")
        yield Server(base_url=base_url, pid=process.pid)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
