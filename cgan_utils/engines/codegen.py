"""Generate C from a traced training step, compile it, and call it as one function.

torch.fx traces which operations of PyTorch a step consists of, its backward passes included.
`lowerings` turns each of them into kernels: loops in C. A tensor becomes a pointer with a shape and
strides, so that a view, another shape of the same memory, costs nothing.

A matrix product vectorises well when each left-hand element multiplies a contiguous run on the
right. Intermediate results (N, ...), for N images, therefore have a batch-last layout: the N
elements of one feature are contiguous, so that each weight multiplies all images at once.
"""

import ctypes
import functools
import itertools
import math
import operator
import os
import shlex
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .lowerings import LOWERINGS, require

aten = torch.ops.aten

HEADER = Path(__file__).with_name("kernels.h")
MIN_COLUMNS = 32  # of a matrix product, for whole register tiles: TILE_COLUMNS is at most this
# Not -ffast-math: a loss that is not a number has to stay one, for `train` to notice.
FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -fPIC -shared"
MIN_PARALLEL_ELEMENTS = 2048  # one thread computes fewer before another has started
WORKSPACE = torch.empty(2**40, device="meta")  # the memory of a program's intermediate results


def compile_program(program: torch.fx.GraphModule) -> Callable[..., Tensor]:
    """Compile a traced step to a function that runs it on the CPU.

    The function takes the tensors that the program takes, float32 or int64 and of the same shapes
    and strides, writes to those that the program writes to, and returns the one tensor that it
    returns; `threads` is the number of threads that run it, by default torch's. Raises
    NotImplementedError for an operation without a lowering, and RuntimeError if there is no C
    compiler with OpenMP.
    """
    skip_unread_columns(program.graph)
    program.graph.eliminate_dead_code()
    code = CodeGenerator(program.graph)
    step = build(code.source())
    workspace = torch.zeros(code.size)
    meta = code.result.meta
    result = workspace.view(meta.dtype).as_strided(meta.shape, meta.stride(), meta.storage_offset())
    pointers = (ctypes.c_void_p * len(code.inputs))()

    def run(*tensors, threads=None):
        for i, tensor in enumerate(tensors):
            pointers[i] = tensor.data_ptr()
        threads = torch.get_num_threads() if threads is None else threads
        step(pointers, ctypes.c_void_p(workspace.data_ptr()), threads)
        return result.clone()

    return run


@functools.cache
def build(source: str):
    """Compile C source and return its function `step`; raises RuntimeError if that fails."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "step.so")
        command = [*compiler, *FLAGS.split(), "-x", "c", "-", "-o", library, "-lm"]
        options = {"input": source, "text": True, "capture_output": True}
        options["start_new_session"] = True  # Ctrl-C is for the training, which ends after a step
        try:
            run = subprocess.run(command, **options)
        except OSError as error:
            raise RuntimeError(f"the C compiler {compiler[0]!r} does not start: {error}") from error
        if run.returncode != 0:
            raise RuntimeError(f"the C compiler {compiler[0]!r} says: {run.stderr.strip()}")
        return ctypes.CDLL(library).step


def skip_unread_columns(graph: torch.fx.Graph):
    """Compute only those columns of a matrix product that are read, if they are less than half.

    D's gradient by its input is such a product: only the label embedding's columns are read.
    """
    for part in graph.nodes:
        if part.target is aten.slice.Tensor and part.args[0].target is aten.mm.default:
            product, dim, *bounds = part.args
            a, b = product.args
            read, computed = (node.meta["val"].numel() for node in (part, product))
            if dim == 1 and len(product.users) == 1 and 2 * read < computed:
                with graph.inserting_before(part):
                    columns = graph.call_function(aten.slice.Tensor, (b, 1, *bounds))
                    part.replace_all_uses_with(graph.call_function(aten.mm.default, (a, columns)))


class Array:
    """A tensor of the C program: a pointer, and a *meta* tensor with its dtype, shape and strides.

    array[i, j] is the C expression for one element, at indices that are C expressions themselves.
    array.view(f, ...) is the array that PyTorch's f returns: another shape of the same memory.
    array.slice(...) is the view that an index in Python returns.
    """

    def __init__(self, pointer, meta, buffer=None):
        self.pointer, self.meta, self.shape, self.buffer = pointer, meta, meta.shape, buffer

    def __getitem__(self, indices):
        terms = [f"{i} * {stride}" for i, stride in zip(indices, self.meta.stride(), strict=True)]
        return f"{self.pointer}[{' + '.join([str(self.meta.storage_offset()), *terms])}]"

    @property
    def address(self):
        """The C expression for the address of the first element."""
        return f"{self.pointer} + {self.meta.storage_offset()}"

    def view(self, function, *arguments):
        return self.with_meta(function(self.meta, *arguments))

    def slice(self, *index):
        return self.view(operator.getitem, index)

    def with_meta(self, meta):
        return Array(self.pointer, meta, self.buffer)


class Buffer:
    """The memory of an array and its views, free for another array once this is garbage."""


class CodeGenerator:
    """Lower a traced graph, node by node, to kernels in C.

    Lowerings are written with the methods below `source`. `inputs` are the graph's placeholders;
    `result` is the array that the program returns.
    """

    def __init__(self, graph: torch.fx.Graph):
        self.size = 0  # of the workspace, in floats
        self.free = [range(WORKSPACE.numel())]  # blocks of it that are not in use
        self.kernels = []  # (whether its loop is parallel, C text)
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        values = {node: input_array(i, node.meta["val"]) for i, node in enumerate(self.inputs)}
        last_use = {used: node for node in graph.nodes for used in node.all_input_nodes}
        for node in graph.nodes:
            require(node.op != "get_attr", "a tensor that is not an input of the step")
            if node.op == "call_function" and not str(node.target).startswith("profiler."):
                values[node] = self.lower(node, values)
            if node.op == "output":  # copied, since it may be an input
                self.result = self.map("{0}", values[node.args[0]])
            for used in node.all_input_nodes:
                if last_use[used] is node:
                    values.pop(used, None)

    def lower(self, node, values):
        """Add the kernels of an operation; return an Array where PyTorch returns a tensor."""
        operation = node.target
        if operation is operator.getitem:
            return values[node.args[0]][node.args[1]]
        require(operation in LOWERINGS, f"the operation {operation}")
        parameters = operation._schema.arguments[len(node.args) :]
        others = [node.kwargs.get(p.name, p.default_value) for p in parameters]
        arguments = torch.fx.map_arg((*node.args, *others), values.__getitem__)
        result = LOWERINGS[operation](self, *arguments)
        if isinstance(result, Array) and "val" in node.meta:
            same_dtype = result.meta.dtype == node.meta["val"].dtype
            require(same_dtype, f"{operation} with these dtypes")
        return result

    def source(self) -> str:
        """Return the C program: all threads call the parallel kernels, one thread the others."""
        functions, calls, meet = [], [], "meet(&arrivals);"
        groups = itertools.groupby(enumerate(self.kernels), lambda kernel: kernel[1][0])
        for parallel, group in groups:
            block = []
            for i, (_, text) in group:
                functions.append(
                    f"static void kernel_{i}(void **inputs, float *workspace) {{\n{text}\n}}\n"
                )
                block.append(f"kernel_{i}(inputs, workspace);")
            if parallel:
                calls += [line for call in block for line in (call, meet)]
            else:
                calls += ["#pragma omp single nowait", "{", *block, "}", meet]
        head = "void step(void **inputs, float *workspace, int threads)"
        team = ["long arrivals = 0;", "#pragma omp parallel num_threads(threads)"]
        step = [head, "{", *team, "{", *calls, "}", "}", ""]
        return "\n".join([HEADER.read_text(), *functions, *step])

    def alloc(self, meta):
        """Allocate an array with the shape, strides and dtype of a meta tensor."""
        floats = meta.dtype.itemsize // 4
        pairs = zip(meta.shape, meta.stride(), strict=True)
        length = floats * (1 + sum((n - 1) * stride for n, stride in pairs))
        size = 16 * math.ceil(max(length, 1) / 16)  # whole registers
        buffer = Buffer()
        block = allocate_block(self.free, size)
        weakref.finalize(buffer, release_block, self.free, block)
        self.size = max(self.size, block.stop)
        offset = block.start // floats
        meta = WORKSPACE.view(meta.dtype).as_strided(meta.shape, meta.stride(), offset)
        return Array(typed_pointer("workspace", meta.dtype), meta, buffer)

    def alloc_batch_last(self, shape, dtype=torch.float32):
        """Allocate an array (N, ...) in which the N elements of one feature are contiguous."""
        meta = torch.empty((*shape[1:], *shape[:1]), dtype=dtype, device="meta")
        return self.alloc(meta.movedim(-1, 0) if len(shape) else meta)

    def alloc_like(self, arrays, meta):
        """Allocate for the shape of a meta tensor: row-major if every array is, else batch-last."""
        if all(array.meta.stride(0) == max(array.meta.stride()) for array in arrays):
            return self.alloc(meta.new_empty(meta.shape))
        return self.alloc_batch_last(meta.shape, meta.dtype)

    def call(self, function, *arguments):
        """Add a kernel that calls a function of kernels.h, which all threads run in parallel."""
        self.kernels.append((True, f"{function}({', '.join(map(str, arguments))});"))

    def loop(self, shape, strides, statement, size=None, simd=True, sequential_dim=None):
        """Add a loop nest over all indices, in memory order: statement([i, j, ...]) is its C body.

        size: how many elements it reads, if more than one per index. simd: vectorise the innermost
        loop. sequential_dim: a dimension whose indices, innermost, one thread visits in order.
        """
        if 0 in shape:
            return
        at = [INDICES[d] if length > 1 else "0" for d, length in enumerate(shape)]
        dims = [d for d, length in enumerate(shape) if length > 1]
        dims.sort(key=lambda d: (d == sequential_dim, -strides[d]))
        divisible = bool(dims) and dims[0] != sequential_dim
        parallel = divisible and (size or math.prod(shape)) >= MIN_PARALLEL_ELEMENTS
        simd = simd and sequential_dim is None
        lines = []
        for d in dims:
            divided, vectorised = parallel and d == dims[0], simd and d == dims[-1]
            words = ["for"] * divided + ["simd"] * vectorised + ["nowait"] * divided
            if divided and vectorised:
                words.append(f"schedule(static, share({shape[d]}))")
            if words:
                lines.append(f"#pragma omp {' '.join(words)}")
            lines.append(loop_head(at[d], shape[d]))
        self.kernels.append((parallel, "\n".join([*lines, statement(at)])))

    def map(self, expression, *arguments, out=None):
        """Add out = expression, elementwise; {0}, {1}, ... in it stand for arrays or scalars."""
        if out is None:
            shape, full = broadcast(arguments)
            if full is None:
                out = self.alloc_batch_last(shape)
            else:
                out = self.alloc(torch.empty_like(full))
        target, *arguments = coalesce_dims(out, *arguments)
        term = elementwise(expression, arguments, target.shape)
        self.loop(target.shape, target.meta.stride(), lambda at: f"{target[at]} = {term(at)};")
        return out

    def sum(self, dims, expression, *arguments):
        """Return the sums of an expression, as in `map`, over some dimensions, kept as size 1.

        They are taken in double precision. A long sum in single precision is less exact than one of
        PyTorch, and behind a batch norm it may turn the sign of a ReLU's input.
        """
        shape, full = broadcast(arguments)
        kept = tuple(slice(1) if d in dims else slice(None) for d in range(len(shape)))
        out = self.alloc(torch.empty_like(full[kept]))
        term = elementwise(expression, arguments, shape)
        # Vectorise along the contiguous dimension: over many sums, or as the reduction of one.
        looped = [d for d, length in enumerate(shape) if length > 1]
        many = bool(looped) and min(looped, key=full.stride) not in dims

        def statement(at):
            inside = [INDICES[d] if d in dims else i for d, i in enumerate(at)]
            lines = [loop_head(inside[d], shape[d]) for d in sorted(dims, reverse=True)]
            if lines and not many:
                lines.insert(-1, "#pragma omp simd reduction(+:sum)")
            lines.append(f"sum += {term(inside)};")
            return "\n".join(["{", "double sum = 0;", *lines, f"{out[at]} = sum;", "}"])

        self.loop(out.shape, out.meta.stride(), statement, size=math.prod(shape), simd=many)
        return out

    def matmul(self, a, b):
        """Multiply matrices; fast if the rows of b, or the columns of a, are contiguous."""
        if a.meta.stride(0) == 1 and a.shape[0] >= MIN_COLUMNS:
            return self.matmul_by_rows(b.view(torch.t), a.view(torch.t)).view(torch.t)
        return self.matmul_by_rows(a, b)

    def matmul_by_rows(self, a, b):
        """Multiply matrices after copying b, if need be, to wide and contiguous rows."""
        (rows, inner), columns = a.shape, b.shape[1]
        if b.meta.stride(1) != 1 or columns < MIN_COLUMNS:
            wide = self.alloc_batch_last((max(columns, MIN_COLUMNS), inner)).view(torch.t)
            self.map("{0}", b, out=wide.view(torch.narrow, 1, 0, columns))
            b = wide
        out = self.alloc_batch_last((b.shape[1], rows)).view(torch.t)
        left, right = (a.address, *a.meta.stride()), (b.address, b.meta.stride(0))
        self.call("matmul", rows, inner, b.shape[1], *left, *right, out.address, out.meta.stride(0))
        return out.view(torch.narrow, 1, 0, columns)

    def gather(self, array, dim, index):
        """Return the elements of an array at the indices along `dim` that another array holds."""
        out = self.alloc_batch_last(index.shape)

        def statement(at):
            return f"{out[at]} = {array[indexed(at, dim, index)]};"

        self.loop(out.shape, out.meta.stride(), statement)
        return out

    def scatter_into(self, out, dim, index, value, assignment):
        """Add out = value, or out += value, at indices along `dim` that may occur repeatedly."""
        term = elementwise("{0}", [value], index.shape)

        def statement(at):
            return f"{out[indexed(at, dim, index)]} {assignment} {term(at)};"

        dim %= out.meta.dim()
        self.loop(index.shape, index.meta.stride(), statement, sequential_dim=dim)
        return out


def allocate_block(free, size):
    """Take a block of this size from the smallest free one that is large enough, and return it."""
    chosen = min((block for block in free if len(block) >= size), key=len)
    free.remove(chosen)
    if len(chosen) > size:
        free.append(chosen[size:])
    return chosen[:size]


def release_block(free, block):
    """Add a block to the free ones, joined with those that it touches."""
    for other in list(free):
        if other.stop == block.start or block.stop == other.start:
            free.remove(other)
            block = range(min(other.start, block.start), max(other.stop, block.stop))
    free.append(block)


def input_array(i, tensor):
    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return Array(typed_pointer(f"inputs[{i}]", tensor.dtype), meta)


def typed_pointer(name, dtype):
    """The C expression for a pointer, cast to this dtype."""
    types = {torch.float32: "float", torch.int64: "int64_t"}
    require(dtype in types, f"tensors of {dtype}")
    return f"(({types[dtype]} *){name})"


INDICES = "ijklmn"


def loop_head(index, length):
    return f"for (int {index} = 0; {index} < {length}; {index}++)"


def indexed(at, dim, index):
    """Indices of which the one along `dim` is looked up in an array."""
    dim %= len(at)
    return [*at[:dim], index[at], *at[dim + 1 :]]


def broadcast(arguments):
    """The shape that the arrays among them broadcast to; the first meta tensor of it, or None."""
    metas = [a.meta for a in arguments if isinstance(a, Array)]
    shape = torch.broadcast_shapes(*(meta.shape for meta in metas))
    return shape, next((meta for meta in metas if meta.shape == shape), None)


def elementwise(expression, arguments, shape):
    """A function from indices to the C expression in which elements replace {0}, {1}, ..."""

    def element(value, at):
        if isinstance(value, Array):
            return value.view(torch.Tensor.expand, shape)[at]
        return f"{value!r}f" if isinstance(value, float) else str(value)

    return lambda at: expression.format(*(element(value, at) for value in arguments))


def coalesce_dims(out, *arguments):
    """Views of the same arrays, and the same scalars, for a loop nest with few long loops.

    The arrays are expanded to the shape of `out` and permuted to its memory order; then adjacent
    dimensions that are contiguous in all of them are merged.
    """
    order = sorted(range(out.meta.dim()), key=lambda d: -out.meta.stride(d))
    operands = view_each([out, *arguments], torch.Tensor.expand, out.shape)
    operands = view_each(operands, torch.permute, order)
    for d in reversed(range(len(order) - 1)):
        metas = [operand.meta for operand in operands if isinstance(operand, Array)]
        length = metas[0].shape[d + 1]
        mergeable = all(meta.stride(d) == length * meta.stride(d + 1) for meta in metas)
        if mergeable or 1 in (length, metas[0].shape[d]):
            operands = view_each(operands, torch.flatten, d, d + 1)
    return operands


def view_each(operands, function, *arguments):
    return [
        operand.view(function, *arguments) if isinstance(operand, Array) else operand
        for operand in operands
    ]
