"""Which tests of a parallel run share a worker, and which ones begin first."""

from __future__ import annotations

from typing import Any

# The tests of these folders share servers. One worker runs them, and starts each of these servers once.
SHARING = ("server", "gateway", "client")
# A file has a worker to itself while it runs. These take longest, so they begin before the others: the workers end together then.
# Those of the folders above share no server with their neighbours.
SLOW = (
    "server/test_end.py",
    "test_voice_meaning.py",
    "talker/test_tensor_parallel.py",
    "server/test_serve.py",
    "server/test_reload.py",
    "scripts/test_voice_in_the_box.py",
    "talker/test_oracle.py",
    "talker/test_batching.py",
    "codec/test_decoder.py",
    "kernels/test_compiled_kernel.py",
    "server/test_backpressure.py",
    "server/test_engine_process.py",
    "gateway/test_serve.py",
    "talker/test_oracle_voices.py",
    "api/test_custom_voice.py",
    "server/test_fuzz_server.py",
    "api/test_voice_clone.py",
    "server/test_runaways.py",
    "test_runaways.py",
    "talker/test_prefix_cache.py",
    "talker/test_remote_engine.py",
    "voices/test_reference_encoder.py",
    "server/test_bench_server.py",
    "server/test_surroundings.py",
    "server/test_killed_tests.py",
    "server/test_versions.py",
    "server/test_traces.py",
    "server/test_releases.py",
)


def scope_of(nodeid: str) -> str:
    """The folder or file whose tests run on one worker."""
    file = nodeid.partition("::")[0].removeprefix("tests/")
    folder = file.partition("/")[0]
    return folder if folder in SHARING and file not in SLOW else file


def place_of(nodeid: str) -> int:
    """When a test begins: those of a smaller number first."""
    first, scope = (*SHARING, *SLOW), scope_of(nodeid)
    return first.index(scope) if scope in first else len(first)


def scheduling(config: Any, log: Any) -> Any:
    """The scheduler of `--dist loadfile` by scope_of, in the order of collection."""
    from xdist.scheduler import LoadFileScheduling  # not every machine that runs tests has it

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False  # or those with the most tests came first, and servers' tests, which are few, last
    return Scheduling(config, log)
