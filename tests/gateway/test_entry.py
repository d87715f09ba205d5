"""Keys, sizes, origins and errors of the application, without a Triton server."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
import httpx
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner

from benching.fake_triton import FakeTriton
from qwen3_tts_client.cli import app as cli
from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.backends import Backends
from qwen3_tts_gateway.keys import new_key
from qwen3_tts_gateway.settings import GatewaySettings

NOWHERE = ("127.0.0.1:9",)
SPEECH = "/v1/audio/speech"
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def client_of(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@asynccontextmanager
async def served(triton: FakeTriton) -> AsyncIterator[str]:
    """The address of a make-believe server."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield address
    await server.stop(None)


def settings_of(address: str, **further: Any) -> GatewaySettings:
    return GatewaySettings(backends=(address,), metrics_port=0, **further)


async def test_without_a_known_key_nothing_is_done(tmp_path: Path) -> None:
    key, line = new_key("reception")
    file = tmp_path / "keys"
    file.write_text(line)
    async with client_of(GatewaySettings(backends=NOWHERE, keys_file=file)) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await client.post(SPEECH, json={"input": "x"}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        answer = await client.post(SPEECH, json={"input": "x"}, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 503  # let in; there is no server
        assert (await client.get("/health")).status_code == 200


class Listening(FakeTriton):
    """Notes who each request is from."""

    def __init__(self) -> None:
        super().__init__(frames=1, speed=0)
        self.clients: list[str | None] = []

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: object) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        async def noted() -> AsyncIterator[object]:
            async for request in requests:
                self.clients.append(request.parameters["client"].string_param if "client" in request.parameters else None)
                yield request

        async for response in super().ModelStreamInfer(noted(), context):
            yield response


@pytest.mark.parametrize("has_keys", [True, False])
async def test_the_server_is_told_the_name_of_the_key_so_that_clients_take_turns(tmp_path: Path, has_keys: bool) -> None:
    """Without keys a caller is an address, which may be a proxy's."""
    triton = Listening()
    keys = {name: new_key(name) for name in ("reception", "shop")}
    file = tmp_path / "keys"
    file.write_text("\n".join(line for _, line in keys.values()))
    async with served(triton) as address, client_of(settings_of(address, keys_file=file if has_keys else None)) as client:
        for name in ("shop", "reception"):
            headers = {"Authorization": f"Bearer {keys[name][0]}"}
            assert (await client.post(SPEECH, json={"input": "x", "response_format": "pcm"}, headers=headers)).status_code == 200
    assert triton.clients == (["shop", "reception"] if has_keys else [None, None])


@pytest.mark.parametrize("said", ["no JSON", "[]", '{"voices": 5}'])
async def test_a_server_that_cannot_say_which_voices_it_has_speaks_all_the_same(said: str) -> None:
    class Garbled(FakeTriton):
        async def ModelInfer(self, _request: object, _context: object) -> service_pb2.ModelInferResponse:
            content = len(said).to_bytes(4, "little") + said.encode()
            return service_pb2.ModelInferResponse(model_name="voices", raw_output_contents=[content])

    async with served(Garbled(frames=1, speed=0)) as address, client_of(settings_of(address)) as client:
        assert (await client.post(SPEECH, json={"input": "x", "voice": "alloy"})).status_code == 200
        refused = await client.get("/v1/audio/voices")
        assert (refused.status_code, "gave " in refused.json()["error"]["message"]) == (502, True)


async def test_a_server_that_was_too_busy_to_say_that_it_is_ready_has_its_voices_still(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(FakeTriton(frames=1, speed=0)) as address, client_of(settings_of(address)) as client:
        for _ in range(2):
            answer = await client.post(SPEECH, json={"input": "x", "voice": "alloy", "response_format": "pcm"})
            assert (answer.status_code, answer.headers["x-voice"]) == (200, "ada")
            monkeypatch.setattr(Backends, "ready", property(lambda _backends: []))


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_long_is_refused_before_it_is_read(chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 500

    async with client_of(GatewaySettings(backends=NOWHERE, max_body_bytes=1000)) as client:
        content = parts() if chunked else b" " * 1500
        answer = await client.post(SPEECH, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_long_with_all_others_is_refused_until_those_are_answered(chunked: bool) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b" " * 800
        has_begun.set()
        await may_end.wait()
        yield b"{}"

    async def parts() -> AsyncIterator[bytes]:
        yield b" " * 300

    kind = {"Content-Type": "application/json"}
    async with client_of(GatewaySettings(backends=NOWHERE, max_body_bytes=1000, max_bodies_bytes=1000)) as client:
        first = asyncio.create_task(client.post(SPEECH, content=slow(), headers=kind))
        await has_begun.wait()
        answer = await client.post(SPEECH, content=parts() if chunked else b" " * 300, headers=kind)
        error = answer.json()["error"]
        assert (answer.status_code, answer.headers["retry-after"], error["type"], error["code"]) == (503, "1", "server_error", "overloaded")
        assert "more than 1000" in error["message"]
        may_end.set()
        assert (await first).status_code == 422  # it was read, and lacks its input
        assert (await client.post(SPEECH, content=b" " * 900 + b"{}", headers=kind)).status_code == 422


async def test_a_body_of_endless_lists_is_refused_before_it_is_parsed() -> None:
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        content = b'{"input": [' + b"[]," * 600_000 + b"[]]}"
        answer = await client.post(SPEECH, content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, "allowed: 500000" in answer.json()["error"]["message"]) == (413, True)


async def test_browsers_of_other_origins_are_let_in_only_if_named() -> None:
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        answer = await client.get("/health", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
    async with client_of(GatewaySettings(backends=NOWHERE, cors_origins=("https://page.example",))) as client:
        assert (await client.options(SPEECH, headers=headers)).headers["access-control-allow-origin"] == "https://page.example"
        answer = await client.get("/health", headers=headers)
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


async def test_forms_of_other_pages_are_not_taken() -> None:
    """A browser asks the server before it sends JSON to another origin, and not before it sends a form."""
    page, own = {"Origin": "https://page.example"}, {"Origin": "http://gateway"}
    form: dict[str, Any] = {"data": {"name": "anna", "consent": "she"}, "files": {"audio_sample": ("a.wav", b"RIFF")}}
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        for headers, status in (
            ({}, 400),  # let in; it is no recording
            (own, 400),
            (page | {"Sec-Fetch-Site": "same-origin"}, 400),  # behind a proxy that changes the host
            (page, 403),
            ({"Origin": "null"}, 403),
        ):
            assert (await client.post("/v1/audio/voices", **form, headers=headers)).status_code == status
        assert (await client.post(SPEECH, json={"input": "x"}, headers=page)).status_code == 503


async def test_a_compressed_body_is_refused_by_name() -> None:
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        answer = await client.post(SPEECH, content=gzip.compress(b"{}"), headers=JSON | {"Content-Encoding": "gzip"})
        for plain in ("", "identity"):
            assert (await client.post(SPEECH, content=b"{}", headers=JSON | {"Content-Encoding": plain})).status_code == 422
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert "Content-Encoding" in answer.json()["error"]["message"]


async def test_a_handshake_that_a_proxy_has_spoilt_is_told_so() -> None:
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        for path in ("audio/speech/stream", "text-to-speech/ada/stream-input", "text-to-dialogue/multi-stream-input"):
            answer = await client.get(f"/v1/{path}")
            assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
            assert "pass on the headers Upgrade and Connection" in answer.json()["error"]["message"]


async def test_a_list_without_end_is_not_read_to_its_end() -> None:
    bodies = {"/v1/audio/speech/batch": b'{"items": [%s]}', "/v1/text-to-dialogue": b'{"inputs": [%s]}'}
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        for path, body in bodies.items():
            entries = b",".join([b'{"input": "a", "text": "a", "voice_id": "ada"}'] * 11_000)
            answer = await client.post(path, content=body % entries, headers=JSON)
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_long")


async def test_every_error_has_the_shape_of_openai() -> None:
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        answers = [
            await client.get("/nowhere"),
            await client.get(SPEECH),
            await client.post(SPEECH, content=b"{", headers=JSON),
            await client.post(SPEECH, json=[]),
            await client.post(SPEECH, content=rb'{"input": "\ud800"}', headers=JSON),
            await client.post(SPEECH, content=b'{"input": "\xff"}', headers=JSON),
            await client.post(SPEECH, content=b"[" * 100_000, headers=JSON),
            await client.post(SPEECH, content=b'{"input": "x", "seed": %s}' % (b"9" * 5000), headers=JSON),
            await client.post("/v1/audio/voices", data={"name": "anna", "audio_sample": "me.wav", "consent": "she"}),
            await client.delete("/v1/audio/voices/anna"),
        ]
    assert [answer.status_code for answer in answers] == [404, 405, 400, 422, 422, 400, 400, 400, 422, 503]
    for answer in answers:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert {answer.json()["error"]["code"] for answer in answers[5:8]} == {"invalid_json"}
    assert "curl -F audio_sample=@FILE" in answers[8].json()["error"]["message"]
    assert "ends with /v1" in answers[0].json()["error"]["message"]
    assert answers[1].json()["error"]["message"] == "GET is not allowed here; allowed: POST"


@pytest.mark.parametrize("kind", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}])
async def test_a_body_that_does_not_say_that_it_is_json_is_told_to(kind: dict[str, str]) -> None:
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        answer = await client.post(SPEECH, content=b'{"input": "x"}', headers=kind)
    assert answer.status_code == 422
    assert "the header Content-Type: application/json" in answer.json()["error"]["message"]


async def test_a_voice_that_comes_as_json_is_told_that_it_is_no_form() -> None:
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        answer = await client.post("/v1/audio/voices", json={"name": "anna", "consent": "she"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, None)
    assert "send multipart/form-data, as curl -F name=NAME" in answer.json()["error"]["message"]


async def test_head_is_answered_as_get_is() -> None:
    statuses = {"/health": 200, "/ready": 503, "/": 200, "/metrics": 200, SPEECH: 405}
    async with client_of(GatewaySettings(backends=NOWHERE)) as client:
        assert {path: (await client.head(path)).status_code for path in statuses} == statuses


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with client_of(GatewaySettings(backends=NOWHERE, stall_seconds=0.1)) as client:
        answer = await client.post(SPEECH, content=parts(), headers={"Content-Type": "application/json"})
    assert (answer.status_code, "0.1 s" in answer.json()["error"]["message"]) == (408, True)


async def test_keys_are_read_again_when_their_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_tts_gateway.keys.LOOK_SECONDS", 0.0)
    (key, line), (other, other_line) = new_key("reception"), new_key("shop")
    file = tmp_path / "keys"
    file.write_text(line)
    async with client_of(GatewaySettings(backends=NOWHERE, keys_file=file)) as client:

        async def is_let_in(given: str) -> bool:
            return (await client.get("/v1/models", headers={"Authorization": f"Bearer {given}"})).status_code != 401

        assert (await is_let_in(key), await is_let_in(other)) == (True, False)
        for content, expected in (
            (f"{line}\n{other_line}", (True, True)),
            ("no line of a key", (True, True)),  # a mistake changes nothing
            (f"{other_line}\n", (False, True)),
            ("", (False, False)),
        ):
            file.write_text(content)
            assert (await is_let_in(key), await is_let_in(other)) == expected
        file.unlink()
        assert not await is_let_in(key)


async def test_voices_that_may_not_change_do_not() -> None:
    async with client_of(GatewaySettings(backends=NOWHERE, voice_changes=False)) as client:
        assert (await client.delete("/v1/audio/voices/anna")).status_code == 403


def test_the_command_says_what_is_wrong_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = CliRunner().invoke
    for arguments, message in (
        (["--backend", "http://a:1"], "backend: 'http://a:1' is not allowed"),
        (["--voice-name", "alloy"], "is not NAME=VOICE"),
        (["--keys-file", "/nowhere/keys"], "keys_file: /nowhere/keys cannot be read"),
    ):
        result = run(cli, ["gateway", *arguments], env={"COLUMNS": "200"})
        assert (result.exit_code, message in result.output) == (2, True), result.output
    monkeypatch.setitem(__import__("sys").modules, "qwen3_tts_gateway.running", None)
    result = run(cli, ["gateway"])
    assert result.exit_code == 2
    assert "pip install '.[gateway]'" in result.output


def test_a_new_key_is_shown_once_and_its_line_kept() -> None:
    result = CliRunner().invoke(cli, ["gateway-key", "reception"])
    assert result.stdout.startswith("reception ")
    assert result.stderr.startswith("sk-")
    assert CliRunner().invoke(cli, ["gateway-key", "two words"]).exit_code == 2


def test_help_fits_eighty_columns() -> None:
    text = CliRunner().invoke(cli, ["gateway", "--help"], env={"COLUMNS": "80"}).stdout
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("path", ["/v1//models", "//v1/models", "/v1/models/", "//v1//models//"])
async def test_a_base_url_may_end_with_a_slash_and_so_may_a_path(path: str, tmp_path: Path) -> None:
    """Clients join both by a slash of their own. Not all follow a redirection, and a proxy in front may have another address."""
    key, line = new_key("reception")
    (tmp_path / "keys").write_text(line)
    async with client_of(GatewaySettings(backends=NOWHERE, keys_file=tmp_path / "keys")) as client:
        url = httpx.URL("http://gateway").copy_with(raw_path=path.encode())
        assert (await client.get(url)).status_code == 401
        answer = await client.get(url, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code in (200, 503)  # the route, which has no server
        assert (await client.get("/docs/")).status_code == 200
