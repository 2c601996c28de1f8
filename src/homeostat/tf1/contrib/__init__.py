"""What TF1 programs used of `tf.contrib`, for today's TensorFlow."""
