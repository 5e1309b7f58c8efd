"""Start the app in the browser."""

from __future__ import annotations

import argparse
import os


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Where it listens."""
    parser.add_argument("--port", type=int, help="port to listen on (default 7860, or GRADIO_SERVER_PORT)")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1, or GRADIO_SERVER_NAME)")


def run(options: argparse.Namespace) -> None:
    """Serve the app until Ctrl-C."""
    port = os.environ.get("GRADIO_SERVER_PORT") if options.port is None else str(options.port)
    if port and not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"The port must be a number from 1 to 65535, not {port}.")
    from opd.ui import launch

    launch(host=options.host, port=options.port)
