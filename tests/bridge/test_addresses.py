"""What can be dialled: all that gRPC reaches a bridge by, and nothing that it would only wait for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspex_pipelines.bridge.addresses import check_dialled
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.crew import Crew
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.errors import InvalidValue


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    "form",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "127.0.0.1:{port}\n",
        "[::ffff:127.0.0.1]:{port}",
        "dns:///localhost:{port}",
        "dns:localhost:{port}",
        "DNS:///localhost:{port}",
        "ipv4:127.0.0.1:{port}",
        "ipv4:127.0.0.1:{port},127.0.0.1:{port}",
    ],
)
async def test_a_port_is_reached_by_every_form_that_grpc_knows(form: str) -> None:
    async with Bridge("127.0.0.1:0") as bridge:
        address = form.format(port=bridge.address.rpartition(":")[2])
        async with PoolClient(address) as client:
            assert (await client.status()).workers == ()


@pytest.mark.parametrize("form", ["unix:{path}", "unix://{path}", "UNIX:{path}"])
async def test_a_socket_is_reached_by_every_form_that_grpc_knows(form: str, folder: Path) -> None:
    async with Bridge(f"unix:{folder}/s"), PoolClient(form.format(path=folder / "s")) as client:
        assert (await client.status()).workers == ()


@pytest.mark.parametrize(
    "address",
    [
        "[::1]:50051",
        "ipv6:[::1]:50051",
        "ipv6:%5B::1%5D:50051",
        "dns://8.8.8.8/bridge.example.org:443",
        "unix-abstract:pool",
        "vsock:2:50051",
        "xds:///pool",
        "bridge_1.team:65535",
        "[::1]:050051",
        "[fe80::1%eth0]:50051",
    ],
)
def test_what_only_grpc_can_know_is_left_to_it(address: str) -> None:
    check_dialled(address)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("", id="nothing"),
        pytest.param("foo", id="no-port"),
        pytest.param("127.0.0.1:", id="empty-port"),
        pytest.param("50051", id="port-alone"),
        pytest.param(":50051", id="no-host"),
        pytest.param("localhost:port", id="word-for-port"),
        pytest.param("localhost:0", id="port-0"),
        pytest.param("localhost:65536", id="port-too-large"),
        pytest.param("localhost:²", id="no-digit"),
        pytest.param("::1", id="ipv6-no-port"),
        pytest.param("::1:50051", id="ipv6-no-brackets"),
        pytest.param("[::1]", id="brackets-no-port"),
        pytest.param("http://localhost:50051", id="url"),
        pytest.param("/tmp/bridge.sock", id="path"),
        pytest.param("unix:", id="no-path"),
        pytest.param("dns:///localhost", id="name-no-port"),
        pytest.param("dns:50051", id="name-no-host"),
        pytest.param("ipv4:127.0.0.1", id="ipv4-no-port"),
        pytest.param("ipv4:127.0.0.1:0,127.0.0.1:5", id="port-0-of-a-list"),
        pytest.param("ipv4:127.0.0.1,127.0.0.1:5", id="no-port-of-a-list"),
        pytest.param("a b:50051", id="blank"),
        pytest.param("dns:::1:50051", id="ipv6-no-brackets-by-name"),
        pytest.param("ipv6:::1", id="ipv6-of-which-the-end-looks-like-a-port"),
        pytest.param("ipv4:localhost:50051", id="name-for-a-number"),
        pytest.param("[x]:50051", id="no-ipv6-in-brackets"),
        pytest.param("[]:50051", id="nothing-in-brackets"),
        pytest.param("unix:/" + "x" * 107, id="path-too-long"),
        pytest.param("unix:\0a", id="nul"),
        pytest.param("unix:   ", id="blanks-for-path"),
        pytest.param(f"localhost:{'9' * 5_000}", id="no-number"),
    ],
)
@pytest.mark.parametrize("dialling", [PoolClient, Crew])
def test_what_nobody_can_be_reached_at_is_refused(dialling: type[PoolClient | Crew], address: str) -> None:
    with pytest.raises(InvalidValue, match="give unix:/path or host:port") as refused:
        dialling(address)
    assert (refused.value.field, refused.value.value) == ("address", address)
