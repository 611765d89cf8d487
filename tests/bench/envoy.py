"""Envoy's config for the benchmark, as JSON. Source: the v3 API reference of Envoy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.job import Job, Keys, replace
from tests.bench.origin import ECHO


def _envoy_log(path: Path, line: str) -> list[dict[str, Any]]:
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    text = {"inline_string": line + "\n"}
    return [
        {"name": "file", "typed_config": {"@type": kind, "path": str(path), "log_format": {"text_format_source": text}}}
    ]


def _envoy_listener(
    name: str, port: int, filter_kind: str, settings: dict[str, Any], keys: Keys | None = None
) -> dict[str, Any]:
    typed = {"@type": f"type.googleapis.com/envoy.extensions.filters.network.{filter_kind}", **settings}
    chain: dict[str, Any] = {"filters": [{"name": name, "typed_config": typed}]}
    if keys is not None:
        chain["transport_socket"] = _envoy_tls(keys)
    return {
        "name": name,
        "address": _envoy_address(port),
        "tcp_backlog_size": 4096,
        "filter_chains": [chain],
    }


def _envoy_tls(keys: Keys) -> dict[str, Any]:
    pair = {"certificate_chain": {"filename": str(keys.cert)}, "private_key": {"filename": str(keys.key)}}
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    common = {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]}
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": common}}


def _envoy_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_cluster(name: str, job: Job) -> dict[str, Any]:
    ends = [
        {"endpoint": {"address": _envoy_address(port)}, "load_balancing_weight": weight}
        for port, weight in zip(job.ports.origins, (1, job.weight), strict=True)
    ]
    many = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 1_000_000)
    return {
        "name": name,
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "circuit_breakers": {"thresholds": [many]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": ends}]},
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "2s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/healthz"},
            }
        ],
    }


def _envoy_echo(port: int) -> dict[str, Any]:
    ends = [{"endpoint": {"address": _envoy_address(port)}}]
    return {
        "name": "echo",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "echo", "endpoints": [{"lb_endpoints": ends}]},
    }


def write_envoy(job: Job, program: Path) -> list[str]:
    """Write its config; the command that starts it."""
    folder, ports = job.folder, job.ports
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }
    routes = [
        {"match": {"path": ECHO}, "route": {"cluster": "echo", "timeout": "0s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "web", "timeout": "300s"}},
    ]
    http = {
        "stat_prefix": "web",
        "use_remote_address": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [router],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "access_log": _envoy_log(
            folder / "access.log",
            '{"time":"%START_TIME%","id":"%REQ(X-REQUEST-ID)%","client":"%DOWNSTREAM_REMOTE_ADDRESS%",'
            '"method":"%REQ(:METHOD)%","target":"%REQ(:PATH)%","status":%RESPONSE_CODE%,"bytes":%BYTES_SENT%,'
            '"ms":%DURATION%,"endpoint":"%UPSTREAM_HOST%","agent":"%REQ(USER-AGENT)%","flags":"%RESPONSE_FLAGS%"}',
        ),
    }
    tcp = {
        "stat_prefix": "raw",
        "cluster": "raw",
        "access_log": _envoy_log(
            folder / "flows.log",
            "%START_TIME% %DOWNSTREAM_REMOTE_ADDRESS% %BYTES_SENT% %BYTES_RECEIVED% %DURATION% %UPSTREAM_HOST% "
            "%RESPONSE_FLAGS%",
        ),
    }
    kind = "http_connection_manager.v3.HttpConnectionManager"
    config = {
        "static_resources": {
            "listeners": [
                _envoy_listener("web", ports.http, kind, http),
                _envoy_listener("secure", ports.https, kind, http, job.keys),
                _envoy_listener("raw", ports.l4, "tcp_proxy.v3.TcpProxy", tcp),
            ],
            "clusters": [_envoy_cluster("web", job), _envoy_cluster("raw", job), _envoy_echo(ports.echo)],
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 100000,
                    },
                }
            ]
        },
    }
    replace(folder / "envoy.json", json.dumps(config))
    flags = ["--concurrency", str(job.workers), "--disable-hot-restart", "-l", "error"]
    return [str(program), "-c", str(folder / "envoy.json"), *flags]
