"""What a config must say of a model that streams; a version but the latest is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from engine_lib.errors import ConfigError
from engine_lib.server.installation import ServerError
from engine_lib.server.process import MODEL_REPOSITORY
from engine_lib.serving.model_config import check_only_version, check_streams
from server.conftest import TALKER_ALONE, new_server
from server.streams import Stream, inputs


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    """A repository in which the talker and the codec have the versions 1 and 2."""
    repository = Path(shutil.copytree(MODEL_REPOSITORY, tmp_path / "repository"))
    for model in ("talker", "codec_decoder"):
        shutil.copytree(repository / model / "1", repository / model / "2")
    return repository


def test_a_second_version_is_refused_by_name(endless_voice: Path, tmp_path: Path, two_versions: Path) -> None:
    with (two_versions / "talker" / "config.pbtxt").open("a") as config:
        config.write("version_policy: { all { } }\n")
    server = new_server(endless_voice, tmp_path / "log", repository=two_versions, arguments=TALKER_ALONE)
    with pytest.raises(ServerError, match="talker: ConfigError: version_policy: loads version 1 of talker beside version 2"), server:
        pass


@pytest.mark.parametrize(
    ("policy", "own", "refused"),
    [
        ({"all": {}}, "2", False),
        ({"specific": {"versions": [1, 2]}}, "1", True),
        ({"specific": {"versions": ["1", "2"]}}, "1", True),
        ({"specific": {"versions": [1]}}, "1", False),
        ({"latest": {"num_versions": 2}}, "1", True),
        ({"latest": {"num_versions": 1}}, "2", False),
        (None, "2", False),
    ],
)
def test_each_policy_that_loads_a_later_version_is_refused(two_versions: Path, policy: object, own: str, refused: bool) -> None:
    """By the arguments that Triton gives a model."""
    repository, config = str(two_versions / "talker"), json.dumps({"version_policy": policy})
    args = {"model_name": "talker", "model_version": own, "model_repository": repository, "model_config": config}
    with pytest.raises(ConfigError, match="loads version 1 of talker beside version 2") if refused else nullcontext():
        check_only_version(args)


def test_a_folder_of_an_older_version_may_stay(endless_voice: Path, tmp_path: Path, two_versions: Path) -> None:
    with (two_versions / "codec_decoder" / "config.pbtxt").open("a") as config:
        config.write("version_policy: { specific { versions: [ 1 ] } }\n")
    with (
        new_server(endless_voice, tmp_path / "log", repository=two_versions) as server,
        Stream(server, inputs(sampling={"max_frames": 2})) as stream,
    ):
        assert stream.all()[-1].finish_reason == "length"
    log = server.log_file.read_text()
    assert [f"successfully loaded '{model}'" in log for model in ("talker", "codec_decoder")] == [True, True]
    assert "loading: talker:2" in log
    assert "loading: codec_decoder:1" in log


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"max_batch_size": 8}, "max_batch_size: is 8; give 0"),
        (
            {"model_transaction_policy": {"decoupled": False}},
            "model_transaction_policy: talker answers in a stream; give { decoupled: true }",
        ),
        ({"instance_group": [{"kind": "KIND_MODEL", "count": 2}]}, "instance_group: has 2 instances"),
        ({"instance_group": [{"kind": "KIND_CPU", "count": 1}]}, "instance_group: its kind is KIND_CPU; give [ { kind: KIND_MODEL"),
        ({"model_transaction_policy": None}, "model_transaction_policy: talker answers in a stream"),
    ],
)
def test_a_config_with_which_nothing_can_stream_is_refused(changes: dict[str, object], problem: str | None) -> None:
    config = {"max_batch_size": 0, "model_transaction_policy": {"decoupled": True}} | changes
    args = {"model_name": "talker", "model_config": json.dumps(config)}
    with pytest.raises(ConfigError, match=re.escape(problem)) if problem else nullcontext():
        check_streams(args)
