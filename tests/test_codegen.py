"""The C code of each operation computes what PyTorch computes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from cgan_utils.engines import codegen

pytestmark = pytest.mark.slow  # each compiles a program


def compiled(function, *inputs):
    """Compile `function` for inputs like these."""
    inputs = [x.clone() for x in inputs]  # tracing runs it once
    return codegen.compile_program(make_fx(function)(*inputs))


def assert_same(function, *inputs):
    """The compiled function returns the same, and leaves the same in its inputs."""
    ours, theirs = ([x.clone() for x in inputs] for _ in range(2))
    found = compiled(function, *inputs)(*ours), *ours
    torch.testing.assert_close(
        found, (function(*theirs), *theirs), atol=3e-5, rtol=1e-4, equal_nan=True
    )


def assert_same_gradients(function, *inputs):
    """Its gradients by all floating-point inputs are the same, too."""

    def backward(weights, *inputs):
        inputs = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
        out = function(*inputs)
        leaves = [x for x in inputs if x.requires_grad]
        return joined(out.detach(), *torch.autograd.grad(out, leaves, weights))

    assert_same(backward, torch.randn_like(function(*inputs)), *inputs)


def joined(*tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def layouts(x):
    """The same elements row-major, batch-last, and row-major with gaps."""
    with_gaps = F.pad(x, (1, 2))[..., 1:-2]
    return x.clone(), x.movedim(0, -1).contiguous().movedim(-1, 0), with_gaps


SMALL, LARGE = torch.randn(6, 8), 3 * torch.randn(64, 96)  # for one thread; for parallel loops
EXTREME = torch.tensor([[-200.0, -90, -1e-4, 0], [1e-4, 90, 200, torch.nan]])
LABELS = torch.arange(64) ** 2 % 10


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: 2 * x + x / 4 - (x - 1) * -x, id="arithmetic"),
        pytest.param(lambda x: torch.add(x, x[:1], alpha=3) - x[:, :1] / x, id="broadcasting"),
        pytest.param(lambda x: x**2 + x**3, id="powers"),
        pytest.param(
            lambda x: x * torch.ones_like(x) + torch.zeros(x.shape) + x.new_zeros(1), id="constants"
        ),
        pytest.param(torch.relu, id="relu"),
        pytest.param(lambda x: F.leaky_relu(x, 0.3) + F.leaky_relu(x), id="leaky_relu"),
        pytest.param(torch.tanh, id="tanh"),
        pytest.param(torch.sigmoid, id="sigmoid"),
    ],
)
def test_elementwise_operations(function):
    for x in (SMALL, LARGE, EXTREME):
        for layout in layouts(x):
            assert_same_gradients(function, layout)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x.t() + 1, id="t"),
        pytest.param(lambda x: x.permute(1, 0).reshape(-1) * 2, id="no view has this shape"),
        pytest.param(lambda x: x[1:5:2, -3:] + 1, id="slices"),
        pytest.param(lambda x: x.narrow(-1, 2, 3) + x[:3, 1:4].sum(), id="slices in the middle"),
        pytest.param(lambda x: torch.cat([2 * x[4:2], x, x[-3:-1]]), id="empty slices"),
        pytest.param(lambda x: x.unsqueeze(1).expand(-1, 3, -1) + 1, id="expand"),
        pytest.param(lambda x: x.unflatten(1, (2, 4)).squeeze(1).flatten(1) + 1, id="view"),
        pytest.param(lambda x: torch.cat(x.split([1, 5])[::-1]), id="split_with_sizes"),
        pytest.param(lambda x: torch.stack(x.unbind(1)[::-1]) + 1, id="unbind"),
        pytest.param(lambda x: torch.cat([x, *x.chunk(4, dim=1), x], dim=-1), id="cat"),
        pytest.param(lambda x: torch.stack([x, 2 * x], dim=1), id="stack"),
        pytest.param(lambda x: x.diff(dim=1, append=x[:, -1:]), id="diff"),
        pytest.param(lambda x: F.pad(x, (1, 0)), id="pad before"),
        pytest.param(lambda x: F.pad(x, (0, 2, 3, 1), value=-1.5), id="pad"),
        pytest.param(lambda x: F.pad(x, (-1, -2, 0, -3)), id="crop"),
        pytest.param(lambda x: F.pad(x, (-1, 2, 3, -2)), id="pad and crop"),
    ],
)
def test_views_joining_and_padding(function):
    for x in layouts(SMALL):
        assert_same_gradients(function, x)


def test_a_loop_over_no_elements_does_nothing():
    def change_nothing(x):
        x[:, 3:3].add_(1)
        return x.sum()

    assert_same(change_nothing, SMALL)


@pytest.mark.parametrize("dims", [0, 1, -1, (0, 1), (0, 2), (2, 1, 0)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_sums(dims, keepdim):
    for x in layouts(torch.randn(40, 9, 11)):
        assert_same_gradients(lambda x: x.sum(dims, keepdim=keepdim), x)


@pytest.mark.parametrize("dim", [0, 1])
def test_long_sums_are_rounded_once(dim):
    """As double precision has them. Rounded at each element, the first would be wrong by 4e-6."""
    x = torch.rand(20_000, 40)
    x = x if dim == 0 else x.T.contiguous()
    exact = x.double().sum(dim)
    found = compiled(lambda x: x.sum(dim), x)(x)
    torch.testing.assert_close(found.double(), exact, atol=0, rtol=2**-24 * 1.001)


def test_sum_and_mean_of_all_elements():
    for x in (SMALL, LARGE, torch.tensor(3.0)):
        assert_same_gradients(lambda x: torch.stack([x.sum(), x.mean()]), x)


def test_matrix_products_of_all_shapes_and_layouts():
    sizes = (1, 1, 1), (5, 7, 3), (31, 40, 33), (32, 1, 32), (33, 40, 64), (64, 9, 1), (1, 9, 500)
    pairs = []
    for rows, inner, columns in sizes:
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        pairs += itertools.product(layouts(a), layouts(b))

    def products(*matrices):
        return joined(*(a @ b for a, b in zip(matrices[::2], matrices[1::2], strict=True)))

    assert_same(products, *itertools.chain(*pairs))


@pytest.mark.parametrize("rows", [1, 16, 48, 64])
def test_linear_layers(rows):
    assert_same_gradients(F.linear, torch.randn(rows, 50), torch.randn(70, 50), torch.randn(70))


@pytest.mark.parametrize(
    ("read", "columns"),
    [
        (lambda product: product[:, 5:], 3),
        (lambda product: product[:, :2], 2),
        (lambda product: product[:, :6], 8),  # more than half
        (lambda product: torch.cat(product.tensor_split((3,), dim=1)[::-1], dim=1), 8),  # all
    ],
)
def test_columns_that_are_not_read_are_not_computed(read, columns):
    a, b = torch.randn(5, 7), torch.randn(7, 8)
    program = make_fx(lambda a, b: read(a @ b))(a, b)
    codegen.skip_unread_columns(program.graph)
    program.graph.eliminate_dead_code()
    program.recompile()
    with FlopCounterMode(display=False) as counter:
        found = program(a, b)
    assert counter.get_total_flops() == 2 * 5 * 7 * columns
    torch.testing.assert_close(found, read(a @ b))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_binary_cross_entropy(reduction):
    def loss(logits, weights):
        ones, zeros = torch.ones_like(logits), torch.zeros_like(logits)
        options = {"reduction": reduction}
        real = F.binary_cross_entropy_with_logits(logits, ones, **options)
        return real + F.binary_cross_entropy_with_logits(logits, zeros, weights, **options)

    for x in (SMALL, LARGE, EXTREME.nan_to_num(0)):
        assert_same(lambda x, w: joined(loss(x, w)), x, x.square())


def test_labels():
    table, logits = torch.randn(10, 40), torch.randn(64, 10)
    both = torch.cat([LABELS, LABELS.flip(0)])
    assert_same(lambda a, b: torch.cat([a, b]), LABELS, LABELS.flip(0))  # integers
    assert_same_gradients(lambda t, y: F.embedding(y, t), table, both)
    assert_same_gradients(lambda x, y: x.gather(1, y.unsqueeze(1)), logits, LABELS)
    repeated = LABELS.unsqueeze(1).repeat(1, 400)  # equal indices: additions must not race
    assert_same_gradients(lambda x, y: x.gather(1, y), logits, repeated)
    assert_same_gradients(lambda x, y: x.gather(-2, y.t()), logits.t(), repeated)
    assert_same_gradients(lambda x, y: x.gather(0, y), torch.randn(8), torch.arange(4096) % 8)
    many = LABELS.repeat(400)  # all add to the only column of the table
    assert_same_gradients(lambda t, y: F.embedding(y, t), table[:, :1], many)
    assert_same(lambda x, y: torch.ones_like(x).scatter(1, y.unsqueeze(1), 0), logits, LABELS)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (9, 10), (3, 2), (4, 7)])
def test_average_pooling(size):
    for x in layouts(torch.randn(5, 2, *size)):
        assert_same_gradients(lambda x: F.avg_pool2d(x, 4, ceil_mode=True), x)
    assert_same_gradients(lambda x: F.avg_pool2d(x, (2, 3), ceil_mode=True), x)


def test_batch_norm():
    running = torch.randn(96), torch.rand(96)

    def normalize(x, mean, variance):
        return F.batch_norm(x, mean, variance, training=True)

    for x in layouts(LARGE + 5):
        assert_same(normalize, x, *running)
        assert_same_gradients(lambda x: normalize(x, *map(torch.zeros_like, (x[0], x[0]))), x)


def test_lerp_and_an_integer_count():
    def update(average, value, weight, count):
        average.lerp_(value, weight)
        return count.add_(1)

    assert_same(update, LARGE, LARGE.square(), torch.tensor(0.1), torch.tensor(2**40))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99)])
def test_adam(betas):
    """The lowering of fused Adam agrees with torch.optim's unfused implementation."""
    numbers = torch.randn(3, 2, 40, 60)
    weights, gradients = numbers[0].unbind(), numbers[1].unbind()
    gradients = gradients[0], gradients[1].t().contiguous().t()
    zeros = [torch.zeros(40, 60) for _ in range(4)]
    steps = [torch.tensor(0.0) for _ in range(2)]
    inputs = [*weights, *gradients, *zeros, *steps, torch.tensor(0.02)]

    def step(*inputs):
        w, g, m, v, count = (list(inputs[i : i + 2]) for i in range(0, 10, 2))
        torch._foreach_add_(count, 1)
        options = {"weight_decay": 0, "eps": 1e-8, "amsgrad": False, "maximize": False}
        beta1, beta2 = betas
        torch._fused_adam_(
            w, g, m, v, [], count, lr=inputs[10], beta1=beta1, beta2=beta2, **options
        )
        return inputs[10] + 0

    run = compiled(step, *inputs)
    parameters = [w.clone().requires_grad_() for w in weights]
    adam = torch.optim.Adam(parameters, 0.02, betas, foreach=False)
    for k in range(5):
        for parameter, gradient, ours in zip(parameters, numbers[2], inputs[2:4], strict=True):
            ours.copy_((k - 2) * gradient)
            parameter.grad = (k - 2) * gradient
        run(*inputs)
        adam.step()
    torch.testing.assert_close(list(weights), [p.detach() for p in parameters])


# -- the program as a whole


def two_layers(x, first, second):
    hidden = torch.relu(x @ first)
    out = torch.tanh(hidden @ second)
    return joined(out, hidden.sum(0), *torch.autograd.grad(out.sum(), (first, second)))


def test_the_result_is_bitwise_the_same_for_any_number_of_threads():
    inputs = [torch.randn(n) for n in ((64, 90), (90, 110), (110, 70))]
    inputs = [x.requires_grad_() for x in inputs]
    run = codegen.compile_program(make_fx(two_layers)(*inputs))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results += [run(*inputs) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], two_layers(*inputs), atol=3e-5, rtol=1e-4)
    assert all(torch.equal(results[0], result) for result in results)


def test_the_threads_divide_a_vectorised_loop_between_whole_registers():
    """Its last elements, fewer than a register has, are computed by other instructions."""
    x = 3 * torch.randn(64, 97)
    run = compiled(lambda x: joined(torch.tanh(x) / (x * x + 1.1), torch.sigmoid(x), x**3), x)
    results = [run(x, threads=n) for n in (1, 3, 5, 7)]
    assert all(torch.equal(results[0], result) for result in results)


def test_memory_is_reused_once_it_is_no_longer_needed():
    def chain(x):
        first = x + 1
        y = first
        for _ in range(30):
            y = y * 1.1 - x
        return y + first

    code = codegen.CodeGenerator(make_fx(chain)(LARGE).graph)
    assert code.size <= 4 * LARGE.numel()
    assert_same(chain, LARGE)


@settings(deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=20))
def test_memory_is_either_in_one_array_or_in_one_free_block(requests):
    """A request allocates an array of that length or, below zero, releases one."""
    code, live, size = codegen.CodeGenerator(torch.fx.Graph()), [], 0

    def allocate(length):
        dtype = (torch.float32, torch.int64)[length % 2]
        array = code.alloc(torch.empty(length, dtype=dtype, device="meta"))
        start = array.meta.storage_offset() * dtype.itemsize // 4
        registers = max(1, math.ceil(length * dtype.itemsize / 64))
        last = array.slice(slice(length // 2, None))  # a view keeps all memory of its array
        return last, range(start, start + 16 * registers)

    for request in requests:
        if request >= 0:
            live.append(allocate(request))
        elif live:
            live.pop(request % len(live))
        used = [block for _, block in live]
        size = max(size, *(block.stop for block in used), 0)
        bounds = sorted((block.start, block.stop) for block in [*used, *code.free])
        starts, stops = zip(*bounds, strict=True)
        assert (*starts, codegen.WORKSPACE.numel()) == (0, *stops)  # no overlap, nothing lost
        assert not {block.start for block in code.free} & {block.stop for block in code.free}
        assert all(start % 16 == 0 for start in starts)  # whole registers
        assert code.size == size


def test_the_result_is_a_copy():
    x = torch.randn(3, 4)
    run = compiled(lambda x: x[1], x)
    first = run(x)
    assert torch.equal(first, x[1])
    run(torch.zeros(3, 4))
    x.zero_()
    assert first.all()


@pytest.mark.parametrize(
    ("function", "x", "named"),
    [
        (lambda x: x.cumsum(0), SMALL, "operation aten.cumsum"),
        (lambda x: x + 1, SMALL.double(), "tensors of torch.float64"),
        (lambda x: F.avg_pool2d(x.view(1, 6, 8), 2, 1), SMALL, "average pooling"),
        (lambda x: F.avg_pool2d(x.view(1, 6, 8), 4), SMALL, "average pooling"),
        (lambda x: F.batch_norm(x, x[0] + 0, x[0] + 1), SMALL, "batch norm"),
        (lambda x: torch.addmm(x, x, x.t() @ x, alpha=2), SMALL, "addmm with alpha"),
        (lambda x: x.gather(0, torch.ones_like(x, dtype=torch.int64)), SMALL, "ones_like.*dtypes"),
        (lambda y: torch.ones_like(y) * 1.5, LABELS, "aten.mul.Tensor with these dtypes"),
        (lambda y: y / 2, LABELS, "aten.div.Tensor with these dtypes"),
        (lambda x: x + SMALL, SMALL, "not an input"),
    ],
)
def test_what_has_no_lowering_is_named(function, x, named):
    with pytest.raises(NotImplementedError, match=f"there is no C lowering for .*({named})"):
        compiled(function, x)


def test_an_embedding_with_padding_has_no_lowering():
    def gradient(table, labels):
        table = table.detach().requires_grad_()
        rows = F.embedding(labels, table, padding_idx=0)
        return torch.autograd.grad(rows, table, rows.detach())[0]

    with pytest.raises(NotImplementedError, match="an embedding with these options"):
        compiled(gradient, torch.randn(10, 4), LABELS)


def test_the_error_message_of_the_c_compiler_is_passed_on(monkeypatch):
    monkeypatch.setattr(codegen, "FLAGS", "-fno-such-flag")
    with pytest.raises(RuntimeError, match=r"'cc' says: .*no-such-flag"):
        compiled(lambda x: x + 17, SMALL)
