"""When the listener ends, and what had been read before."""

import asyncio
import gc
import weakref

from limiter_node.edge.http import HttpConnection
from limiter_node.edge.http_server import HttpServer

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Grants:
    """An application that counts what it has granted."""

    granted = 0

    def handle(self, *_: object) -> bytes:
        self.granted += 1
        return ANSWER

    handle_plain_get = handle


class Client(asyncio.Transport):
    """The client's end: what reached it, until it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.received = b""
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closed:
            self.received += data

    def close(self) -> None:
        self.is_closed = True


async def test_a_check_read_in_the_pass_in_which_the_listener_stops_is_answered_before_its_connection_closes() -> None:
    # Or whoever sent it asks another node, and one grant has been spent twice.
    app, client = Grants(), Client()
    server = HttpServer(app)
    await server.start("127.0.0.1", 0)
    connection = HttpConnection(server)
    connection.connection_made(client)
    connection.data_received(b"GET /v1/check?rule=r&key=k HTTP/1.1\r\nHost: n\r\n\r\n")
    await server.stop(0.0)
    assert (app.granted, client.received, client.is_closed) == (1, ANSWER, True)


async def test_a_connection_that_is_gone_leaves_nothing_for_the_collector() -> None:
    server = HttpServer(Grants())
    await server.start("127.0.0.1", 0)
    gc.disable()
    try:
        connection, client = HttpConnection(server), Client()
        connection.connection_made(client)
        connection.data_received(b"GET /v1/check?rule=r&key=k HTTP/1.1\r\nHost: n\r\n\r\n")
        await asyncio.sleep(0)  # a pass, in which it is answered
        connection.connection_lost(None)
        trace = weakref.ref(client)  # the connection refers to it, and can't be referred to so when it is compiled
        del connection, client
        await asyncio.sleep(0)
        assert trace() is None
    finally:
        gc.enable()
        await server.stop(0.0)
