"""The command line: `python -m keras_tricks list | show NAME | env`."""

import argparse
import importlib.metadata
import inspect
import itertools
import os
import sys
import textwrap


def main(arguments=None):
    """Runs one command; returns the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m keras_tricks", description="Training tricks for Keras 3.")
    parser.add_argument("--version", action="version", version=f"keras_tricks {_version('keras_tricks')}")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("list", help="all tricks, a line each")
    table.add_argument("--markdown", metavar="PREFIX", help="as a Markdown table, with links to PREFIX<stem>.md")
    show = commands.add_parser("show", help="one trick: what it does, what it works with, its documentation")
    show.add_argument("name", help="as in `LAMB`, `layers.WSConv2D` or `ws_conv`")
    commands.add_parser("env", help="versions, devices, and what works here")
    options = parser.parse_args(arguments)
    if options.command == "list":
        return _list(options.markdown)
    if options.command == "show":
        return _show(options.name)
    return _env()


def _list(link_prefix):
    from keras_tricks import catalog

    if link_prefix is not None:
        print(catalog.markdown_table(link_prefix), end="")
        return 0
    if sys.stdout.isatty():
        _print_table(catalog.TRICKS)
        return 0
    # For grep, awk and files: one line per trick, whatever the width, and no colours.
    names, kinds = ([getattr(trick, column) for trick in catalog.TRICKS] for column in ("name", "kind"))
    for trick in catalog.TRICKS:
        print(f"{trick.name:{max(map(len, names))}}  {trick.kind:{max(map(len, kinds))}}  {trick.line}")
    return 0


def _print_table(tricks):
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("trick", no_wrap=True)
    table.add_column("what it does")
    for kind, group in itertools.groupby(tricks, key=lambda trick: trick.kind):
        table.add_section()
        table.add_row("", kind, style="italic")
        for trick in group:
            table.add_row(trick.name, trick.line)
    rich.console.Console().print(table)


def _show(name):
    from keras_tricks import catalog

    try:
        trick = catalog.find(name)
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 1
    print(f"keras_tricks.{trick.name}{inspect.signature(trick.object)}\n")
    print(trick.line)
    print(f"\nPaper:       {trick.paper}")
    print(f"Backends:    {', '.join(trick.backends)}")
    print(f"Works with:  {', '.join(trick.works_with)}")
    print(f"Card:        docs/tricks/{trick.stem}.md\n")
    print(inspect.getdoc(trick.object))
    return 0


def _env():
    import keras

    import keras_tricks

    print(
        f"keras_tricks {keras_tricks.__version__}, Python {sys.version.split()[0]}, backend {keras.backend.backend()}"
    )
    for name in (
        "keras",
        "tensorflow",
        "tensorflow-cpu",
        "jax",
        "numpy",
        "tensorflow-datasets",
        "matplotlib",
        "tensorboard",
        "scikit-learn",
    ):
        print(f"  {name:20} {_version(name)}")
    if _version("tensorflow") != "-" and _version("tensorflow-cpu") != "-":
        print("  WARNING: tensorflow and tensorflow-cpu are both installed and overwrite each other: uninstall one.")
    if keras.backend.backend() == "tensorflow":
        _tensorflow_env()
    else:
        _other_env(keras.backend.backend())
    return 0


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _tensorflow_env():
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    print(f"\nDevices: {len(gpus)} GPU(s), {os.cpu_count()} CPU cores")
    for gpu in gpus:
        details = tf.config.experimental.get_device_details(gpu)
        print(f"  {gpu.name} {details.get('device_name', '')} {details.get('compute_capability', '')}")
    print("What works here:")
    for precision in ("float32", "bfloat16", "float16"):
        for xla in (False, True):
            program = tf.function(lambda x: tf.linalg.matmul(x, x), jit_compile=xla)
            try:  # traced by itself: TensorFlow warns about functions that are made and called in a loop
                program.get_concrete_function(tf.TensorSpec((8, 8), precision))(tf.ones((8, 8), precision))
                answer = "yes"
            except tf.errors.OpError as error:
                answer = f"no ({str(error).splitlines()[0]})"
            print(f"  {precision:9} {'with XLA' if xla else '':9} {answer}")
    print(f"  replicas            up to {len(gpus)} GPUs" if gpus else "  replicas            logical CPU devices")


def _other_env(backend):
    """What runs on a backend other than TensorFlow, according to the catalogue."""
    from keras_tricks import catalog

    if backend == "jax":
        import jax

        print(f"\nDevices: {', '.join(map(str, jax.devices()))}, {os.cpu_count()} CPU cores")
    without = [trick.name for trick in catalog.TRICKS if backend not in trick.backends]
    if len(without) == len(catalog.TRICKS):
        print(f"\nNothing here is tested on {backend}: set KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax.")
        return
    print(f"\n{len(catalog.TRICKS) - len(without)} of {len(catalog.TRICKS)} tricks run on {backend}.")
    print("These need KERAS_BACKEND=tensorflow:")
    print(textwrap.fill(", ".join(without), width=86, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # formulas have characters that not every terminal's encoding has
    sys.exit(main())
