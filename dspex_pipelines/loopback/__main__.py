"""`python -m dspex_pipelines.loopback`: serve OpenAI's chat completions on this machine, and misbehave on cue."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import socket
import sys
import threading
from dataclasses import fields
from typing import Any, cast

import uvicorn

from dspex_pipelines.loopback.answers import Answerer, hashed
from dspex_pipelines.loopback.application import Application
from dspex_pipelines.loopback.behaviour import Behaviour
from dspex_pipelines.loopback.process import API_KEY_VARIABLE

HOST = "127.0.0.1"
_BACKLOG = 2048
_HELP = {
    "latency_s": "mean seconds until an answer",
    "jitter": "each request's latency is its own, within this fraction of the mean",
    "requests_per_s": "refuse what is above with 429 (0: nothing)",
    "burst": "requests let through at once after a pause",
    "tokens_per_minute": "of prompts and answers; refuse what is above with 429 (0: nothing)",
    "error_rate": "share of requests that fail with 500",
    "overload_rate": "share that fails with 503 or 529",
    "hang_rate": "share that is never answered",
    "malformed_rate": "share whose answer no adapter of DSPy can parse",
    "drop_rate": "share whose connection is closed without an answer",
    "down": "close every connection without an answer",
    "context_tokens": "refuse longer prompts with 400 (0: none)",
    "filter": "refuse prompts with this word with 400",
    "models": "names with commas between; refuse others with 404 (none: all are there)",
    "seed": "another seed, other requests that meet a fault",
}


def answerer(name: str) -> Answerer:
    """Return the answerer called *name*: hashed, qa_rag, or any as `module:attribute`."""
    if name == "hashed":
        return hashed
    if name == "qa_rag":
        name = "dspex_pipelines.loopback.passages:choose_passage"
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"there are no answers {name!r}; give hashed, qa_rag or module:attribute")
    return cast("Answerer", getattr(importlib.import_module(module), attribute))


def main() -> None:
    """Run the command line."""
    arguments = _parser().parse_args()
    given = vars(arguments)
    try:
        behaviour = Behaviour(**{field.name: given[field.name] for field in fields(Behaviour)})
        application = Application(
            behaviour=behaviour,
            answerer=answerer(arguments.answers),
            api_key=arguments.api_key or os.environ.get(API_KEY_VARIABLE, ""),
        )
        listener = socket.create_server((HOST, arguments.port), backlog=_BACKLOG)
    except (ValueError, ImportError, AttributeError, OSError) as error:
        sys.exit(f"error: {error}")
    config = uvicorn.Config(
        cast("Any", application),
        interface="asgi3",
        lifespan="off",
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_level="error",
        server_header=False,
        timeout_keep_alive=600,
        timeout_graceful_shutdown=1,
        backlog=_BACKLOG,
    )
    if arguments.until_stdin_ends:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    # The socket listens already: who connects now is served as soon as the loop runs.
    _tell(listener.getsockname()[1], arguments.api_key)
    server = _Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends at once: requests that hang by intention would keep it from that."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take the first signal as others take the second."""
        self.force_exit = True
        super().handle_exit(sig, frame)


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _tell(port: int, api_key: str) -> None:
    """Print the base URL, and how the packaged example gets to know it; no key is printed."""
    base_url = f"http://{HOST}:{port}/v1"
    key = "no-real-key"
    if api_key:
        key = "...  # what --api-key says"
    elif os.environ.get(API_KEY_VARIABLE):
        key = f'"${API_KEY_VARIABLE}"'
    with contextlib.suppress(OSError):
        print(base_url)
        print(f"export DSPEX_QA_API_BASE={base_url}")
        print(f"export DSPEX_QA_API_KEY={key}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.loopback", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--api-key", default="", help=f"the only key that is taken; better in {API_KEY_VARIABLE}")
    parser.add_argument("--answers", default="hashed", help="hashed, qa_rag, or an answerer as module:attribute")
    parser.add_argument("--until-stdin-ends", action="store_true", help="end when standard input does")
    for field in fields(Behaviour):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", help=_HELP[field.name])
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default, help=_HELP[field.name])
    return parser


if __name__ == "__main__":
    main()
