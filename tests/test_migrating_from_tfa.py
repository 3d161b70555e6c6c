"""The page about TensorFlow Addons: every public name has a row, and what is called the same gives equal numbers.

The formulas are those of TensorFlow Addons 0.23, in float64 NumPy.
"""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_tricks as kt
from tests import reference
from tests.test_docs import ROOT, code_of

PAGE = ROOT / "docs" / "migrating_from_tfa.md"
PUBLIC = {
    "activations": "gelu hardshrink lisht mish softshrink rrelu snake sparsemax tanhshrink",
    "callbacks": "AverageModelCheckpoint TimeStopping TQDMProgressBar",
    "image": """adjust_hsv_in_yiq blend equalize sharpness connected_components cutout dense_image_warp
        euclidean_dist_transform interpolate_bilinear interpolate_spline gaussian_filter2d mean_filter2d median_filter2d
        random_cutout random_hsv_in_yiq resampler rotate shear_x shear_y sparse_image_warp compose_transforms
        angles_to_projective_transforms transform translate translate_xy translations_to_projective_transforms""",
    "layers": """AdaptiveAveragePooling1D AdaptiveMaxPooling1D AdaptiveAveragePooling2D AdaptiveMaxPooling2D
        AdaptiveAveragePooling3D AdaptiveMaxPooling3D EmbeddingBag GELU MaxUnpooling2D MaxUnpooling2DV2 Maxout
        MultiHeadAttention FilterResponseNormalization GroupNormalization InstanceNormalization CorrelationCost
        PoincareNormalize PolynomialCrossing Snake Sparsemax SpectralNormalization SpatialPyramidPooling2D TLU
        WeightNormalization ESN StochasticDepth NoisyDense CRF""",
    "losses": """contrastive_loss ContrastiveLoss sigmoid_focal_crossentropy SigmoidFocalCrossEntropy giou_loss GIoULoss
        lifted_struct_loss LiftedStructLoss sparsemax_loss SparsemaxLoss triplet_semihard_loss triplet_hard_loss
        TripletSemiHardLoss TripletHardLoss pinball_loss PinballLoss npairs_loss NpairsLoss npairs_multilabel_loss
        NpairsMultilabelLoss WeightedKappaLoss""",
    "metrics": """CohenKappa F1Score FBetaScore HammingLoss hamming_distance hamming_loss_fn MeanMetricWrapper
        MatthewsCorrelationCoefficient MultiLabelConfusionMatrix RSquare GeometricMean HarmonicMean KendallsTauB
        KendallsTauC PearsonsCorrelation SpearmansRank""",
    "optimizers": """KerasLegacyOptimizer AveragedOptimizerWrapper ConditionalGradient CyclicalLearningRate
        TriangularCyclicalLearningRate Triangular2CyclicalLearningRate ExponentialCyclicalLearningRate MultiOptimizer
        LAMB LazyAdam Lookahead MovingAverage NovoGrad ProximalAdagrad RectifiedAdam SWA AdamW AdaBelief SGDW
        extend_with_decoupled_weight_decay DecoupledWeightDecayExtension Yogi COCOB""",
    "rnn": "NASCell LayerNormLSTMCell LayerNormSimpleRNNCell ESNCell PeepholeLSTMCell",
    "seq2seq": """AttentionMechanism AttentionWrapper AttentionWrapperState BahdanauAttention BahdanauMonotonicAttention
        LuongAttention LuongMonotonicAttention hardmax monotonic_attention safe_cumprod BasicDecoder BasicDecoderOutput
        BeamSearchDecoder BeamSearchDecoderOutput BeamSearchDecoderState FinalBeamSearchDecoderOutput gather_tree
        gather_tree_from_array tile_batch BaseDecoder Decoder dynamic_decode SequenceLoss sequence_loss CustomSampler
        GreedyEmbeddingSampler InferenceSampler SampleEmbeddingSampler Sampler ScheduledEmbeddingTrainingSampler
        ScheduledOutputTrainingSampler TrainingSampler""",
    "text": """crf CRFModelWrapper CrfDecodeForwardRnnCell crf_binary_score crf_constrained_decode crf_decode
        crf_decode_backward crf_decode_forward crf_filtered_inputs crf_forward crf_log_likelihood crf_log_norm
        crf_multitag_sequence_score crf_sequence_score crf_unary_score viterbi_decode parse_time skip_gram_sample
        skip_gram_sample_with_text_vocab""",
    "itself": "register_all options types",
}
RANDOM = np.random.default_rng(0)


def same(values, expected, rtol=1e-5):
    np.testing.assert_allclose(ops.convert_to_numpy(values), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_row(module):
    rows = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name.split(".")[-1] for row in rows for name in re.findall(r"`([^`]*)`", row)}
    assert set(PUBLIC[module].split()) - named == set()


def after(optimizer, start, gradients):
    variable = keras.Variable(start.astype("float32"))
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")], [variable])
    return variable


def test_a_decay_that_was_not_multiplied_by_the_rate_is_divided_by_it():
    start, rate, decay = RANDOM.normal(size=(3, 4)), 1e-2, 1e-3
    gradients = RANDOM.normal(size=(5, 3, 4))
    w, m, v = start, 0, 0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        w = w - decay * w - step
    same(after(keras.optimizers.AdamW(rate, weight_decay=decay / rate), start, gradients), w)
    w, m = start, 0
    for g in gradients:
        m = 0.9 * m - rate * g
        w = w - decay * w + m
    same(after(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=decay / rate), start, gradients), w)


def test_what_is_left_after_a_thousand_steps_of_decay():
    start, nothing = np.ones(1), np.zeros((1000, 1))
    same(after(keras.optimizers.SGD(1e-3, weight_decay=1e-4 / 1e-3), start, nothing), [0.90483], rtol=1e-4)
    same(after(keras.optimizers.SGD(1e-3, weight_decay=1e-4), start, nothing), [0.99988], rtol=2e-5)


def test_lamb_without_exclusions_and_lookahead():
    start, gradients = RANDOM.normal(size=(3, 4)), RANDOM.normal(size=(7, 3, 4))
    lamb = kt.LAMB(0.1, weight_decay=0.01, exclude_from_weight_decay=[], exclude_from_layer_adaptation=[])
    same(after(lamb, start, gradients), reference.lamb(start, gradients, 0.1, weight_decay=0.01))
    lookahead = kt.Lookahead(keras.optimizers.SGD(0.1, momentum=0.9))
    same(after(lookahead, start, gradients), reference.lookahead(start, gradients, 0.1, 0.9, 6, 0.5))


@pytest.mark.parametrize(
    ("mode", "scale"),
    [
        ("triangular", lambda c, t: 1),
        ("triangular2", lambda c, t: 1 / 2 ** (c - 1)),
        ("exp_range", lambda c, t: 0.9**t),
    ],
)
def test_cyclical_rates(mode, scale):
    step = np.arange(40.0)
    cycle = np.floor(1 + step / 10)
    height = np.maximum(0, 1 - np.abs(step / 5 - 2 * cycle + 1)) * scale(cycle, step)
    schedule = kt.schedules.CyclicalLearningRate(1e-3, 1e-2, 5, mode=mode, gamma=0.9)
    same([schedule(t) for t in range(40)], 1e-3 + 9e-3 * height)


class Weights(keras.callbacks.Callback):
    """The weights after every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights()[0])


@pytest.mark.filterwarnings("ignore:WeightAveraging. after")  # a short run, on purpose
def test_moving_average_begins_one_step_later():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    weights = Weights()
    average = kt.callbacks.WeightAveraging("ema", every=1, momentum=0.99)
    start = model.get_weights()[0]
    model.fit(
        RANDOM.normal(size=(20, 3)), RANDOM.normal(size=(20, 1)), batch_size=2, callbacks=[weights, average], verbose=0
    )
    same(model.get_weights()[0], reference.averaged("ema", weights.seen, 0.99))
    addons = reference.averaged("ema", [start, *weights.seen], 0.99)
    same(addons - model.get_weights()[0], 0.99**10 * (start - weights.seen[0]), rtol=1e-3)


def test_swa_collects_at_the_end_of_each_period():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    weights = Weights()
    average = kt.callbacks.WeightAveraging("swa", start=0, every=10)
    x, y = RANDOM.normal(size=(50, 3)), RANDOM.normal(size=(50, 1))
    model.fit(x, y, batch_size=2, callbacks=[weights, average], verbose=0)
    same(model.get_weights()[0], reference.averaged("swa", weights.seen[9::10]))


def test_activations():
    x = np.linspace(-3, 3, 25)
    same(keras.activations.mish(x), x * np.tanh(np.log1p(np.exp(x))))
    same(keras.activations.tanh_shrink(x), x - np.tanh(x))
    for upper in (0.5, 1.25):  # 0.5 and 1.25 are among x
        same(keras.activations.hard_shrink(x, threshold=upper), np.where(np.abs(x) > upper, x, 0))
        shrunk = np.sign(x) * np.maximum(np.abs(x) - upper, 0)
        same(keras.activations.soft_shrink(x, threshold=upper), shrunk)
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    same(keras.activations.gelu(x, approximate=True), tanh)
    assert 1e-4 < np.abs(keras.activations.gelu(x) - tanh).max() < 5e-4
    noise_free = 11 / 48  # the mean of 1/8 and 1/3
    same(keras.layers.LeakyReLU(negative_slope=noise_free)(x), np.where(x >= 0, x, (1 / 8 + 1 / 3) / 2 * x))


@pytest.mark.parametrize(("groups", "each"), [(3, 2), (-1, 1)])
def test_group_and_instance_normalization(groups, each):
    x = RANDOM.normal(size=(2, 4, 5, 6))
    parts = x.reshape(2, 4, 5, 6 // each, each)
    mean, variance = parts.mean((1, 2, 4), keepdims=True), parts.var((1, 2, 4), keepdims=True)
    normalized = ((parts - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape)
    same(keras.layers.GroupNormalization(groups=groups)(x.astype("float32")), normalized, rtol=1e-4)


def test_spectral_normalization():
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(3, use_bias=False), power_iterations=2)
    x = RANDOM.normal(size=(2, 5)).astype("float32")
    layer.build(x.shape)
    w, u = (ops.convert_to_numpy(v).astype("float64") for v in (layer.kernel, layer.vector_u))
    for _ in range(2):
        v = u @ w.T / np.linalg.norm(u @ w.T)
        u = v @ w / np.linalg.norm(v @ w)
    same(layer(x, training=True), x @ (w / (v @ w @ u.T)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("kind", "reduce"), [("Average", np.mean), ("Max", np.max)])
def test_adaptive_pooling(kind, reduce, rank):
    x = RANDOM.normal(size=(2, *[6] * rank, 3)).astype("float32")
    cut = x.reshape(2, *[2, 3] * rank, 3)
    layer = getattr(keras.layers, f"Adaptive{kind}Pooling{rank}D")(2)
    same(layer(x), reduce(cut, axis=tuple(range(2, 2 * rank + 1, 2))))


def test_sigmoid_focal_crossentropy_was_a_sum_over_the_outputs():
    y, p = RANDOM.integers(0, 2, (5, 4)), RANDOM.uniform(0.05, 0.95, (5, 4))
    right, share = np.where(y, p, 1 - p), np.where(y, 0.25, 0.75)
    addons = (share * (1 - right) ** 2 * -np.log(right)).sum(-1).mean()
    loss = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, alpha=0.25)
    same(4 * loss(y, p), addons)
    assert abs(float(keras.losses.BinaryFocalCrossentropy()(y, p)) - addons) > 0.1


@pytest.mark.parametrize("average", [None, "micro", "macro", "weighted"])
@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_f_scores(average, beta):
    y, p = np.eye(3)[RANDOM.integers(0, 3, 50)], RANDOM.uniform(size=(50, 3))
    chosen = np.eye(3)[p.argmax(-1)]
    axis = None if average == "micro" else 0
    right, told, there = ((y * chosen).sum(axis), chosen.sum(axis), y.sum(axis))
    score = (1 + beta**2) * right / (told + beta**2 * there)
    if average == "weighted":
        score = (score * there / there.sum()).sum()
    elif average:
        score = score.mean()
    metrics = [keras.metrics.FBetaScore(average, beta)] + [keras.metrics.F1Score(average)] * (beta == 1)
    for metric in metrics:
        metric.update_state(y, p)
        same(metric.result(), score)


def test_r_square():
    y = RANDOM.normal(size=(20, 3))
    p = y + 0.5 * RANDOM.normal(size=(20, 3))
    total = ((y - y.mean(0)) ** 2).sum(0)
    raw = 1 - ((y - p) ** 2).sum(0) / total
    adjusted = 1 - (1 - raw.mean()) * 59 / (59 - 2)
    for arguments, expected in (
        ({"class_aggregation": None}, raw),
        ({}, raw.mean()),
        ({"class_aggregation": "variance_weighted_average"}, (raw * total).sum() / total.sum()),
        ({"num_regressors": 2}, adjusted),
    ):
        metric = keras.metrics.R2Score(**arguments)
        metric.update_state(y, p)
        same(metric.result(), expected)


def test_images():
    x = RANDOM.normal(size=(1, 5, 5, 1)).astype("float32")
    transform = np.array([1, 0, -1, 0, 1, -2, 0, 0], "float32")
    moved = np.zeros_like(x)
    moved[:, 2:, 1:] = x[:, :-2, :-1]
    same(ops.image.affine_transform(x, transform, interpolation="nearest"), moved)
    kernel = np.exp(-np.array([1, 0, 1]) / 2)
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    larger = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect")
    wide = np.pad(x[0, :, :, 0], 1, mode="reflect")
    blurred = sum(kernel[i, j] * wide[i : i + 5, j : j + 5] for i in range(3) for j in range(3))
    same(ops.image.gaussian_blur(larger, (3, 3), (1.0, 1.0))[0, 1:-1, 1:-1, 0], blurred)


def test_sequences():
    logits, labels = RANDOM.normal(size=(3, 4, 5)), RANDOM.integers(0, 5, (3, 4))
    weights = RANDOM.integers(0, 2, (3, 4)) * RANDOM.uniform(size=(3, 4))
    losses = -np.take_along_axis(reference.log_softmax(logits), labels[..., None], -1)[..., 0]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    same(loss(labels, logits, sample_weight=weights), (losses * weights).sum() / weights.sum())
    same(ops.one_hot(ops.argmax(logits, axis=-1), 5), logits == logits.max(-1, keepdims=True))
    same(ops.repeat(logits, 2, axis=0), logits[[0, 0, 1, 1, 2, 2]])


def test_what_is_written_in_a_line_or_two():
    (code,) = [code for code in code_of(PAGE) if "def lisht" in code]
    page = {}
    exec(code, page)
    x, y = RANDOM.normal(size=(4, 6)), RANDOM.integers(0, 2, (4, 6)).astype("float64")
    same(page["lisht"](x), x * np.tanh(x))
    same(page["snake"](x, 3.0), x + (1 - np.cos(6 * x)) / 6)
    same(page["maxout"](x, 2), x.reshape(4, 3, 2).max(1))
    distance = np.abs(x)
    same(page["contrastive_loss"](y, distance), np.where(y == 1, x**2, np.maximum(1 - distance, 0) ** 2))
    ordered = -np.sort(-x)
    sums = np.cumsum(ordered, axis=-1)
    support = (1 + np.arange(1, 7) * ordered > sums).sum(-1, keepdims=True)
    threshold = (np.take_along_axis(sums, support - 1, -1) - 1) / support
    same(page["sparsemax"](ops.convert_to_tensor(x)), np.maximum(x - threshold, 0))
    error = y - x
    same(page["pinball_loss"](y, x, 0.3), np.where(error > 0, 0.3 * error, -0.7 * error).mean(-1))


def test_a_lambda_does_not_load_again_and_the_mode_does(tmp_path):
    def saved(**arguments):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(kt.schedules.CyclicalLearningRate(1e-3, 1e-2, 5, **arguments)), "mse")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the lambda
            model.save(tmp_path / "model.keras")
        return keras.models.load_model(tmp_path / "model.keras")

    with pytest.raises(ValueError, match="lambda"):
        saved(scale_fn=lambda cycle: 1 / 2 ** (cycle - 1))
    assert saved(mode="triangular2").optimizer
