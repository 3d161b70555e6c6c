"""Every public trick, one frozen record each.

The README's table, the docs' index, `python -m keras_tricks` and the contract tests are made from these records, so a
trick that is registered here is listed, documented and tested.
"""

import collections.abc
import dataclasses
import re

import keras

import keras_tricks as kt


@dataclasses.dataclass(frozen=True)
class Trick:
    """What one trick is, and what it works with.

    Attributes:
        object: The public class or function.
        kind: The folder it lives in, in the singular: optimizer, schedule, initializer, layer, loss, metric, callback,
            data, model, or set-up.
        line: What it does, in one line.
        paper: Authors, year and arXiv id, or "-".
        name: What users type after `keras_tricks.`.
        make: Makes a small example of it, for the contract tests, or `None` where its own tests do all.
        backends: The Keras backends it runs on.
        works_with: The run-time conditions that contract tests and its own tests cover, of `CONDITIONS`.
    """

    object: collections.abc.Callable
    kind: str
    line: str
    paper: str
    name: str
    make: collections.abc.Callable | None = None
    backends: tuple = ("tensorflow", "jax")
    works_with: tuple = ()

    @property
    def stem(self):
        """Name of its module, card and test module."""
        return self.object.__module__.rsplit(".", 1)[1]

    @property
    def import_path(self):
        return f"{self.object.__module__}.{self.object.__name__}"


CONDITIONS = {
    "xla": "XLA (`jit_compile=True` on one device, `keras_tricks.jit` in each replica)",
    "replicas": "`MirroredStrategy`, several replicas",
    "mixed_float16": "`mixed_float16`",
    "mixed_bfloat16": "`mixed_bfloat16`",
    "accumulation": "gradient accumulation",
    "save": "`.keras` save, load and continue",
}
EVERYTHING = tuple(CONDITIONS)

TRICKS = (
    Trick(
        kt.optimizers.LAMB,
        "optimizer",
        "Adam scaled layer by layer to the weights' size, for batches of thousands.",
        "You et al., 2020, arXiv:1904.00962",
        "LAMB",
        make=lambda **kwargs: kt.LAMB(0.01, weight_decay=0.01, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.LARS,
        "optimizer",
        "Momentum SGD with a rate for each layer, for batches of thousands.",
        "You et al., 2017, arXiv:1708.03888",
        "LARS",
        make=lambda **kwargs: kt.LARS(0.5, trust_coefficient=0.1, weight_decay=0.01, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.Adafactor,
        "optimizer",
        "Adam-like steps with 1 % of the state: second moments from row and column means.",
        "Shazeer and Stern, 2018, arXiv:1804.04235",
        "Adafactor",
        make=lambda **kwargs: kt.Adafactor(
            0.01, beta_1=0.9, scale_parameter=False, min_dim_size_to_factor=3, weight_decay=0.01, **kwargs
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.SM3,
        "optimizer",
        "Adagrad with one number a row and column instead of one an element.",
        "Anil et al., 2019, arXiv:1901.11150",
        "SM3",
        make=lambda **kwargs: kt.SM3(0.05, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.Yogi,
        "optimizer",
        "Adam that does not forget a burst of large gradients.",
        "Zaheer et al., 2018",
        "Yogi",
        make=lambda **kwargs: kt.Yogi(0.01, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.Lookahead,
        "optimizer",
        "Slow weights that follow any optimizer and pull its weights back.",
        "Zhang et al., 2019, arXiv:1907.08610",
        "Lookahead",
        make=lambda **kwargs: kt.Lookahead(keras.optimizers.AdamW(0.02, **kwargs), sync_period=2),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.AdaptiveGradientClipping,
        "optimizer",
        "Clips each unit's gradient in proportion to its weights, around any optimizer.",
        "Brock et al., 2021, arXiv:2102.06171",
        "AdaptiveGradientClipping",
        make=lambda **kwargs: kt.AdaptiveGradientClipping(
            keras.optimizers.SGD(0.1, momentum=0.9, **kwargs), 0.1, epsilon=0.1
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.GradientAccumulation,
        "optimizer",
        "One step for the mean gradient of several batches, around any optimizer.",
        "-",
        "GradientAccumulation",
        make=lambda gradient_accumulation_steps=1, **kwargs: kt.GradientAccumulation(
            keras.optimizers.Adam(0.01, **kwargs), steps=gradient_accumulation_steps
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.LossScaleOptimizer,
        "optimizer",
        "Dynamic loss scaling for float16 that checks every replica's gradients.",
        "Micikevicius et al., 2018, arXiv:1710.03740",
        "LossScaleOptimizer",
        make=lambda **kwargs: kt.LossScaleOptimizer(kt.LAMB(0.01, **kwargs)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.state_bytes,
        "optimizer",
        "Bytes of an optimizer's state.",
        "-",
        "state_bytes",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.CyclicalLearningRate,
        "schedule",
        "Learning rate up and down between two bounds, in three shapes.",
        "Smith, 2017, arXiv:1506.01186",
        "schedules.CyclicalLearningRate",
        make=lambda: kt.schedules.CyclicalLearningRate(0.001, 0.01, step_size=3, mode="triangular2"),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.OneCycle,
        "schedule",
        "Learning rate up to a high peak and down to almost nothing, once in the run.",
        "Smith and Topin, 2017, arXiv:1708.07120",
        "schedules.OneCycle",
        make=lambda: kt.schedules.OneCycle(0.01, total_steps=8, three_phase=True),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.WarmUp,
        "schedule",
        "Rising learning rates in front of any schedule or constant rate.",
        "Goyal et al., 2017, arXiv:1706.02677",
        "schedules.WarmUp",
        make=lambda: kt.schedules.WarmUp(keras.optimizers.schedules.CosineDecay(0.01, 5), 3, power=2.0),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.SquareRoot,
        "schedule",
        "Learning rate that falls with the square root of the steps.",
        "Zhang et al., 2021, arXiv:2106.11342",
        "schedules.SquareRoot",
        make=lambda: kt.schedules.SquareRoot(0.01),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.Factor,
        "schedule",
        "Learning rate that is multiplied by a factor at every step, down to a floor.",
        "Zhang et al., 2021, arXiv:2106.11342",
        "schedules.Factor",
        make=lambda: kt.schedules.Factor(0.01, 0.7, floor=0.002),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.MultiFactor,
        "schedule",
        "Learning rate that is multiplied by a factor at chosen steps.",
        "Zhang et al., 2021, arXiv:2106.11342",
        "schedules.MultiFactor",
        make=lambda: kt.schedules.MultiFactor(0.01, 0.1, [2, 5]),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.scale_learning_rate,
        "schedule",
        "The learning rate for another batch size, by the linear or the square-root rule.",
        "Goyal et al., 2017, arXiv:1706.02677",
        "schedules.scale_learning_rate",
    ),
    Trick(
        kt.schedules.plot,
        "schedule",
        "A picture of learning rates and momentum over the steps of a run.",
        "-",
        "schedules.plot",
    ),
    Trick(
        kt.layers.WSConv1D,
        "layer",
        "1D convolution with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        "layers.WSConv1D",
        make=lambda **kwargs: (kt.layers.WSConv1D(4, 3, **kwargs), (6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSConv2D,
        "layer",
        "2D convolution with scaled weight standardisation: trains without batch normalisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        "layers.WSConv2D",
        make=lambda **kwargs: (kt.layers.WSConv2D(4, 3, padding="same", strides=2, **kwargs), (6, 6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSConv3D,
        "layer",
        "3D convolution with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        "layers.WSConv3D",
        make=lambda **kwargs: (kt.layers.WSConv3D(4, 3, **kwargs), (4, 4, 4, 2)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSDepthwiseConv2D,
        "layer",
        "2D depthwise convolution with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        "layers.WSDepthwiseConv2D",
        make=lambda **kwargs: (kt.layers.WSDepthwiseConv2D(3, depth_multiplier=2, **kwargs), (6, 6, 2)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSDense,
        "layer",
        "Densely connected layer with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        "layers.WSDense",
        make=lambda **kwargs: (kt.layers.WSDense(4, **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ACConv2D,
        "layer",
        "Three normalised branches in training, one plain convolution in deployment.",
        "Ding et al., 2019, arXiv:1908.03930",
        "layers.ACConv2D",
        make=lambda **kwargs: (kt.layers.ACConv2D(4, 3, padding="same", strides=2, **kwargs), (6, 6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ExtendedBatchNormalization,
        "layer",
        "Batch normalisation with one variance for all channels, steady at small batches.",
        "Luo et al., 2020, arXiv:2003.05569",
        "layers.ExtendedBatchNormalization",
        make=lambda **kwargs: (kt.layers.ExtendedBatchNormalization(momentum=0.5, **kwargs), (6, 6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ScaledActivation,
        "layer",
        "Activation times the constant that keeps the variance at 1.",
        "Brock et al., 2021, arXiv:2101.08692",
        "layers.ScaledActivation",
        make=lambda **kwargs: (kt.layers.ScaledActivation("gelu", **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ReZero,
        "layer",
        "Residual connection that starts switched off: very deep networks train.",
        "Bachlechner et al., 2021, arXiv:2003.04887",
        "layers.ReZero",
        make=lambda **kwargs: (kt.layers.ReZero(keras.layers.Dense(5, "tanh", **kwargs), **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ReZeroAdd,
        "layer",
        "`ReZero` for a branch that is a piece of a functional model.",
        "Bachlechner et al., 2021, arXiv:2003.04887",
        "layers.ReZeroAdd",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.Recompute,
        "layer",
        "Forgets a block's activations and computes them again: less memory, exactly.",
        "Chen et al., 2016, arXiv:1604.06174",
        "layers.Recompute",
        make=lambda **kwargs: (
            kt.layers.Recompute(kt.layers.ReZero(keras.layers.Dense(5, "gelu", **kwargs), "ones", **kwargs)),
            (5,),
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.NormalizedDense,
        "layer",
        "Classifier by cosines, in which frequent classes cannot win by long weights.",
        "Gidaris and Komodakis, 2018, arXiv:1804.09458",
        "layers.NormalizedDense",
        make=lambda **kwargs: (kt.layers.NormalizedDense(4, scale=8.0, **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.initializers.LogisticGlorotUniform,
        "initializer",
        "Glorot's range for layers with a sigmoid, four times that for tanh.",
        "Glorot and Bengio, 2010",
        "initializers.LogisticGlorotUniform",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.ClassBalanced,
        "loss",
        "Cross-entropy weighted by the effective number of each class's examples.",
        "Cui et al., 2019, arXiv:1901.05555",
        "losses.ClassBalanced",
        make=lambda **kwargs: kt.losses.ClassBalanced([40, 10, 2], 0.9, base="sigmoid_focal", **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.SparseFocal,
        "loss",
        "Cross-entropy that turns to the examples that are still wrong; integer labels too.",
        "Lin et al., 2017, arXiv:1708.02002",
        "losses.SparseFocal",
        make=lambda **kwargs: kt.losses.SparseFocal(1.5, alpha=[0.5, 1.0, 2.0], **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.LDAM,
        "loss",
        "Cross-entropy with margins that are larger for rarer classes.",
        "Cao et al., 2019, arXiv:1906.07413",
        "losses.LDAM",
        make=lambda **kwargs: kt.losses.LDAM([40, 10, 2], scale=5.0, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.BalancedSoftmax,
        "loss",
        "Cross-entropy that knows the class frequencies, so that the logits need not.",
        "Ren et al., 2020, arXiv:2007.10740",
        "losses.BalancedSoftmax",
        make=lambda **kwargs: kt.losses.BalancedSoftmax([40, 10, 2], **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.LogitAdjusted,
        "loss",
        "Balanced softmax with a dial between no adjustment and too much.",
        "Menon et al., 2021, arXiv:2007.07314",
        "losses.LogitAdjusted",
        make=lambda **kwargs: kt.losses.LogitAdjusted([40, 10, 2], tau=1.5, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.LabelAwareSmoothing,
        "loss",
        "Label smoothing, strong for frequent classes and weak for rare ones.",
        "Zhong et al., 2021, arXiv:2104.00466",
        "losses.LabelAwareSmoothing",
        make=lambda **kwargs: kt.losses.LabelAwareSmoothing([40, 10, 2], 0.4, 0.1, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.metrics.BalancedAccuracy,
        "metric",
        "Mean of the classes' recalls: a rare class counts as much as a frequent one.",
        "Brodersen et al., 2010",
        "metrics.BalancedAccuracy",
        make=lambda **kwargs: kt.metrics.BalancedAccuracy(3, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.metrics.ShotAccuracy,
        "metric",
        "Mean recall of the classes with many, medium or few training examples.",
        "Liu et al., 2019, arXiv:1904.05160",
        "metrics.ShotAccuracy",
        make=lambda **kwargs: kt.metrics.ShotAccuracy([150, 15, 5], "few", **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.metrics.recall_by_class,
        "metric",
        "Recall of each class beside its training examples: figures, table and picture.",
        "-",
        "metrics.recall_by_class",
        works_with=("replicas", "mixed_float16", "mixed_bfloat16"),
    ),
    Trick(
        kt.metrics.plot_recalls,
        "metric",
        "A picture of the classes' recalls over their frequency, for several models.",
        "-",
        "metrics.plot_recalls",
    ),
    Trick(
        kt.callbacks.CyclicLR,
        "callback",
        "Moves learning rate and momentum at every step of a compiled `fit`.",
        "Smith, 2018, arXiv:1803.09820",
        "callbacks.CyclicLR",
        make=lambda: kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(0.001, 0.01, 3), momentum=(0.95, 0.85)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.DeferredReweighting,
        "callback",
        "Weighs rare classes up late in training, when the features are learned.",
        "Cao et al., 2019, arXiv:1906.07413",
        "callbacks.DeferredReweighting",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.EarlyStopping,
        "callback",
        "Stops by patience, Prechelt's criteria or the gap, says why, and survives a restart.",
        "Prechelt, 1998",
        "callbacks.EarlyStopping",
        make=lambda: kt.callbacks.EarlyStopping(monitor="loss", patience=2, restore_best_weights=True),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.Histograms,
        "callback",
        "Histograms of weights, gradients, updates and activations; a diagnosis in words.",
        "-",
        "callbacks.Histograms",
        make=lambda: kt.callbacks.Histograms(every=2),
        backends=("tensorflow",),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.WeightAveraging,
        "callback",
        "Averages weights, validates with them, and takes normalisation statistics anew.",
        "Izmailov et al., 2018, arXiv:1803.05407",
        "callbacks.WeightAveraging",
        make=lambda: kt.callbacks.WeightAveraging("ema", every=2, momentum=0.5),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.SnapshotEnsemble,
        "callback",
        "Several networks for the time of one: the ends of a cyclical rate's cycles.",
        "Huang et al., 2017, arXiv:1704.00109",
        "callbacks.SnapshotEnsemble",
        works_with=("replicas", "accumulation", "save"),
    ),
    Trick(
        kt.callbacks.LRFinder,
        "callback",
        "Learning-rate range test inside of `fit`, which puts the model back exactly.",
        "Smith, 2017, arXiv:1506.01186",
        "callbacks.LRFinder",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.find_lr,
        "set-up",
        "Suggests a learning rate from a short run, and leaves the model as it was.",
        "Smith, 2017, arXiv:1506.01186",
        "callbacks.find_lr",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.data.echo,
        "data",
        "Uses each example several times when reading is slower than training.",
        "Choi et al., 2019, arXiv:1907.05550",
        "data.echo",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.measure_echo_factor,
        "data",
        "Times reading and training apart: whether echoing helps, and which factor is free.",
        "Choi et al., 2019, arXiv:1907.05550",
        "data.measure_echo_factor",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.drop_corrupt,
        "data",
        "Drops corrupt examples, counts them by reason, and says so.",
        "-",
        "data.drop_corrupt",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.class_counts,
        "data",
        "Counts the examples of each class.",
        "-",
        "data.class_counts",
        backends=("tensorflow",),
    ),
    Trick(
        kt.data.class_balanced,
        "data",
        "Draws rare classes more often, in one reading of the data an epoch.",
        "Kang et al., 2020, arXiv:1910.09217",
        "data.class_balanced",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.make_long_tailed,
        "data",
        "Makes CIFAR-10-LT and its like of balanced sets, with the published sizes.",
        "Cao et al., 2019, arXiv:1906.07413",
        "data.make_long_tailed",
        backends=("tensorflow",),
    ),
    Trick(
        kt.data.remix,
        "data",
        "Mixup that labels a mixture of a frequent and a rare class as the rare one.",
        "Chou et al., 2020, arXiv:2007.03943",
        "data.remix",
        backends=("tensorflow",),
    ),
    Trick(
        kt.models.jit,
        "model",
        "XLA inside each replica, where `compile(jit_compile=True)` fails.",
        "-",
        "jit",
        backends=("tensorflow",),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.models.convert,
        "model",
        "Puts tricks into a model that is already built, and carries its weights over.",
        "-",
        "convert",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.fuse,
        "model",
        "Folds the tricks and batch normalisation into plain Keras layers for deployment.",
        "Ding et al., 2019, arXiv:1908.03930",
        "fuse",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.recompute,
        "model",
        "Cuts a model into segments that forget their activations: square-root memory.",
        "Chen et al., 2016, arXiv:1604.06174",
        "recompute",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.models.adjust_logits,
        "model",
        "Corrects a trained classifier's logits for the classes' frequencies; no training.",
        "Menon et al., 2021, arXiv:2007.07314",
        "models.adjust_logits",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.tau_normalize,
        "model",
        "Takes from frequent classes the length of their weight vectors; no training.",
        "Kang et al., 2020, arXiv:1910.09217",
        "models.tau_normalize",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.retrain_classifier,
        "model",
        "Trains a fresh classifier on class-balanced data, on frozen features (cRT).",
        "Kang et al., 2020, arXiv:1910.09217",
        "models.retrain_classifier",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.models.learn_scale,
        "model",
        "Learns one factor for each class's logit, all weights frozen (LWS).",
        "Kang et al., 2020, arXiv:1910.09217",
        "models.learn_scale",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.distribute.setup,
        "set-up",
        "Devices, precision and XLA of a run in one call, checked.",
        "-",
        "distribute.setup",
        backends=("tensorflow",),
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16"),
    ),
)


def find(name):
    """The record of the trick called `name`, by its public name, its last part or its module's stem; any case.

    Raises:
        KeyError: With the closest names, if there is none.
    """
    wanted = name.lower().removeprefix("keras_tricks.").removeprefix("kt.")
    for trick in TRICKS:
        if wanted in (trick.name.lower(), trick.name.rsplit(".", 1)[-1].lower()):
            return trick
    for trick in TRICKS:
        if wanted == trick.stem.lower():
            return trick
    import difflib

    names = {n.lower(): t.name for t in TRICKS for n in (t.name, t.name.rsplit(".", 1)[-1], t.stem)}
    # Names that contain the letters that were typed, without their separators; else what is spelt alike.
    letters = re.sub(r"[^a-z0-9]", "", wanted)
    found = [n for n in names if letters and letters in re.sub(r"[^a-z0-9]", "", n)]
    close = dict.fromkeys(names[n] for n in found or difflib.get_close_matches(wanted, names, n=3, cutoff=0.4))
    *first, last = close or [""]
    meant = f"Did you mean {', '.join(first)}{' or ' * bool(first)}{last}?"
    hint = meant if close else "`python -m keras_tricks list` shows all."
    raise KeyError(f"There is no trick called {name!r}. {hint}")


def markdown_table(link_prefix):
    """The table of tricks for README and docs; `link_prefix` leads from the page to the folder of the cards."""
    lines = ["| trick | kind | what it does | paper |", "| --- | --- | --- | --- |"]
    lines += [f"| [`{t.name}`]({link_prefix}{t.stem}.md) | {t.kind} | {t.line} | {t.paper} |" for t in TRICKS]
    return "\n".join(lines) + "\n"
