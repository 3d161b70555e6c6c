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


def lars(
    w,
    gradients,
    learning_rate,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    trust_coefficient=1e-3,
    epsilon=0.0,
    adapt=True,
):
    """You et al., 2017, with one norm for gradient and decay as in optax.lars; `learning_rate` may be a list."""
    w = np.asarray(w, "float64")
    v = np.zeros_like(w)
    rates = np.broadcast_to(learning_rate, len(gradients))
    for rate, g in zip(rates, np.asarray(gradients, "float64"), strict=True):
        d = g + weight_decay * w
        w_norm, d_norm = np.sqrt((w**2).sum()), np.sqrt((d**2).sum())
        ratio = trust_coefficient * w_norm / (d_norm + epsilon) if adapt and w_norm > 0 and d_norm > 0 else 1.0
        step = rate * ratio * d
        v = momentum * v + step
        w = w - (momentum * v + step if nesterov else v)
    return w


def yogi(w, gradients, learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-3, initial=1e-6):
    """Zaheer et al., 2018, with Adam's bias correction of both moments as in optax.yogi."""
    w = np.asarray(w, "float64")
    m, v = np.full_like(w, initial), np.full_like(w, initial)
    for t, g in enumerate(np.asarray(gradients, "float64"), start=1):
        m = beta_1 * m + (1 - beta_1) * g
        v = v - (1 - beta_2) * np.sign(v - g**2) * g**2
        w = w - learning_rate * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
    return w


def adafactor(
    w,
    gradients,
    learning_rate=None,
    beta_1=None,
    decay=-0.8,
    epsilon_1=1e-30,
    epsilon_2=1e-3,
    clip=1.0,
    scale=True,
    warmup_init=False,
    least=16,
    weight_decay=0.0,
):
    """Shazeer and Stern, 2018, Algorithm 4 and 5: second moments rebuilt in full from their sums over two axes."""
    w = np.asarray(w, "float64")
    order = np.argsort(w.shape, kind="stable")
    factored = w.ndim >= 2 and w.shape[order[-2]] >= least
    v = rows = columns = average = 0.0
    for t, g in enumerate(np.asarray(gradients, "float64"), start=1):
        rate = min(1e-6 * t if warmup_init else 1e-2, 1 / np.sqrt(t)) if learning_rate is None else learning_rate
        kept = 1 - t**decay
        q = g**2 + epsilon_1
        if factored:
            rows = kept * rows + (1 - kept) * q.sum(axis=order[-1], keepdims=True)
            columns = kept * columns + (1 - kept) * q.sum(axis=order[-2], keepdims=True)
            second = rows * columns / rows.sum(axis=order[-2], keepdims=True)
        else:
            second = v = kept * v + (1 - kept) * q
        u = g / np.sqrt(second)
        if clip is not None:
            u = u / max(1.0, np.sqrt((u**2).mean()) / clip)
        u = rate * (max(epsilon_2, np.sqrt((w**2).mean())) if scale else 1.0) * u
        if beta_1 is not None:
            average = beta_1 * average + (1 - beta_1) * u
            u = average
        w = w - u - rate * weight_decay * w
    return w


def sm3(w, gradients, learning_rate, momentum=0.9, variant="II"):
    """Anil et al., 2019, SM3-I and SM3-II, one element and one slice after the other."""
    w = np.asarray(w, "float64")
    rank, average = w.ndim, np.zeros_like(w)
    sums = np.zeros_like(w)
    slices = [np.zeros(n) for n in w.shape]
    for g in np.asarray(gradients, "float64"):
        if rank <= 1:
            sums = sums + g**2
            bound = sums
        else:
            bound = np.zeros_like(w)
            if variant == "I":
                slices = [
                    np.array([a[j] + (np.take(g, j, axis=axis) ** 2).max() for j in range(len(a))])
                    for axis, a in enumerate(slices)
                ]
            for at in np.ndindex(w.shape):
                bound[at] = min(slices[axis][at[axis]] for axis in range(rank))
            if variant == "II":
                bound = bound + g**2
                slices = [
                    np.array([np.take(bound, j, axis=axis).max() for j in range(len(a))])
                    for axis, a in enumerate(slices)
                ]
        step = np.where(bound > 0, g / np.sqrt(np.where(bound > 0, bound, 1.0)), 0.0)
        average = momentum * average + (1 - momentum) * step
        w = w - learning_rate * average
    return w


def lookahead(w, gradients, learning_rate, momentum, sync_period, slow_step_size):
    """Zhang et al., 2019, Algorithm 1, around SGD with Keras' momentum."""
    fast = slow = np.asarray(w, "float64")
    m = np.zeros_like(fast)
    for t, g in enumerate(np.asarray(gradients, "float64"), start=1):
        m = momentum * m - learning_rate * g
        fast = fast + m
        if t % sync_period == 0:
            slow = slow + slow_step_size * (fast - slow)
            fast = slow
    return fast


def unitwise_clipped(g, w, axes, clipping=0.01, epsilon=1e-3):
    """Brock et al., 2021, equation 3, one unit after the other; a unit spans `axes`."""
    g, w = np.asarray(g, "float64").copy(), np.asarray(w, "float64")
    kept = [axis for axis in range(g.ndim) if axis not in axes]
    for at in np.ndindex(*(g.shape[axis] for axis in kept)):
        unit = tuple(at[kept.index(axis)] if axis in kept else slice(None) for axis in range(g.ndim))
        norm = np.sqrt((g[unit] ** 2).sum())
        limit = clipping * max(np.sqrt((w[unit] ** 2).sum()), epsilon)
        if norm > limit:
            g[unit] = g[unit] * limit / norm
    return g


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


def cosines(x, kernel, scale=1.0):
    """The cosine classifier: `scale` times the cosine between each input and each column."""
    x, kernel = np.asarray(x, "float64"), np.asarray(kernel, "float64")
    norms = np.linalg.norm(x, axis=-1, keepdims=True) * np.linalg.norm(kernel, axis=0)
    return scale * (x @ kernel) / norms


def extended_batch_normalized(x, gamma=1.0, beta=0.0, epsilon=1e-3, axis=-1, mask=None):
    """Luo et al., 2020: outputs, the mean of each channel, and the one variance; `mask` is of the shape of `x`."""
    x = np.moveaxis(np.asarray(x, "float64"), axis, -1)
    kept = np.ones(x.shape, bool) if mask is None else np.moveaxis(mask, axis, -1)
    mean = np.array([x[..., c][kept[..., c]].mean() for c in range(x.shape[-1])])
    variance = (((x - mean) ** 2)[kept]).mean()
    y = gamma * (x - mean) / np.sqrt(variance + epsilon) + beta
    return np.moveaxis(y, -1, axis), mean, variance


def convolved(x, kernel, strides, padding, dilation=1, groups=1):
    """Cross-correlation of images (N, H, W, C), with TensorFlow's amounts of padding, one window after the other."""
    x, kernel = np.asarray(x, "float64"), np.asarray(kernel, "float64")
    spans = [dilation * (size - 1) + 1 for size in kernel.shape[:2]]
    if padding == "same":
        lacking = [
            max(-(-n // stride) * stride - stride + span - n, 0)
            for n, stride, span in zip(x.shape[1:3], strides, spans, strict=True)
        ]
        x = np.pad(x, [(0, 0), *((n // 2, n - n // 2) for n in lacking), (0, 0)])
    height, width = ((n - span) // stride + 1 for n, stride, span in zip(x.shape[1:3], strides, spans, strict=True))
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    inside, outside = kernel.shape[2], kernel.shape[3] // groups
    for i, j, g in np.ndindex(height, width, groups):
        top, left = i * strides[0], j * strides[1]
        window = x[:, top : top + spans[0] : dilation, left : left + spans[1] : dilation]
        window = window[..., g * inside : (g + 1) * inside]
        mine = slice(g * outside, (g + 1) * outside)
        y[:, i, j, mine] = np.tensordot(window, kernel[..., mine], 3)
    return y


def asymmetric_convolution(x, kernels, normalize, strides, padding, dilation=1, groups=1):
    """Ding et al., 2019: the sum of three convolutions, each normalised by its function, around the same middle."""
    height, width = kernels[0].shape[:2]
    whole = [kernels[0], np.zeros_like(kernels[0]), np.zeros_like(kernels[0])]
    whole[1][height // 2] = kernels[1][0]
    whole[2][:, width // 2] = kernels[2][:, 0]
    branches = (convolved(x, kernel, strides, padding, dilation, groups) for kernel in whole)
    return sum(f(branch) for f, branch in zip(normalize, branches, strict=True))


def re_sampled(counts, q, epoch=None, epochs=None):
    """Elements of each class in an epoch: the share of each class times their sum, in float64, not yet whole."""
    counts = np.asarray(counts, np.float64)
    share = np.array([n**q if n else 0.0 for n in counts])
    share /= share.sum()
    if epochs is not None:
        share = (1 - epoch / epochs) * counts / counts.sum() + epoch / epochs * share
    return share * counts.sum()


def remixed(x, y, counts, partner, lam, kappa, tau):
    """Remix example by example. `y` are integers."""
    images, labels = np.empty_like(x), np.zeros((len(y), len(counts)))
    for i, j in enumerate(partner):
        ratio = counts[y[i]] / counts[y[j]]
        weight = lam[i]
        if ratio >= kappa and lam[i] < tau:
            weight = 0.0
        elif ratio <= 1 / kappa and 1 - lam[i] < tau:
            weight = 1.0
        images[i] = lam[i] * x[i] + (1 - lam[i]) * x[j]
        labels[i, y[i]] += weight
        labels[i, y[j]] += 1 - weight
    return images, labels


def early_stop(criterion, validation, training=(), alpha=None, strip=5, successive=2):
    """Prechelt, 1998: the check, from 1, after which training stops, or `None`; the gap as documented here."""
    va, tr = np.asarray(validation, "float64"), np.asarray(training, "float64")

    def gl(t):
        lowest = va[:t].min()
        return 100 * (va[t - 1] - lowest) / abs(lowest)

    def progress(t):
        last = tr[t - strip : t]
        return 1000 * (last.sum() / strip - last.min()) / abs(last.min())

    def up(s, t):
        return t - strip > 0 and va[t - 1] > va[t - strip - 1] and (s == 1 or up(s - 1, t - strip))

    def gap(t):
        return max(0, (va[t - strip : t] - tr[t - strip : t]).mean())

    def growing(s, t):
        return t - strip > 0 and gap(t) > gap(t - strip) and (s == 1 or growing(s - 1, t - strip))

    for t in range(1, len(va) + 1):
        ends = t % strip == 0
        stop = {
            "GL": lambda t=t: gl(t) > alpha,
            "PQ": lambda t=t, ends=ends: ends and gl(t) > alpha * progress(t),
            "UP": lambda t=t, ends=ends: ends and up(successive, t),
            "gap": lambda t=t, ends=ends: ends and growing(successive, t),
        }[criterion]
        if stop():
            return t
    return None


def one_cycle(
    step,
    high,
    steps,
    pct_start=0.3,
    div_factor=25.0,
    final_div_factor=1e4,
    anneal="cos",
    three_phase=False,
    definition="torch",
):
    """Smith and Topin, 2017, one phase after the other, with the phases' ends as torch or fastai places them."""
    low = high / div_factor
    if definition == "fastai":
        phases = [(pct_start * steps, low, high), (steps, high, high / final_div_factor)]
    elif three_phase:
        rise = pct_start * steps
        phases = [(rise - 1, low, high), (2 * rise - 2, high, low), (steps - 1, low, low / final_div_factor)]
    else:
        phases = [(pct_start * steps - 1, low, high), (steps - 1, high, low / final_div_factor)]
    step, begin = min(step, phases[-1][0]), 0.0
    for end, first, last in phases:
        if step <= end:
            done = (step - begin) / (end - begin) if end > begin else 1.0
            return first + (last - first) * (done if anneal == "linear" else (1 - np.cos(np.pi * done)) / 2)
        begin = end


def warm_up(step, target, warmup_steps, power=1.0, initial=0.0):
    """Goyal et al., 2017, section 2.2, in front of `target`, a function of the step."""
    if step < warmup_steps:
        return initial + (target(0) - initial) * (step / warmup_steps) ** power
    return target(step - warmup_steps)


def factor_rate(step, initial, factor, floor=0.0):
    """Zhang et al., 2021, section 12.11: multiplied once a step, held by the floor."""
    rate = initial
    for _ in range(step):
        rate = max(floor, rate * factor)
    return rate


def multi_factor_rate(step, initial, factor, milestones):
    """Zhang et al., 2021, section 12.11: multiplied at each milestone."""
    rate = initial
    for t in range(step + 1):
        rate *= factor if t in milestones else 1.0
    return rate


def averaged(kind, weights, momentum=None):
    """The mean (SWA: Izmailov et al., 2018) or the exponential moving average of a sequence of weights."""
    weights = np.asarray(weights, "float64")
    if kind == "swa":
        return weights.mean(axis=0)
    average = weights[0]
    for w in weights[1:]:
        average = momentum * average + (1 - momentum) * w
    return average


def log_softmax(z):
    z = np.asarray(z, "float64")
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def crossentropy(z, t):
    return -(t * log_softmax(z)).sum(-1)


def focal(z, t, gamma=2.0, alpha=1.0):
    """Lin et al., 2017, with a softmax."""
    log_p = log_softmax(z)
    return -(t * alpha * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1)


def sigmoid_focal(z, t, gamma=2.0):
    """Lin et al., 2017, summed over the classes, for t of 0 and 1; gamma 0 is binary cross-entropy."""
    p = 1 / (1 + np.exp(-np.asarray(z, "float64")))
    right = np.where(t == 1, p, 1 - p)
    return -((1 - right) ** gamma * np.log(right)).sum(-1)


def class_balanced_weights(counts, beta):
    """Cui et al., 2019, equations 1 and 2 and the normalisation to the number of classes."""
    weights = np.array([(1 - beta) / (1 - beta ** float(n)) for n in counts])
    return weights / weights.sum() * len(counts)


def ldam(z, t, counts, max_margin=0.5, scale=30.0):
    """Cao et al., 2019, equations 10 and 13, with the largest margin set."""
    margins = np.array([float(n) ** -0.25 for n in counts])
    margins *= max_margin / margins.max()
    return crossentropy(scale * (z - t * margins), t)


def logit_adjusted(z, t, counts, tau=1.0):
    """Menon et al., 2021, equation 10."""
    counts = np.asarray(counts, "float64")
    return crossentropy(z + tau * np.log(counts / counts.sum()), t)


def balanced_softmax(z, t, counts):
    """Ren et al., 2020, equation 3: the counts weigh the exponentials."""
    weighted = np.asarray(counts, "float64") * np.exp(np.asarray(z, "float64"))
    return -(t * np.log(weighted / weighted.sum(-1, keepdims=True))).sum(-1)


def label_aware_smoothing(z, t, counts, head=0.3, tail=0.0):
    """Zhong et al., 2021, equations 3 and 4: cross-entropy with smoothed labels."""
    counts = np.asarray(counts, "float64")
    rank = (counts - counts.min()) / (counts.max() - counts.min())
    smoothing = (t * (tail + (head - tail) * np.sin(np.pi / 2 * rank))).sum(-1, keepdims=True)
    return crossentropy(z, (1 - smoothing) * t + smoothing / t.shape[-1])
