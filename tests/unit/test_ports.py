"""The ports that tests are given (tests/ports.py)."""

import socket

import pytest

from tests.ports import HOST, free_port, free_ports


def test_ports_are_not_given_twice() -> None:
    ports = free_ports(400)
    assert len(set(ports)) == 400


def test_a_port_that_is_held_refuses_connections_until_a_server_listens_there() -> None:
    port = free_port()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))
    with socket.create_server((HOST, port)), socket.create_connection((HOST, port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))


def test_a_held_port_is_in_use_for_whoever_seeks_one() -> None:
    with socket.socket() as seeker, pytest.raises(OSError, match="in use"):
        seeker.bind((HOST, free_port()))
