"""`python -m dspex_pipelines.bridge`: serve sessions and the dispatcher on one address."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import threading

from dspex_pipelines.bridge.server import CREDIT_LIMIT, HEARTBEAT_TIMEOUT_S, Bridge
from dspex_pipelines.errors import DspexError
from dspex_pipelines.wire.loop import run_process


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal, or until standard input ends where that was asked for."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def watch_stdin() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    if arguments.die_with_stdin:
        threading.Thread(target=watch_stdin, daemon=True).start()
    async with Bridge(
        arguments.address,
        allow=tuple(arguments.allow or ["*"]),
        credit_limit=arguments.credit_limit,
        heartbeat_timeout_s=arguments.heartbeat_timeout_s,
    ) as bridge:
        print(json.dumps({"address": bridge.address}), flush=True)
        await stop.wait()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.bridge", description=__doc__)
    parser.add_argument("--address", required=True, help="unix:/path, or a loopback host:port (port 0: any)")
    parser.add_argument("--allow", action="append", help="glob of entry points that may run; may be repeated")
    parser.add_argument("--credit-limit", type=int, default=CREDIT_LIMIT, help="uncommitted trials per client")
    parser.add_argument("--heartbeat-timeout-s", type=float, default=HEARTBEAT_TIMEOUT_S)
    parser.add_argument("--die-with-stdin", action="store_true", help="end when standard input does")
    try:
        run_process(serve(parser.parse_args()))
    except DspexError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
