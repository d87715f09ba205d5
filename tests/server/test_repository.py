"""A repository for several checkpoints: names by kind, options of each model, one codec for all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import CheckpointError, ConfigError
from engine_lib.server.process import MODEL_REPOSITORY
from engine_lib.server.repository import FIRST_RESPONSE_HISTOGRAM, Options, check_same_codec, lay_out
from engine_lib.serving.options import engine_config
from engine_lib.serving.served import ServedCheckpoint, served_checkpoints, where_to_go
from engine_lib.speech.lexicon import Lexicon
from make_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_custom_voice: Path) -> dict[str, Path]:
    """A checkpoint of each kind; the codec is the same, because it depends only on the seed."""
    folder = tmp_path_factory.mktemp("kinds")
    made = {kind: make_checkpoint(folder / kind, kind=kind) for kind in ("base", "voice_design")}
    return {"custom_voice": tiny_custom_voice, **made}


def config_of(repository: Path, model: str) -> Any:
    """config.pbtxt as Triton reads it."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def arguments(repository: Path, model: str) -> dict[str, str]:
    """The arguments of `initialize` from the Python backend."""
    parameters = {key: {"string_value": value.string_value} for key, value in config_of(repository, model).parameters.items()}
    return {"model_config": json.dumps({"parameters": parameters}), "model_repository": str(repository / model)}


def lay(tmp_path: Path, paths: list[Path], every: dict[str, str] | None = None, **options: Any) -> Path:
    repository = tmp_path / "repository"
    lay_out(MODEL_REPOSITORY, repository, paths, Options(every=every or {}, **options))
    return repository


def test_the_first_checkpoint_keeps_the_plain_names_and_the_others_get_their_kind(tmp_path: Path, models: dict[str, Path]) -> None:
    served = lay_out(MODEL_REPOSITORY, tmp_path / "r", [*models.values(), models["base"]], Options())
    assert [(one.kind, one.ensemble, one.talker) for one in served] == [
        ("custom_voice", "qwen3_tts", "talker"),
        ("base", "qwen3_tts_base", "talker_base"),
        ("voice_design", "qwen3_tts_design", "talker_design"),
        ("base", "qwen3_tts_base_2", "talker_base_2"),
    ]
    assert [one.model_path for one in served] == [str(models[one.kind]) for one in served]


def test_each_ensemble_gets_the_buckets_of_tritons_histogram_if_it_is_wanted(tmp_path: Path, models: dict[str, Path]) -> None:
    for wanted in (True, False):
        repository = tmp_path / str(wanted)
        lay_out(MODEL_REPOSITORY, repository, [models["custom_voice"], models["base"]], Options(), first_response_histogram=wanted)
        for ensemble in ("qwen3_tts", "qwen3_tts_base"):
            controls = config_of(repository, ensemble).model_metrics.metric_control
            families = [control.metric_identifier.family for control in controls]
            assert families == (["nv_inference_first_response_histogram_ms"] if wanted else [])
            assert all(list(control.histogram_options.buckets) == sorted(control.histogram_options.buckets) for control in controls)
    assert FIRST_RESPONSE_HISTOGRAM in (MODEL_REPOSITORY.parent / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_every_model_is_named_as_its_folder_and_calls_its_own_talker_and_the_one_codec(tmp_path: Path, models: dict[str, Path]) -> None:
    repository = lay(tmp_path, list(models.values()))
    names = sorted(folder.name for folder in repository.iterdir())
    assert [config_of(repository, name).name for name in names] == names
    for suffix in ("", "_base", "_design"):
        steps = config_of(repository, f"qwen3_tts{suffix}").ensemble_scheduling.step
        assert [step.model_name for step in steps] == [f"talker{suffix}", "codec_decoder"]
        offline = config_of(repository, f"qwen3_tts{suffix}_offline")
        assert offline.parameters["ensemble"].string_value == f"qwen3_tts{suffix}"


def test_options_reach_every_model_or_one_and_win_in_order(tmp_path: Path, models: dict[str, Path]) -> None:
    repository = lay(
        tmp_path,
        [models["custom_voice"], models["base"]],
        every={"device": "cpu", "max_num_seqs": "8"},
        of_model={"talker_base": {"max_num_seqs": "2"}, "codec_decoder": {"codec_max_batch_size": "4"}},
        environment={"QWEN3_TTS_MAX_NUM_SEQS": "16", "QWEN3_TTS_MAX_TEXT_LENGTH": "77", "PATH": "/bin"},
    )
    talker, base, codec = (engine_config(arguments(repository, name), {}) for name in ("talker", "talker_base", "codec_decoder"))
    assert (talker.max_num_seqs, base.max_num_seqs) == (8, 2)
    assert (talker.device, codec.device, base.max_text_length) == ("cpu", "cpu", 77)
    assert codec.codec_max_batch_size == 4
    assert (talker.model_path, base.model_path) == (str(models["custom_voice"]), str(models["base"]))


def test_talkers_share_the_gpu_and_the_codec_has_a_slot_for_every_stream(tmp_path: Path, models: dict[str, Path]) -> None:
    repository = lay(tmp_path, list(models.values()))
    talkers = [engine_config(arguments(repository, name), {}) for name in ("talker", "talker_base", "talker_design")]
    assert [talker.gpu_memory_utilization for talker in talkers] == [0.2] * 3
    codec = engine_config(arguments(repository, "codec_decoder"), {})
    assert codec.codec_slots == sum(talker.max_num_seqs for talker in talkers) == 192


def test_too_few_codec_slots_are_refused_with_the_sum_that_is_needed(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"codec_slots: 100 .* sum of max_num_seqs, 64 \(talker\) \+ 64 \(talker_base\)"):
        lay(tmp_path, [models["custom_voice"], models["base"]], every={"codec_slots": "100"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": {"max_nun_seqs": "1"}}, "unknown option max_nun_seqs"),
        ({"every": {"max_num_seqs": "many"}}, "max_num_seqs: 'many' is not a whole number"),
        ({"every": {"max_num_seqs": "5000"}}, "max_num_seqs: 5000 is outside"),
        ({"of_model": {"talker_design": {"device": "cpu"}}}, "'talker_design' is no model with options; those are codec_decoder"),
    ],
)
def test_a_bad_option_is_named_before_a_server_starts(
    tmp_path: Path, models: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lay(tmp_path, [models["custom_voice"], models["base"]], **options)


def test_a_quoted_path_survives_config_pbtxt(tmp_path: Path, models: dict[str, Path]) -> None:
    copied = Path(shutil.copytree(models["base"], tmp_path / 'a "base" \\ size'))
    repository = lay(tmp_path, [copied])
    assert engine_config(arguments(repository, "talker"), {}).model_path == str(copied)


def test_folders_with_other_names_reach_the_models_as_ascii_links(tmp_path: Path, models: dict[str, Path]) -> None:
    copied = Path(shutil.copytree(models["base"], tmp_path / 'a "base" \\ größe'))
    (tmp_path / "слова.json").write_text('{"a": "b"}', encoding="utf-8")
    every = {"voice_store": str(tmp_path / "голоса\udcff" / "new"), "lexicon_file": str(tmp_path / "слова.json")}
    repository = lay(tmp_path, [copied], every=every)
    for model in ("talker", "voices", "codec_decoder"):
        config = engine_config(arguments(repository, model), {})
        assert (config.model_path + config.voice_store + config.lexicon_file).isascii()
        assert Lexicon.read(config.lexicon_file).spellings == {"a": "b"}
        assert Path(config.model_path).resolve() == copied
        assert Path(config.voice_store).resolve() == tmp_path / "голоса\udcff" / "new"


def test_a_codec_with_other_weights_is_refused_by_name(tmp_path: Path, models: dict[str, Path], tiny_base: Path) -> None:
    check_same_codec(models["custom_voice"], models["base"])
    with pytest.raises(CheckpointError, match=r"weight decoder\.\S+ of its codec has other values than the codec of"):
        lay(tmp_path, [models["custom_voice"], tiny_base])
    smaller = make_checkpoint(tmp_path / "smaller", overrides={"speech_tokenizer.decoder_config.latent_dim": 40})
    with pytest.raises(CheckpointError, match="its codec has another configuration"):
        check_same_codec(models["custom_voice"], smaller)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path, models: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"model_path: '.*nowhere' is not a folder"):
        lay(tmp_path, [models["custom_voice"], tmp_path / "nowhere"])


def test_models_know_what_else_the_server_serves(tmp_path: Path, models: dict[str, Path]) -> None:
    repository = lay(tmp_path, [models["custom_voice"], models["base"]])
    own = CheckpointConfig.read(models["base"])
    served = served_checkpoints(arguments(repository, "talker_base"), own, "unused")
    assert where_to_go(served, "base") == "call model qwen3_tts_base, which is of kind base"
    assert where_to_go(served, "voice_design") == "this server serves no checkpoint of kind voice_design; call one that does"
    alone = served_checkpoints(arguments(MODEL_REPOSITORY, "talker"), own, "/models/base")
    assert alone == [ServedCheckpoint("base", "qwen3_tts", "talker", "/models/base")]
