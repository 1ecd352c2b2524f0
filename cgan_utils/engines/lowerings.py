"""How each operation of PyTorch is lowered to C.

A lowering is a function that adds the kernels of one operation to a CodeGenerator `c`. It takes all
arguments of the operation, with an Array of `codegen` for each tensor, and returns Arrays likewise.
"""

import itertools
import math

import torch

aten = torch.ops.aten

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
    aten.relu.default: "{0} < 0 ? 0 : {0}",  # NaN stays NaN
    aten.threshold_backward.default: "threshold_backward({0}, {1}, {2})",
    aten.leaky_relu.default: "{0} > 0 ? {0} : {1} * {0}",
    aten.leaky_relu_backward.default: "{0} * ({1} > 0 ? 1 : {2})",  # reads {0} always: no branch
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
    aten.unbind.int,
)


def elementwise_lowering(operation, expression):
    def lower(c, *arguments):
        out = arguments[0] if operation._schema.is_mutable else None
        return c.map(expression, *arguments, out=out)

    return lower


def view_lowering(operation):
    positions = sum(not parameter.kwarg_only for parameter in operation._schema.arguments)

    def lower(c, array, *arguments):
        arguments = arguments[: positions - 1]
        try:
            views = operation(array.meta, *arguments)
        except RuntimeError:  # no strides give this shape: copy to contiguous memory first
            contiguous = torch.empty_like(array.meta, memory_format=torch.contiguous_format)
            array = c.map("{0}", array, out=c.alloc(contiguous))
            views = operation(array.meta, *arguments)
        if isinstance(views, torch.Tensor):
            return array.with_meta(views)
        return [array.with_meta(view) for view in views]

    return lower


LOWERINGS = {
    **{operation: elementwise_lowering(operation, text) for operation, text in ELEMENTWISE.items()},
    **{operation: view_lowering(operation) for operation in VIEWS},
}


def lowering(operation):
    """Register a function as the lowering of an operation."""

    def register(function):
        LOWERINGS[operation] = function
        return function

    return register


def require(condition, what):
    """Raise NotImplementedError for `what` PyTorch can do and this package cannot."""
    if not condition:
        raise NotImplementedError(f"there is no C lowering for {what}")


# -- constants, matrix products, joining and padding


@lowering(aten.zeros.default)
def zeros(c, shape, *options):
    return c.map("0", out=c.alloc_batch_last(shape))


@lowering(aten.new_zeros.default)
def new_zeros(c, like, shape, *options):
    return zeros(c, shape)


@lowering(aten.mm.default)
def mm(c, a, b):
    return c.matmul(a, b)


@lowering(aten.addmm.default)
def addmm(c, bias, a, b, beta, alpha):
    require(alpha == beta == 1, "addmm with alpha or beta")
    product = c.matmul(a, b)
    return c.map("{0} + {1}", product, bias, out=product)


@lowering(aten.cat.default)
def cat(c, arrays, dim):
    out = c.alloc_like(arrays, aten.cat.default([a.meta for a in arrays], dim))
    start = 0
    for array in arrays:
        c.map("{0}", array, out=out.view(torch.narrow, dim, start, array.shape[dim]))
        start += array.shape[dim]
    return out


@lowering(aten.stack.default)
def stack(c, arrays, dim):
    return cat(c, [a.view(torch.unsqueeze, dim) for a in arrays], dim)


@lowering(aten.slice_backward.default)
def slice_backward(c, gradient, shape, dim, start, end, step):
    if step > 1:
        out = zeros(c, shape)
        c.map("{0}", gradient, out=out.view(aten.slice.Tensor, dim, start, end, step))
        return out
    dim %= len(shape)
    start, end, _ = slice(start, end).indices(shape[dim])
    margins = [start, shape[dim] - max(start, end)]
    return pad(c, gradient, [0, 0] * (len(shape) - 1 - dim) + margins, 0)


@lowering(aten.constant_pad_nd.default)
def pad(c, x, margins, value):
    """Pad x with a constant; a negative margin crops it."""
    out = inside = c.alloc_like([x], aten.constant_pad_nd.default(x.meta, margins))
    pairs = zip(margins[::2], margins[1::2], strict=True)
    for d, (before, after) in enumerate(pairs, 1):  # from the last dimension to the first
        kept = x.shape[-d] + min(0, before) + min(0, after)
        x = x.view(torch.narrow, -d, max(0, -before), kept)
        inside = inside.view(torch.narrow, -d, max(0, before), kept)
        for start, length in ((0, before), (out.shape[-d] - after, after)):
            if length > 0:
                c.map(str(value), out=out.view(torch.narrow, -d, start, length))
    c.map("{0}", x, out=inside)
    return out


# -- sums and losses


@lowering(aten.sum.dim_IntList)
def sum_dims(c, array, dims, keepdim, dtype):
    require(array.meta.dtype == torch.float32, "sums of integers")
    dims = [d % array.meta.dim() for d in dims]
    total = c.sum(dims, "{0}", array)
    return total if keepdim else total.view(torch.squeeze, dims)


@lowering(aten.sum.default)
def sum_all(c, array, dtype):
    return sum_dims(c, array, range(array.meta.dim()), False, dtype)


@lowering(aten.mean.default)
def mean(c, array, dtype):
    total = sum_all(c, array, dtype)
    return c.map("{0} / {1}", total, array.meta.numel(), out=total)


@lowering(aten.binary_cross_entropy_with_logits.default)
def bce_with_logits(c, logits, targets, weight, pos_weight, reduction):
    require(pos_weight is None and reduction > 0, "binary cross-entropy with these options")
    weight = 1 if weight is None else weight
    losses = c.map("{2} * (softplus({0}) - {0} * {1})", logits, targets, weight)
    return mean(c, losses, None) if reduction == 1 else sum_all(c, losses, None)


# -- indices


@lowering(aten.embedding.default)
def embedding(c, table, labels, *options):
    out = c.alloc_batch_last((*labels.shape, table.shape[1]))

    def statement(at):
        return f"{out[at]} = {table[labels[at[:-1]], at[-1]]};"

    c.loop(out.shape, out.meta.stride(), statement)
    return out


@lowering(aten.embedding_dense_backward.default)
def embedding_backward(c, gradient, labels, num_classes, padding_index, scale):
    require(padding_index < 0 and not scale, "an embedding with these options")
    rows = labels.view(torch.unsqueeze, 1).view(torch.Tensor.expand, gradient.shape)
    return c.scatter_into(zeros(c, (num_classes, gradient.shape[1])), 0, rows, gradient, "+=")


@lowering(aten.gather.default)
def gather(c, array, dim, index, sparse_gradient):
    return c.gather(array, dim, index)


@lowering(aten.scatter.value)
def scatter(c, array, dim, index, value):
    return c.scatter_into(c.map("{0}", array), dim, index, value, "=")


@lowering(aten.scatter_add.default)
def scatter_add(c, array, dim, index, values):
    return c.scatter_into(c.map("{0}", array), dim, index, values, "+=")


# -- batch norm


@lowering(aten.native_batch_norm.default)
def batch_norm(c, x, weight, bias, running_mean, running_variance, training, momentum, epsilon):
    plain = training and weight is bias is None and x.meta.dim() == 2
    require(plain, "batch norm with these options")
    n = x.shape[0]
    mean = c.sum([0], "{0} / {1}", x, n)
    variance = c.sum([0], "({0} - {1}) * ({0} - {1}) / {2}", x, mean, n)
    scale = c.map("1 / sqrtf({0} + {1})", variance, epsilon)
    mean, variance, scale = (a.view(torch.squeeze, 0) for a in (mean, variance, scale))
    update = "{0} + {1} * ({2} * {3} - {0})"
    c.map(update, running_mean, momentum, 1, mean, out=running_mean)
    c.map(update, running_variance, momentum, n / (n - 1), variance, out=running_variance)
    return c.map("({0} - {1}) * {2}", x, mean, scale), mean, scale


@lowering(aten.native_batch_norm_backward.default)
def batch_norm_backward(c, gradient, x, weight, _, __, mean, scale, training, epsilon, wanted):
    require(training and weight is None, "batch norm with these options")
    n = x.shape[0]
    level = c.sum([0], "{0} / {1}", gradient, n)
    slope = c.sum([0], "{0} * ({1} - {2}) * {3} * {3} / {4}", gradient, x, mean, scale, n)
    return [c.map("({0} - {1} - ({2} - {3}) * {4}) * {5}", gradient, level, x, mean, slope, scale)]


# -- average pooling


@lowering(aten.avg_pool2d.default)
def average_pool(c, x, window, stride, padding, ceil_mode, count_padding, divisor):
    sizes = [math.ceil(n / side) for n, side in zip(x.shape[-2:], window, strict=True)]
    out = c.alloc_batch_last((*x.shape[:-2], *sizes))
    for region in pooled_regions(x, window, stride, padding, ceil_mode, divisor):
        (rows, out_rows, height), (columns, out_columns, width) = region
        block = x.slice(..., rows, columns)
        corners = itertools.product(range(height), range(width))
        pixels = [
            block.slice(..., slice(i, None, height), slice(j, None, width)) for i, j in corners
        ]
        total = " + ".join(f"{{{k}}}" for k in range(len(pixels)))
        c.map(f"({total}) / {len(pixels)}", *pixels, out=out.slice(..., out_rows, out_columns))
    return out


@lowering(aten.avg_pool2d_backward.default)
def average_pool_backward(
    c, gradient, x, window, stride, padding, ceil_mode, count_padding, divisor
):
    out = c.alloc_batch_last(x.shape)
    for region in pooled_regions(x, window, stride, padding, ceil_mode, divisor):
        (rows, out_rows, height), (columns, out_columns, width) = region
        windows = out.slice(..., rows, columns).view(torch.Tensor.unflatten, -1, (-1, width))
        windows = windows.view(torch.Tensor.unflatten, -3, (-1, height))
        received = gradient.slice(..., out_rows, None, out_columns, None)
        c.map("{0} / {1}", received, height * width, out=windows)
    return out


def pooled_regions(x, window, stride, padding, ceil_mode, divisor):
    """Split an image into regions with windows of one size: those at its end may be smaller.

    A region is a pair, for rows and columns, of (slice of x, slice of the output, window size).
    """
    disjoint = list(stride) in ([], list(window)) and not any(padding)
    require(disjoint and ceil_mode and divisor is None, "average pooling with these options")
    directions = []
    for length, side in zip(x.shape[-2:], window, strict=True):
        whole, left = divmod(length, side)
        end = whole * side
        parts = (slice(end), slice(whole), side), (slice(end, None), slice(whole, None), left)
        directions.append([part for part, some in zip(parts, (whole, left), strict=True) if some])
    return itertools.product(*directions)


# -- the optimiser


@lowering(aten._foreach_add_.Scalar)
def add_to_each(c, arrays, value):
    for array in arrays:
        c.map("{0} + {1}", array, value, out=array)


@lowering(aten._fused_adam_.tensor_lr)
def adam(c, weights, gradients, means, squares, _, steps, rate, beta1, beta2, *others):
    decay, epsilon, *others = others
    require(not decay and not any(others), "Adam with these options")
    tensors = zip(weights, gradients, means, squares, steps, strict=True)
    for weight, gradient, mean, square, step in tensors:
        if gradient.meta.stride() != weight.meta.stride():
            gradient = c.map("{0}", gradient, out=c.alloc(torch.empty_like(weight.meta)))
        addresses = [array.address for array in (weight, gradient, mean, square)]
        scalars = step[()], rate[()], beta1, beta2, epsilon
        c.call("adam", weight.meta.numel(), *addresses, *scalars)
