"""Channels and the gRPC call of one stream, for clients and for the model that calls its own server.

The service's call is bidirectional. With a single request and a closed sending side it looks on the wire like a unary-stream
call, so it is made as one: the request leaves together with the call and its close. A stream of requests would be read by a
thread of its own. That saves half a millisecond to the first chunk, for asyncio a quarter.
"""

from __future__ import annotations

import json
from types import ModuleType

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from qwen3_tts_client.address import has_tls, may_be_several, takes_no_proxy, target_of

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

# Each call goes to the next server that answers; without it all calls go to the first one.
ROUND_ROBIN = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))


def open_channel(url: str) -> grpc.Channel:
    """A channel to `url` for threads; the first call connects.

    Raises:
        InvalidRequest: see tls.credentials.
    """
    return _opened(grpc, url)


def open_aio_channel(url: str) -> grpc.aio.Channel:
    """`open_channel` for the running event loop."""
    return _opened(grpc.aio, url)


def _opened(kind: ModuleType, url: str) -> grpc.Channel | grpc.aio.Channel:
    target, options = target_of(url), channel_options(url)
    return kind.secure_channel(target, _credentials(), options) if has_tls(url) else kind.insecure_channel(target, options)


def _credentials() -> grpc.ChannelCredentials:
    from qwen3_tts_client.tls import credentials  # the module ssl cannot be imported by every Triton's Python, and models come here, too

    return credentials()


def channel_options(url: str) -> tuple[tuple[str, int | str], ...]:
    """Options of a channel to `url`. Loopback addresses are asked without a proxy, because a proxy has others of its own."""
    return (*CHANNEL_OPTIONS, *((ROUND_ROBIN,) if may_be_several(url) else ()), *((NO_PROXY,) if takes_no_proxy(url) else ()))


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
