"""Arguments and configs with which a server cannot serve: each ends its start, with a reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine_lib.errors import ConfigError
from engine_lib.server.installation import ServerError
from engine_lib.server.process import MODEL_REPOSITORY
from engine_lib.serving.model_config import check_answers
from server.conftest import new_server

NO_INPUT = """
name: "fleet"
platform: "ensemble"
input [ { name: "word" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "result" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "voices"
  model_version: -1
  input_map { key: "no_such_input" value: "word" }
  output_map { key: "result" value: "result" }
} ] }
"""


@pytest.fixture
def voices_alone(tmp_path: Path) -> Path:
    """A repository of the model that loads fastest."""
    shutil.copytree(MODEL_REPOSITORY / "voices", tmp_path / "repository" / "voices")
    return tmp_path / "repository"


@pytest.mark.parametrize("api", ["health", "metadata", "model-repository"])
def test_a_server_that_may_not_be_watched_says_which_apis_to_leave_open(
    tiny_custom_voice: Path, tmp_path: Path, voices_alone: Path, api: str
) -> None:
    server = new_server(tiny_custom_voice, tmp_path / "log", repository=voices_alone, arguments=[f"--http-restricted-api={api}:key=value"])
    problem = r"^tritonserver restricts its HTTP port \d+, .*; leave health, metadata and model-repository out of --http-restricted-api"
    with pytest.raises(ServerError, match=problem), server:
        pass


def test_a_server_that_listens_without_having_started_is_not_waited_for(
    tiny_custom_voice: Path, tmp_path: Path, voices_alone: Path
) -> None:
    server = new_server(tiny_custom_voice, tmp_path / "log", repository=voices_alone, arguments=["--cache-config=no_such_cache,size=1"])
    problem = r"^tritonserver could not start \(its HTTP port \d+: HTTP Error .*\); its log ends with\n[\s\S]*libtritoncache_no_such_cache"
    with pytest.raises(ServerError, match=problem), server:
        pass


@pytest.mark.parametrize("log_format", ["default", "ISO8601"])
def test_an_ensemble_that_does_not_fit_its_models_is_reported_with_what_the_server_logged(
    tiny_custom_voice: Path, tmp_path: Path, voices_alone: Path, log_format: str
) -> None:
    Path(voices_alone, "fleet", "1").mkdir(parents=True)
    Path(voices_alone, "fleet", "config.pbtxt").write_text(NO_INPUT)
    server = new_server(tiny_custom_voice, tmp_path / "log", repository=voices_alone, arguments=[f"--log-format={log_format}"])
    problem = (
        "fleet: Invalid argument: in ensemble fleet, ensemble tensor word is mapping to non-existing input no_such_input in model voices"
    )
    with pytest.raises(ServerError, match=problem), server:
        pass


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"ensemble"', '"ensembel"', "ensembel: is no parameter of this model; those are ensemble, grpc_url"),
        ('"qwen3_tts"', '""', "ensemble: is not set; give the name of the model to call"),
    ],
)
def test_an_offline_model_with_wrong_parameters_names_them(tmp_path: Path, old: str, new: str, problem: str) -> None:
    config = shutil.copytree(MODEL_REPOSITORY / "qwen3_tts_offline", tmp_path / "repository" / "qwen3_tts_offline") / "config.pbtxt"
    text = config.read_text().replace(f"key: {old}", f"key: {new}").replace(f"string_value: {old}", f"string_value: {new}")
    config.write_text(text)
    server = new_server(tmp_path, tmp_path / "log", repository=config.parents[1])
    with pytest.raises(ServerError, match=f"qwen3_tts_offline: ConfigError: {problem}"), server:
        pass


@pytest.mark.parametrize("model", ["voices", "qwen3_tts_offline"])
def test_answers_that_triton_would_keep_are_refused(model: str) -> None:
    args = {"model_name": model, "model_config": json.dumps({"response_cache": {"enable": True}})}
    with pytest.raises(ConfigError, match="response_cache: Triton's key leaves out request parameters"):
        check_answers(args)
