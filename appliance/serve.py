"""`appliance serve`: settings from argv, one event loop, signals; what runs in it is built by `app.py`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from appliance import config, log
from appliance.app import App
from appliance.errors import ApplianceError, InvalidParameter
from appliance.model.network import check_interface_name

SWITCH_INTERVAL_S = 1e-4
"""How long one Python thread may keep the interpreter from another: vCPU threads and the loop share it (ADR 0006)."""

BLOCKING_CALLS = 48
"""How many blocking calls of all guests and storages may be under way. asyncio's own default, the processors and four,
is for work that computes; ours waits: for a disk's flush, a file server that has gone, a mount. Six of those on a small
host would keep every other guest, console and page waiting. A thread is made only when no other is free."""

logger = logging.getLogger(__name__)


def parse(arguments: Sequence[str]) -> config.Config:
    """Settings of this process. Exits with 2 and usage on a wrong argument; raises `InvalidParameter` for bad values."""
    parser = argparse.ArgumentParser(prog="appliance serve", description="Run the appliance in the foreground.")
    parser.add_argument(
        "--data-dir", type=Path, default=config.DEFAULT_DATA_DIR, metavar="DIR", help="default %(default)s"
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="sockets of running guests; default under /run")
    parser.add_argument("--listen", default=config.DEFAULT_LISTEN, metavar="ADDR:PORT", help="default %(default)s")
    parser.add_argument("--node-name", default=config.default_node_name(), metavar="NAME", help="default %(default)s")
    parser.add_argument("--admin-password-file", type=Path, metavar="F", help="first start: admin@pve's password")
    parser.add_argument("--bridge", default="vmbr0", metavar="NAME", help="the guests' bridge; default %(default)s")
    parser.add_argument("--proxy", action="append", default=[], metavar="IP", help="believe its X-Forwarded-* headers")
    parser.add_argument("--base-path", default="", metavar="PATH", help="published below this path by a proxy")
    parser.add_argument("--log-format", choices=("plain", "json"), default="plain")
    parser.add_argument("--verbose", action="store_true", help="debug messages too")
    options = parser.parse_args(arguments)
    host, port = config.parse_listen(options.listen)
    data_dir = options.data_dir.absolute()
    return config.Config(
        data_dir=data_dir,
        run_dir=(options.run_dir or config.default_run_dir(data_dir)).absolute(),
        listen_host=host,
        listen_port=port,
        node_name=config.check_node_name(options.node_name),
        admin_password_file=options.admin_password_file,
        bridge=check_interface_name(options.bridge, "bridge"),
        base_path=config.check_base_path(options.base_path),
        proxies=config.check_proxies(options.proxy),
        log_format=options.log_format,
        verbose=options.verbose,
    )


def executor() -> ThreadPoolExecutor:
    """What `asyncio.to_thread` runs in."""
    return ThreadPoolExecutor(BLOCKING_CALLS, thread_name_prefix="asyncio")


async def serve(settings: config.Config) -> None:
    """Run until SIGTERM or SIGINT; the end takes at most the sum of the stages' limits (`App.close`)."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(executor())
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    app = App(settings)
    starting = loop.create_task(app.start(), name="start")
    stop = loop.create_task(stopping.wait(), name="signal")
    try:
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            gc.freeze()  # so does what was read: with a thousand guests a full collection takes as long as ten pages
            await stopping.wait()
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    finally:
        stop.cancel()
        await app.close()


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 after an orderly end, 1 when the start failed (the reason is on stderr), 2 for wrong arguments."""
    try:
        settings = parse(arguments)
    except InvalidParameter as error:
        sys.stderr.write(f"appliance: {error}\n")
        return 2
    log.setup(settings.log_format, level=logging.DEBUG if settings.verbose else logging.INFO)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _allow_all_descriptors()
    gc.enable()
    gc.freeze()  # what the imports made lives as long as the process: no collection need look at it again
    try:
        uvloop.run(serve(settings))
    except ApplianceError as error:
        logger.error("cannot start: %s", error)
        return 1
    return 0


def _allow_all_descriptors() -> None:
    """The soft limit of open files is for programs that use select(2); ours is what the host allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
