"""Being let in: not at all, by a token, by client credentials; and no secret anywhere else."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_invocations.platforms import (
    InvalidRequestError,
    PlatformError,
    RateLimitedError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from airflow_invocations.platforms.flyte import FlytePlatform, FlyteSettings, auth

from ...platforms.flyte_server import Client, FlyteServer
from ...support.scripted_server import (
    Answer,
    Script,
    answer,
    hang_up,
    raw,
    scripted_server,
)
from .conftest import deploy, request, settings

pytestmark = [
    pytest.mark.anyio,
    # The test's server leaves what is left of a TLS connection to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind() -> Iterator[None]:
    """What is left is collected here, and not in the midst of somebody else's test."""
    yield
    gc.collect()


SECRET = "s3cret-s3cret"


@dataclass(frozen=True)
class Authority:
    """Paths of what is needed for TLS: for clients the first, for a server the others."""

    bundle: Path
    certificate: Path
    key: Path


@pytest.fixture(autouse=True)
def no_tokens() -> Iterator[None]:
    """Nobody has a token from the test before."""
    auth._tokens.clear()
    yield
    auth._tokens.clear()


@pytest.fixture
def guarded() -> Iterator[FlyteServer]:
    """A server that gives tokens to one client."""
    with FlyteServer("nobody's", Client("airflow", SECRET)) as server:
        deploy(server)
        yield server


class TestToken:
    async def test_it_is_sent_with_calls_and_streams(self) -> None:
        with FlyteServer(SECRET) as server:
            deploy(server)
            async with FlytePlatform(settings(server, secret=SECRET)) as flyte:
                run = (await flyte.invoke("env.greet", request())).invocation_id
                await flyte.logs(run)
                async with flyte.watch([run], {}, None) as watching:
                    await anext(aiter(watching))

    @pytest.mark.parametrize("secret", [None, "wr0ng-wr0ng"])
    async def test_a_wrong_one_is_rejected_and_not_tried_again(self, secret: str | None) -> None:
        with FlyteServer(SECRET) as server:
            async with FlytePlatform(settings(server, secret=secret)) as flyte:
                with pytest.raises(UnauthorizedError, match="a token is needed") as rejected:
                    await flyte.check()
                with pytest.raises(UnauthorizedError, match="a token is needed"):
                    async with flyte._connect.stream("flyteidl2.workflow.RunService/WatchRuns", {}, 5.0):
                        pass
        assert "wr0ng-wr0ng" not in "".join(traceback.format_exception(rejected.value))


class TestClientCredentials:
    async def test_a_token_is_fetched_once_and_used_by_all_clients(self, guarded: FlyteServer) -> None:
        for number in range(3):
            async with FlytePlatform(settings(guarded, client_id="airflow", secret=SECRET)) as flyte:
                await flyte.invoke("env.greet", request(f"{number}"))
        assert guarded.tokens_given == 1
        assert len(guarded.calls("GetOAuth2Metadata")) == 1

    async def test_rejected_token_is_replaced_once(self, guarded: FlyteServer) -> None:
        async with FlytePlatform(settings(guarded, client_id="airflow", secret=SECRET)) as flyte:
            await flyte.check()
            guarded.token = "revoked"
            await flyte.check()
            guarded.token = "revoked again"
            run = (await flyte.invoke("env.greet", request(trouble="hangs"))).invocation_id
            guarded.token = "and again"
            async with flyte._connect.stream(
                "flyteidl2.workflow.RunService/WatchRuns",
                {"projectId": {"name": "fleet", "domain": "development"}},
                5.0,
            ) as answers:
                told = await anext(answers)
            assert run.endswith(told["runs"][0]["action"]["id"]["run"]["name"])
        assert guarded.tokens_given == 4

    async def test_expired_token_is_not_sent(
        self, guarded: FlyteServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(auth, "_MARGIN", 7200.0)
        async with FlytePlatform(settings(guarded, client_id="airflow", secret=SECRET)) as flyte:
            await flyte.check()
            now = auth.time.monotonic()
            # Its clock alone: the server's in this process goes on.
            monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now + 3000))
            await flyte.check()
        assert guarded.tokens_given == 2

    async def test_a_wrong_secret_is_rejected_and_not_shown(self, guarded: FlyteServer) -> None:
        async with FlytePlatform(settings(guarded, client_id="airflow", secret="wr0ng-wr0ng")) as flyte:
            with pytest.raises(UnauthorizedError, match="401 invalid_client") as rejected:
                await flyte.check()
        assert "wr0ng-wr0ng" not in "".join(traceback.format_exception(rejected.value))

    async def test_where_tokens_are_can_be_said_by_the_connection(self, guarded: FlyteServer) -> None:
        url = f"{guarded.endpoint}/oauth2/token"
        said = settings(guarded, client_id="airflow", secret=SECRET, token_url=url, scopes=("all",))
        async with FlytePlatform(said) as flyte:
            await flyte.check()
        assert guarded.calls("GetOAuth2Metadata") == []

    @pytest.mark.parametrize(
        ("answers", "kind", "said"),
        [
            ([answer(501, {"code": "unimplemented"})], UnsupportedError, "set extra 'token_url'"),
            ([answer(200, {})], UnsupportedError, "set extra 'token_url'"),
            ([answer(503, b"")], UnavailableError, "its token endpoint is unknown"),
            ([hang_up], UnavailableError, "can't be reached"),
        ],
    )
    async def test_where_tokens_are_cannot_be_found_out(
        self, answers: list[Answer], kind: type[PlatformError], said: str
    ) -> None:
        async with scripted_server() as script:
            script.answers = answers
            async with FlytePlatform(
                FlyteSettings(script.endpoint, client_id="airflow", secret=SECRET)
            ) as flyte:
                with pytest.raises(kind, match=said):
                    await flyte.check()

    @pytest.mark.parametrize(
        "trouble", [answer(500, b""), answer(200, b"<html>"), answer(200, {"token": "t"})]
    )
    async def test_an_answer_without_a_token_is_transient(self, trouble: Answer) -> None:
        async with scripted_server() as script:
            script.answers = [trouble]
            url = f"{script.endpoint}/token"
            said = FlyteSettings(script.endpoint, client_id="airflow", secret=SECRET, token_url=url)
            async with FlytePlatform(said) as flyte:
                with pytest.raises(UnavailableError, match="but without a token"):
                    await flyte.check()

    async def test_the_secret_is_not_sent_without_tls_where_flyte_has_it(self) -> None:
        said = FlyteSettings(
            "https://127.0.0.1:9", client_id="airflow", secret=SECRET, token_url="http://127.0.0.1:9/token"
        )
        async with FlytePlatform(said) as flyte:
            with pytest.raises(UnauthorizedError, match="does not use TLS"):
                await flyte.check()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of its own, and a server's certificate that it has signed."""
    folder = tmp_path_factory.mktemp("tls")
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the fleet's own")])
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=1)

    def signed(public_key: Any, name: x509.Name, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(issuer, name, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(began).not_valid_after(began + datetime.timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    own = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    known_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    made.bundle.write_bytes(
        signed(authority_key.public_key(), issuer, x509.BasicConstraints(True, None), own, usage)
    )
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flyte")])
    made.certificate.write_bytes(signed(key.public_key(), server, address, known_by))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


class TestTls:
    async def test_an_authority_of_ones_own_is_enough_for_calls_streams_and_tokens(
        self, authority: Authority
    ) -> None:
        tls = (authority.certificate, authority.key)
        with FlyteServer("nobody's", Client("airflow", SECRET), tls) as server:
            deploy(server)
            said = settings(server, client_id="airflow", secret=SECRET, verify=str(authority.bundle))
            assert said.endpoint.startswith("https://")
            async with FlytePlatform(said) as flyte:
                run = (await flyte.invoke("env.greet", request())).invocation_id
                async with flyte.watch([run], {}, None) as watching:
                    await anext(aiter(watching))
            assert server.tokens_given == 1

    async def test_any_certificate_is_enough_where_that_is_wanted(self, authority: Authority) -> None:
        with FlyteServer(tls=(authority.certificate, authority.key)) as server:
            async with FlytePlatform(settings(server, verify=False)) as flyte:
                assert "responds as Flyte 2" in await flyte.check()


def client(script: Script, **changes: Any) -> FlytePlatform:
    return FlytePlatform(
        FlyteSettings(**{"endpoint": script.endpoint, "secret": SECRET, "timeout": 5.0, **changes})
    )


class TestForeignAnswers:
    """What something between us and Flyte says, or something else entirely, says nothing about a run."""

    @pytest.mark.parametrize(
        ("trouble", "kind", "said"),
        [
            (answer(404, b"<html>default backend"), UnavailableError, "is the address of a Flyte 2 server"),
            (answer(405, b"<html>be back soon"), UnavailableError, "is the address of a Flyte 2 server"),
            # No stand-in for a Flyte that is away says so; that there is another server is for good.
            (
                answer(404, {"error": "Not Found", "code": 5}),
                InvalidRequestError,
                "is the address of a Flyte 2 server",
            ),
            (
                answer(501, {"message": "no", "code": 12}),
                InvalidRequestError,
                "is the address of a Flyte 2 server",
            ),
            (
                answer(501, b"Unsupported method ('POST')"),
                InvalidRequestError,
                "is the address of a Flyte 2 server",
            ),
            (answer(415, b""), InvalidRequestError, "is the address of a Flyte 2 server"),
            (answer(200, b"<html>log in</html>"), UnavailableError, "is the address of a Flyte 2 server"),
            (answer(200, b"[]"), UnavailableError, "is the address of a Flyte 2 server"),
            (answer(503, b""), UnavailableError, "503"),
            (answer(429, b""), RateLimitedError, "429"),
            (answer(401, b""), UnauthorizedError, "401"),
            (answer(302, b"", location="http://elsewhere/"), InvalidRequestError, "302"),
            (answer(418, {"code": "teapot"}), PlatformError, "teapot"),
            (
                raw(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc"),
                UnavailableError,
                "reached",
            ),
            (hang_up, UnavailableError, "can't be reached"),
        ],
    )
    async def test_is_what_it_is(
        self, script: Script, trouble: Answer, kind: type[PlatformError], said: str
    ) -> None:
        script.answers = [trouble]
        async with client(script) as flyte:
            with pytest.raises(kind, match=said) as raised:
                await flyte.get("p/d/r")
            for asked in (flyte.find("d", None, None, None), flyte.invoke("p/d/f", request())):
                with pytest.raises(kind):
                    await asked
        assert SECRET not in "".join(traceback.format_exception(raised.value))

    async def test_how_long_to_leave_it_alone_is_in_the_error(self, script: Script) -> None:
        script.answers = [answer(503, {"code": "unavailable", "message": "busy"}, retry_after="17")]
        async with client(script) as flyte:
            with pytest.raises(UnavailableError, match="busy") as raised:
                await flyte.check()
        assert raised.value.retry_after == 17

    @pytest.mark.parametrize(
        ("stream", "said"),
        [
            (b"", "closed the stream"),
            (b"\0\0\0\0\2{}", "closed the stream"),
            (b"\0\0\0\0\xff{", "closed the stream"),
            (b"\0\0\0\0\2{{", "other than a JSON object"),
            (b"\1\0\0\0\2{}", "a format that was not requested"),
            (b"\0\xff\0\0\0", "a format that was not requested"),
            (b'\2\0\0\0\x20{"error":{"code":"unavailable"}}', "unavailable"),
            (b'\2\0\0\0\x0c{"error":{}}', "failed"),
        ],
    )
    async def test_a_stream_that_is_none_says_what_it_is(
        self, script: Script, stream: bytes, said: str
    ) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\nconnection: close\r\n\r\n"
        script.answers = [raw(head + stream)]

        async def read() -> None:
            async with client(script) as flyte, flyte._connect.stream("s/M", {}, 5.0) as answers:
                async for _ in answers:
                    pass

        with pytest.raises(UnavailableError, match=said):
            await read()

    async def test_a_stream_that_comes_in_pieces_is_put_together(self, script: Script) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/connect+json\r\nconnection: close\r\n\r\n"
        frames = [b'\0\0\0\0\7{"a":1}', b'\0\0\0\0\7{"a":2}', b"\2\0\0\0\2{}"]

        async def in_pieces(_: Any, writer: Any) -> None:
            writer.write(head)
            for byte in b"".join(frames):
                writer.write(bytes([byte]))
                await writer.drain()

        script.answers = [in_pieces]
        async with client(script) as flyte, flyte._connect.stream("s/M", {}, 5.0) as answers:
            assert [one async for one in answers] == [{"a": 1}, {"a": 2}]


def test_no_secret_is_in_a_repr() -> None:
    said = FlyteSettings("http://h", client_id="airflow", secret=SECRET)
    assert SECRET not in repr(said)
    assert SECRET not in repr(FlytePlatform(said).__dict__)


async def test_a_token_that_cannot_be_sent_is_not_shown(guarded: FlyteServer) -> None:
    async with FlytePlatform(settings(guarded, secret=f"{SECRET}\nx")) as flyte:
        with pytest.raises(InvalidRequestError, match="can't be sent") as raised:
            await flyte.check()
    assert SECRET not in "".join(traceback.format_exception(raised.value))
