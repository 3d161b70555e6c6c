"""The distribution strategy that a model was made under, or that a step runs in, and sums over its replicas."""

import contextlib

import keras


def scope_of(model):
    """The scope of its strategy, in which new variables are laid out over the replicas as the model's are."""
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def number_of_replicas():
    """Number of replicas of the strategy in whose scope or replica this is called."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(*values):
    """The sums of tensors over the replicas that compute them; elsewhere, as on one device, the tensors themselves."""
    if keras.backend.backend() != "tensorflow":
        return values
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, list(values))


def sum_of_gradients(grads):
    """Sums over replicas where `tf.distribute` asks for it, and makes sparse gradients dense.

    Rows that a batch looks up twice appear twice in a sparse gradient. They are added here, before anything that is
    not linear (squares, norms, clipping) sees them.
    """
    if keras.backend.backend() != "tensorflow":
        return grads
    import tensorflow as tf

    if tf.distribute.get_replica_context() is None:
        raise RuntimeError(
            "`optimizer.apply()` was called in a cross-replica context. "
            "Call it inside of the function that is passed to `strategy.run`, or train with `model.fit`."
        )
    grads = sum_over_replicas(*grads) if grads else grads
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
