"""Settings that let in whoever comes by."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

import psutil

from flows.doctor.asking import ask
from flows.doctor.finding import Finding, look, ok
from flows.local_server import address
from storage.receipts import without_secrets
from tasks.runtime import Runtime

SECONDS = 5
# What each server answers to anybody who may use it, and to nobody else.
OPEN_PAGES = {"Prefect": "/admin/version", "MLflow": "/api/2.0/mlflow/experiments/search?max_results=1"}


def exposure(runtime: Runtime) -> Iterator[Finding]:
    """Servers that other machines can reach and that ask for no password; passwords where they can be read."""
    servers = {"Prefect": runtime.prefect_api_url or address(runtime), "MLflow": runtime.tracking_uri}
    urls = {name: url for name, url in servers.items() if url and url.startswith("http")}
    found = [finding for name, url in urls.items() for finding in _unsafe(name, url)]
    yield from found
    if not found:
        yield ok("who may come in", "nobody from another machine, or with a password" if urls else "no server runs")


def _unsafe(name: str, url: str) -> Iterator[Finding]:
    parts, shown = urlsplit(url), without_secrets(url)
    if parts.password:
        yield look(name, f"the address of {shown} holds a password", _secret_variable(name))
    reach = _reach(parts)
    if reach is None:
        return
    is_open = ask(f"{shown.rstrip('/')}{OPEN_PAGES[name]}", seconds=SECONDS).status == 200
    if is_open:
        harm = "and make workers run code" if name == "Prefect" else "and change runs and models"
        yield look(
            name, f"{reach} and asks for no password: whoever reaches it may read {harm}", _secret_variable(name)
        )
    elif parts.scheme == "http":
        yield look(name, f"{reach}; its password crosses the wire readable", "a reverse proxy with TLS before it")


def _reach(parts: SplitResult) -> str | None:
    """How other machines reach a server, in words; None when they do not."""
    host = parts.hostname or ""
    if not _is_loopback(host):
        return f"{host} is another machine's name, or known to others"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    }
    beyond = sorted(place for place in listening if not _is_loopback(place))
    return f"port {port} listens on {', '.join(beyond)}" if beyond else None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        places = {place[4][0] for place in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return all(ip_address(place).is_loopback for place in places)


def _secret_variable(name: str) -> str:
    if name == "Prefect":
        return "PREFECT_SERVER_API_AUTH_STRING for the server, PREFECT_API_AUTH_STRING here, or loopback alone"
    return "mlflow server --app-name basic-auth, and MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here"
