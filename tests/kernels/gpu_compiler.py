"""Compiles kernels for a GPU that is not there: by Triton's front end, or down to machine code.

Code that launches kernels runs as it is, on tensors without memory (torch's device "meta"). A launch compiles its kernel and starts
nothing. Most errors of a kernel that the interpreter accepts come up in the front end, which takes a tenth of a second; machine code takes
seconds. This needs a process of its own, in which Triton neither interprets nor has launched anything.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton.compiler
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.code_generator import CodeGenerator, get_jit_fn_file_line
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import engine_lib.kernels
from engine_lib.kernels import launch

AMPERE, ADA, HOPPER = 80, 89, 90  # compute capabilities, times ten
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # of a grid
REGISTERS, THREADS = 65536, 1024  # of a program at most
SHARED_BYTES = {AMPERE: 163 * 1024, ADA: 99 * 1024, HOPPER: 227 * 1024}  # of a program at most

Place = tuple[Any, ...]  # a kernel or a function that kernels call, and where in its text


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel: its constants, and what launched it first; `result` is Triton's CompiledKernel, or from the front end a module."""

    kernel: str
    form: str
    constants: str
    result: Any


class GpuCompiler:
    """Takes the place of the GPU's driver in this process.

    Attributes:
        capability: of the GPU that is compiled for.
        machine_code: whether to go on to machine code.
        form: a name of what is launched now, for messages.
        failures: "kernel of form": why its launch cannot work.
        compiled: all kernels that could be compiled.
    """

    def __init__(self) -> None:
        assert not launch.INTERPRETED.value, "TRITON_INTERPRET is set: kernels are interpreted in this process"
        self.capability, self.machine_code, self.form = HOPPER, False, ""
        self.failures: dict[str, str] = {}
        self.compiled: list[Compiled] = []
        self._reached: set[Place] = set()
        driver.set_active(_NoDriver(self))
        real_is_hopper = launch.is_hopper
        for name, module in list(sys.modules.items()):
            if name.startswith("engine_lib.") and vars(module).get("is_hopper") is real_is_hopper:
                vars(module)["is_hopper"] = lambda device: self.capability >= HOPPER
        whole = triton.compiler.compile
        triton.compiler.compile = lambda *args, **options: (whole if self.machine_code else _front_end)(*args, **options)
        self._compile_launches()
        self._note_what_is_reached()

    def _compile_launches(self) -> None:
        run = JITFunction.run

        def compile_launch(kernel, *args, grid, warmup, **options) -> None:
            constants = " ".join(f"{key}={value}" for key, value in options.items() if key.isupper())
            cache = kernel.device_caches[self.capability][0]
            num_known = len(cache)
            try:
                _check_launch(grid, **options)
                result = run(kernel, *args, grid=grid, warmup=True, **options)
                _check_shared_memory(result, SHARED_BYTES[self.capability])
            except Exception as error:  # of any type: the next kernels are compiled all the same
                self.failures.setdefault(f"{kernel.__name__} of {self.form}", f"{_innermost(error)} ({constants})")
                return
            if len(cache) > num_known:
                self.compiled.append(Compiled(kernel.__name__, self.form, constants, result))

        JITFunction.run = compile_launch

    def _note_what_is_reached(self) -> None:
        visit = CodeGenerator.visit

        def note(generator, node):
            if hasattr(node, "lineno"):
                self._reached.add(_place(generator.jit_fn, node))
            return visit(generator, node)

        CodeGenerator.visit = note

    def never_compiled(self) -> list[str]:
        """Kernels and functions they call, statements and branches of these, that were part of no launch: "file:line: text"."""
        missed = []
        for function in _jit_functions():
            file, first_line = get_jit_fn_file_line(function)
            for node in self._missed(function, function.parse().body[0]):
                missed.append(f"{file}:{first_line + node.lineno - 1}: {ast.unparse(node).splitlines()[0]}")
        return missed

    def _missed(self, function: Any, node: ast.AST, is_branch: bool = True) -> Iterator[Any]:
        """The largest parts of `node` that were not reached. Those of the interpreter and docstrings do not count."""
        if is_branch and _place(function, node) not in self._reached:
            yield node
            return
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "INTERPRETED":
            children: Iterable[ast.AST] = node.orelse
        else:
            children = ast.iter_child_nodes(node)
        for child in children:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            is_branch = isinstance(child, ast.stmt) or (isinstance(node, ast.IfExp) and child in (node.body, node.orelse))
            yield from self._missed(function, child, is_branch)


class _NoDriver:
    """What Triton asks of a driver when it compiles. Each capability is a device of its own, so that it has its own cache."""

    def __init__(self, compiler: GpuCompiler) -> None:
        self._compiler = compiler

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._compiler.capability, 32)

    def get_current_device(self) -> int:
        return self._compiler.capability

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def _front_end(src, target, options, _env_vars=None):
    """In the place of triton.compiler.compile, which then goes on with this module, and caches files."""
    backend = triton.compiler.make_backend(target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    # Statements about overflows are for an assertion that only debug=True has.
    parsed = backend.parse_options(dict(options) | {"sanitize_overflow": False})
    return src.make_ir(target, parsed, backend.get_codegen_implementation(parsed), backend.get_module_map(), context)


def _check_launch(grid: tuple[int, ...], *, num_warps: int = 4, maxnreg: int | None = None, **_: object) -> None:
    """Refuse what a GPU would refuse to launch."""
    fits = all(1 <= size <= most for size, most in zip(grid, MOST_PROGRAMS, strict=False))
    assert fits, f"a grid of {grid} programs; 1 to {MOST_PROGRAMS} can be launched"
    threads = 32 * num_warps
    assert threads <= THREADS, f"{num_warps} warps; {THREADS // 32} can be launched"
    assert threads * (maxnreg or 0) <= REGISTERS, f"{num_warps} warps of {maxnreg} registers a thread; there are {REGISTERS} registers"


def _check_shared_memory(result: Any, most: int) -> None:
    """Refuse a program that a GPU has too little shared memory for; only the whole compiler knows how much it takes."""
    if hasattr(result, "metadata"):
        shared = result.metadata.shared
        assert shared <= most, f"{shared} bytes of shared memory; a program can have {most}"


def _innermost(error: BaseException) -> str:
    """The error in the function that a kernel calls says why; those around it only say where it was called."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}"


def _jit_functions() -> Iterator[Any]:
    """All kernels of engine_lib and the functions they call."""
    for module in pkgutil.iter_modules(engine_lib.kernels.__path__, "engine_lib.kernels."):
        members = vars(importlib.import_module(module.name)).values()
        yield from (member for member in members if isinstance(member, JITFunction) and member.__module__ == module.name)


def _place(function: Any, node: Any) -> Place:
    return function.__module__, function.__name__, node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
