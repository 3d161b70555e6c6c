"""Milliseconds and bytes of one optimizer step, against Keras' Adam and against what memory allows: `make bench`.

There is no forward pass: gradients are constants. Every variant takes turns with Keras' Adam in the same mode and with
a pass over memory; figures are medians of these turns. Rows go to benchmarks/results/optimizers.csv with the date and
the software.

Taking turns does not make up for a busy machine: threads that meet at OpenMP's barriers, as torch's do, wait for the
one whose core is taken. A step of torch's fused Adam that takes 7 ms took 28 ms, and at times 3 s, while others used
one of two cores; Keras lost far less. So each row has the share of the cores that other processes used. Measure a row
again if that is more than a few percent.

optax (with jax) and torch are measured too where they are installed; no extra of the package installs them.
"""

import argparse
import csv
import datetime
import functools
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_PLATFORMS"] = "cpu"  # optax is measured on CPUs only, and must not take a GPU from TensorFlow

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
from speed import measure

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results" / "optimizers.csv"
ROUNDS = 15
RATE = 1e-4
MODES = ("graph", "xla", "eager")
REFERENCE = "keras Adam"
BUSY = 0.05  # share of the cores used by other processes, above which a row is not to be trusted

# The least bytes that a step must move for each float32 parameter. One pass reads the gradient (4) and the weight (4)
# and writes the weight (4); a slot is read and written (8). The norm of a tensor is known only after the whole tensor
# has been read, so whatever it scales is read a second time. Row and column statistics are too small to count.
SGD_BYTES = 20  # g 4, w 8, momentum 8
ADAM_BYTES = 28  # g 4, w 8, two moments 16
YOGI_BYTES = ADAM_BYTES
LAMB_BYTES = 40  # for the norms g 4, w 4, two moments 16; then w 8 and both moments again, 8, for the direction
LARS_BYTES = 28  # for the norms g 4, w 4; then g 4, w 8, momentum 8
ADAFACTOR_BYTES = 24  # for the means and the size of the weights g 4, w 4; for the size of the step g 4; then g 4, w 8
SM3_BYTES = 16  # for the maxima g 4; then g 4, w 8
SM3_MOMENTUM_BYTES = SM3_BYTES + 8  # momentum 8
CLIPPING_BYTES = 8  # for the norms g 4, w 4, before the step of the optimizer inside
LOOKAHEAD_BYTES = ADAM_BYTES  # the slow weights move at every sixth step only, so not at the median one


def resnet50():
    """The shapes of ResNet-50's 161 trainable tensors: kernels, each with a gamma and a beta, and the classifier."""
    kernels, channels = [(7, 7, 3, 64)], 64
    for blocks, filters in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            if block == 0:
                kernels.append((1, 1, channels, 4 * filters))
            kernels += [(1, 1, channels, filters), (3, 3, filters, filters), (1, 1, filters, 4 * filters)]
            channels = 4 * filters
    return [shape for k in kernels for shape in (k, k[-1:], k[-1:])] + [(2048, 1000), (1000,)]


SHAPES = {"resnet50": resnet50(), "many400": [(25, 1008)] * 400}


def adam():
    return keras.optimizers.Adam(RATE)


def sgd():
    return keras.optimizers.SGD(RATE, momentum=0.9)


# Name: bytes per parameter, and how to make it.
KERAS = {
    REFERENCE: (ADAM_BYTES, adam),
    "keras SGD(momentum)": (SGD_BYTES, sgd),
    "keras Lamb": (LAMB_BYTES, lambda: keras.optimizers.Lamb(RATE)),
    "keras Adafactor": (ADAFACTOR_BYTES, lambda: keras.optimizers.Adafactor(1e-3)),
    "kt.LAMB": (LAMB_BYTES, lambda: kt.LAMB(RATE)),
    "kt.LARS": (LARS_BYTES, lambda: kt.LARS(RATE)),
    "kt.Adafactor": (ADAFACTOR_BYTES, lambda: kt.Adafactor(1e-3)),
    "kt.SM3": (SM3_MOMENTUM_BYTES, lambda: kt.SM3(RATE)),
    "kt.SM3(momentum=0)": (SM3_BYTES, lambda: kt.SM3(RATE, momentum=0.0)),
    "kt.Yogi": (YOGI_BYTES, lambda: kt.Yogi(RATE)),
    "kt.AdaptiveGradientClipping(Adam)": (ADAM_BYTES + CLIPPING_BYTES, lambda: kt.AdaptiveGradientClipping(adam())),
    "kt.AdaptiveGradientClipping(SGD)": (SGD_BYTES + CLIPPING_BYTES, lambda: kt.AdaptiveGradientClipping(sgd())),
    "kt.GradientAccumulation(Adam)": (ADAM_BYTES, lambda: kt.GradientAccumulation(adam(), steps=1)),
    "kt.Lookahead(Adam)": (LOOKAHEAD_BYTES, lambda: kt.Lookahead(adam())),
}
OPTAX = {
    "optax adam": (ADAM_BYTES, lambda optax: optax.adam(RATE)),
    "optax lamb": (LAMB_BYTES, lambda optax: optax.lamb(RATE)),
    "optax lars": (LARS_BYTES, lambda optax: optax.lars(RATE)),
    # Factored from 16 on, as in kt.Adafactor, instead of optax's 128.
    "optax adafactor": (ADAFACTOR_BYTES, lambda optax: optax.adafactor(1e-3, min_dim_size_to_factor=16)),
    "optax sm3": (SM3_MOMENTUM_BYTES, lambda optax: optax.sm3(RATE, momentum=0.9)),
    "optax yogi": (YOGI_BYTES, lambda optax: optax.yogi(RATE)),
}
TORCH = {
    "torch Adam(fused)": (ADAM_BYTES, lambda optim, parameters: optim.Adam(parameters, RATE, fused=True)),
    "torch Adam(foreach)": (ADAM_BYTES, lambda optim, parameters: optim.Adam(parameters, RATE, foreach=True)),
    "torch Adafactor": (ADAFACTOR_BYTES, lambda optim, parameters: optim.Adafactor(parameters, 1e-3)),
}


# Each of these three returns a function that takes one step, the bytes of the optimizer's state, and a function that
# frees the memory.


def keras_step(make, mode, weights, gradients):
    variables = [keras.Variable(w) for w in weights]
    optimizer = make()
    optimizer.build(variables)

    @tf.function(jit_compile=mode == "xla", autograph=False)
    def step():
        optimizer.apply(gradients, variables)

    def run():
        step()
        tf.test.experimental.sync_devices()

    def free():
        # TensorFlow keeps the handles of variables that nothing refers to any more, so they are emptied by hand.
        for v in (*variables, *optimizer.variables):
            handle = v.value.handle
            tf.raw_ops.AssignVariableOp(resource=handle, value=tf.zeros([0], v.value.dtype), validate_shape=False)

    return run, kt.state_bytes(optimizer), free


def optax_step(make, mode, weights, gradients):
    import jax
    import optax

    rule = make(optax)
    gradients = [jax.numpy.array(g.numpy()) for g in gradients]
    parameters = [jax.numpy.array(w) for w in weights]
    held = [parameters, rule.init(parameters)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(held[1]))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters, state, gradients):
        updates, state = rule.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    def run():
        held[:] = step(*held, gradients)
        jax.block_until_ready(held)

    return run, size, jax.clear_caches


def torch_step(make, mode, weights, gradients):
    import torch

    torch.set_num_threads(os.cpu_count())
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in weights]
    for parameter, g in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(g.numpy())
    optimizer = make(torch.optim, parameters)
    optimizer.step()  # makes the state
    state = (value for slots in optimizer.state.values() for value in slots.values())
    size = sum(value.nbytes for value in state if torch.is_tensor(value))
    return optimizer.step, size, lambda: optimizer.param_groups.clear()


# For each kind: the packages it needs, its modes, the function that makes a step, and its variants.
KINDS = (
    (("keras",), ("graph", "xla"), keras_step, KERAS),
    (("jax", "optax"), ("xla",), optax_step, OPTAX),
    (("torch",), ("eager",), torch_step, TORCH),
)


def chosen(only, modes):
    """For each mode the variants with a part of `only` in their names: name, bytes per parameter, function to build."""
    found = {mode: [] for mode in modes}
    for needed, kind_modes, make_step, variants in KINDS:
        names = [name for name in variants if any(part.lower() in name.lower() for part in only)]
        if not names or not set(kind_modes) & set(modes):
            continue
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            print(f"Skipped, because {' and '.join(missing)} is not installed: {', '.join(names)}")
        elif make_step is not keras_step and tf.config.list_physical_devices("GPU"):
            print(f"Skipped, because Keras runs on a GPU here and they would run on the CPU: {', '.join(names)}")
        else:
            for mode in set(kind_modes) & set(modes):
                for name in names:
                    floor, make = variants[name]
                    found[mode].append((name, floor, functools.partial(make_step, make, mode)))
    return found


def pass_over_memory():
    """A function that adds one large tensor to another in place, and the bytes that it reads and writes."""
    count = 2**28 if tf.config.list_physical_devices("GPU") else 2**25
    variable, added = tf.Variable(tf.zeros([count])), tf.ones([count])

    @tf.function(autograph=False)
    def add():
        variable.assign_add(added, read_value=False)

    def run():
        add()
        tf.test.experimental.sync_devices()

    return run, 3 * 4 * count


def cpu_seconds():
    """CPU seconds used by all other processes so far, and the time now; `None` where there is no /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return None
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time(), time.perf_counter()


def share_of_others(before, after):
    """The share of the cores that went to other processes between two `cpu_seconds()`."""
    if before is None:
        return None
    return max(0.0, (after[0] - before[0]) / (os.cpu_count() * (after[1] - before[1])))


def built(build, weights, gradients):
    """What `build` returns, and the seconds of the first two calls, which trace and compile."""
    step, size, free = build(weights, gradients)
    start = time.perf_counter()
    step()
    step()
    return step, size, free, time.perf_counter() - start


def results(weights, gradients, memory, mode, variants, rounds):
    """The figures of each of the mode's variants; a generator of dictionaries."""
    parameters = sum(w.size for w in weights)
    add, moved = memory
    # torch's mode has no Adam of Keras: it is set beside the graph.
    reference_build = functools.partial(keras_step, adam, "graph" if mode == "eager" else mode)
    reference = built(reference_build, weights, gradients)
    for name, floor, build in variants:
        try:
            step, size, free, compiling = reference if name == REFERENCE else built(build, weights, gradients)
        except RuntimeError as error:  # torch: no fused step on this machine
            if "fused" not in name:
                raise
            print(f"Skipped: {name}, {error}")
            continue
        before = cpu_seconds()
        # A pass over memory comes before each of the two, so that neither finds its own data in the caches. The pass
        # that counts is the one after the reference: after a step of torch, threads that spin for a while would slow it
        # down.
        turns = {"empty the caches": add, "reference": reference[0], "memory": add, "variant": step}
        seconds = measure(turns, rounds)
        others = share_of_others(before, cpu_seconds())
        bandwidth = moved / seconds["memory"]
        yield {
            "variant": name,
            "ms": f"{1e3 * seconds['variant']:.2f}",
            "ratio_to_adam": f"{seconds['variant'] / seconds['reference']:.2f}",
            "ratio_to_floor": f"{seconds['variant'] / (floor * parameters / bandwidth):.2f}",
            "state_bytes_a_parameter_byte": f"{size / (4 * parameters):.4f}",
            "seconds_to_compile": f"{compiling:.2f}",
            "bandwidth_gb_s": f"{bandwidth / 1e9:.1f}",
            "cpu_share_of_others": "" if others is None else f"{others:.2f}",
        }
        if name != REFERENCE:
            free()
        step = free = None
        gc.collect()
    reference[2]()


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def append(row):
    """Adds one row to the results."""
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of names of variants, with commas between; default: all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each variant; default: {ROUNDS}")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    parser.add_argument("--modes", default=",".join(MODES), help="default: %(default)s")
    options = parser.parse_args()
    for option, known in (("shapes", SHAPES), ("modes", MODES)):
        names = getattr(options, option).split(",")
        if not set(names) <= set(known):
            parser.error(f"--{option} knows {', '.join(known)}. Received: {','.join(names)}")
        setattr(options, option, names)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1. Received: {options.rounds}")
    options.variants = chosen(options.only.split(","), options.modes)
    if not any(options.variants.values()):
        parser.error(f"no variant to measure with --only {options.only} --modes {','.join(options.modes)}")
    return options


def main():
    """Runs the chosen variants, prints them, and appends them to the results."""
    options = arguments()
    stack = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "jax": version("jax"),
        "optax": version("optax"),
        "torch": version("torch"),
        "cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
    }
    titles = {
        "variant": "variant",
        "ms": "ms",
        "ratio_to_adam": "/ Adam",
        "ratio_to_floor": "/ floor",
        "state_bytes_a_parameter_byte": "state / parameters",
        "seconds_to_compile": "s to compile",
        "cpu_share_of_others": "others",
    }
    table = rich.table.Table("", *titles.values())
    disturbed = 0
    memory = pass_over_memory()
    for shapes in options.shapes:
        random = np.random.default_rng(0)
        weights = [random.standard_normal(s, dtype="float32") for s in SHAPES[shapes]]
        gradients = [tf.constant(random.standard_normal(s, dtype="float32")) for s in SHAPES[shapes]]
        for mode, variants in options.variants.items():
            if not variants:
                continue
            for result in results(weights, gradients, memory, mode, variants, options.rounds):
                print(f"{shapes}, {mode}, {result['variant']}: {result['ms']} ms", flush=True)
                append({**stack, "shapes": shapes, "mode": mode, **result})
                table.add_row(f"{shapes}, {mode}", *(result[c] for c in titles))
                disturbed += float(result["cpu_share_of_others"] or 0) > BUSY
            table.add_section()
            gc.collect()
    rich.console.Console().print(table)
    print(f"Appended to {RESULTS}")
    if disturbed:
        print(
            f"Other processes took more than {BUSY:.0%} of the cores during {disturbed} of these measurements. Do not "
            "trust them, least of all torch's: run again when the machine is quiet."
        )


if __name__ == "__main__":
    main()
