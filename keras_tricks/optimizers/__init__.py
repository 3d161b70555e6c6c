"""Optimizers and gradient transforms that are right on any number of replicas, under XLA and in low precision.

Every optimizer takes Keras' keywords: `weight_decay`, one of `clipnorm` (norm of each variable's gradient),
`global_clipnorm` (norm of all together) and `clipvalue`, `use_ema` with `ema_momentum` and `ema_overwrite_frequency`,
`gradient_accumulation_steps`, `loss_scale_factor` and `name`. They act on gradients that are aggregated over replicas
and averaged over accumulation, and count optimizer steps. A wrapper leaves them to the optimizer inside. `jit_compile`
says whether XLA compiles the step where the model itself is not compiled: `True`, `False`, or `"auto"` (default) for
where that is faster.
"""

from keras_tricks.optimizers.accumulation import GradientAccumulation
from keras_tricks.optimizers.adafactor import Adafactor
from keras_tricks.optimizers.agc import AdaptiveGradientClipping
from keras_tricks.optimizers.lamb import LAMB
from keras_tricks.optimizers.lars import LARS
from keras_tricks.optimizers.lookahead import Lookahead
from keras_tricks.optimizers.loss_scale import LossScaleOptimizer
from keras_tricks.optimizers.sm3 import SM3
from keras_tricks.optimizers.state_bytes import state_bytes
from keras_tricks.optimizers.yogi import Yogi

__all__ = [
    "LAMB",
    "LARS",
    "SM3",
    "Adafactor",
    "AdaptiveGradientClipping",
    "GradientAccumulation",
    "Lookahead",
    "LossScaleOptimizer",
    "Yogi",
    "state_bytes",
]
