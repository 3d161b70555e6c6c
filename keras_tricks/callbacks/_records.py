"""The record of what `Histograms` has counted for one variable or layer, and the summaries of it for TensorBoard."""

import math

import numpy as np

from keras_tricks.callbacks import _tallies


def record_of(kind, path, shape, step, counts, moments):
    finite = max(counts[: _tallies.NAN].sum(), 1)
    mean = float(moments[2] / finite)
    record = {
        "what": kind,
        "path": path,
        "rank": len(shape),
        "step": step,
        "counts": counts,
        "min": float(moments[0]),
        "max": float(moments[1]),
        "sum": float(moments[2]),
        "sum_of_squares": float(moments[3]),
        "mean": mean,
        "std": math.sqrt(max(float(moments[3] / finite) - mean**2, 0.0)),
        "zeros": float(counts[_tallies.ZERO] / counts.sum()),
        "nan": int(counts[_tallies.NAN]),
        "infinite": int(counts[_tallies.INFINITE]),
    }
    if kind != "activations":
        passes = counts.sum() / max(math.prod(shape), 1)
        record["norm"] = math.sqrt(moments[3] / passes)  # root mean square over the counted steps
    return record


def write_summaries(record, tf):
    kind, path = record["what"], record["path"]
    edges = _tallies.bin_edges()
    filled = np.flatnonzero(record["counts"][: _tallies.NAN])
    if filled.size:
        first, last = filled[0], filled[-1] + 1
        rows = np.stack([edges[first:last], edges[first + 1 : last + 1], record["counts"][first:last]], axis=1)
        _write(f"{kind}/{path}", rows, "histograms", tf)
    scalars = ["zeros"]
    if kind == "activations":
        scalars += ["mean", "std"]
        if len(record["alive"]):
            _write(f"{kind}_dead/{path}", np.float32(1 - record["alive"].mean()), "scalars", tf)
        if record["saturated"] is not None:
            scalars.append("saturated")
    else:
        scalars.append("norm")
    for name in scalars:
        _write(f"{kind}_{name}/{path}", np.float32(record[name]), "scalars", tf)
    if record["nan"] or record["infinite"]:
        _write(f"{kind}_not_finite/{path}", np.float32(record["nan"] + record["infinite"]), "scalars", tf)


def _write(tag, value, plugin, tf):
    # tf.summary.histogram bins raw values and needs the tensorboard package; these are binned already.
    data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
    tf.summary.write(tag, value, metadata=tf.compat.v1.SummaryMetadata(plugin_data=data))
