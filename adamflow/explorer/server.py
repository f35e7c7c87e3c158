"""The server of the page: Bokeh's, on the loopback address alone."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from bokeh.application import Application
from bokeh.application.handlers import FunctionHandler
from bokeh.server.server import Server

from adamflow.explorer.model import Settings, prepare
from adamflow.explorer.page import Page

#: Not "localhost", which another address may stand behind.
ADDRESS = "127.0.0.1"


def run(port: int, show: bool) -> None:
    """Serve until Ctrl-C; what the page needs first is compiled while the browser starts."""
    jax.config.update("jax_enable_x64", True)
    port = _checked_port(port)
    compiler = ThreadPoolExecutor(max_workers=1)
    server = make_server(port, compiler)
    compiler.submit(prepare, Settings().k, Settings().order)
    print(f"The explorer is at http://{ADDRESS}:{port}/ - Ctrl-C ends it", flush=True)
    server.start()
    if show:
        server.io_loop.add_callback(server.show, "/")
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        print("The explorer has ended.")
    finally:
        server.stop()
        compiler.shutdown(wait=False, cancel_futures=True)


def make_server(port: int, compiler: ThreadPoolExecutor) -> Server:
    """A server that other machines cannot reach, and other pages of the browser cannot use."""

    def open_page(document: Any) -> None:
        Page(document, compiler)

    return Server(
        {"/": Application(FunctionHandler(open_page))},
        port=port,
        address=ADDRESS,
        allow_websocket_origin=[f"{ADDRESS}:{port}"],
    )


def _checked_port(port: int) -> int:
    """A port that can be had, any for 0; `OSError` if it is taken."""
    with socket.socket() as probe:
        # As the server does: a port that was in use a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((ADDRESS, port))
        return probe.getsockname()[1]
