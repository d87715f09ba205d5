"""The gRPC call of one stream, for both clients and for the server's model that calls its own server.

The service's call is bidirectional. With a single request and a closed sending side it looks on the wire like a unary-stream
call, so it is made as one: the request leaves together with the call and its close. A stream of requests would be read by a
thread of its own. That saves half a millisecond to the first chunk, for asyncio a quarter.
"""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

# A minute of reference audio exceeds gRPC's default limit of 4 MB.
CHANNEL_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


def stream_call(channel: grpc.Channel | grpc.aio.Channel) -> grpc.UnaryStreamMultiCallable | grpc.aio.UnaryStreamMultiCallable:
    """Return the callable that starts one stream on `channel`."""
    return channel.unary_stream(
        STREAM_METHOD,
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
