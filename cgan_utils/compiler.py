"""A recorded training step written out as C, compiled, and called as one function.

torch.fx records which of PyTorch's operations a step is made of, its backward passes included. Here
each of them becomes a loop in C. A tensor becomes a place in memory with a shape and strides, so
that a view, another shape of the same place, costs nothing.

A product of matrices is fast where one number of the left factor meets many of the right one that
lie side by side. So an intermediate result (N, ...), of N images, has the N numbers of one feature
side by side: each weight meets all images at once.
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
from pathlib import Path

import torch

aten = torch.ops.aten

KERNELS = Path(__file__).with_name("kernels.h")
WIDE = 32  # columns of a product that make it fast: at least COLUMNS there
# Not -ffast-math: a loss that is not a number has to stay one, for `train` to notice.
FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -fPIC -shared"
WORTH_SHARING = 2048  # numbers; fewer are computed before another thread has begun
MEMORY = torch.empty(2**40, device="meta")  # what a program's intermediate results lie in


def compile_program(program):
    """A function that does what a recorded step does, a torch.fx.GraphModule, on the CPU.

    It takes the tensors that the program takes, float32 or int64 and of the same shapes and
    strides, writes to those the program writes to, and returns the one tensor that it returns.
    Raises NotImplementedError for an operation that it has no C for, and RuntimeError where there
    is no C compiler with OpenMP.
    """
    skip_unread_columns(program.graph)
    program.graph.eliminate_dead_code()
    writer = Writer(program.graph)
    step = build(writer.source())
    memory = torch.zeros(writer.size)
    place = writer.result.meta
    result = memory.view(place.dtype).as_strided(
        place.shape, place.stride(), place.storage_offset()
    )
    pointers = (ctypes.c_void_p * len(writer.inputs))()

    def run(*tensors):
        for i, tensor in enumerate(tensors):
            pointers[i] = tensor.data_ptr()
        step(pointers, ctypes.c_void_p(memory.data_ptr()), torch.get_num_threads())
        return result.clone()

    return run


@functools.cache
def build(source):
    """The C function `step` of this source."""
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


def skip_unread_columns(graph):
    """Where less than half of a product is read, compute that: D's gradient by a label."""
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
    """A tensor of the C program: a pointer, with a shape and strides kept by a *meta* tensor.

    array[i, j] is the C text for one element, at indices that are C text themselves.
    array.view(f, ...) is the array that PyTorch's f gives: another shape of the same memory.
    array.part(...) is that of an index in Python.
    """

    def __init__(self, pointer, meta, block=None):
        self.pointer, self.meta, self.shape, self.block = pointer, meta, meta.shape, block

    def __getitem__(self, indices):
        terms = [f"{i} * {stride}" for i, stride in zip(indices, self.meta.stride(), strict=True)]
        return f"{self.pointer}[{' + '.join([str(self.meta.storage_offset()), *terms])}]"

    @property
    def start(self):
        return f"{self.pointer} + {self.meta.storage_offset()}"

    def view(self, function, *arguments):
        return self.at(function(self.meta, *arguments))

    def part(self, *index):
        return self.view(operator.getitem, index)

    def at(self, meta):
        return Array(self.pointer, meta, self.block)


def pointer_to(name, dtype):
    """The C text for a pointer to numbers of this dtype."""
    types = {torch.float32: "float", torch.int64: "int64_t"}
    require(dtype in types, f"tensors of {dtype}")
    return f"(({types[dtype]} *){name})"


def batch_last(*shape, dtype=torch.float32):
    """A meta tensor (N, ...) with the N numbers of one feature side by side."""
    meta = torch.empty((*shape[1:], *shape[:1]), dtype=dtype, device="meta")
    return meta.movedim(-1, 0) if shape else meta


class Block:
    """The memory of an array and its views. Once it is garbage, another array may lie there."""


class Writer:
    """Writes the C of a recorded graph, piece by piece, each of them a loop."""

    def __init__(self, graph):
        self.size = 0  # of the memory for intermediate results, in floats
        self.free = []  # ranges of it that were in use
        self.pieces = []  # (whether the threads share it, its C text)
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        values = {}
        for i, node in enumerate(self.inputs):
            tensor = node.meta["val"]
            meta = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            values[node] = Array(pointer_to(f"inputs[{i}]", tensor.dtype), meta)
        last_use = {used: node for node in graph.nodes for used in node.all_input_nodes}
        for node in graph.nodes:
            require(node.op != "get_attr", "a tensor that the step finds elsewhere")
            if node.op == "call_function" and not str(node.target).startswith("profiler."):
                values[node] = self.write(node, values)
            if node.op == "output":  # a copy, for it may be an input
                self.result = self.map("{0}", values[node.args[0]])
            for used in node.all_input_nodes:
                if last_use[used] is node:
                    values.pop(used, None)

    def write(self, node, values):
        """Add the C for an operation. Returns an Array where PyTorch returns a tensor."""
        operation = node.target
        if operation is operator.getitem:
            return values[node.args[0]][node.args[1]]
        require(operation in WRITERS, f"the operation {operation}")
        parameters = operation._schema.arguments[len(node.args) :]
        others = [node.kwargs.get(p.name, p.default_value) for p in parameters]
        arguments = torch.fx.map_arg((*node.args, *others), values.__getitem__)
        result = WRITERS[operation](self, *arguments)
        if isinstance(result, Array) and "val" in node.meta:
            same_dtype = result.meta.dtype == node.meta["val"].dtype
            require(same_dtype, f"what {operation} makes of such dtypes")
        return result

    def source(self):
        """The program: every thread runs all pieces, but those not shared are left to one."""
        functions, calls = [], []
        for shared, group in itertools.groupby(enumerate(self.pieces), lambda piece: piece[1][0]):
            block = []
            for i, (_, text) in group:
                functions.append(
                    f"static void piece_{i}(void **inputs, float *memory) {{\n{text}\n}}\n"
                )
                block.append(f"piece_{i}(inputs, memory);")
            calls += block if shared else ["#pragma omp single", "{", *block, "}"]
        head = "void step(void **inputs, float *memory, int threads)"
        team = "#pragma omp parallel num_threads(threads)"
        step = [head, "{", team, "{", *calls, "}", "}", ""]
        return "\n".join([KERNELS.read_text(), *functions, *step])

    # -- what the operations below are written with

    def new(self, meta):
        """An array with the shape, strides and dtype of a meta tensor, in memory of its own."""
        floats = meta.dtype.itemsize // 4
        pairs = zip(meta.shape, meta.stride(), strict=True)
        length = floats * (1 + sum((n - 1) * stride for n, stride in pairs))
        place = min((p for p in self.free if len(p) >= length), key=len, default=None)
        if place is None:
            place = range(self.size, self.size + 16 * math.ceil(length / 16))  # whole registers
            self.size = place.stop
        else:
            self.free.remove(place)
        block = Block()
        weakref.finalize(block, self.free.append, place)
        meta = MEMORY.view(meta.dtype).as_strided(meta.shape, meta.stride(), place.start // floats)
        return Array(pointer_to("memory", meta.dtype), meta, block)

    def around(self, meta, *parts):
        """An array for these parts: the numbers of a row side by side if they are so in all."""
        rows = all(part.meta.stride(0) == max(part.meta.stride()) for part in parts)
        whole = meta.new_empty(meta.shape) if rows else batch_last(*meta.shape, dtype=meta.dtype)
        return self.new(whole)

    def call(self, kernel, *arguments):
        """Add a call of a function of kernels.h that all threads share."""
        self.pieces.append((True, f"{kernel}({', '.join(map(str, arguments))});"))

    def loop(self, shape, strides, statement, size=None, simd=True, in_turn=None):
        """Add a loop over all indices, in the order of memory: statement([i, j, ...]) is C text.

        size: how many numbers it computes, if not one for each index. simd: in any order at once.
        in_turn: a dimension along which one thread takes one index after the other.
        """
        if 0 in shape:
            return
        at = [INDICES[d] if length > 1 else "0" for d, length in enumerate(shape)]
        moving = [d for d, length in enumerate(shape) if length > 1]
        moving.sort(key=lambda d: (d == in_turn, -strides[d]))
        divisible = bool(moving) and moving[0] != in_turn
        shared = divisible and (size or math.prod(shape)) >= WORTH_SHARING
        simd = simd and in_turn is None
        lines = []
        for d in moving:
            words = ["for"] * (shared and d == moving[0]) + ["simd"] * (simd and d == moving[-1])
            if words:
                lines.append(f"#pragma omp {' '.join(words)}")
            lines.append(head_of_loop(at[d], shape[d]))
        self.pieces.append((shared, "\n".join([*lines, statement(at)])))

    def map(self, text, *arguments, out=None):
        """Add out = text, where {0}, {1}, ... are arrays, element by element, or numbers."""
        if out is None:
            shape, whole = broadcast(arguments)
            out = self.new(batch_last(*shape) if whole is None else torch.empty_like(whole))
        to, *arguments = with_fewest_dimensions(out, *arguments)
        term = element_by_element(text, arguments, to.shape)
        self.loop(to.shape, to.meta.stride(), lambda at: f"{to[at]} = {term(at)};")
        return out

    def sum(self, dims, text, *arguments):
        """An array with the sums of text, as in `map`, over some dimensions, which have size 1."""
        shape, whole = broadcast(arguments)
        kept = tuple(slice(1) if d in dims else slice(None) for d in range(len(shape)))
        out = self.new(torch.empty_like(whole[kept]))
        term = element_by_element(text, arguments, shape)
        # Side by side lie the numbers of one sum, or the first numbers of many.
        moving = [d for d, length in enumerate(shape) if length > 1]
        many = bool(moving) and min(moving, key=whole.stride) not in dims

        def statement(at):
            inside = [INDICES[d] if d in dims else i for d, i in enumerate(at)]
            lines = [head_of_loop(inside[d], shape[d]) for d in sorted(dims, reverse=True)]
            if lines and not many:
                lines.insert(-1, "#pragma omp simd reduction(+:sum)")
            lines.append(f"sum += {term(inside)};")
            return "\n".join(["{", "float sum = 0;", *lines, f"{out[at]} = sum;", "}"])

        self.loop(out.shape, out.meta.stride(), statement, size=math.prod(shape), simd=many)
        return out

    def product(self, a, b):
        """The product of two matrices, with the rows of b, or the columns of a, side by side."""
        if a.meta.stride(0) == 1 and a.shape[0] >= WIDE:
            return self.rows_by_columns(b.view(torch.t), a.view(torch.t)).view(torch.t)
        return self.rows_by_columns(a, b)

    def rows_by_columns(self, a, b):
        (rows, inner), columns = a.shape, b.shape[1]
        if b.meta.stride(1) != 1 or columns < WIDE:
            wide = self.new(batch_last(max(columns, WIDE), inner)).view(torch.t)
            self.map("{0}", b, out=wide.view(torch.narrow, 1, 0, columns))
            b = wide
        out = self.new(batch_last(b.shape[1], rows)).view(torch.t)
        places = a.start, *a.meta.stride(), b.start, b.meta.stride(0), out.start, out.meta.stride(0)
        self.call("multiply", rows, inner, b.shape[1], *places)
        return out.view(torch.narrow, 1, 0, columns)


INDICES = "ijklmn"


def head_of_loop(index, length):
    return f"for (int {index} = 0; {index} < {length}; {index}++)"


def broadcast(arguments):
    """The shape of the arrays among them together, and the first meta tensor of it, or None."""
    metas = [a.meta for a in arguments if isinstance(a, Array)]
    shape = torch.broadcast_shapes(*(meta.shape for meta in metas))
    return shape, next((meta for meta in metas if meta.shape == shape), None)


def element_by_element(text, arguments, shape):
    """From indices to the text with {0}, {1}, ... filled in: elements of arrays, or numbers."""

    def element(value, at):
        if isinstance(value, Array):
            return value.view(torch.Tensor.expand, shape)[at]
        return f"{value!r}f" if isinstance(value, float) else str(value)

    return lambda at: text.format(*(element(value, at) for value in arguments))


def with_fewest_dimensions(out, *arguments):
    """The same arrays and numbers, for a loop over all elements: few long rows are faster.

    The arrays get the shape of the first one and its order in memory; then two dimensions that are
    a single row in all of them become one.
    """
    order = sorted(range(out.meta.dim()), key=lambda d: -out.meta.stride(d))
    parts = viewed([out, *arguments], torch.Tensor.expand, out.shape)
    parts = viewed(parts, torch.permute, order)
    for d in reversed(range(len(order) - 1)):
        metas = [part.meta for part in parts if isinstance(part, Array)]
        length = metas[0].shape[d + 1]
        single_row = all(meta.stride(d) == length * meta.stride(d + 1) for meta in metas)
        if single_row or 1 in (length, metas[0].shape[d]):
            parts = viewed(parts, torch.flatten, d, d + 1)
    return parts


def viewed(parts, *view):
    return [part.view(*view) if isinstance(part, Array) else part for part in parts]


# -- operation by operation

ELEMENTWISE = {
    aten.add.Tensor: "{0} + {2} * {1}",
    aten.add_.Tensor: "{0} + {2} * {1}",
    aten.sub.Tensor: "{0} - {2} * {1}",
    aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}",
    aten.div.Tensor: "{0} / {1}",
    aten.div.Scalar: "{0} / {1}",
    aten.div_.Scalar: "{0} / {1}",
    aten.neg.default: "-{0}",
    aten.pow.Tensor_Scalar: "powf({0}, {1})",
    aten.lerp_.Tensor: "{0} + {2} * ({1} - {0})",
    aten.clone.default: "{0}",
    aten.ones_like.default: "1",
    aten.zeros_like.default: "0",
    aten.relu.default: "{0} < 0 ? 0 : {0}",  # so that NaN stays NaN
    aten.threshold_backward.default: "threshold_backward({0}, {1}, {2})",
    aten.leaky_relu.default: "{0} > 0 ? {0} : {1} * {0}",
    aten.leaky_relu_backward.default: "{0} * ({1} > 0 ? 1 : {2})",  # no branch: {0} is read
    aten.tanh.default: "hyperbolic_tangent({0})",
    aten.tanh_backward.default: "{0} * (1 - {1} * {1})",
    aten.sigmoid.default: "sigmoid({0})",
    aten.sigmoid_backward.default: "{0} * (1 - {1}) * {1}",
}
VIEWS = (
    aten.alias.default,
    aten.detach.default,
    aten.t.default,
    aten.permute.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
)


def write_elementwise(operation, text):
    def write(c, *arguments):
        return c.map(text, *arguments, out=arguments[0] if operation._schema.is_mutable else None)

    return write


def write_view(operation):
    positions = sum(not parameter.kwarg_only for parameter in operation._schema.arguments)

    def write(c, array, *arguments):
        arguments = arguments[: positions - 1]
        try:
            views = operation(array.meta, *arguments)
        except RuntimeError:  # no strides give this shape
            without_gaps = torch.empty_like(array.meta, memory_format=torch.contiguous_format)
            array = c.map("{0}", array, out=c.new(without_gaps))
            views = operation(array.meta, *arguments)
        if isinstance(views, torch.Tensor):
            return array.at(views)
        return [array.at(view) for view in views]

    return write


WRITERS = {operation: write_elementwise(operation, text) for operation, text in ELEMENTWISE.items()}
WRITERS |= {operation: write_view(operation) for operation in VIEWS}


def writes(*operations):
    """Registers a function that adds the C for these: a Writer, then all of their arguments."""

    def register(function):
        WRITERS.update(dict.fromkeys(operations, function))
        return function

    return register


def require(condition, what):
    """Raise for what an operation can do in PyTorch but not here."""
    if not condition:
        raise NotImplementedError(f"no C is known for {what}")


@writes(aten.zeros.default)
def zeros(c, shape, *options):
    return c.map("0", out=c.new(batch_last(*shape)))


@writes(aten.new_zeros.default)
def new_zeros(c, model, shape, *options):
    return zeros(c, shape)


@writes(aten.mm.default)
def mm(c, a, b):
    return c.product(a, b)


@writes(aten.addmm.default)
def addmm(c, bias, a, b, beta, alpha):
    require(alpha == beta == 1, "addmm with factors")
    product = c.product(a, b)
    return c.map("{0} + {1}", product, bias, out=product)


@writes(aten.cat.default)
def cat(c, arrays, dim):
    out = c.around(aten.cat.default([a.meta for a in arrays], dim), *arrays)
    start = 0
    for array in arrays:
        c.map("{0}", array, out=out.view(torch.narrow, dim, start, array.shape[dim]))
        start += array.shape[dim]
    return out


@writes(aten.stack.default)
def stack(c, arrays, dim):
    return cat(c, [a.view(torch.unsqueeze, dim) for a in arrays], dim)


@writes(aten.slice_backward.default)
def slice_backward(c, gradient, shape, dim, start, end, step):
    if step > 1:
        out = zeros(c, shape)
        c.map("{0}", gradient, out=out.view(aten.slice.Tensor, dim, start, end, step))
        return out
    dim %= len(shape)
    start, end, _ = slice(start, end).indices(shape[dim])
    margins = [start, shape[dim] - max(start, end)]
    return pad(c, gradient, [0, 0] * (len(shape) - 1 - dim) + margins, 0)


@writes(aten.constant_pad_nd.default)
def pad(c, x, margins, value):
    """A frame of one value around x; where a margin is below 0, x is cut off."""
    out = inside = c.around(aten.constant_pad_nd.default(x.meta, margins), x)
    pairs = zip(margins[::2], margins[1::2], strict=True)
    for d, (before, after) in enumerate(pairs, 1):  # from the last dimension on
        kept = x.shape[-d] + min(0, before) + min(0, after)
        x = x.view(torch.narrow, -d, max(0, -before), kept)
        inside = inside.view(torch.narrow, -d, max(0, before), kept)
        for start, length in ((0, before), (out.shape[-d] - after, after)):
            if length > 0:
                c.map(str(value), out=out.view(torch.narrow, -d, start, length))
    c.map("{0}", x, out=inside)
    return out


@writes(aten.sum.dim_IntList)
def sum_dims(c, array, dims, keepdim, dtype):
    require(array.meta.dtype == torch.float32, "sums of whole numbers")
    dims = [d % array.meta.dim() for d in dims]
    total = c.sum(dims, "{0}", array)
    return total if keepdim else total.view(torch.squeeze, dims)


@writes(aten.sum.default)
def sum_all(c, array, dtype):
    return sum_dims(c, array, range(array.meta.dim()), False, dtype)


@writes(aten.mean.default)
def mean(c, array, dtype):
    total = sum_all(c, array, dtype)
    return c.map("{0} / {1}", total, array.meta.numel(), out=total)


@writes(aten.binary_cross_entropy_with_logits.default)
def bce_with_logits(c, logits, targets, weight, pos_weight, reduction):
    require(pos_weight is None and reduction > 0, "binary cross-entropy of this kind")
    weight = 1 if weight is None else weight
    losses = c.map("{2} * (softplus({0}) - {0} * {1})", logits, targets, weight)
    return mean(c, losses, None) if reduction == 1 else sum_all(c, losses, None)


@writes(aten.embedding.default)
def embedding(c, table, labels, *options):
    out = c.new(batch_last(*labels.shape, table.shape[1]))

    def statement(at):
        return f"{out[at]} = {table[labels[at[:-1]], at[-1]]};"

    c.loop(out.shape, out.meta.stride(), statement)
    return out


@writes(aten.embedding_dense_backward.default)
def embedding_backward(c, gradient, labels, num_classes, padding_index, scale):
    require(padding_index < 0 and not scale, "an embedding of this kind")
    rows = labels.view(torch.unsqueeze, 1).view(torch.Tensor.expand, gradient.shape)
    return put(c, zeros(c, (num_classes, gradient.shape[1])), 0, rows, gradient, "+=")


@writes(aten.gather.default)
def gather(c, array, dim, index, sparse_gradient):
    out = c.new(batch_last(*index.shape))

    def statement(at):
        return f"{out[at]} = {array[moved(at, dim, index)]};"

    c.loop(out.shape, out.meta.stride(), statement)
    return out


@writes(aten.scatter.value)
def scatter(c, array, dim, index, value):
    return put(c, c.map("{0}", array), dim, index, value, "=")


@writes(aten.scatter_add.default)
def scatter_add(c, array, dim, index, values):
    return put(c, c.map("{0}", array), dim, index, values, "+=")


def put(c, out, dim, index, value, how):
    """Add "out = value" or "out += value" at indices along `dim`, which may be equal."""
    term = element_by_element("{0}", [value], index.shape)

    def statement(at):
        return f"{out[moved(at, dim, index)]} {how} {term(at)};"

    c.loop(index.shape, index.meta.stride(), statement, in_turn=dim % out.meta.dim())
    return out


def moved(at, dim, index):
    """Indices with the one of `dim` looked up in an array."""
    dim %= len(at)
    return [*at[:dim], index[at], *at[dim + 1 :]]


@writes(aten.native_batch_norm.default)
def batch_norm(c, x, weight, bias, average_mean, average_variance, training, momentum, epsilon):
    require(training and weight is bias is None and x.meta.dim() == 2, "batch norm of this kind")
    n = x.shape[0]
    mean = c.sum([0], "{0} / {1}", x, n)
    variance = c.sum([0], "({0} - {1}) * ({0} - {1}) / {2}", x, mean, n)
    scale = c.map("1 / sqrtf({0} + {1})", variance, epsilon)
    mean, variance, scale = (a.view(torch.squeeze, 0) for a in (mean, variance, scale))
    towards = "{0} + {1} * ({2} * {3} - {0})"
    c.map(towards, average_mean, momentum, 1, mean, out=average_mean)
    c.map(towards, average_variance, momentum, n / (n - 1), variance, out=average_variance)
    return c.map("({0} - {1}) * {2}", x, mean, scale), mean, scale


@writes(aten.native_batch_norm_backward.default)
def batch_norm_backward(c, gradient, x, weight, _, __, mean, scale, training, epsilon, wanted):
    require(training and weight is None, "batch norm of this kind")
    n = x.shape[0]
    level = c.sum([0], "{0} / {1}", gradient, n)
    slope = c.sum([0], "{0} * ({1} - {2}) * {3} * {3} / {4}", gradient, x, mean, scale, n)
    return [c.map("({0} - {1} - ({2} - {3}) * {4}) * {5}", gradient, level, x, mean, slope, scale)]


@writes(aten.avg_pool2d.default)
def average_pool(c, x, cell, stride, padding, ceil_mode, count_padding, divisor):
    cells = [math.ceil(n / side) for n, side in zip(x.shape[-2:], cell, strict=True)]
    out = c.new(batch_last(*x.shape[:-2], *cells))
    for part in parts_of_pool(x, cell, stride, padding, ceil_mode, divisor):
        (rows, down, height), (columns, right, width) = part
        block = x.part(..., rows, columns)
        corners = itertools.product(range(height), range(width))
        pixels = [
            block.part(..., slice(i, None, height), slice(j, None, width)) for i, j in corners
        ]
        total = " + ".join(f"{{{k}}}" for k in range(len(pixels)))
        c.map(f"({total}) / {len(pixels)}", *pixels, out=out.part(..., down, right))
    return out


@writes(aten.avg_pool2d_backward.default)
def average_pool_backward(c, gradient, x, cell, stride, padding, ceil_mode, count_padding, divisor):
    out = c.new(batch_last(*x.shape))
    for part in parts_of_pool(x, cell, stride, padding, ceil_mode, divisor):
        (rows, down, height), (columns, right, width) = part
        cells = out.part(..., rows, columns).view(torch.Tensor.unflatten, -1, (-1, width))
        cells = cells.view(torch.Tensor.unflatten, -3, (-1, height))
        c.map("{0} / {1}", gradient.part(..., down, None, right, None), height * width, out=cells)
    return out


def parts_of_pool(x, cell, stride, padding, ceil_mode, divisor):
    """An image in parts with cells of one size: those at its end may be smaller.

    Pairs, for the rows and the columns, of (pixels, cells, side of a cell).
    """
    side_by_side = list(stride) in ([], list(cell)) and not any(padding)
    require(side_by_side and ceil_mode and divisor is None, "average pooling of this kind")
    directions = []
    for length, side in zip(x.shape[-2:], cell, strict=True):
        whole, left = divmod(length, side)
        end = whole * side
        parts = (slice(end), slice(whole), side), (slice(end, None), slice(whole, None), left)
        directions.append([part for part, some in zip(parts, (whole, left), strict=True) if some])
    return itertools.product(*directions)


@writes(aten.col2im.default)
def fold(c, patches, size, kernel, dilation, padding, stride):
    (height, width), (top, left) = size, padding
    channels = patches.shape[1] // math.prod(kernel)
    canvas = zeros(c, (patches.shape[0], channels, height + 2 * top, width + 2 * left))
    for pixels, drawn in overlaps(canvas, patches, kernel, dilation, stride):
        c.map("{0} + {1}", pixels, drawn, out=pixels)
    return canvas.part(..., slice(top, top + height), slice(left, left + width))


@writes(aten.im2col.default)
def unfold(c, x, kernel, dilation, padding, stride):
    top, left = padding
    canvas = pad(c, x, [left, left, top, top], 0)
    shape = aten.im2col.default(x.meta, kernel, dilation, padding, stride).shape
    out = c.new(batch_last(*shape))
    for pixels, seen in overlaps(canvas, out, kernel, dilation, stride):
        c.map("{0}", pixels, out=seen)
    return out


def overlaps(canvas, patches, kernel, dilation, stride):
    """Canvas and patches cut into cells as large as the stride, of which each patch has several.

    For one cell of all patches after the other a pair of (N, C, rows, height, columns, width): the
    pixels of the canvas that it lies on, and its own.
    """
    sizes = list(zip(canvas.shape[2:], kernel, stride, strict=True))
    whole = all(length % side == patch % side == 0 for length, patch, side in sizes)
    require(whole and list(dilation) == [1, 1], "patches of this kind")
    high, wide = (patch // side for _, patch, side in sizes)  # a patch, in cells
    cells = canvas.view(torch.Tensor.unflatten, 3, (-1, stride[1]))
    cells = cells.view(torch.Tensor.unflatten, 2, (-1, stride[0]))
    rows, columns = cells.shape[2] - high + 1, cells.shape[4] - wide + 1
    places = patches.view(torch.Tensor.unflatten, 2, (rows, columns))
    places = places.view(torch.Tensor.unflatten, 1, (-1, high, stride[0], wide, stride[1]))
    for i, j in itertools.product(range(high), range(wide)):
        pixels = cells.part(
            ..., slice(i, i + rows), slice(None), slice(j, j + columns), slice(None)
        )
        own = places.part(slice(None), slice(None), i, slice(None), j)
        yield pixels, own.view(torch.permute, (0, 1, 4, 2, 5, 3))


@writes(aten._foreach_add_.Scalar)
def add_to_each(c, arrays, value):
    for array in arrays:
        c.map("{0} + {1}", array, value, out=array)


@writes(aten._fused_adam_.tensor_lr)
def adam(c, weights, gradients, means, squares, _, steps, rate, beta1, beta2, *others):
    decay, epsilon, *others = others
    require(not decay and not any(others), "Adam of this kind")
    tensors = zip(weights, gradients, means, squares, steps, strict=True)
    for weight, gradient, mean, square, step in tensors:
        if gradient.meta.stride() != weight.meta.stride():
            gradient = c.map("{0}", gradient, out=c.new(torch.empty_like(weight.meta)))
        places = [array.start for array in (weight, gradient, mean, square)]
        numbers = step[()], rate[()], beta1, beta2, epsilon
        c.call("adam", weight.meta.numel(), *places, *numbers)
