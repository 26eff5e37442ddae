"""Graphs of tensor operations, and programs for the CPU made of them: all that training asks of torch's compiler.

`trace` writes down the operations of a function; `compile_graph` also turns them into one program. A program is kept
for the life of the process under what it computes, so the runs of a process that take the same step share it.

One call into torch is not public: `torch._inductor.compile`. Its programs check nothing when they are called: a default
step takes a fifth less time than by the public `torch.compile` (docs/benchmarks.md, "compile"). Where torch lacks it,
or where it fails, `torch.compile` is used.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

Program = Callable[..., Any]

# Options of torch's compiler: one C++ program, compiled without trying out the processor first, and without the passes
# that find nothing to improve in a step.
_OPTIONS = {
    'cpp_wrapper': True, 'cpp_wrapper_build_separate': True, 'cpp.vec_isa_ok': True,
    'pattern_matcher': False, 'use_joint_graph_passes': False,
}  # fmt: skip
# The programs of this process, by what they compute.
_programs: dict[Hashable, Program] = {}


class CompilationError(RuntimeError):
    """A function could not be traced or compiled; the message is one line."""


def trace(function: Callable[..., Any], example: Sequence[Tensor]) -> fx.GraphModule:
    """`function(*example)` as a list of tensor operations, gradients among them; the example stays as it is.

    Raises CompilationError for a function that is not a fixed list of operations.
    """
    # The gradient of an embedding adds up rows: several threads would do so in an order that changes.
    replaced = {torch.ops.aten.embedding_dense_backward.default: _embedding_gradient}
    try:
        with torch.no_grad():
            return make_fx(function, replaced if torch.get_num_threads() > 1 else None, tracing_mode='fake')(*example)
    except Exception as error:  # whatever the function raises
        raise CompilationError(reason(error)) from error


def compile_graph(function: Callable[..., Any], example: Sequence[Tensor]) -> Program:
    """A program that does what `function` does, for tensors with the layouts of the example, which stays as it is.

    It checks nothing: the caller must give it such tensors. What the function writes to, the program writes to. Raises
    CompilationError where compiling fails.
    """
    graph = trace(function, example)
    key = _key(graph, example)
    if key in _programs:
        return _programs[key]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            program = _compile(graph, example)
    except Exception as error:  # no compiler, one that is too old, no space for its files, ...
        raise CompilationError(reason(error)) from error
    if key is not None:
        _programs[key] = program
    return program


def _compile(graph: fx.GraphModule, example: Sequence[Tensor]) -> Program:
    try:
        from torch._inductor import compile, list_options

        known = list_options()
        options: dict[str, Any] = {name: value for name, value in _OPTIONS.items() if name in known}
        # A copy: where it fails, it may have changed the graph.
        return _called_once(compile(copy.deepcopy(graph), list(example), options=options), example)
    except Exception:  # torch 2.6 raises where it finds the program in its cache
        return _called_once(torch.compile(graph, fullgraph=True, dynamic=False), example)


def _called_once(program: Program, example: Sequence[Tensor]) -> Program:
    """The program after a call on copies: some of the work of compiling is left to the first call."""
    program(*(tensor.clone() for tensor in example))
    return program


def _key(graph: fx.GraphModule, example: Sequence[Tensor]) -> Hashable:
    """What a program depends on: its operations, the layouts of its tensors, and the settings of torch.

    None where the operations alone do not say what a graph computes: it holds tensors or objects of its own.
    """
    if any(node.op in ('get_attr', 'call_module') for node in graph.graph.nodes) or ' at 0x' in graph.code:
        return None
    layouts = tuple((x.dtype, x.shape, x.stride(), x.device) for x in example)
    return graph.code, layouts, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


def _embedding_gradient(gradient: Tensor, indices: Tensor, size: int, padding: int, scale_by_frequency: bool) -> Tensor:
    """The gradient `(size, d)` of the rows of an embedding as a matrix product: the same sum, in a fixed order."""
    one_hot = indices.flatten() == torch.arange(size, device=indices.device)[:, None]
    return one_hot.to(gradient.dtype) @ gradient.flatten(0, -2)


def reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
