"""The call of one stream on a gRPC channel, for the clients here and for the server's model that asks its own server.

The call is made as one of a single request, which on the wire is what the service's bidirectional call is once its sending side has
been closed. So the request leaves with the call and its close, where a stream of requests would be read by a thread started for it:
half a millisecond less to the first chunk, and for asyncio a quarter.
"""

from __future__ import annotations

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

# A minute of reference audio is more than gRPC's default limit of 4 MB.
CHANNEL_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
STREAM_METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


def stream_call(channel: grpc.Channel | grpc.aio.Channel) -> grpc.UnaryStreamMultiCallable | grpc.aio.UnaryStreamMultiCallable:
    """What makes the call of one stream on `channel`."""
    return channel.unary_stream(
        STREAM_METHOD,
        request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
    )
