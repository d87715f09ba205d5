"""The gRPC call of one stream, for both clients and for the server's model that calls its own server.

The service's call is bidirectional. With a single request and a closed sending side it looks on the wire like a unary-stream
call, so it is made as one: the request leaves together with the call and its close. A stream of requests would be read by a
thread of its own. That saves half a millisecond to the first chunk, for asyncio a quarter.
"""

from __future__ import annotations

import ipaddress
import json
import re

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

# A minute of reference audio exceeds gRPC's default limit of 4 MB. A server that comes back is found within two seconds; gRPC by
# itself would wait for up to two minutes between two tries.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
# Of gRPC itself: the connection takes no proxy, whatever http_proxy and https_proxy say.
NO_PROXY = ("grpc.enable_http_proxy", 0)
STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


# What names several servers: dns:///NAME:PORT for all addresses of a name, or a list such as ipv4:10.0.0.1:8001,10.0.0.2:8001.
_SCHEME = re.compile(r"(dns|ipv4|ipv6):(///)?")
# An address of IPv6 stands in brackets: the last group of ::1 is no port.
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^]\s]+)\]|[^/\s:[\]]+):(?P<port>\d{1,5})")
MAX_PORT = 65535
# Each call goes to the next server that answers; without it all calls go to the first one.
ROUND_ROBIN = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))


def channel_options(url: str) -> tuple[tuple[str, int | str], ...]:
    """Options of a channel to `url`, HOST:PORT or a target of gRPC's own that may name several servers.

    Loopback addresses are asked without a proxy, because a proxy has others of its own.
    """
    balance = () if _SCHEME.match(url) is None else (ROUND_ROBIN,)
    return (*CHANNEL_OPTIONS, *balance, *((NO_PROXY,) if takes_no_proxy(url) else ()))


def takes_no_proxy(url: str) -> bool:
    """Whether all addresses of `url` are loopback ones."""
    return all(map(_is_loopback, _addresses(url)))


def is_target(url: str) -> bool:
    """Whether a channel can be made to `url`: HOST:PORT, or several with one of gRPC's schemes, or a local socket (unix:PATH).

    Each needs a port, because gRPC itself would take 443, and any number modulo 65536.
    """
    if url.startswith("unix:"):
        return True
    return all(map(_is_address, _addresses(url)))


def _addresses(url: str) -> list[str]:
    scheme = _SCHEME.match(url)
    return (url if scheme is None else url[scheme.end() :]).split(",")


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


def text_stream_call(channel: grpc.Channel | grpc.aio.Channel) -> grpc.StreamStreamMultiCallable | grpc.aio.StreamStreamMultiCallable:
    """Return the callable that starts one stream with text that comes in further requests."""
    return channel.stream_stream(
        STREAM_METHOD,
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )


def stream_call(channel: grpc.Channel | grpc.aio.Channel) -> grpc.UnaryStreamMultiCallable | grpc.aio.UnaryStreamMultiCallable:
    """Return the callable that starts one stream on `channel`."""
    return channel.unary_stream(
        STREAM_METHOD,
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
