"""The numbers that both ends of a connection must agree on, stated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ChannelOptions = Sequence[tuple[str, int | str]]

# The largest message is one batch of KV blocks; bulk transfers are chunked well below this. gRPC's default is 4 MiB.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

# Of each kind of thing that is joined to one message on a stream: commands, asks, handles. Whoever takes the message
# does all of it before anything else has its turn.
MAX_JOINED: Final = 4_096

# A dead peer is noticed within time + timeout. The server must allow pings more often than the client sends them, else
# it closes the connection for "too many pings".
KEEPALIVE_TIME_MS: Final = 20_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000
MIN_PING_INTERVAL_MS: Final = 10_000

# A restarted worker is found again within two seconds, and a dead one costs at most one attempt per two seconds.
MIN_RECONNECT_MS: Final = 100
MAX_RECONNECT_MS: Final = 2_000

# How long a connection may take to come about: a round trip for TCP and one for HTTP/2's settings, to another region or
# to a process that waits for a core; a lost SYN is sent again after a second. One that is refused is tried again as
# soon as above says. https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md, MIN_CONNECT_TIMEOUT.
CONNECT_TIMEOUT_MS: Final = 2_000

# Below the 8 KiB of headers that gRPC accepts by default. Base64 and percent encoding swell the status by up to three
# times, so it is kept this small: an error that does not fit would arrive as a different error.
MAX_STATUS_BYTES: Final = 2_048
MAX_ERROR_MESSAGE_BYTES: Final = 1_024

# `weir-request-id` is stored with every log line and lease of a request, and comes from strangers.
MAX_REQUEST_ID_BYTES: Final = 128

_MESSAGE_OPTIONS: Final[ChannelOptions] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def client_options() -> ChannelOptions:
    return (
        *_MESSAGE_OPTIONS,
        # Retrying is a policy of ours, with a budget; gRPC's transparent retries would multiply it unseen.
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", MIN_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        # Otherwise channels with equal arguments share one connection, and with it one flow-control window.
        ("grpc.use_local_subchannel_pool", 1),
    )


def server_options(max_concurrent_streams: int) -> ChannelOptions:
    assert max_concurrent_streams > 0, max_concurrent_streams
    return (
        *_MESSAGE_OPTIONS,
        ("grpc.max_concurrent_streams", max_concurrent_streams),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        # Two processes on one port would silently share its connections; a taken port must be an error.
        ("grpc.so_reuseport", 0),
    )
