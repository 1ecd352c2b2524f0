"""Do the tests bite? Plant one fault at a time in a copy of the package and run its tests.

    python tests/mutation.py            all faults; exits with 1 if a test run does not notice one
    python tests/mutation.py training   those of one module

A fault is a line of the package and what it is replaced by: classic mistakes of GAN code, and the
checks one forgets. Each is looked for by the tests of its module, and must fail one of them.
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
        ("if step is not None and engine == \"auto\":", "if False:"),
        ("discriminator(fake, fake_labels))", "discriminator(fake.detach(), fake_labels))"),
        ("loss.backward(inputs=list(state.live_generator.parameters()))", "loss.backward()"),
        ("    state.generator_optimizer.step()\n", ""),
        ("    state.discriminator_optimizer.step()\n", ""),
        ("    state.discriminator_optimizer.zero_grad()\n", ""),
        ("    state.generator_optimizer.zero_grad()\n", ""),
        ("fake = state.live_generator(z, fake_labels)", "fake = state.live_generator(z, labels)"),
        ("config.num_classes, (count,)", "config.num_classes - 1, (count,)"),
        ("count = len(batch)", "count = config.batch_size"),
        ("math.ceil(len(data) // processes() / config", "math.floor(len(data) / config"),
        ("images = normalize(data.images[batch])", "images = data.images[batch].float() / 255"),
        ("data.labels[batch], z", "data.labels[batch].flip(0), z"),
        ("random_stream(state.seed, ORDER, epoch)", "random_stream(state.seed, ORDER)"),
        ("random_stream(state.seed, ORDER, epoch)", "random_stream(0, ORDER, epoch)"),
        ("torch.randperm(len(data), ", "(lambda n, generator: torch.arange(n))(len(data), "),
        ("order[done * batch_size :", "order["),
        ("torch.stack([loss_d, loss_g,", "torch.stack([loss_g, loss_d,"),
        ("            _check_finite(state, done, until, checkpoint_folder)\n", ""),
        ("contextlib.suppress(_Interrupted)", "contextlib.suppress(ZeroDivisionError)"),
        ("state.measures.mean(dim=0)", "state.measures.sum(dim=0)"),
        ("        last_step = min(last_step, max_steps)\n", "        pass\n"),
        ("if state.seed != seed:", "if False:"),
        ("file=sys.stdout", "file=sys.stderr"),
        ("create_graph=True", "retain_graph=True"),
        ("gradient.square().flatten(1).sum(dim=1).mean()", "gradient.square().mean()"),
        ("extra += PENALTY_EVERY * gamma", "extra += gamma"),
        (' * (0.1 + 0.9 * group["lr"] / config.learning_rate)', ""),
        ("(loss + extra).backward()", "loss.backward()"),
        ("extra += config.mismatch_weight *", "extra +="),
        ("every_label[: len(images)], labels)", "every_label[: len(images)], labels.flip(0))"),
        ("torch.zeros_like(logits), weight=wrong", "torch.ones_like(logits), weight=wrong"),
        ("rejected / (logits.numel() - len(logits))", "rejected / logits.numel()"),
        (".scatter(1, labels.unsqueeze(1), 0)", ""),
        ("average, live = (", "live, average = ("),
        ("if state.epoch != state.step // epoch_steps:", "if False:"),
        ("    if state.config.ema_decay > 0:\n        update_average(state)\n", ""),
        ("1 - state.step / total_steps", "state.step / total_steps"),
        ("config.conditional_norm and 1 in (", "False and 1 in ("),
        ("1 in (config.batch_size, ", "1 in (0, "),
        ("share = len(data) // processes()", "share = len(data)"),
        ("if share == 0:", "if False:"),
        ("if not (images.requires_grad and", "if not (True or"),
        ("_check_batch(state, fake=fake, fake_labels=fake_labels)", "pass"),
        ("torch.int64, count)", 'torch.int64, "N")'),
        ("_check_range_on_cpu(name, tensor, state.config.num_classes)", "pass"),
        ("if isinstance(state, TrainingState):", "if True:"),
        ("    if gradient is None:", "    if False:"),
        ("logits.shape[1], minimum=2)", "logits.shape[1])"),
        ('check_tensor("state.measures"', '("state.measures"'),
        ("    signal.signal(signal.SIGINT, note)\n", ""),
        ("signal.signal(signal.SIGINT, signal.default_int_handler)", "pass"),
        ("is not signal.default_int_handler:", "is None:"),
        ("if not in_main_thread or", "if"),
        ("        if noted:\n", "        if False:\n"),
        ("                raise _Interrupted\n", "                pass\n"),
        ("    if interrupts:\n        tqdm", "    if False:\n        tqdm"),
        ("dtype, \"N\", *row)", "\"float\", \"N\", *row)"),
        ("        _check_folder(checkpoint_folder)\n", "        pass\n"),
        ('    check_type("checkpoint_folder", checkpoint_folder, str, os.PathLike)\n', ""),
        ('        check_type("resume_from", resume_from, str, os.PathLike)\n', "        pass\n"),
        ('f"resume_from{str(error).removeprefix(\'path\')}"', "str(error)"),
    ],
    "models": [
        ("torch.cat([z, embedded], dim=1)", "torch.cat([z, embedded * 0], dim=1)"),
        ("[h, look_up(", "[h, 0 * look_up("),
        ("torch.tanh(images)", "torch.sigmoid(images)"),
        ("F.leaky_relu(layer(h), 0.2)", "F.leaky_relu(layer(h), 0.02)"),
        ("(1 + scale) * normalized", "scale * normalized"),
        ("normalized + shift", "normalized"),
        ("bias=not config.conditional_norm", "bias=True"),
        ("bias = not config.conditional_norm", "bias = True"),
        ("unflatten(1, (self.FEATURES, -1)).permute(2, 0, 1)", "view(-1, len(h), self.FEATURES)"),
        ("activate(self.hidden(places), of_hidden, inputs)", "self.hidden(places)"),
        ("activate(places, of_features, inputs)", "F.relu(places)"),
        ("math.ceil(n / self.STRIDE)", "(n // self.STRIDE)"),
        ("[:, :, :height, :width]", "[:, :, -height:, -width:]"),
        ("is None else pick(every_label, labels)", "is None else every_label[:, 0]"),
        ("logits + h @ self.embedding", "logits - h @ self.embedding"),
        ("activate(layer(h), norm, inputs)", "activate(layer(h), norm, 0 * inputs)"),
        ("10 * torch.cat([down, right]", "10 * torch.cat([right, down]"),
        ("append=images[:, :, -1:]", "append=images[:, :, :1]"),
        ("(-differences).relu()]", "(-differences).abs()]"),
        ("rises_and_falls, 4, ceil_mode=True", "rises_and_falls, 4, 2, ceil_mode=True"),
        ("torch.cat([inputs, histogram]", "torch.cat([histogram, inputs]"),
        ("pixels + pixel_weights(differences)", "pixels - pixel_weights(differences)"),
        ("down[:, :, :-1], (0, 0, 1, 1)", "down, (0, 0, 1, 0)"),
        ("return -10 * (down + right)", "return -10 * (down - right)"),
        ('"inputs", inputs, minimum=config.image_size', '"inputs", inputs'),
        ("nn.Linear(config.hidden_dim, 1)", "nn.Linear(config.hidden_dim, 1, bias=False)"),
        ("return logits.squeeze(1)", "return logits"),
        ("except (IndexError, RuntimeError):", "except ZeroDivisionError:"),
        ('        check_range("labels", labels, num_classes)\n', ""),
        ("torch.int64, count)", 'torch.int64, "N")'),
    ],
    "compiler": [
        ("min(0, before) + min(0, after)", "min(0, after)"),
        ("narrow, -d, max(0, -before), kept", "narrow, -d, 0, kept"),
        ("narrow, -d, max(0, before), kept", "narrow, -d, 0, kept"),
        ("(out.shape[-d] - after, after)", "(out.shape[-d] - 1, after)"),
        ("dim %= len(shape)", "dim += 0"),
        ("shape[dim] - max(start, end)", "shape[dim] - end"),
        ("if step > 1:", "if False:"),
        ('c.map(str(value), out', 'c.map("0", out'),
        ("if 0 in shape:", "if False:"),
        ("2 * read < computed", "True"),
        ("(b, 1, *bounds)", "(b, 1, 0, bounds[1] - bounds[0])"),
        ("len(product.users) == 1 and ", ""),
        ("if last_use[used] is node:", "if True:"),
        ("if last_use[used] is node:", "if False:"),
        ("if len(p) >= length)", ")"),
        ("[str(self.meta.storage_offset()), *terms]", "terms"),
        ("return result.clone()", "return result"),
        ("if whole is None else torch.empty_like(whole)", ""),
        ("b.meta.stride(1) != 1 or columns < WIDE", "columns < WIDE"),
        ("b.meta.stride(1) != 1 or columns < WIDE", "b.meta.stride(1) != 1"),
        ("max(columns, WIDE)", "columns"),
        ("{0} + {2} * {1}", "{0} + {1}"),
        ("{0} < 0 ? 0 : {0}", "{0} > 0 ? {0} : 0"),
        ("threshold_backward({0}, {1}, {2})", "{1} > {2} ? {0} : 0"),
        ("{0} * ({1} > 0 ? 1 : {2})", "{0} * ({1} > 0 ? 1 : 0)"),
        ("if single_row or", "if True or"),
        ("(1 - {1} * {1})", "(1 - {1})"),
        ("without_gaps = torch.empty_like(array.meta, memory_format=torch.contiguous_format)",
         "without_gaps = torch.empty_like(array.meta)"),
        ("start += array.shape[dim]", "start += 1"),
        ("[d % array.meta.dim() for d in dims]", "dims"),
        ("if reduction == 1 else sum_all", "if True else sum_all"),
        ("{2} * (softplus", "(softplus"),
        (", in_turn=dim % out.meta.dim()", ", simd=False"),
        ("and moving[0] != in_turn", ""),
        ('index, values, "+=")', 'index, values, "=")'),
        ('rows, gradient, "+=")', 'rows, gradient, "=")'),
        ("n / (n - 1)", "1.0"),
        ("momentum, 1, mean", "momentum, 1, variance"),
        ("- ({2} - {3}) * {4}) * {5}", ") * {5}"),
        ("/ {len(pixels)}", "/ 16"),
        ("height * width, out=cells", "16, out=cells"),
        ('"{0} + {1}", pixels', '"{1}", pixels'),
        ("slice(top, top + height)", "slice(height)"),
        ("slice(j, j + columns)", "slice(i, i + columns)"),
        ("length % side == patch % side == 0", "True"),
        ("and list(dilation) == [1, 1]", ""),
        ("if gradient.meta.stride() != weight.meta.stride():", "if False:"),
    ],
    "engines": [
        ("kind = state.penalized", "kind = False"),
        ("copy.deepcopy(state)  # tracing", "state  # tracing"),
        ("average_weight=weight)\n            program", "average_weight=1.0)\n            program"),
        ("group.update(lr=rate, **options)", "group.update(**options)"),
        ("        group.update(before)\n", ""),
        ("tensor.chunk(processes)[rank]", "tensor.chunk(processes)[0]"),
        ("return measures / processes", "return measures"),
        ("if self.failed or len(batch) < state.config.batch_size:", "if self.failed:"),
        ("                self.failed = True\n", ""),
        ("steps >= COMPILING_PAYS", "steps < COMPILING_PAYS"),
    ],
    "checkpoints": [
        ("self.step % PENALTY_EVERY == 0", "self.step % PENALTY_EVERY == 1"),
        ("(1 + self.step) / (10 + self.step)", "(10 + self.step) / (10 + self.step)"),
        ("betas=config.betas", "betas=config.betas[::-1]"),
        ("lr=config.learning_rate", "lr=1e-3"),
        ('"noise": state.noise.get_state()', '"noise": torch.Generator().get_state()'),
        ("weights_only=True", "weights_only=False"),
        ("if damaged := archive.testzip():", "if damaged := None:"),
        ("rolling_checkpoints(folder)[keep:]", "rolling_checkpoints(folder)[keep - 1 :]"),
        ("reverse=True", "reverse=False"),
        ("        if version != FORMAT_VERSION:", "        if False:"),
        ("        state.step = contents[\"step\"]\n", ""),
        ("with seeded(seed, WEIGHTS):", "if True:"),
        ("random_stream(seed, NOISE, device=device)", "random_stream(0, NOISE, device=device)"),
        ("generator_optimizer=adam(live_generator)", "generator_optimizer=adam(generator)"),
        ('    "live_generator",\n', ""),
    ],
    "sampling": [
        ("copy.deepcopy(generator).eval()", "generator.eval()"),
        ("copy.deepcopy(generator).eval()", "copy.deepcopy(generator)"),
        ("generator=torch.Generator().manual_seed(seed)", "generator=None"),
        (".repeat(config.num_classes, 1)", ".repeat_interleave(config.num_classes, 0)"),
        ("not 0 <= label < len(classes)", "not 0 <= label <= len(classes)"),
        ("not 0 <= label < len", "not label < len"),
        ("isinstance(label, bool) or ", ""),
        ("all(end.isfinite() for end in latent.aminmax())", "True"),
        ("config.latent_scale * draw_latent(count", "draw_latent(count"),
    ],
    "config": [
        ("            os.fsync(file.fileno())\n", ""),
        ("        temporary.unlink(missing_ok=True)", "        pass"),
        ("if value < minimum:", "if value < minimum - 1:"),
        ("if low < 0 or high >= count:", "if low < 0 or high > count:"),
        ("    tempfile.TemporaryFile(dir=folder).close()\n", ""),
        ("(isinstance(due, str) and n > 0)", "isinstance(due, str)"),
        ("all(n == due or (isinstance", "all(True or (isinstance"),
        ("if not self.learning_rate > 0:", "if False:"),
        ("if not 0 <= value < math.inf:", "if not value < math.inf:"),
        ("(*self.betas, self.ema_decay)", "self.betas"),
        ("with torch.random.fork_rng(devices=[]):", "if True:"),
        ("torch.set_rng_state(random_stream(seed, *purpose).get_state())", "pass"),
        ("SeedSequence([seed, *purpose])", "SeedSequence([seed + sum(purpose)])"),
        ('"cuda" if torch.cuda.is_available() else "cpu"', '"cpu"'),
        ('os.environ.get("CGAN_DATA_DIR") or ', ""),
    ],
    "data": [
        ("- 0.5) / 0.5", "- 0.5)"),
        ("if hashlib.sha256(content).hexdigest() == SHA256[name]:", "if True:"),
        ('if "labels" in name and _is_mnist(content):', "if False:"),
        ("header_size=16", "header_size=8"),
        ('check_range("labels", self.labels, len(self.classes))', "pass"),
        ("if len(self.images) != len(self.labels):", "if False:"),
    ],
    "evaluation": [
        ("/ (k * len(generated))", "/ len(generated)"),
        ("topk(k + 1,", "topk(k,"),
        ("torch.cdist(centres, generated) <", "torch.cdist(centres, generated) >"),
        ("max(metric.compute().item(), 0.0)", "metric.compute().item() ** 0.5"),
        ("update(generated.double(), real=False)", "update(real.double(), real=False)"),
        ("multiclass_confusion_matrix(seen, labels,", "multiclass_confusion_matrix(labels, seen,"),
        ("gan_train(student, *test)", "gan_train(judge, *test)"),
    ],
    "plotting": [
        (".clamp(0, 1)", ".sub(-9).div(18)"),
        ("2 * math.log(2)", "math.log(2)"),
        ("    plt.close(figure)\n", ""),
        ("ceilings[name] for name in values", "value for value in ceilings.values()"),
    ],
    "__main__": [
        ('if output.suffix != ".pt":', "if False:"),
        ("if resume and resume_from is None and", "if False and"),
    ],
}  # fmt: skip

# Where a module's tests live besides its own file: what training draws is seen by training's.
ALSO = {
    "checkpoints": ["training"],
    "config": ["bad_input", "checkpoints", "data", "training"],
    "models": ["bad_input", "training"],
    "training": ["bad_input", "engines"],
}


def survives(module, old, new):
    """Whether the tests of `module` pass although `old` was replaced by `new`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("cgan_utils", "tests"):
            shutil.copytree(CLONE / name, copy / name)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(CLONE / name, copy)
        path = copy / "cgan_utils" / f"{module}.py"
        source = path.read_text(encoding="utf-8")
        if source.count(old) < 1:
            raise SystemExit(f"{module}: there is no {old!r} any more; update the list of faults")
        path.write_text(source.replace(old, new), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), path, "exec")  # a fault, not a typing error
        tests = [f"tests/test_{name}.py" for name in (module.strip("_"), *ALSO.get(module, ()))]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        data = os.environ.get("CGAN_DATA_DIR", CLONE / "data")
        runs = os.environ.get("CGAN_RUNS_DIR", CLONE / "runs")  # the judge, trained once
        environment = os.environ | {
            "PYTHONPATH": folder,
            "CGAN_DATA_DIR": str(data),
            "CGAN_RUNS_DIR": str(runs),
        }
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        if "error" in run.stdout.splitlines()[-1] and "NameError" in run.stdout:
            raise SystemExit(f"{module}: {new!r} does not run\n{run.stdout}")
        return run.returncode == 0


def main():
    modules = sys.argv[1:] or FAULTS
    survivors, count = [], 0
    for module in modules:
        for old, new in FAULTS[module]:
            count += 1
            alive = survives(module, old, new)
            survivors += [(module, old, new)] * alive
            print(
                "SURVIVED" if alive else "caught  ", module, repr(old), "->", repr(new), flush=True
            )
    print(f"{count - len(survivors)} of {count} faults caught")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
