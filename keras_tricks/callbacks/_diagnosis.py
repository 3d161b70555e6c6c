"""What the records of `Histograms` mean, in words, and what to do about it."""

import dataclasses
import math

import numpy as np

# Between the first and the last layer, as the fitted line has it.
VANISHING = EXPLODING = 1e3
DEAD_CHANNELS = 0.4
SATURATED_UNITS = 0.5
LARGE_UPDATE, SMALL_UPDATE = 0.1, 1e-5
LATEST = 3  # records: what showed once may pass


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that training does wrong: its kind, the layers' paths, and a sentence with a remedy."""

    kind: str
    layers: tuple
    text: str

    def __str__(self):
        return f"{self.kind}: {self.text}"


def diagnose(history):
    """Findings from records in the order of time and, at one time, of depth."""
    if not history:
        return [Finding("nothing yet", (), "Nothing has been recorded yet: train with this callback, then ask again.")]
    findings = []
    for judge in (_not_finite, _gradient_flow, _no_gradient, _dead_channels, _saturation, _update_size):
        findings += judge(history)
    return findings or [Finding("healthy", (), f"Nothing wrong was found in {len(history)} records.")]


def _not_finite(history):
    bad = [r for r in history if r["nan"] or r["infinite"]]
    if not bad:
        return []
    step = bad[0]["step"]
    of_step = {kind: [r for r in bad if r["step"] == step and r["what"] == kind] for kind in _CAUSES}
    for kind, (which, cause) in _CAUSES.items():
        if of_step[kind]:
            record = of_step[kind][which]
            what = "NaN" if record["nan"] else "infinite values"
            return [
                Finding(
                    "not finite",
                    (record["path"],),
                    f"The {kind} of {record['path']} had {what} by step {step}, the first to have them{cause} Lower or "
                    "warm up the learning rate, put AdaptiveGradientClipping around the optimizer, under float16 "
                    "LossScaleOptimizer too; data.drop_corrupt finds inputs that are not finite.",
                )
            ]
    return []


# Values go bad on the way forward first, so activations tell most; gradients go bad from the output backward.
_CAUSES = {
    "activations": (0, " on the way from the input."),
    "gradients": (-1, " on the way back from the output."),
    "updates": (0, "."),
    "weights": (0, "."),
}


def _gradient_flow(history):
    norms = _median_norms(history, "gradients")
    if len(norms) < 4:
        return []
    paths, values = list(norms), np.log10(list(norms.values()))
    depth = np.linspace(0, 1, len(values))
    slope = np.polyfit(depth, values, 1)[0]
    spread = values.std()
    # A trend over the depth, not one layer that is out of line.
    if abs(slope) < math.log10(VANISHING) or abs(np.corrcoef(depth, values)[0, 1]) < 0.7 or not spread:
        return []
    ends = f"from {10 ** values[-1]:.1e} in {paths[-1]} to {10 ** values[0]:.1e} in {paths[0]}"
    factor = f"a factor of {10 ** abs(values[-1] - values[0]):.0e} over {len(paths)} layers"
    if slope > 0:
        weak = tuple(p for p, v in zip(paths, values, strict=True) if v < values[-1] - 2)
        return [
            Finding(
                "vanishing gradients",
                weak or (paths[0],),
                f"On the way back to the input the norm of the gradient falls {ends}: {factor}. Put ReZero around the "
                "blocks, use WSConv2D with ScaledActivation, start sigmoid layers from LogisticGlorotUniform or use "
                "relu or tanh instead, or normalise between the layers.",
            )
        ]
    strong = tuple(p for p, v in zip(paths, values, strict=True) if v > values[-1] + 2)
    return [
        Finding(
            "exploding gradients",
            strong or (paths[0],),
            f"On the way back to the input the norm of the gradient grows {ends}: {factor}. Put ReZero around the "
            "blocks, use WSConv2D with ScaledActivation, start from smaller weights, or put AdaptiveGradientClipping "
            "around the optimizer.",
        )
    ]


def _no_gradient(history):
    latest = _latest(history, "gradients")
    # The first step of ReZero has none, and a single record says little.
    still = tuple(p for p, rs in latest.items() if len(rs) > 1 and all(r["zeros"] == 1 for r in rs))
    if not still:
        return []
    return [
        Finding(
            "no gradient",
            still,
            f"The gradient of {_listed(still)} is exactly 0 in the last {LATEST} records. The units behind are dead, "
            "the gradient is too small for its precision (LossScaleOptimizer under float16), or nothing leads from "
            "there to the loss.",
        )
    ]


def _dead_channels(history):
    dead = {}
    for path, records in _latest(history, "activations").items():
        alive = [r["alive"] for r in records if len(r["alive"])]
        if alive:
            dead[path] = 1 - np.maximum.reduce(alive).mean()
    bad = {p: share for p, share in dead.items() if share >= DEAD_CHANNELS}
    if not bad:
        return []
    shares = ", ".join(f"{p} ({share:.0%})" for p, share in bad.items())
    return [
        Finding(
            "dead channels",
            tuple(bad),
            f"Channels were 0 for every example that was counted lately: {shares}. Lower or warm up the learning "
            "rate, start biases at 0, use WSConv2D or normalise before the activation, or take leaky_relu or gelu.",
        )
    ]


def _saturation(history):
    latest = _latest(history, "activations")
    bad = {}
    for path, records in latest.items():
        shares = [r["saturated"] for r in records if r["saturated"] is not None]
        # At the output saturation is confidence.
        if shares and not records[-1]["is_output"] and np.median(shares) > SATURATED_UNITS:
            bad[path] = np.median(shares)
    if not bad:
        return []
    shares = ", ".join(f"{p} ({share:.0%})" for p, share in bad.items())
    return [
        Finding(
            "saturated units",
            tuple(bad),
            f"Most units are at the flat ends of their activation, where no gradient passes: {shares}. Start from "
            "smaller weights (LogisticGlorotUniform for sigmoid, GlorotUniform for tanh), scale the inputs, normalise "
            "before the activation, or lower the learning rate.",
        )
    ]


def _update_size(history):
    weights = _median_norms(history, "weights")
    updates = _median_norms(history, "updates")
    ratios = {p: updates[p] / weights[p] for p in updates if p in weights}
    findings = []
    large = {p: r for p, r in ratios.items() if r > LARGE_UPDATE}
    small = {p: r for p, r in ratios.items() if r < SMALL_UPDATE}
    if large:
        worst = max(large, key=large.get)
        findings.append(
            Finding(
                "updates too large",
                tuple(large),
                f"One step changes {_listed(tuple(large))} by up to {large[worst]:.2g} of the weights' norm ({worst}); "
                "about 0.001 is usual. Lower or warm up the learning rate, or use LAMB, whose steps are in "
                "proportion to the weights.",
            )
        )
    if small:
        worst = min(small, key=small.get)
        findings.append(
            Finding(
                "updates too small",
                tuple(small),
                f"One step changes {_listed(tuple(small))} by as little as {small[worst]:.1g} of the weights' norm "
                f"({worst}), so it stands still; about 0.001 is usual. Mend vanishing gradients or saturated units "
                "first, if they are named too; else raise the learning rate, or use LAMB, whose steps are in "
                "proportion to the weights.",
            )
        )
    return findings


def _latest(history, kind):
    """{path: its last records} of one kind."""
    by_path = {}
    for record in history:
        if record["what"] == kind:
            by_path.setdefault(record["path"], []).append(record)
    return {path: records[-LATEST:] for path, records in by_path.items()}


def _median_norms(history, kind):
    """{path: median norm} over the last records; of kernels, since vectors are of another size and fewer."""
    norms = {}
    for path, records in _latest(history, kind).items():
        # A gradient of exactly 0 says nothing of the flow; one whose squares are too small for float32 does.
        values = [max(r["norm"], 1e-20) for r in records if r["zeros"] < 1 and math.isfinite(r["norm"])]
        if values and records[-1]["rank"] > 1:
            norms[path] = float(np.median(values))
    return norms


def _listed(paths):
    return ", ".join(paths) if len(paths) < 5 else f"{paths[0]}, {paths[1]} and {len(paths) - 2} more"
