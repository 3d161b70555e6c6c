"""The formulas in NumPy, float64, written from the papers; the package is tested against these."""

import numpy as np


def lamb(
    w,
    gradients,
    learning_rate,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-6,
    weight_decay=0.0,
    adapt=True,
    clip=None,
    bias_correction=True,
):
    """You et al., 2020, Algorithm 2: the weights after one step for each gradient."""
    w = np.asarray(w, "float64")
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(np.asarray(gradients, "float64"), start=1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        c1, c2 = (1 - beta_1**t, 1 - beta_2**t) if bias_correction else (1, 1)
        u = (m / c1) / (np.sqrt(v / c2) + epsilon) + weight_decay * w
        ratio = 1.0
        w_norm, u_norm = np.sqrt((w**2).sum()), np.sqrt((u**2).sum())
        if adapt and w_norm > 0 and u_norm > 0:
            ratio = w_norm / u_norm if clip is None else np.clip(w_norm / u_norm, *clip)
        w = w - learning_rate * ratio * u
    return w


def standardized_kernel(kernel, gain=1.0, epsilon=1e-4):
    """Brock et al., 2021, equation 1, for a kernel (..., input channels a group, output channels)."""
    kernel = np.asarray(kernel, "float64")
    flat = kernel.reshape(-1, kernel.shape[-1])
    fan_in = len(flat)
    scale = gain / np.sqrt(np.maximum(flat.var(axis=0) * fan_in, epsilon))
    return ((flat - flat.mean(axis=0)) * scale).reshape(kernel.shape)


def cyclical(step, low, high, step_size, mode="triangular", gamma=1.0):
    """Smith, 2017, section 3.2."""
    cycle = np.floor(1 + step / (2 * step_size))
    x = abs(step / step_size - 2 * cycle + 1)
    scale = {"triangular": 1.0, "triangular2": 1 / 2 ** (cycle - 1), "exp_range": gamma**step}[mode]
    return low + (high - low) * max(0.0, 1 - x) * scale


def echoed(elements, numerator, denominator):
    """Each element repeated so that after i of them floor(i * numerator / denominator) have come out."""
    return [
        x
        for i, x in enumerate(elements)
        for _ in range((i + 1) * numerator // denominator - i * numerator // denominator)
    ]


def log_histogram(values, lowest=-12, highest=4, bins_a_decade=5):
    """Counts by sign and decade, one value after the other: negative bins, zeros, positive bins, NaN, infinite."""
    bins = (highest - lowest) * bins_a_decade
    counts = np.zeros(2 * bins + 3, int)
    for x in np.ravel(values):
        if np.isnan(x):
            counts[-2] += 1
        elif np.isinf(x):
            counts[-1] += 1
        elif x == 0:
            counts[bins] += 1
        else:
            k = int(np.clip(np.floor((np.log10(abs(x)) - lowest) * bins_a_decade), 0, bins - 1))
            counts[bins + 1 + k if x > 0 else bins - 1 - k] += 1
    return counts
