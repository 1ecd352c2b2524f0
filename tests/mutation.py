"""Do the tests bite? Plant one fault at a time in a copy of the package and run its tests.

    python tests/mutation.py            all faults; exits with 1 if a test run does not notice one
    python tests/mutation.py training   those of one module

A fault is a line of the package and what replaces it: the classic mistakes of GAN code, of its
metrics, of checkpoints and of code generators. The tests of its module must fail, by an assertion:
first they must pass without any fault, and a run that does not end with failing tests (pytest's
exit status 1) does not count as caught.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CLONE = Path(__file__).resolve().parents[1]

FAULTS = {
    "training": [
        ("torch.zeros_like(fake_logits)", "torch.ones_like(fake_logits)"),
        ("real_logits, torch.ones_like(real_logits)", "real_logits, torch.zeros_like(real_logits)"),
        ("return real_loss + fake_loss", "return (real_loss + fake_loss) / 2"),
        ("with_logits(fake_logits, torch.ones", "with_logits(-fake_logits, torch.ones"),
        ("torch.cat([images, fake.detach()])", "torch.cat([images, fake])"),
        ("torch.cat([labels, fake_labels])", "torch.cat([fake_labels, labels])"),
        ("logits.split([len(images), len(fake)])", "logits.chunk(2)"),
        ('if step is not None and engine == "auto":', "if False:"),
        ("discriminator(fake, fake_labels))", "discriminator(fake.detach(), fake_labels))"),
        ("loss.backward(inputs=list(state.generator.parameters()))", "loss.backward()"),
        ("    state.generator_optimizer.step()\n", ""),
        ("    state.discriminator_optimizer.step()\n", ""),
        ("    state.discriminator_optimizer.zero_grad()\n", ""),
        ("    state.generator_optimizer.zero_grad()\n", ""),
        ("fake = state.generator(z, fake_labels)", "fake = state.generator(z, labels)"),
        ("config.num_classes, (count,)", "config.num_classes - 1, (count,)"),
        ("count = state.config, len(batch)", "count = state.config, state.config.batch_size"),
        ("math.ceil(len(data) // process_count() / config", "math.floor(len(data) / config"),
        ("return normalize(data.images[batch])", "return data.images[batch].float() / 255"),
        ("data.labels[batch], z", "data.labels[batch].flip(0), z"),
        ("epoch)[done:until]", "epoch)[:until]"),
        ("torch.stack([loss_d, loss_g,", "torch.stack([loss_g, loss_d,"),
        ("            _check_finite(state, done, until, checkpoint_folder)\n", ""),
        ("contextlib.suppress(_Interrupted)", "contextlib.suppress(ZeroDivisionError)"),
        ("state.stats.mean(dim=0)", "state.stats.sum(dim=0)"),
        ("min(total_steps, max_steps)", "total_steps"),
        ("if state.seed != seed:", "if False:"),
        ("if state.epoch != state.step // epoch_steps:", "if False:"),
        ("                raise _Interrupted\n", "                pass\n"),
        ("            state.engine = run_step.name\n", ""),
        ("            network.train()\n", "            pass\n"),
        ("            network.eval()\n", "            pass\n"),
        ("        error.state = state\n", ""),
        ("    if empty:\n", "    if False:\n"),
    ],
    "config": [
        ("math.prod(shape) // 4", "math.prod(shape) // 2"),
        ("max(1, math.prod", "max(0, math.prod"),
        ("min(0.5, self.betas[0])", "self.betas[0]"),
        ("epochs=math.ceil(self.min_steps", "epochs=math.floor(self.min_steps"),
        ("self.epochs * steps_per_epoch >= self.min_steps", "self.epochs >= self.min_steps"),
        ("math.ceil(len(data) / self.batch_size)", "math.floor(len(data) / self.batch_size)"),
    ],
    "diagnosis": [
        ("data.labels == label]", "data.labels >= 0]"),
        ("1.0 if generated == 0 else", "0.0 if generated == 0 else"),
        ("images.var(dim=0, correction=0)", "images.var(dim=1, correction=0)"),
        (".mean().sqrt()", ".mean()"),
        (".argmin(dim=1)", ".argmax(dim=1)"),
        ("(nearest[labels == label] == label)", "(nearest == label)"),
        ("if spread < DEAD", "if spread < DEAD / 20"),
        ("min(LONG, state.step / 2)", "LONG"),
        ("min(LONG, state.step / 2)", "state.step / 2"),
        ("max(last) < REJECTED", "min(last) < REJECTED"),
        ("{epochs * epoch_steps} steps", "{epochs} steps"),
    ],
    "models": [
        ("torch.cat([z, embedded], dim=1)", "torch.cat([z, embedded * 0], dim=1)"),
        ("self.embedding(labels)], dim=1)", "0 * self.embedding(labels)], dim=1)"),
        ("nn.Tanh()", "nn.Sigmoid()"),
        ("nn.LeakyReLU(0.2),  #", "nn.LeakyReLU(0.02),  #"),
        ("nn.Linear(config.hidden_dim, 1)", "nn.Linear(config.hidden_dim, 1, bias=False)"),
        (".squeeze(1)", ""),
    ],
    "tuned": [
        ("min(self.batch_size, max(32, count // 100), count)", "max(32, count // 100)"),
        ("0 < count % batch_size < self.min_batch_size", "False"),
        ("sizes.max() > UNEQUAL * sizes.min()", "sizes.max() >= UNEQUAL * sizes.min()"),
        ("if len(data.classes) > 1 else 0.0", ""),
        ("weights = 1 / counts[data.labels]", "weights = counts[data.labels]"),
        ("multinomial(len(batch), replacement=True", "multinomial(len(batch), replacement=False"),
        ("noise.mul_(deviation)", "noise"),
        ("images + noise[:, 0], fake + noise[:, 1]", "images, fake + noise[:, 1]"),
        ("images + noise[:, 0], fake + noise[:, 1]", "images + noise[:, 0], fake"),
        ("fake + noise[:, 1]", "fake + noise[:, 0]"),
        ("(1 + scale) * normalized", "scale * normalized"),
        ("normalized + shift", "normalized"),
        ("bias=not config.conditional_batch_norm", "bias=True"),
        ("bias = not config.conditional_batch_norm", "bias = True"),
        ("unflatten(1, (self.FEATURES, -1)).permute(2, 0, 1)", "view(-1, len(h), self.FEATURES)"),
        ("F.relu(hidden_norm(self.hidden(places), inputs))", "self.hidden(places)"),
        ("F.relu(feature_norm(places, inputs))", "F.relu(places)"),
        ("math.ceil(n / self.STRIDE)", "(n // self.STRIDE)"),
        ("[:, :, :height, :width]", "[:, :, -height:, -width:]"),
        ("logits.gather(1, labels.unsqueeze(1)).squeeze(1)", "logits[:, 0]"),
        ("self.output(h) + h @ self.embedding", "self.output(h) - h @ self.embedding"),
        ("F.relu(norm(layer(h), inputs))", "F.relu(norm(layer(h), 0 * inputs))"),
        ("10 * torch.cat([down, right]", "10 * torch.cat([right, down]"),
        ("append=images[:, :, -1:]", "append=images[:, :, :1]"),
        ("(-gradients).relu()]", "(-gradients).abs()]"),
        ("rises_and_falls, 4, ceil_mode=True", "rises_and_falls, 4, 2, ceil_mode=True"),
        ("torch.cat([inputs, histogram]", "torch.cat([histogram, inputs]"),
        ("pixels + fold_gradient_weights(gradients)", "pixels - fold_gradient_weights(gradients)"),
        ("F.pad(c, (0, 1, 1, 0))", "F.pad(c, (1, 0, 0, 1))"),
        ("pixels[:, margin:-margin, margin:-margin]", "pixels[:, :-stride, :-stride]"),
        ("down[:, :, :-1], (0, 0, 1, 1)", "down, (0, 0, 1, 0)"),
        ("return -10 * (down + right)", "return -10 * (down - right)"),
        ("create_graph=True", "retain_graph=True"),
        ("gradient.square().flatten(1).sum(dim=1).mean()", "gradient.square().mean()"),
        ("extra += R1_INTERVAL * gamma", "extra += gamma"),
        (' * (0.1 + 0.9 * group["lr"] / config.learning_rate)', ""),
        ("(loss + extra).backward()", "loss.backward()"),
        ("extra += config.matching_aware_weight *", "extra +="),
        ("every_label[: len(images)], labels)", "every_label[: len(images)], labels.flip(0))"),
        ("torch.zeros_like(logits), weight=wrong", "torch.ones_like(logits), weight=wrong"),
        ("rejected / (logits.numel() - len(logits))", "rejected / logits.numel()"),
        (".scatter(1, labels.unsqueeze(1), 0)", ""),
        ("average, current = (", "current, average = ("),
        ("    if state.generator_ema is not None:\n        update_ema(state)\n", ""),
        ("1 - state.step / total_steps", "state.step / total_steps"),
        ("torch.cat([images, fake.detach()])", "torch.cat([images, fake])"),
        ("state.step % R1_INTERVAL == 0", "state.step % R1_INTERVAL == 1"),
        ("(1 + state.step) / (10 + state.step)", "(10 + state.step) / (10 + state.step)"),
        ('"ema_weight": 1 - kept', '"ema_weight": kept'),
        ("return 2 if self.conditional_batch_norm else 1", "return 1"),
        ("requires_grad_(applies_r1)", "requires_grad_(False)"),
        ("requires_grad_(False).eval()", "requires_grad_(False)"),
    ],
    "engines/codegen": [
        ('if 0 in shape:', 'if False:'),
        ('double sum = 0;', 'float sum = 0;'),
        ('2 * read < computed', 'True'),
        ('(b, 1, *bounds)', '(b, 1, 0, bounds[1] - bounds[0])'),
        ('len(product.users) == 1 and ', ''),
        ('if last_use[used] is node:', 'if True:'),
        ('if last_use[used] is node:', 'if False:'),
        ('if len(block) >= size)', ')'),
        ('free.append(chosen[size:])', 'free.append(chosen)'),
        ('block.stop == other.start', 'False'),
        ('max(other.stop, block.stop)', 'block.stop'),
        ('math.ceil(max(length, 1) / 16)', 'math.ceil(max(length, 1) / 8) // 2'),
        ('[str(self.meta.storage_offset()), *terms]', 'terms'),
        ('return result.clone()', 'return result'),
        ('b.meta.stride(1) != 1 or columns < MIN_COLUMNS', 'columns < MIN_COLUMNS'),
        ('b.meta.stride(1) != 1 or columns < MIN_COLUMNS', 'b.meta.stride(1) != 1'),
        ('max(columns, MIN_COLUMNS)', 'columns'),
        ('torch.narrow, 1, 0, columns))', 'torch.narrow, 1, 1, columns))'),
        ('if mergeable or', 'if True or'),
        (', sequential_dim=dim', ', simd=False'),
        ('and dims[0] != sequential_dim', ''),
        ('if full is None:', 'if True:'),
        (' if threads is None else threads', ''),
        ('f"schedule(static, share({shape[d]}))"', '""'),
        ('for line in (call, meet)]', 'for line in (call,)]'),
        ('"{", *block, "}", meet]', '"{", *block, "}"]'),
    ],
    "engines/threads": [
        ("if self.use_all else 1", "if True else 1"),
        ("if self.use_all else 1", "if False else 1"),
        ("if self.seconds >= LAP:", "if True:"),
        ("self.calls, self.seconds = 0, 0.0\n        return", "pass\n        return"),
        ("max(PERIOD, cost / COST)", "PERIOD"),
        ("max(PERIOD, cost / COST)", "max(PERIOD, 10 * cost / COST)"),
        ("            if cost > 0:\n", "            if False:\n"),
        ("            if cost > 0:\n", "            if cost < 0:\n"),
        ("            if cost > 0:\n", "            if True:\n"),
        ("        if self.until_trial <= 0:\n", "        if False:\n"),
        ("        if self.until_trial <= 0:\n", "        if True:\n"),
        ("self.seconds / self.calls", "self.usual or self.seconds / self.calls"),
        ("        torch.set_num_threads(threads)\n", "        pass\n"),
        ("    torch.set_num_threads(1)\n", ""),
    ],
    "engines/lowerings": [
        ('min(0, before) + min(0, after)', 'min(0, after)'),
        ('narrow, -d, max(0, -before), kept', 'narrow, -d, 0, kept'),
        ('narrow, -d, max(0, before), kept', 'narrow, -d, 0, kept'),
        ('(out.shape[-d] - after, after)', '(out.shape[-d] - 1, after)'),
        ('dim %= len(shape)', 'dim += 0'),
        ('shape[dim] - max(start, end)', 'shape[dim] - end'),
        ('if step > 1:', 'if False:'),
        ('c.map(str(value), out', 'c.map("0", out'),
        ('{0} + {2} * {1}', '{0} + {1}'),
        ('{0} < 0 ? 0 : {0}', '{0} > 0 ? {0} : 0'),
        ('threshold_backward({0}, {1}, {2})', '{1} > {2} ? {0} : 0'),
        ('{0} * ({1} > 0 ? 1 : {2})', '{0} * ({1} > 0 ? 1 : 0)'),
        ('(1 - {1} * {1})', '(1 - {1})'),
        (', memory_format=torch.contiguous_format)', ')'),
        ('start += array.shape[dim]', 'start += 1'),
        ('[d % array.meta.dim() for d in dims]', 'dims'),
        ('if reduction == 1 else sum_all', 'if True else sum_all'),
        ('{2} * (softplus', '(softplus'),
        ('index, values, "+=")', 'index, values, "=")'),
        ('rows, gradient, "+=")', 'rows, gradient, "=")'),
        ('n / (n - 1)', '1.0'),
        ('momentum, 1, mean', 'momentum, 1, variance'),
        ('- ({2} - {3}) * {4}) * {5}', ') * {5}'),
        ('/ {len(pixels)}', '/ 16'),
        ('if gradient.meta.stride() != weight.meta.stride():', 'if False:'),
        ('height * width, out=windows', '16, out=windows'),
    ],
    "engines/traced": [
        ("tuple(value for value", "tuple(None for value"),
        ("group.update(lr=rate, **options)", "group.update(**options)"),
        ("        group.update(before)\n", ""),
        ("if len(batch) == state.config.batch_size:", "if True:"),
        ("                self.failed = True\n", ""),
        ('return "eager" if self.failed else self.kind', "return self.kind"),
        ("schedule={**state.schedule, **numbers}", "schedule=state.schedule"),
    ],
    "engines/compiled": [
        ("copy.deepcopy(state)  # tracing", "state  # tracing"),
        ("with one_thread():", "if True:"),
        ("fastest(functools.partial(", "(lambda f: f(threads=2))(functools.partial("),
    ],
    "engines/cuda_graph": [
        ("                torch.cuda.set_stream(stream)\n", ""),
        ("                state.rng = torch.Generator(device)\n", ""),
        ("                state.rng.set_state(noise)\n", ""),
        ("raise (reason or error) from None", "raise"),
        ("        with torch.cuda.device(device):\n", "        if True:\n"),
        ("            with torch.cuda.device(device):\n", "            if True:\n"),
        ("if whole and state.step % most == 0", "if whole"),
        ("and len(group[-1]) == state.config.batch_size", ""),
        ("and not self.failed", ""),
        ("        state.step = first\n", ""),
    ],
    "engines/inductor": [
        ("variant = variant_of(state)", "variant = None"),
        ("if str(node.target).startswith", "if False and str(node.target).startswith"),
        ("gradients, gradients, 1 - beta2)", "gradients, gradients, 1 - beta1)"),
        ("group[\"lr\"] / (1 - beta1**count)", "group[\"lr\"]"),
        ("torch._foreach_div_(roots, (1 - beta2**count).sqrt())", "pass"),
        ("torch._foreach_add_(steps, 1)", "pass"),
    ],
    "engines/distributed": [
        ("tensor.chunk(processes)[rank]", "tensor.chunk(processes)[0]"),
        ("return stats / processes", "return stats"),
    ],
    "engines/__init__": [
        ("steps >= COMPILING_PAYS", "steps < COMPILING_PAYS"),
        ("return Compiled(sample, step, forgiving)", "return Compiled(sample, step)"),
    ],
    "state": [
        ("make_rng(self.seed, ORDER, epoch)", "make_rng(self.seed, ORDER)"),
        ("make_rng(self.seed, ORDER, epoch)", "make_rng(0, ORDER, epoch)"),
        ("torch.randperm(count, ", "(lambda n, generator: torch.arange(n))(count, "),
        ("betas=config.betas", "betas=config.betas[::-1]"),
        ("lr=config.learning_rate", "lr=1e-3"),
        ("with seeded(seed, PARAMETERS):", "if True:"),
        ("make_rng(seed, NOISE, device=device)", "make_rng(0, NOISE, device=device)"),
        ("generator_optimizer=adam(generator)", "generator_optimizer=adam(discriminator)"),
    ],
    "checkpoints": [
        ('"rng": state.rng.get_state()', '"rng": torch.Generator().get_state()'),
        ("weights_only=True", "weights_only=False"),
        ("if damaged := archive.testzip():", "if damaged := None:"),
        ("(path.parent)[keep_last:]", "(path.parent)[keep_last - 1 :]"),
        ("reverse=True", "reverse=False"),
        ("        if version != FORMAT_VERSION:", "        if False:"),
        ('in ("step", "stats", "history", "engine")', 'in ("stats", "history", "engine")'),
        ('    "generator_ema",\n', ""),
        ('    "discriminator_optimizer",\n', ""),
        ("            network.eval()\n", "            pass\n"),
        ("        if earlier and not", "        if False and not"),
        ("            stack.enter_context(locked(folder))\n", ""),
        (" and folder.samefile(Path(resume_from).parent)", ""),
    ],
    "sampling": [
        ("copy.deepcopy(generator).eval()", "generator.eval()"),
        ("copy.deepcopy(generator).eval()", "copy.deepcopy(generator)"),
        ("generator=rng, dtype", "generator=None, dtype"),
        (".repeat(num_classes, 1)", ".repeat_interleave(num_classes, 0)"),
        ("return scale * sample_latent", "return sample_latent"),
        ("if generator.generator_ema is None else", "if True else"),
        ("torch.autocast(device.type, enabled=False)", "torch.no_grad()"),
        ("generator=rng, dtype=torch.float32", "generator=rng"),
    ],
    "_runtime": [
        ("file=sys.stdout", "file=sys.stderr"),
        ("            os.fsync(file.fileno())\n", ""),
        ("        temporary.unlink(missing_ok=True)", "        pass"),
        ("with torch.random.fork_rng(devices=[]):", "if True:"),
        ("torch.set_rng_state(make_rng(seed, *purpose).get_state())", "pass"),
        ("SeedSequence([seed, *purpose])", "SeedSequence([seed + sum(purpose)])"),
        ('"cuda" if torch.cuda.is_available() else "cpu"', '"cpu"'),
        ("    signal.signal(signal.SIGINT, note)\n", ""),
        ("signal.signal(signal.SIGINT, signal.default_int_handler)", "pass"),
        ("is not signal.default_int_handler:", "is None:"),
        ("if not in_main_thread or", "if"),
        ("        if noted:\n", "        if False:\n"),
        ("else error.__context__", "else None"),
        ("    torch.set_default_dtype(torch.float32)\n", ""),
        ("torch.inference_mode(False),  #", "torch.enable_grad(),  #"),
        ("            torch.inference_mode(False),  # ends no_grad too\n", ""),
        ('            torch.autocast("cpu", enabled=False),\n', ""),
    ],
    "data": [
        ("- 0.5) / 0.5", "- 0.5)"),
        ("header_size=16", "header_size=8"),
        ("number_of[kept] = torch", "number_of[kept.sort().values] = torch"),
    ],
    "arrays": [
        ("np.moveaxis(array, 1, -1)", "array.swapaxes(1, -1)"),
        ("layout is None and len(fits) > 1", "False"),
        ("low < a / 2 if a < 0 else high > b / 2", "True"),
        ("[(0, 255)] if high > 1 else []", "[(0, 255)]"),
        ("np.rint(scaled)", "scaled"),
        ("(array.astype(np.float32) - black)", "array.astype(np.float32)"),
        ("        if not _contains(value_range, low, high):", "        if False:"),
        ("array[..., -1:] / np.float32(255)", "1 - array[..., -1:] / np.float32(255)"),
        ("sorted(set(labels), key=str)", "list(dict.fromkeys(labels))"),
    ],
    "images": [
        ("ImageOps.exif_transpose(image)", "image.copy()"),
        ("exif_transpose(image)", "exif_transpose(image, in_place=True) or image"),
        ("ImageOps.fit(image, (size[1], size[0]))", "image.resize((size[1], size[0]))"),
        ("ImageOps.fit(image, (size[1], size[0]))", "ImageOps.fit(image, size)"),
        ('image.mode.startswith("I")', "False"),
        ("if image.has_transparency_data:", "if False:"),
        ("self.array[: self.length] = grey", "pass"),
        ("            labels.append(number)", "            labels.append(numbers[len(labels)])"),
        ("and all(map(_visible, inside))", ""),
        ("if p.is_dir() and _visible(p.name)", "if p.is_dir()"),
        ("<= SPLITS", "<= set()"),
        ("head += itertools.islice(items, AHEAD)", "pass"),
        ("if len(pending) == AHEAD:", "if False:"),
    ],
    "fashion_mnist": [
        ("if hashlib.sha256(content).hexdigest() == SHA256[name]:", "if True:"),
        ('if "labels" in name and _is_mnist(content):', "if False:"),
    ],
    "evaluation": [
        ("/ (k * len(generated))", "/ len(generated)"),
        ("topk(k + 1,", "topk(k,"),
        ("torch.cdist(some, points) <", "torch.cdist(some, points) >"),
        ("reached.any(dim=0).double().mean()", "reached.double().mean()"),
        ("for centres, points in ((real, generated), (generated, real)):",
         "for centres, points in ((generated, real), (real, generated)):"),
        ("features[labels == y])\n", "features[test_labels == y])\n"),
        ("_mean(within) if enough else None", "min(within.values()) if enough else None"),
        ("for part in pair) >= MIN_WITHIN", "for part in pair) > MIN_WITHIN"),
        ("max(metric.compute().item(), 0.0)", "metric.compute().item() ** 0.5"),
        ("update(generated.double(), real=False)", "update(real.double(), real=False)"),
        ("len(rows) // HELD_OUT", "len(rows) // 4"),
        ("torch.cat([alike, rest])", "torch.cat([rest, alike])"),
        ("randperm(len(data), generator=torch.Generator().manual_seed(0))", "arange(len(data))"),
        ("balanced=data is not None", "balanced=False"),
        ("if accuracy < chance + (1 - chance) / 4:", "if False:"),
        ("    _check_counts(name, data.labels, classes, minimum)\n", ""),
        ("        if (images == images[0]).all():", "        if False:"),
    ],
    "classifier": [
        ("- (len(images) % batch_size == 1)", ""),
        ("max(5, math.ceil(200 / batches))", "5"),
        ("if balanced else None", "if False else None"),
        ("math.ceil(height / 4) * math.ceil(width / 4)", "math.ceil(height / 4) ** 2"),
        ("if accuracy < MIN_ACCURACY:", "if False:"),
    ],
    "plotting": [
        (".clamp(0, 1)", ".sub(-9).div(18)"),
        ("2 * math.log(2)", "math.log(2)"),
        ("    plt.close(figure)\n", ""),
        ('"parse_math": False', '"parse_math": True'),
        ('and "Last Resort" not in font.name', ""),
    ],
}  # fmt: skip

# Where a module's tests live, if not in the file of its name alone.
TESTS = {
    "_runtime": ["runtime", "checkpoints", "training"],
    "checkpoints": ["checkpoints", "training", "tuned"],
    "models": ["models", "training"],
    "sampling": ["sampling", "tuned"],
    "state": ["training", "tuned"],
    "training": ["training", "engines"],
    "tuned": ["tuned", "engines"],
    "engines/codegen": ["codegen"],
    "engines/lowerings": ["codegen"],
    "engines/__init__": ["engines"],
    "engines/compiled": ["engines"],
    "engines/cuda_graph": ["cuda_graph"],
    "engines/inductor": ["cuda_graph"],
    "engines/distributed": ["engines"],
    "engines/threads": ["threads"],
    "engines/traced": ["engines"],
}


def run_tests(module, fault=None, options=("-x",)):
    """Run a module's tests in a copy of the project, with a fault or without; pytest's status."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("cgan_utils", "tests", "benchmarks"):
            shutil.copytree(CLONE / name, copy / name)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(CLONE / name, copy)
        if fault is not None:
            path = copy / "cgan_utils" / f"{module}.py"
            source = path.read_text(encoding="utf-8")
            old, new = fault
            if old not in source:
                raise SystemExit(f"{module}: there is no {old!r} any more; update the list")
            path.write_text(source.replace(old, new), encoding="utf-8")
            compile(path.read_text(encoding="utf-8"), path, "exec")  # a fault, not a typing error
        tests = [f"tests/test_{name}.py" for name in TESTS.get(module, [module])]
        command = [sys.executable, "-m", "pytest", "-q", *options, "-p", "no:cacheprovider", *tests]
        data = os.environ.get("CGAN_DATA_DIR", CLONE / "data")
        runs = os.environ.get("CGAN_RUNS_DIR", CLONE / "runs")  # the classifier, trained once
        environment = os.environ | {
            "PYTHONPATH": folder,
            "CGAN_DATA_DIR": str(data),
            "CGAN_RUNS_DIR": str(runs),
        }
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        return run.returncode, run.stdout


def main():
    modules = sys.argv[1:] or FAULTS
    missed, count = [], 0
    for module in modules:
        status, output = run_tests(module)
        if status != 0:
            raise SystemExit(f"{module}: the tests fail without a fault\n{output}")
        print("control  ", module, "passes without a fault", flush=True)
        for fault in FAULTS[module]:
            count += 1
            status, output = run_tests(module, fault)
            if status < 0:  # it crashed; in a worker this is the failure of the test that ran
                status, output = run_tests(module, fault, options=("-n1",))
            verdict = {0: "SURVIVED", 1: "caught"}.get(status, f"BROKE ({status})")
            if status != 1:
                missed.append((module, fault))
                print(output[-2000:] if status != 0 else "", end="")
            print(f"{verdict:9}", module, repr(fault[0]), "->", repr(fault[1]), flush=True)
    print(f"{count - len(missed)} of {count} faults caught")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
