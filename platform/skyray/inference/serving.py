"""Start a Serve application from its configuration file and hold it until asked to stop."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import ServeDeploySchema

from skyray.config import ConfigError
from skyray.runtime import places

TOKEN_VARIABLE = "SKYRAY_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def load_service(
    path: str | os.PathLike,
    args: Mapping[str, Any] | None = None,
    host: str | None = None,
    port: int | None = None,
) -> ServeDeploySchema:
    """Read a Serve configuration; `args`, `host` and `port` replace what the file says.

    Raises
    ------
    ConfigError
        If the file is not there or not valid, or opens the service to the network without a token.
    """
    place = os.fspath(path)
    try:
        text = places.read_bytes(place)
    except OSError:
        raise ConfigError(
            f"{place}: no such configuration (serve/config.yaml of the repository?)"
        ) from None
    try:
        content = yaml.safe_load(text)
        for application in content["applications"]:
            application["args"] = {**(application.get("args") or {}), **(args or {})}
        http = content.setdefault("http_options", {})
        http.update({k: v for k, v in (("host", host), ("port", port)) if v is not None})
        config = ServeDeploySchema.model_validate(content)
    except (ValidationError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{place}: not a Serve configuration: {error}") from None
    if config.http_options.host not in LOOPBACK and not os.environ.get(TOKEN_VARIABLE):
        raise ConfigError(
            f"host {config.http_options.host}: opens the service to the network; set "
            f"{TOKEN_VARIABLE} to the token clients must send, or use 127.0.0.1"
        )
    return config


@contextmanager
def running_service(config: ServeDeploySchema) -> Iterator[str]:
    """Run all applications of `config` on the Ray that has been joined; yield their address.

    At the end of the block the applications are deleted again, and Serve is shut down unless it
    was running before.

    Raises
    ------
    ConfigError
        If Serve already runs on this Ray at another address: it cannot be moved.
    """
    ours = not serve.status().proxies
    serve.start(proxy_location=config.proxy_location, http_options=config.http_options.model_dump())
    names = []
    try:
        for application in config.applications:
            builder = _import(application.import_path)
            serve.run(
                builder(application.args),
                name=application.name,
                route_prefix=application.route_prefix,
            )
            names.append(application.name)
        url = f"http://{config.http_options.host}:{config.http_options.port}"
        if not ours:
            _check_address(url)
        yield url
    finally:
        if ours:
            serve.shutdown()
        else:
            for name in names:
                serve.delete(name)


def _check_address(url: str) -> None:
    try:
        requests.get(f"{url}/-/healthz", timeout=30)
    except requests.ConnectionError:
        raise ConfigError(
            f"{url}: Serve already runs on this Ray at another address, which cannot be changed "
            "while it runs; name that address (--host, --port), or shut Serve down first"
        ) from None


def wait_for_signal() -> None:
    """Block until SIGINT or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()


def _import(import_path: str):
    """Return the application builder; the repository's root holds the ``serve`` folder."""
    root = str(Path(__file__).resolve().parents[3])
    if root not in sys.path:
        sys.path.insert(0, root)
    module, _, name = import_path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"import_path {import_path!r}: {error}") from None
