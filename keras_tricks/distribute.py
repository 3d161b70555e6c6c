"""Sets up a run in one call: devices, precision and XLA, checked before the model is built.

    strategy = setup(replicas=2, precision="mixed_float16", xla=True)
    with strategy.scope():
        model = keras_tricks.jit(build_model())

On CPU the replicas are logical devices of one processor, and gradients are reduced on one device. With TensorFlow's
default collectives, two strategies of different sizes in one process break each other, and `steps_per_execution > 1`
fails.
"""

import keras

from keras_tricks._arguments import check_choice, check_count

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16", "float64")


def setup(replicas=None, precision="float32", xla=False, device=None):
    """Chooses devices, sets Keras' global precision policy, checks XLA, and returns the `tf.distribute` strategy.

    Call it first: logical CPU devices can only be made before TensorFlow starts, and layers take the policy that is set
    when they are made. Build and compile the model in `strategy.scope()`.

    Args:
        replicas: Number of copies of the model that share each batch. `None` (default) for all visible GPUs, or 1 on a
            machine without any. On CPU, more than 1 makes logical devices.
        precision: `"float32"` (default), `"mixed_bfloat16"`, `"mixed_float16"` (wrap the optimizer in
            `keras_tricks.LossScaleOptimizer`), or a pure `"bfloat16"`, `"float16"`, `"float64"`.
        xla: Whether models of this run are to be compiled with `keras_tricks.jit`; checks on each device that a small
            program in this precision compiles and runs. Defaults to `False`.
        device: `"GPU"`, `"CPU"`, or `None` (default) for GPUs where there are any.

    Returns:
        For one replica the default strategy (a `OneDeviceStrategy` for the CPU of a machine with GPUs), else a
        `MirroredStrategy`.

    Raises:
        TypeError, ValueError: For invalid arguments; the message says what can be chosen on this machine.
        RuntimeError: If TensorFlow has started with fewer devices than asked for, if XLA does not work here, or on a
            backend other than TensorFlow.

    Example:
    >>> import keras_tricks as kt
    >>> strategy = kt.distribute.setup()
    """
    if replicas is not None:
        check_count("replicas", replicas, hint=" None stands for all visible GPUs.")
    check_choice("precision", precision, PRECISIONS)
    check_choice("device", device, ("GPU", "CPU", None))
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"`distribute.setup` makes a tf.distribute strategy; this is the {keras.backend.backend()} backend. Use "
            "`keras.distribution.DataParallel` and `keras.config.set_dtype_policy` there."
        )
    import tensorflow as tf

    devices = _devices(tf, replicas, device)
    keras.config.set_dtype_policy(precision)
    if xla:
        _check_xla(tf, devices, precision)
    on_cpu = devices[0].startswith("CPU")
    if len(devices) == 1:
        if on_cpu and tf.config.get_visible_devices("GPU"):
            return tf.distribute.OneDeviceStrategy("CPU:0")  # the default strategy would choose the GPU
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice() if on_cpu else None
    )


def _devices(tf, replicas, device):
    gpus = tf.config.get_visible_devices("GPU")
    if device == "GPU" and not gpus:
        raise ValueError("`device='GPU'`: TensorFlow sees no GPU here. Use device='CPU' or leave it out.")
    if gpus and device != "CPU":
        available = len(tf.config.list_logical_devices("GPU"))
        replicas = available if replicas is None else replicas
        if replicas > available:
            raise ValueError(
                f"`replicas={replicas}`: TensorFlow sees {available} GPU(s). Use up to {available} replicas, or "
                "device='CPU' to try several replicas on logical CPU devices."
            )
        return [f"GPU:{i}" for i in range(replicas)]
    replicas = 1 if replicas is None else replicas
    if replicas > 1:
        _make_logical_cpus(tf, replicas)
    return [f"CPU:{i}" for i in range(replicas)]


def _make_logical_cpus(tf, count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or ()
    if len(configured) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        available = max(len(configured), 1)
        raise RuntimeError(
            f"`replicas={count}`: TensorFlow has already started in this process, with {available} logical CPU "
            "device(s), and cannot get more. Call `keras_tricks.distribute.setup` before anything else that uses "
            f"TensorFlow, or use up to {available} replica(s)."
        ) from None


def _check_xla(tf, devices, precision):
    dtype = precision.removeprefix("mixed_")
    program = tf.function(lambda x: tf.linalg.matmul(x, x), jit_compile=True)
    for device in devices:
        try:
            with tf.device(device):
                program(tf.ones((8, 8), dtype))
        except tf.errors.OpError as error:
            raise RuntimeError(
                f"`xla=True`: XLA cannot compile a {dtype} program for {device} here; use xla=False. "
                f"TensorFlow says: {str(error).splitlines()[0]}"
            ) from error
