"""`python -m dspex_pipelines.bridge`: serve sessions and the dispatcher on one address."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Mapping

from dspex_pipelines.bridge.server import CREDIT_LIMIT, HEARTBEAT_TIMEOUT_S, Bridge
from dspex_pipelines.bridge.sessions import SessionLimits
from dspex_pipelines.errors import DspexError
from dspex_pipelines.wire.loop import run_process


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal, or until a supervisor goes or gives up."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Bridge(
        arguments.address,
        allow=tuple(arguments.allow or ["*"]),
        credit_limit=arguments.credit_limit,
        heartbeat_timeout_s=arguments.heartbeat_timeout_s,
        session_limits=SessionLimits(
            ttl_s=arguments.session_ttl_s,
            sessions=arguments.most_sessions,
            session_bytes=arguments.most_session_bytes,
            total_bytes=arguments.most_bytes,
        ),
        tell=_say if arguments.supervised else _nobody,
    ) as bridge:
        if arguments.supervised:

            async def drain() -> None:
                await bridge.drain()
                _say({"drained": True})

            def hear() -> None:
                for line in sys.stdin.buffer:
                    message = json.loads(line)
                    match message:
                        case {"failing": reason}:
                            loop.call_soon_threadsafe(bridge.fail, reason)
                        case {"started": worker_id}:
                            loop.call_soon_threadsafe(bridge.hub.endings.begin, worker_id)
                        case {"ended": worker_id, "code": code}:
                            loop.call_soon_threadsafe(bridge.hub.process_ended, worker_id, code)
                        case _:
                            asyncio.run_coroutine_threadsafe(drain(), loop)
                loop.call_soon_threadsafe(stop.set)

            threading.Thread(target=hear, daemon=True).start()
        _say({"address": bridge.address})
        await stop.wait()


def _say(message: Mapping[str, object]) -> None:
    """Tell whoever reads our standard output; nobody may."""
    with contextlib.suppress(OSError):
        print(json.dumps(message), flush=True)


def _nobody(_: Mapping[str, object]) -> None:
    """There is no supervisor who would need to know."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.bridge", description=__doc__)
    parser.add_argument("--address", required=True, help="unix:/path, or a loopback host:port (port 0: any)")
    parser.add_argument("--allow", action="append", help="glob of entry points that may run; may be repeated")
    parser.add_argument("--credit-limit", type=int, default=CREDIT_LIMIT, help="uncommitted trials per client")
    parser.add_argument("--heartbeat-timeout-s", type=float, default=HEARTBEAT_TIMEOUT_S)
    limits = SessionLimits()
    parser.add_argument("--session-ttl-s", type=float, default=limits.ttl_s, help="life of an unused session")
    parser.add_argument("--most-sessions", type=int, default=limits.sessions, help="sessions at once")
    parser.add_argument("--most-session-bytes", type=int, default=limits.session_bytes, help="of one session's values")
    parser.add_argument("--most-bytes", type=int, default=limits.total_bytes, help="of all sessions")
    parser.add_argument("--supervised", action="store_true", help="hear from standard input, and end when it does")
    try:
        run_process(serve(parser.parse_args()))
    except DspexError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
