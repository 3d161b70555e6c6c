"""Masks of tensors. Where Keras keeps them differs between backends; its layers know."""

import keras


class _MaskOf(keras.Layer):
    def call(self, x, mask=None):
        return mask

    def compute_mask(self, inputs, previous_mask):
        return None


class _WithMask(keras.Layer):
    def call(self, x, mask=None):
        return x

    def compute_mask(self, inputs, previous_mask):
        return previous_mask


# mask_of(x): the mask of a tensor, or None. with_mask(x, mask=mask): the tensor, with this mask.
mask_of = _MaskOf(name="mask_of", dtype="float32", autocast=False)
with_mask = _WithMask(name="with_mask", dtype="float32", autocast=False)
