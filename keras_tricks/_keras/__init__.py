"""All that knows the insides of Keras and `tf.distribute`; what stands above takes it from here."""
