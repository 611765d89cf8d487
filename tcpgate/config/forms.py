"""What may stand in a config's strings: tokens, header fields, hosts, patterns, keys. Pure.

Each function gives "" for text of the right form, else what is wrong with it and what would be right. `units.py` does
the same for addresses, spans and sizes.

Source: RFC 9110 5.1, 5.5, 5.6.2 (field names, values, tokens), 9.1 (methods); RFC 3986 3.2.2 (hosts), 3.3 (paths);
RFC 1123 2.1 (labels); RFC 5890 2.3.2.1 (A-labels).
"""

from __future__ import annotations

import base64
import ipaddress
import re
from urllib.parse import unquote_to_bytes

from tcpgate.config.report import listed, nearest, quoted
from tcpgate.units import HostPort, parse_bind, parse_endpoint

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?!.{{254}})(?:{_LABEL}\.)*{_LABEL}")
_STABLE_KEY = re.compile(r"(?:header|cookie):(.*)", re.DOTALL)
_STATUS = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}?|\}")
_PLACEHOLDERS = ("{host}", "{path}", "{query}")
_SEND = re.compile(r"(?:[^\\]|\\[rnt\\]|\\x[0-9A-Fa-f]{2})*", re.DOTALL)

MAX_REGEX = 4096
"""Characters in a regular expression; a longer one is a list that wants to be one."""
MAX_SPLIT = 1_000_000
"""The largest weight in a split: steps of a millionth."""
MAX_ADDRESS = 300
"""Characters: a host name has 253 at most, a socket path 107 bytes."""
LOG_WORDS = ("stdout", "journal", "off")
FRAMING = frozenset(
    {"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Fields that say how a message travels from one hop to the next (RFC 9110 7.6.1); the gateway writes its own."""


def token(text: str) -> str:
    """A token, as a method or a field name is."""
    if _TOKEN.fullmatch(text):
        return ""
    return f"{quoted(text)} is not a token; it may have letters, digits and !#$%&'*+-.^_`|~"


def method(text: str) -> str:
    """A request method that this gateway serves."""
    if text == "CONNECT":
        return "CONNECT is not served here"
    if text.upper() != text:
        return f"{quoted(text)} is not what clients send: methods are case-sensitive; write {quoted(text.upper())}"
    return token(text)


def field_value(text: str) -> str:
    """The value of a header field: nothing that could end the field or the head."""
    match = _CONTROL.search(text)
    if match:
        return f"has the control character {match[0]!a}, which could forge a header field"
    if text != text.strip(" \t"):
        return "begins or ends with a space, which a header field cannot keep"
    return ""


def settable_field(name: str) -> str:
    """The name of a header field that a filter may change."""
    if name.lower() in FRAMING:
        return f"{quoted(name)} cannot be changed: the gateway frames messages itself"
    return token(name)


def removable_field(name: str) -> str:
    """The name of a request field that a filter may remove."""
    if name.lower() == "host":
        return "Host cannot be removed: every request must have one (RFC 9112 3.2)"
    return settable_field(name)


def request_field(name: str, value: str) -> str:
    """A request field that a filter may set."""
    return settable_field(name) or field_value(value) or (authority(value) if name.lower() == "host" else "")


def regex(text: str) -> str:
    """A regular expression of Python's `re`, for bytes: so are paths, fields and answers."""
    if len(text) > MAX_REGEX:
        return f"{quoted(text)} is longer than the {MAX_REGEX} characters that a regular expression may have"
    try:
        re.compile(text.encode())
    except (re.error, OverflowError, RecursionError, ValueError, Warning) as exc:
        return f"{quoted(text)} is not a regular expression: {exc}"
    return ""


def condition(text: str) -> str:
    """What a route asks of a header field or a query parameter: a value, "~regex", or "*"."""
    return regex(text[1:]) if text.startswith("~") else field_value(text)


def host(text: str) -> str:
    """What a route asks of the host: "api.example.com", "*.example.com", an address."""
    if not text.isascii():
        return f"{quoted(text)} is not ASCII; write an international name in its xn-- form"
    if text in ("*", ""):
        return f"{quoted(text)} is not a host; for any host, leave hosts out"
    name = text.lower().removeprefix("*.")
    if "*" in name or text.startswith("*.["):
        return f'{quoted(text)}: "*" stands for whole labels at the front only, as "*.example.com"'
    if name.startswith("["):
        return "" if _is_ipv6(name) else f"{quoted(text)} is not an IPv6 address in brackets, without a port"
    if "/" in name or ":" in name:
        return f"{quoted(text)} is not a host alone; leave out scheme, port and path"
    if name.endswith("."):
        return f"{quoted(text)} ends with a dot; leave it out, requests with one match too"
    if not _NAME.fullmatch(name):
        return f'{quoted(text)} is not a host name; write it as "api.example.com" or "*.example.com"'
    return ""


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return text.endswith("]") and "%" not in text


def authority(text: str) -> str:
    """A Host header: a host, with or without a port."""
    name, colon, port = text.rpartition(":")
    has_port = colon and not text.endswith("]")
    if has_port and not (re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536):
        return f'{quoted(text)} has no right port; write it as "api.example.com" or "api.example.com:8080"'
    return host(name if has_port else text) if "*" not in text else f"{quoted(text)} is not a host"


def server_name(text: str) -> str:
    """A name that a client may ask for by SNI: "db.example.com", "*.example.com"."""
    problem = host(text)
    if not problem and is_address(text):
        problem = f"{quoted(text)} is an address, and a client names none (RFC 6066 3)"
    return problem


def certificate_name(text: str) -> str:
    """What a certificate may be for: a server name or an address."""
    return "" if is_address(text) else server_name(text)


def is_address(text: str) -> bool:
    """Whether this is an IP address, an IPv6 one with or without its brackets."""
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def alpn(text: str) -> str:
    """A protocol's name in ALPN (RFC 7301 3.1: 1 to 255 bytes)."""
    if 1 <= len(text.encode()) <= 255:
        return ""
    return f'{quoted(text)} is not a protocol; it has 1 to 255 bytes, such as "h2", "http/1.1", "postgresql"'


def ciphers(text: str) -> str:
    """OpenSSL's cipher list; which words there are, `host.py` asks the library."""
    return "" if re.fullmatch(r"[!-~]+", text) else f'{quoted(text)} is not a cipher list; such as "ECDHE+AESGCM"'


def pin(text: str) -> str:
    """The digest of a public key, in RFC 7469's form."""
    match = re.fullmatch(r"sha256/([A-Za-z0-9+/]{43}=)", text)
    # Of the last of 43 digits four bits count; one with more is the spelling of no digest.
    if match and base64.b64encode(base64.b64decode(match[1])).decode() == match[1]:
        return ""
    return f'{quoted(text)} is not a pin; write it as "sha256/BASE64", the base64 of 32 bytes'


def route_path(text: str) -> str:
    """A route's path: "/prefix", "=/exact" or "~regex"."""
    if text.startswith("~"):
        return regex(text[1:])
    path = text.removeprefix("=")
    if not path.startswith("/"):
        hint = '; a regular expression begins with "~"' if text.startswith("^") else ""
        return f'{quoted(text)} is not a path; write it as "/v1", "=/exact" or "~/v[0-9]+/.*"{hint}'
    if "?" in path:
        return f'{quoted(text)} has a "?"; conditions on the query go into query = {{ name = "value" }}'
    # A route is found by the one way to read its path. With these in it, servers read it in several.
    decoded = unquote_to_bytes(path)
    twisted = [mark for mark in (b"//", b";", b"\\", b"#", b"?", b"%") if mark in decoded]
    if twisted or decoded.count(b"/") != path.count("/") or re.search(rb"/\.\.?(/|$)", decoded):
        return f"{quoted(text)} can be read in several ways; leave out //, /../, ;, \\, # and escapes of such"
    if re.search(rb"[\x00-\x1f\x7f]", decoded):
        return f"{quoted(text)} has a control character"
    return ""


def stable_key(text: str, plain: tuple[str, ...]) -> str:
    """What to hash of a request: a word of `plain`, "header:NAME" or "cookie:NAME"."""
    match = _STABLE_KEY.fullmatch(text)
    if match:
        return token(match[1])
    forms = [*plain, "header:NAME", "cookie:NAME"]
    return "" if text in plain else f"{quoted(text)} is not one of {listed(forms)}{nearest(text, forms)}"


def statuses(text: str) -> str:
    """Statuses of a health probe: "200" or "200-299"."""
    match = _STATUS.fullmatch(text)
    if match is None:
        return f'{quoted(text)} is not a status or a range of them; write "200" or "200-299"'
    if match[2] and int(match[2]) < int(match[1]):
        return f'{quoted(text)} is an empty range; write "{match[2]}-{match[1]}"'
    return ""


def split_key(text: str) -> str:
    """What keeps a client on its side of a split."""
    return stable_key(text, ("source",))


def hash_key(text: str) -> str:
    """What a hashing balancer looks at."""
    return stable_key(text, ("source", "path"))


def parameter(text: str) -> str:
    """The name of a query parameter."""
    return "" if text else "a parameter needs a name"


def redirect_target(text: str) -> str:
    """Where a route redirects to: a path or a URL, with placeholders."""
    wrong = [match[0] for match in _PLACEHOLDER.finditer(text) if match[0] not in _PLACEHOLDERS]
    if wrong:
        return f"{quoted(wrong[0])} is unknown; {', '.join(_PLACEHOLDERS)} are filled in"
    if text.startswith(("{path}", "//", "/{path}")):
        # A request for //evil.example/ would make "Location: //evil.example/", which leads to another host.
        return 'could lead to any host that a client names in its path; write "https://{host}{path}"'
    if not re.match(r"/|https?://[^/]", text, re.IGNORECASE):
        return f'{quoted(text)} is neither a path nor a URL; write "/new" or "https://{{host}}{{path}}"'
    if not re.fullmatch(r"[!-~]+", text):
        return f"{quoted(text)} has characters that a URL cannot have; write them as %XX"
    return ""


def probe_bytes(text: str) -> str:
    """What a send/expect probe sends, with its escapes."""
    if _SEND.fullmatch(text):
        return ""
    return r"has an unknown escape; \r \n \t \\ and \xNN are known (in a TOML string with double quotes, write \\r)"


def request_target(text: str) -> str:
    """A path with or without a query, as a probe requests it."""
    if not text.startswith("/"):
        return f"{quoted(text)} is not a path; it begins with /"
    if not re.fullmatch(r"[!-~]+", text) or "#" in text:
        return f"{quoted(text)} has characters that a request target cannot have; write them as %XX"
    return ""


# -- addresses and files --------------------------------------------------------------------------------------------


def bind(text: str) -> str:
    """Where a listener listens."""
    if len(text) > MAX_ADDRESS:
        return f"{quoted(text)} is too long for an address"
    try:
        address = parse_bind(text)
    except ValueError as exc:
        return str(exc)
    ip = ipaddress.ip_address(address.host) if isinstance(address, HostPort) else None
    if ip is not None and ip.version == 6 and ip.ipv4_mapped is not None:
        return f"{quoted(text)} is an IPv4 address in IPv6 form, which cannot be bound; write it as IPv4"
    return ""


def admin_bind(text: str) -> str:
    """Where the admin API listens."""
    if text.startswith("fd:"):
        return 'the admin API listens on "unix:/path" or "host:port", not on an inherited socket'
    return bind(text)


def endpoint(text: str) -> str:
    """Where to connect."""
    if len(text) > MAX_ADDRESS:
        return f"{quoted(text)} is too long for an address"
    try:
        parse_endpoint(text)
    except ValueError as exc:
        return str(exc)
    return ""


def log_target(text: str) -> str:
    """Where access lines go: a word, or an absolute path (the service's own folder is "/")."""
    if text in LOG_WORDS or (text.startswith("/") and not text.endswith("/") and "\0" not in text):
        return ""
    return f"{quoted(text)} is not one of {listed(LOG_WORDS)}, nor an absolute path{nearest(text, LOG_WORDS)}"


def folder(text: str) -> str:
    """A folder's path."""
    return "" if text and "\0" not in text else f"{quoted(text)} is not a folder"


def secret_file(text: str) -> str:
    """A file that holds a secret or a certificate, or "credential:NAME"."""
    if not text or "\0" in text:
        return f"{quoted(text)} is not a file"
    if text.startswith("credential:") and not re.fullmatch(r"credential:[A-Za-z0-9_.-]{1,255}", text):
        return f'{quoted(text)} names no credential; write it as "credential:NAME"'
    return ""
