"""Everything that knows the internals of Keras and `tf.distribute`; the folders above get it from here."""
