"""The processes of one server have one secret, no other reads it, and no file of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_lib.errors import ConfigError
from engine_lib.serving.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE, ServerSecret, SharedSecret

READ = "from engine_lib.serving.secret import ServerSecret; print(ServerSecret.of_this_server().sign(b'content').hex(), flush=True)"
HERE = os.getpid()


def test_a_signature_belongs_to_its_content_and_its_secret() -> None:
    secret = ServerSecret(b"one")
    signature = secret.sign(b"content")
    assert secret.has_signed(b"content", signature)
    assert ServerSecret(b"one").has_signed(b"content", signature)
    assert not secret.has_signed(b"other content", signature)
    assert not secret.has_signed(b"content", signature[:-1])
    assert not secret.has_signed(b"content", b"")
    assert not ServerSecret(b"two").has_signed(b"content", signature)


def test_the_environment_wins_over_a_file_which_wins_over_a_shared_one(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("sixteen letters!\n")
    given = ServerSecret.of_this_server({SECRET_VARIABLE: "sixteen letters!", SECRET_FILE_VARIABLE: "nowhere"})
    assert given.has_signed(b"content", ServerSecret.of_this_server({SECRET_FILE_VARIABLE: str(file)}).sign(b"content"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({SECRET_VARIABLE: "short"}, f"{SECRET_VARIABLE}: the secret has 5 bytes; give at least 16"),
        ({SECRET_FILE_VARIABLE: "/dev/null"}, f"{SECRET_FILE_VARIABLE}: the secret has 0 bytes"),
        ({SECRET_FILE_VARIABLE: "/nowhere"}, f"{SECRET_FILE_VARIABLE}: '/nowhere' cannot be read: No such file"),
    ],
)
def test_a_secret_that_cannot_be_used_is_refused_by_name(environment: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        ServerSecret.of_this_server(environment)
    assert str(error.value).startswith(reason)


def test_processes_of_one_server_agree_and_the_last_one_leaves_nothing() -> None:
    """Each process here is a child of this one, as models are of their server."""
    environment = {name: value for name, value in os.environ.items() if name not in (SECRET_VARIABLE, SECRET_FILE_VARIABLE)}
    processes = [
        subprocess.Popen([sys.executable, "-c", READ + "; input()"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert len({process.stdout.readline() for process in processes if process.stdout}) == 1
    files = list(Path("/dev/shm").glob(f"qwen3_tts_secret_*_{HERE}_*"))
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600]
    for process in processes:
        process.communicate(b"\n")
    assert not files[0].exists()


def test_many_at_a_time_share_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        shared = list(pool.map(lambda _: SharedSecret(HERE, tmp_path), range(64)))
    assert len({one.key for one in shared}) == 1
    assert len(shared[0].key) == 32
    for one in shared:
        assert one.file.exists()
        one.release()
    assert not list(tmp_path.iterdir())


def test_processes_that_come_and_go_never_read_half_a_secret(tmp_path: Path) -> None:
    def come_and_go(_: int) -> int:
        shared = SharedSecret(HERE, tmp_path)
        shared.release()
        return len(shared.key)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(come_and_go, range(400))) == {32}
    assert not list(tmp_path.iterdir())


def test_a_file_that_killed_processes_left_is_removed_by_the_next_server(tmp_path: Path) -> None:
    share = f"shared = SharedSecret({HERE}, Path({str(tmp_path)!r}))"
    code = f"from pathlib import Path; from engine_lib.serving.secret import SharedSecret; {share}; print(shared.file, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().decode().strip())
        process.kill()
    assert left.exists()
    with subprocess.Popen(["sleep", "60"]) as server:
        other = SharedSecret(server.pid, tmp_path)
        server.kill()
    assert not left.exists()
    assert other.file.exists()
    other.release()


def test_a_secret_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    first = SharedSecret(HERE, tmp_path)
    first.file.chmod(0o644)
    with pytest.raises(ConfigError, match="is not this user's alone"):
        SharedSecret(HERE, tmp_path)
    first.release()
