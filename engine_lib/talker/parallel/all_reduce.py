"""RankGroup: all_reduce over the ranks of one talker, by torch.distributed.

torch's default process group is left to others. NCCL works between GPUs, on the current stream and in CUDA graphs too; gloo works
in the host's memory.

An all_reduce by gloo may outlast a rank that has ended, until its timeout: data that waits in gloo's queue as a connection breaks gets no
error, and a rank hears only of its neighbours in the ring. torch's abort does nothing for gloo either (2.13). So the thread that waits
for such an all_reduce regularly checks whether the group has been aborted, and then abandons it.
"""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from engine_lib.checkpoint import Shard

_dist: Any = torch.distributed  # its stubs lack the classes used here

HOST = "127.0.0.1"  # ranks share a machine, and no other machine may reach them
CONNECT_TIMEOUT = timedelta(seconds=30)  # of ranks that have all loaded
# Of an all_reduce by gloo: the longest wait for another rank is a prefill on a slow CPU.
ALL_REDUCE_TIMEOUT = timedelta(seconds=600)
ABORT_CHECK_INTERVAL = timedelta(milliseconds=50)  # of a thread that waits for gloo


def new_store() -> tuple[Any, int]:
    """The torch store through which the ranks of one talker find each other, and its port, free and reachable only from this machine."""
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    options = {"is_master": True, "wait_for_workers": False, "timeout": CONNECT_TIMEOUT}
    return _dist.TCPStore(HOST, port, master_listen_fd=listener.detach(), **options), port


def open_store(port: int) -> Any:
    """The store that another rank has at `port`."""
    return _dist.TCPStore(HOST, port, is_master=False, timeout=CONNECT_TIMEOUT)


class RankGroup:
    """The ranks of one talker, connected for `all_reduce`."""

    def __init__(self, backend: str, store: Any, shard: Shard, device: torch.device) -> None:
        """The group is ready once all ranks have called this, and `connect`.

        Args:
            backend: nccl or gloo.
            store: of the ranks of this talker alone.
            shard: of the calling rank.
            device: of the tensors.
        """
        self._options = _dist.AllreduceOptions()
        self._options.asyncOp = False  # on the current stream
        # Groups of torch's default world would collide with the caller's own, and with a second engine of this process.
        if backend == "nccl":
            self._group = _dist.ProcessGroupNCCL(store, shard.index, shard.count, _dist.ProcessGroupNCCL.Options())
        else:
            options = _dist.ProcessGroupGloo._Options()
            options._devices = [_dist.ProcessGroupGloo.create_device(hostname=HOST)]
            options._timeout = CONNECT_TIMEOUT
            self._options.timeout = ALL_REDUCE_TIMEOUT
            self._group = _dist.ProcessGroupGloo(store, shard.index, shard.count, options)
        self._abort_lock, self._is_aborted = threading.Lock(), False
        self._device = device
        self._through_host = backend == "gloo" and device.type == "cuda"

    def connect(self) -> None:
        """Run the first all_reduce, in which NCCL connects; after it `all_reduce` can be captured."""
        self.all_reduce(torch.zeros(1, device=self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Replace `x`, contiguous, by its sum over ranks: the same bits on every rank."""
        if self._through_host:
            return x.copy_(self._all_reduce(x.cpu()))
        return self._all_reduce(x)

    def abort(self, release_graphs: Callable[[], None] = lambda: None) -> None:
        """Make all_reduces of this rank fail, those under way and later ones. Safe to call from any thread, and again.

        Args:
            release_graphs: destroys the CUDA graphs that hold all_reduces; NCCL's abort would wait for them without end.
        """
        with self._abort_lock:
            if not self._is_aborted:
                self._is_aborted = True
                release_graphs()
                self._group.abort()

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if not self._is_aborted:
            work = self._group.allreduce([x], self._options)
            if work is None or self._is_done(work):
                return x
        raise RuntimeError("the sums over ranks have been broken off")

    def _is_done(self, work: Any) -> bool:
        """Wait for an all_reduce: True if it is done, False if the group has been aborted. Raises the error of the all_reduce."""
        while not work.is_completed():
            if self._is_aborted:
                # The group is never freed: its destructor would wait for the all_reduce, and at exit so would the process.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
                return False
            with suppress(RuntimeError):  # it takes longer; errors are raised below
                work.wait(ABORT_CHECK_INTERVAL)
        work.wait()
        return True
