"""What the URL of a server names: its addresses, and whether TLS is spoken there."""

from __future__ import annotations

import ipaddress
import re

TLS = "grpcs://"  # before all that a URL may be
MAX_PORT = 65535
# What names several servers: dns:///NAME:PORT for all addresses of a name, or a list such as ipv4:10.0.0.1:8001,10.0.0.2:8001.
_SEVERAL = re.compile(r"(dns|ipv4|ipv6):(///)?")
# An address of IPv6 stands in brackets: the last group of ::1 is no port.
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^]\s]+)\]|[^/\s:[\]]+):(?P<port>\d{1,5})")


def has_tls(url: str) -> bool:
    """Whether TLS is spoken at `url`."""
    return url.startswith(TLS)


def target_of(url: str) -> str:
    """What gRPC is to connect to, in its own words."""
    return url.removeprefix(TLS)


def may_be_several(url: str) -> bool:
    """Whether `url` may name several servers."""
    return _SEVERAL.match(target_of(url)) is not None


def takes_no_proxy(url: str) -> bool:
    """Whether all addresses of `url` are loopback ones."""
    return all(map(_is_loopback, _addresses(url)))


def is_url(url: str) -> bool:
    """Whether a channel can be made to `url`: HOST:PORT, or several with one of gRPC's schemes, or a local socket (unix:PATH).

    Each needs a port, because gRPC itself would take 443, and any number modulo 65536.
    """
    if target_of(url).startswith("unix:"):
        return True
    return all(map(_is_address, _addresses(url)))


def _addresses(url: str) -> list[str]:
    target = target_of(url)
    scheme = _SEVERAL.match(target)
    return (target if scheme is None else target[scheme.end() :]).split(",")


def _is_address(address: str) -> bool:
    found = _ADDRESS.fullmatch(address)
    return found is not None and 0 < int(found["port"]) <= MAX_PORT and (found["ipv6"] is None or _is_ipv6(found["ipv6"]))


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0] if re.search(r":\d+$", address) else address
    host = host.strip("[]").lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False
