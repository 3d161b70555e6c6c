"""Every public trick, one frozen record each.

The README's table, the docs' index, `python -m keras_tricks` and the contract tests are made from these records, so a
trick that is registered here is listed, documented and tested. The module is long because it is a table of data.
"""

import collections.abc
import dataclasses
import re

import keras

import keras_tricks as kt

KINDS = {"losses": "loss", "distribute": "set-up"}  # those that are not their folder's name without the s


@dataclasses.dataclass(frozen=True)
class Trick:
    """What one trick is, and what it works with.

    Attributes:
        object: The public class or function.
        line: What it does, in one line.
        paper: Authors, year and arXiv id, or "-".
        make: Makes a small example of it, for the contract tests, or `None` where its own tests cover everything.
        backends: The Keras backends it runs on.
        works_with: The run-time conditions that contract tests and its own tests cover, of `CONDITIONS`.
    """

    object: collections.abc.Callable
    line: str
    paper: str
    make: collections.abc.Callable | None = None
    backends: tuple = ("tensorflow", "jax")
    works_with: tuple = ()

    @property
    def name(self):
        """What users type after `keras_tricks.`."""
        name = self.object.__name__
        return name if getattr(kt, name, None) is self.object else f"{self._folder}.{name}"

    @property
    def kind(self):
        """The folder it lives in, in the singular; set-up for what is called before training."""
        if self._folder == "callbacks" and not isinstance(self.object, type):
            return "set-up"
        return KINDS.get(self._folder, self._folder.removesuffix("s"))

    @property
    def _folder(self):
        return self.object.__module__.split(".")[1]

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
        "Adam scaled layer by layer to the weights' size, for batches of thousands.",
        "You et al., 2020, arXiv:1904.00962",
        make=lambda **kwargs: kt.LAMB(0.01, weight_decay=0.01, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.LARS,
        "Momentum SGD with a rate for each layer, for batches of thousands.",
        "You et al., 2017, arXiv:1708.03888",
        make=lambda **kwargs: kt.LARS(0.5, trust_coefficient=0.1, weight_decay=0.01, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.Adafactor,
        "Adam-like steps with 1 % of the state: second moments from row and column means.",
        "Shazeer and Stern, 2018, arXiv:1804.04235",
        make=lambda **kwargs: kt.Adafactor(
            0.01, beta_1=0.9, scale_parameter=False, min_dim_size_to_factor=3, weight_decay=0.01, **kwargs
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.SM3,
        "Adagrad with one number per row and column instead of one per element.",
        "Anil et al., 2019, arXiv:1901.11150",
        make=lambda **kwargs: kt.SM3(0.05, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.Yogi,
        "Adam that does not forget a burst of large gradients.",
        "Zaheer et al., 2018",
        make=lambda **kwargs: kt.Yogi(0.01, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.Lookahead,
        "Slow weights that follow any optimizer and pull its weights back.",
        "Zhang et al., 2019, arXiv:1907.08610",
        make=lambda **kwargs: kt.Lookahead(keras.optimizers.AdamW(0.02, **kwargs), sync_period=2),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.AdaptiveGradientClipping,
        "Clips each unit's gradient in proportion to its weights, around any optimizer.",
        "Brock et al., 2021, arXiv:2102.06171",
        make=lambda **kwargs: kt.AdaptiveGradientClipping(
            keras.optimizers.SGD(0.1, momentum=0.9, **kwargs), 0.1, epsilon=0.1
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.GradientAccumulation,
        "One step for the mean gradient of several batches, around any optimizer.",
        "-",
        make=lambda gradient_accumulation_steps=1, **kwargs: kt.GradientAccumulation(
            keras.optimizers.Adam(0.01, **kwargs), steps=gradient_accumulation_steps
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.LossScaleOptimizer,
        "Dynamic loss scaling for float16 that checks every replica's gradients.",
        "Micikevicius et al., 2018, arXiv:1710.03740",
        make=lambda **kwargs: kt.LossScaleOptimizer(kt.LAMB(0.01, **kwargs)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.optimizers.state_bytes,
        "Bytes of an optimizer's state.",
        "-",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.CyclicalLearningRate,
        "Learning rate up and down between two bounds, in three shapes.",
        "Smith, 2017, arXiv:1506.01186",
        make=lambda: kt.schedules.CyclicalLearningRate(0.001, 0.01, step_size=3, mode="triangular2"),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.OneCycle,
        "Learning rate up to a high peak and down to almost nothing, once in the run.",
        "Smith and Topin, 2017, arXiv:1708.07120",
        make=lambda: kt.schedules.OneCycle(0.01, total_steps=8, three_phase=True),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.WarmUp,
        "Rising learning rates in front of any schedule or constant rate.",
        "Goyal et al., 2017, arXiv:1706.02677",
        make=lambda: kt.schedules.WarmUp(keras.optimizers.schedules.CosineDecay(0.01, 5), 3, power=2.0),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.SquareRoot,
        "Learning rate that falls with the square root of the steps.",
        "Zhang et al., 2021, arXiv:2106.11342",
        make=lambda: kt.schedules.SquareRoot(0.01),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.Factor,
        "Learning rate that is multiplied by a factor at every step, down to a floor.",
        "Zhang et al., 2021, arXiv:2106.11342",
        make=lambda: kt.schedules.Factor(0.01, 0.7, floor=0.002),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.MultiFactor,
        "Learning rate that is multiplied by a factor at chosen steps.",
        "Zhang et al., 2021, arXiv:2106.11342",
        make=lambda: kt.schedules.MultiFactor(0.01, 0.1, [2, 5]),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.schedules.scale_learning_rate,
        "The learning rate for another batch size, by the linear or the square-root rule.",
        "Goyal et al., 2017, arXiv:1706.02677",
    ),
    Trick(
        kt.schedules.plot,
        "A picture of learning rates and momentum over the steps of a run.",
        "-",
    ),
    Trick(
        kt.layers.WSConv1D,
        "1D convolution with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        make=lambda **kwargs: (kt.layers.WSConv1D(4, 3, **kwargs), (6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSConv2D,
        "2D convolution with scaled weight standardisation: trains without batch normalisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        make=lambda **kwargs: (kt.layers.WSConv2D(4, 3, padding="same", strides=2, **kwargs), (6, 6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSConv3D,
        "3D convolution with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        make=lambda **kwargs: (kt.layers.WSConv3D(4, 3, **kwargs), (4, 4, 4, 2)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSDepthwiseConv2D,
        "2D depthwise convolution with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        make=lambda **kwargs: (kt.layers.WSDepthwiseConv2D(3, depth_multiplier=2, **kwargs), (6, 6, 2)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.WSDense,
        "Densely connected layer with scaled weight standardisation.",
        "Brock et al., 2021, arXiv:2101.08692",
        make=lambda **kwargs: (kt.layers.WSDense(4, **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ACConv2D,
        "Three normalised branches in training, one plain convolution in deployment.",
        "Ding et al., 2019, arXiv:1908.03930",
        make=lambda **kwargs: (kt.layers.ACConv2D(4, 3, padding="same", strides=2, **kwargs), (6, 6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ExtendedBatchNormalization,
        "Batch normalisation with one variance for all channels, steady at small batches.",
        "Luo et al., 2020, arXiv:2003.05569",
        make=lambda **kwargs: (kt.layers.ExtendedBatchNormalization(momentum=0.5, **kwargs), (6, 6, 3)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ScaledActivation,
        "Activation times the constant that keeps the variance at 1.",
        "Brock et al., 2021, arXiv:2101.08692",
        make=lambda **kwargs: (kt.layers.ScaledActivation("gelu", **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ReZero,
        "Residual connection that starts switched off: very deep networks train.",
        "Bachlechner et al., 2021, arXiv:2003.04887",
        make=lambda **kwargs: (kt.layers.ReZero(keras.layers.Dense(5, "tanh", **kwargs), **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.ReZeroAdd,
        "`ReZero` for a branch that is a piece of a functional model.",
        "Bachlechner et al., 2021, arXiv:2003.04887",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.Recompute,
        "Forgets a block's activations and computes them again: less memory, exactly.",
        "Chen et al., 2016, arXiv:1604.06174",
        make=lambda **kwargs: (
            kt.layers.Recompute(kt.layers.ReZero(keras.layers.Dense(5, "gelu", **kwargs), "ones", **kwargs)),
            (5,),
        ),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.recompute_call,
        "`Recompute` as a decorator of the `call` of a layer of your own.",
        "Chen et al., 2016, arXiv:1604.06174",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.layers.NormalizedDense,
        "Classifier by cosines, in which frequent classes cannot win by long weights.",
        "Gidaris and Komodakis, 2018, arXiv:1804.09458",
        make=lambda **kwargs: (kt.layers.NormalizedDense(4, scale=8.0, **kwargs), (5,)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.initializers.LogisticGlorotUniform,
        "Glorot's range for layers with a sigmoid, four times that for tanh.",
        "Glorot and Bengio, 2010",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.ClassBalanced,
        "Cross-entropy weighted by the effective number of each class's examples.",
        "Cui et al., 2019, arXiv:1901.05555",
        make=lambda **kwargs: kt.losses.ClassBalanced([40, 10, 2], 0.9, base="sigmoid_focal", **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.SparseFocal,
        "Cross-entropy that turns to the examples that are still wrong; integer labels too.",
        "Lin et al., 2017, arXiv:1708.02002",
        make=lambda **kwargs: kt.losses.SparseFocal(1.5, alpha=[0.5, 1.0, 2.0], **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.LDAM,
        "Cross-entropy with margins that are larger for rarer classes.",
        "Cao et al., 2019, arXiv:1906.07413",
        make=lambda **kwargs: kt.losses.LDAM([40, 10, 2], scale=5.0, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.BalancedSoftmax,
        "Cross-entropy that knows the class frequencies, so that the logits need not.",
        "Ren et al., 2020, arXiv:2007.10740",
        make=lambda **kwargs: kt.losses.BalancedSoftmax([40, 10, 2], **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.LogitAdjusted,
        "Balanced softmax with a dial between no adjustment and too much.",
        "Menon et al., 2021, arXiv:2007.07314",
        make=lambda **kwargs: kt.losses.LogitAdjusted([40, 10, 2], tau=1.5, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.losses.LabelAwareSmoothing,
        "Label smoothing, strong for frequent classes and weak for rare ones.",
        "Zhong et al., 2021, arXiv:2104.00466",
        make=lambda **kwargs: kt.losses.LabelAwareSmoothing([40, 10, 2], 0.4, 0.1, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.metrics.BalancedAccuracy,
        "Mean of the classes' recalls: a rare class counts as much as a frequent one.",
        "Brodersen et al., 2010",
        make=lambda **kwargs: kt.metrics.BalancedAccuracy(3, **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.metrics.ShotAccuracy,
        "Mean recall of the classes with many, medium or few training examples.",
        "Liu et al., 2019, arXiv:1904.05160",
        make=lambda **kwargs: kt.metrics.ShotAccuracy([150, 15, 5], "few", **kwargs),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.metrics.recall_by_class,
        "Recall of each class beside its training examples: figures, table and picture.",
        "-",
        works_with=("replicas", "mixed_float16", "mixed_bfloat16"),
    ),
    Trick(
        kt.metrics.plot_recalls,
        "A picture of the classes' recalls over their frequency, for several models.",
        "-",
    ),
    Trick(
        kt.callbacks.CyclicLR,
        "Moves learning rate and momentum at every step of a compiled `fit`.",
        "Smith, 2018, arXiv:1803.09820",
        make=lambda: kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(0.001, 0.01, 3), momentum=(0.95, 0.85)),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.DeferredReweighting,
        "Gives rare classes more weight late in training, when the features are learned.",
        "Cao et al., 2019, arXiv:1906.07413",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.EarlyStopping,
        "Stops by patience, Prechelt's criteria or the gap, says why, and survives a restart.",
        "Prechelt, 1998",
        make=lambda: kt.callbacks.EarlyStopping(monitor="loss", patience=2, restore_best_weights=True),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.Histograms,
        "Histograms of weights, gradients, updates and activations; a diagnosis in words.",
        "-",
        make=lambda: kt.callbacks.Histograms(every=2),
        backends=("tensorflow",),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.WeightAveraging,
        "Averages weights, validates with them, and takes normalisation statistics anew.",
        "Izmailov et al., 2018, arXiv:1803.05407",
        make=lambda: kt.callbacks.WeightAveraging("ema", every=2, momentum=0.5),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.SnapshotEnsemble,
        "Several networks for the time of one: the ends of a cyclical rate's cycles.",
        "Huang et al., 2017, arXiv:1704.00109",
        works_with=("replicas", "accumulation", "save"),
    ),
    Trick(
        kt.callbacks.LRFinder,
        "Learning-rate range test inside `fit`, which puts the model back exactly.",
        "Smith, 2017, arXiv:1506.01186",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.callbacks.find_lr,
        "Suggests a learning rate from a short run, and leaves the model as it was.",
        "Smith, 2017, arXiv:1506.01186",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.data.echo,
        "Uses each example several times when reading is slower than training.",
        "Choi et al., 2019, arXiv:1907.05550",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.measure_echo_factor,
        "Times reading and training separately: whether echoing helps, and which factor is free.",
        "Choi et al., 2019, arXiv:1907.05550",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.drop_corrupt,
        "Drops corrupt examples, counts them by reason, and says so.",
        "-",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.class_counts,
        "Counts the examples of each class.",
        "-",
        backends=("tensorflow",),
    ),
    Trick(
        kt.data.class_balanced,
        "Draws rare classes more often, and reads the data once per epoch.",
        "Kang et al., 2020, arXiv:1910.09217",
        backends=("tensorflow",),
        works_with=("replicas",),
    ),
    Trick(
        kt.data.make_long_tailed,
        "Makes CIFAR-10-LT and its like from balanced sets, with the published sizes.",
        "Cao et al., 2019, arXiv:1906.07413",
        backends=("tensorflow",),
    ),
    Trick(
        kt.data.remix,
        "Mixup that labels a mixture of a frequent and a rare class as the rare one.",
        "Chou et al., 2020, arXiv:2007.03943",
        backends=("tensorflow",),
    ),
    Trick(
        kt.models.jit,
        "XLA inside each replica, where `compile(jit_compile=True)` fails.",
        "-",
        backends=("tensorflow",),
        works_with=EVERYTHING,
    ),
    Trick(
        kt.models.convert,
        "Puts tricks into a model that is already built, and carries its weights over.",
        "-",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.fuse,
        "Folds the tricks and batch normalisation into plain Keras layers for deployment.",
        "Ding et al., 2019, arXiv:1908.03930",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.recompute,
        "Cuts a model into segments that forget their activations: square-root memory.",
        "Chen et al., 2016, arXiv:1604.06174",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.models.check_gradients,
        "Numerical against automatic gradients, layer by layer, and which layer is wrong.",
        "Griewank and Walther, 2008",
        backends=("tensorflow",),
        works_with=("mixed_float16", "mixed_bfloat16"),
    ),
    Trick(
        kt.models.recompute_statistics,
        "Takes batch normalisation's statistics anew, for averaged weights or other data.",
        "Chan et al., 1983",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.adjust_logits,
        "Corrects a trained classifier's logits for the classes' frequencies; no training.",
        "Menon et al., 2021, arXiv:2007.07314",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.tau_normalize,
        "Takes from frequent classes the length of their weight vectors; no training.",
        "Kang et al., 2020, arXiv:1910.09217",
        works_with=("xla", "replicas", "mixed_float16", "mixed_bfloat16", "save"),
    ),
    Trick(
        kt.models.retrain_classifier,
        "Trains a fresh classifier on class-balanced data, on frozen features (cRT).",
        "Kang et al., 2020, arXiv:1910.09217",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.models.learn_scale,
        "Learns one factor for each class's logit, all weights frozen (LWS).",
        "Kang et al., 2020, arXiv:1910.09217",
        works_with=EVERYTHING,
    ),
    Trick(
        kt.distribute.setup,
        "Devices, precision and XLA of a run in one call, checked.",
        "-",
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
    # Names that contain the letters that were typed, ignoring separators; failing those, names spelt alike.
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
