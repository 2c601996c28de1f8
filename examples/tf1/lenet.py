"""A small convolutional network in the manner of LeNet-5, with batch norm and dropout.

python examples/tf1/lenet.py FOLDER    # with the four IDX files of MNIST
"""

import sys

import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data

STEPS, BATCH, RATE = 1500, 64, 0.001


def convolution(inputs, filters, padding, training):
    maps = tf.layers.conv2d(inputs, filters, 5, padding=padding, use_bias=False)
    maps = tf.nn.relu(tf.layers.batch_normalization(maps, training=training))
    return tf.layers.max_pooling2d(maps, pool_size=2, strides=2)


def network(images, training):
    maps = convolution(images, 6, "same", training)
    maps = convolution(maps, 16, "valid", training)
    hidden = tf.layers.flatten(maps)
    for units in (120, 84):
        hidden = tf.layers.dense(hidden, units, activation=tf.nn.relu)
        hidden = tf.layers.dropout(hidden, rate=0.3, training=training)
    return tf.layers.dense(hidden, 10)


def main(folder):
    mnist = input_data.read_data_sets(folder, reshape=False, seed=0)
    tf.set_random_seed(0)
    images = tf.placeholder(tf.float32, (None, 28, 28, 1))
    labels = tf.placeholder(tf.int64, (None,))
    # One switch for both: batch norm takes the batch's statistics, dropout drops.
    training = tf.placeholder_with_default(False, ())
    logits = network(images, training)
    loss = tf.losses.sparse_softmax_cross_entropy(labels, logits)
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
    with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
        train_op = tf.train.AdamOptimizer(RATE).minimize(loss)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for _ in range(STEPS):
            x, y = mnist.train.next_batch(BATCH)
            session.run(train_op, {images: x, labels: y, training: True})
        test = {images: mnist.test.images, labels: mnist.test.labels}
        print(f"accuracy {session.run(accuracy, test):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
