"""Whether the node in this container is ready: exit code 0, or 1. Plain sockets, since it runs every other second."""

import socket

with socket.create_connection(("127.0.0.1", 8081), timeout=4) as node:
    node.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
    raise SystemExit(b" 200 " not in node.recv(64))
