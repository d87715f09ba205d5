"""TritonServer: a tritonserver with this repository's models, as a child process."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import resource
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from engine_lib.config import ENVIRONMENT_PREFIX
from engine_lib.server.ascii_names import plain_name
from engine_lib.server.installation import EVERY_ADDRESS, LOOPBACK, ServerError, ServerInstallation
from engine_lib.server.limits import check_current_folder, check_environments_folder, check_memory, check_tasks, memory_limit, open_files
from engine_lib.server.log import STDOUT, ServerLog
from engine_lib.server.orphan import EndOfModels, OrphanWatch, ask_to_drain, dead_models
from engine_lib.server.own_folder import OwnFolder
from engine_lib.server.ports import hold_free_port, hold_port
from engine_lib.server.releases import advice_on_exit, problem_of
from engine_lib.server.repository import models_to_load
from engine_lib.serving.lifecycle import DRAIN_DIRECTORY_VARIABLE
from engine_lib.serving.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE
from engine_lib.serving.served import GRPC_URL_VARIABLE, TALKER
from engine_lib.serving.server_guard import REGION_PREFIX

MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"
POLL_SECONDS = 0.1
METRICS_SECONDS = 5.0  # from readiness until the metrics port must be open
ANSWER_SECONDS = 10.0  # for a busy server's HTTP answer
EXIT_SECONDS = 25.0  # Kubernetes kills a container after 30 by default
LOG_LINES_SHOWN = 15
ARENAS = 4
REPORT_SECONDS = 10.0
REFUSED_SECONDS = 5.0  # Triton's HTTP port opens when the models have been loaded, so what it refuses then it refuses for ever
DEAD_SECONDS = 15.0  # Triton waits for ever for a model's process that was killed before its first line
NO_ANSWER = (OSError, http.client.HTTPException)  # refused, too late, or cut off in the middle
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the environment does not reach our own ports


class Ports(NamedTuple):
    """The ports of a server; 0 takes a free one."""

    http: int
    grpc: int
    metrics: int


DEFAULT_PORTS, FREE_PORTS = Ports(8000, 8001, 8002), Ports(0, 0, 0)


class TritonServer:
    """One server process. As a context manager: started and ready inside, stopped outside.

    Attributes:
        http_port, grpc_port, metrics_port: its ports.
        models: names of the models that it loads at its start, all of which must be ready.
        log_file: the output of the server and the models.
        version: of tritonserver, as in 2.51.0; "" before `wait_ready`.
        temporary_folders: what is removed if this process is killed; may be added to before the start.
        was_killed: whether `stop` had to kill it.
        models_have_ended: whether `stop` saw that nothing is lost if the server is killed (see EndOfModels), or that it ended in order.
    """

    def __init__(
        self,
        *,
        options: Mapping[str, str],
        repository: Path = MODEL_REPOSITORY,
        ports: Ports = DEFAULT_PORTS,
        address: str | None = None,
        log_file: Path | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str | None] | None = None,
        exit_seconds: float = EXIT_SECONDS,
    ) -> None:
        """
        Args:
            options: options of EngineConfig by name; they override config.pbtxt and the environment.
            repository: the model repository.
            ports: to listen on.
            address: to listen on, IPv4; None: as in ServerInstallation.default_address.
            log_file: for the server's output, which is never read back; default: the output of this process.
            arguments: further arguments of tritonserver.
            environment: changes to this process's environment, such as those of an MpsDaemon; None removes a variable.
            exit_seconds: the most that the end of the server may take, the draining of its streams included; then it is killed.
        """
        self.options = dict(options)
        self.repository = repository
        self.models = models_to_load(repository, arguments)
        self._held = [hold_free_port() for port in ports if port == 0]
        free = iter(self._held)
        self.http_port, self.grpc_port, self.metrics_port = (port or next(free).getsockname()[1] for port in ports)
        self._address = address
        self._run_directory = OwnFolder("qwen3-tts-")
        self.temporary_folders = [Path(self._run_directory.name)]
        self.log_file = log_file or STDOUT
        self._log = ServerLog(self.log_file)
        self._talkers = sorted(file.parent.name for file in repository.glob(f"{TALKER}*/config.pbtxt"))
        self._exit_seconds = exit_seconds
        self._arguments, self._environment = list(arguments), dict(environment or {})
        self._drain_directory = Path(self._run_directory.name) / "drain"
        self._drain_directory.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: OrphanWatch | None = None
        self.models_have_ended = self.was_killed = self._is_drained = False
        self.version = ""

    def __enter__(self) -> TritonServer:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of tritonserver."""
        return self._running().pid

    def start(self) -> None:
        """Start the process; `wait_ready` returns when it serves.

        Raises:
            ServerError: no tritonserver, a port is taken, too few files, threads or addresses are allowed, /tmp cannot be written, or the
                current folder has gone.
        """
        run_directory, files = Path(self._run_directory.name), open_files()
        check_current_folder()
        check_environments_folder()
        check_tasks()
        check_memory()
        installation = ServerInstallation.find(run_directory)
        self._address = self._address or installation.default_address
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        if len(set(ports.values())) < len(ports):
            raise ServerError(f"the ports {', '.join(f'{name} {port}' for name, port in ports.items())} are not three; choose three")
        for name, port in ports.items():
            self._held.append(hold_port(name, self._address, port))
        environment = installation.environment(run_directory, os.environ)
        own = {DRAIN_DIRECTORY_VARIABLE: str(self._drain_directory), GRPC_URL_VARIABLE: f"{self.host}:{self.grpc_port}"}
        has_secret = any(environment.get(name) for name in (SECRET_VARIABLE, SECRET_FILE_VARIABLE))
        made = {} if has_secret else {SECRET_VARIABLE: secrets.token_hex()}
        changes = made | self._environment | option_environment(self.options) | own
        environment = {name: value for name, value in (environment | changes).items() if value is not None}
        # Two model processes share the cores; by default torch starts a thread for each core in both.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
        environment.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Each arena of glibc keeps what its largest messages took, and by default there are 8 for each core.
        environment.setdefault("MALLOC_ARENA_MAX", str(ARENAS))
        command = [
            str(installation.binary),
            f"--model-repository={plain_name(self.repository, run_directory / 'links')}",
            "--disable-auto-complete-config",
            "--strict-readiness=true",
            "--exit-on-error=false",  # so that it can still be asked for the reason
            f"--exit-timeout-secs={math.ceil(self._exit_seconds)}",
            "--grpc-infer-allocation-pool-size=1",  # by default it keeps the audio of 8 streams that have ended
            *(f"--{name}-port={port}" for name, port in ports.items()),
            *(f"--{name}-address={self._address}" for name in ports),
        ]
        if installation.backend_directory is not None:
            command.append(f"--backend-directory={installation.backend_directory}")
        try:
            unread, output = self._log.open()
        except OSError as error:
            raise ServerError(f"log_file: {str(self.log_file)!r} cannot be written: {error.strerror}; choose another") from None
        try:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            with suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (files, files))
            drain_files = [self._drain_directory / model for model in self._talkers]
            self._watch = OrphanWatch(self._process, unread, drain_files, self.temporary_folders, self._exit_seconds)
        finally:
            os.close(output)
            os.close(unread)

    def wait_ready(self, timeout: float = 900.0, report: Callable[[str], None] | None = None) -> None:
        """Wait until every model is ready. The server's own readiness is not used: it ignores an ensemble that failed to load.

        Args:
            report: told every few seconds what is still waited for.

        Raises:
            ServerError: a model failed to load (with its reason), Triton is too old, the server exited, or `timeout` seconds passed.
        """
        try:
            self._wait_ready(timeout, report)
        except ServerError as error:
            if limit := memory_limit():
                raise ServerError(f"{error}\n{limit}; try without this limit") from None
            raise

    def _wait_ready(self, timeout: float, report: Callable[[str], None] | None) -> None:
        process, begin, missing = self._running(), time.monotonic(), ""
        report_due, alive_at, answered_at = begin + REPORT_SECONDS, begin, begin
        python_models = [model for model in self.models if (self.repository / model / "1" / "model.py").is_file()]
        while time.monotonic() < begin + timeout:
            if process.poll() is not None:
                self._log.close()  # else the message may lack the line that says why
                advice = advice_on_exit(self._log.lines())
                raise ServerError(f"tritonserver exited with code {process.returncode}{advice} while loading:\n{self.last_log_lines()}")
            try:
                self._http("v2/health/live")
                index = json.loads(self._http("v2/repository/index", b"{}"))
                self.version = json.loads(self._http("v2"))["version"]
            except (*NO_ANSWER, ValueError) as error:
                index, missing = [], f"tritonserver to load its models (its HTTP port {self.http_port}: {error})"
                self._check_refusal(error, time.monotonic() - answered_at)
                answered_at = answered_at if isinstance(error, urllib.error.HTTPError) else time.monotonic()
            if self.version and (problem := problem_of(self.version, np.__version__)) is not None:
                raise ServerError(problem)
            if index:
                self._check_loaded(index)
                loading = [model for model in self.models if not self.is_model_ready(model)]
                if not loading:
                    self._wait_for_metrics()
                    self._release_ports()
                    return
                missing = ", ".join(loading)
            dead = dead_models(process.pid, python_models)
            alive_at = alive_at if dead else time.monotonic()
            if time.monotonic() > alive_at + DEAD_SECONDS:
                problem = f"the process of {', '.join(dead)} was killed while it loaded; is there too little memory?"
                raise ServerError(f"{problem} The log ends with\n{self.last_log_lines()}")
            if report is not None and time.monotonic() >= report_due:
                report(f"waiting for {missing}, {time.monotonic() - begin:.0f} s so far; the log is {self.log_file}")
                report_due += REPORT_SECONDS
            time.sleep(POLL_SECONDS)
        raise ServerError(
            f"tritonserver is not ready after {timeout:.0f} seconds of waiting for {missing}; its log ends with\n{self.last_log_lines()}"
        )

    def _check_refusal(self, error: Exception, seconds: float) -> None:
        """Raise ServerError if the server has refused for `seconds` to say what it has loaded."""
        if not isinstance(error, urllib.error.HTTPError) or seconds < REFUSED_SECONDS:
            return
        if error.code == HTTPStatus.FORBIDDEN:
            open_apis = "leave health, metadata and model-repository out of --http-restricted-api"
            raise ServerError(f"tritonserver restricts its HTTP port {self.http_port}, where its models are watched; {open_apis}")
        raise ServerError(
            f"tritonserver could not start (its HTTP port {self.http_port}: {error}); its log ends with\n{self.last_log_lines()}"
        )

    def _check_loaded(self, index: list[dict[str, str]]) -> None:
        """Raise ServerError if a model is missing or has failed. Once the server gives its index, loading is over."""
        unknown = sorted(set(self.models).difference(entry["name"] for entry in index))
        if unknown:
            raise ServerError(f"the model repository has no {', '.join(unknown)}")
        # A model without a state has a config.pbtxt that cannot be read.
        failed = [entry for entry in index if entry["name"] in self.models and entry.get("state") not in ("READY", "LOADING")]
        if failed:
            reasons = [f"{entry['name']}: {self._reason(entry)}" for entry in failed if entry.get("reason")]
            unread = [f"{entry['name']}: {self._reason(entry)}" for entry in failed]
            raise ServerError("\n".join(["the model repository did not load", *(reasons or unread)]))

    def is_model_ready(self, model: str) -> bool:
        """Whether the server is up and says that `model` is ready."""
        try:
            self._http(f"v2/models/{model}/ready")
        except NO_ANSWER:
            return False
        return True

    def _wait_for_metrics(self) -> None:
        """Triton opens this port last, some 60 ms after the HTTP port. A server without metrics never does, so the wait has an end."""
        end = time.monotonic() + METRICS_SECONDS
        while time.monotonic() < end:
            try:
                self.metrics()
                return
            except NO_ANSWER:
                time.sleep(POLL_SECONDS)

    def metrics(self) -> str:
        """The text of /metrics."""
        return self._get(f"http://{self.host}:{self.metrics_port}/metrics").decode()

    def last_log_lines(self) -> str:
        """The end of the log, for a message."""
        return "\n".join(self._log.last_lines(LOG_LINES_SHOWN))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to exit; returns its exit code.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        code = self._running().wait(timeout)
        self._log.close()
        if self._watch is not None:
            self._watch.wait()
        return code

    def terminate(self) -> None:
        """Let running streams end, then send SIGTERM; `wait` for the exit. A server that is loading or broken gets SIGTERM at once."""
        process, deadline = self._running(), time.monotonic() + self._exit_seconds
        draining = ask_to_drain([self._drain_directory / model for model in self._talkers if self.is_model_ready(model)])
        while any(file.exists() for file in draining) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._is_drained = draining != [] and not any(file.exists() for file in draining)
        if process.poll() is None:
            process.terminate()

    def stop(self) -> int | None:
        """Stop the server in order. It is killed after `exit_seconds`, or soon after the end of its models when it does not follow them.

        Returns:
            Its exit code; None if it never ran.
        """
        code = None
        if self._process is not None:
            deadline = time.monotonic() + self._exit_seconds
            models, regions = EndOfModels(self._process.pid), _regions(self._process.pid)
            self.terminate()
            while self._process.poll() is None and time.monotonic() < deadline:
                if models.is_over(is_drained=self._is_drained):
                    break
                time.sleep(POLL_SECONDS)
            if self._process.poll() is None:
                self._process.kill()
                self.was_killed = True
            code = self.wait()
            # A server that ends in order does so after its models, perhaps between two looks. A second call finds no models.
            self.models_have_ended |= models.have_ended or code == 0
            for region in regions:  # that of a model's process which was killed before it had a guard
                region.unlink(missing_ok=True)
        self._release_ports()
        self._run_directory.cleanup()
        return code

    def _release_ports(self) -> None:
        for holder in self._held:
            holder.close()

    def _reason(self, entry: Mapping[str, str]) -> str:
        """Why a model is not ready: the server's reason, without the stack that the Python backend appends, or else the log's line."""
        if entry.get("reason"):
            return re.split(r"\n\s*At:\n", entry["reason"])[0].strip().removeprefix("Internal: ")
        named = re.compile(rf"^(E|\S+ E ).*('{entry['name']}'|ensemble {entry['name']}\b)")  # by Triton's two formats of a log
        logged = list(filter(named.match, self._log.lines()))
        return logged[0].split("] ", 1)[-1].strip('"') if logged else "not loaded; see the log"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the server has not been started")
        return self._process

    @property
    def host(self) -> str:
        """At which this machine reaches the server. Not by a name, which may mean ::1, where it does not listen, or nothing."""
        return LOOPBACK if self._address in (None, EVERY_ADDRESS) else self._address

    def _http(self, path: str, body: bytes | None = None) -> bytes:
        return self._get(f"http://{self.host}:{self.http_port}/{path}", body)

    def _get(self, url: str, body: bytes | None = None) -> bytes:
        with _DIRECT.open(urllib.request.Request(url, data=body), timeout=ANSWER_SECONDS) as response:
            content: bytes = response.read()
        return content


def _regions(server_pid: int) -> set[Path]:
    """The files in /dev/shm that a server shares with its models; none if it has ended."""
    try:
        maps = Path(f"/proc/{server_pid}/maps").read_text()
    except OSError:
        return set()
    return {Path(name) for name in re.findall(rf"/dev/shm/{REGION_PREFIX}\S*", maps)}


def option_environment(options: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that set engine options."""
    return {ENVIRONMENT_PREFIX + name.upper(): value for name, value in options.items()}
