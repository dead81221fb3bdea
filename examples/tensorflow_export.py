"""A Keras network, channels last, becomes an ONNX file that `wetread build` takes.

Runs where TensorFlow is, which need not be where wetread is::

    python -m venv .venv-tensorflow
    .venv-tensorflow/bin/pip install "tensorflow-cpu==2.21.*" "tf2onnx==1.17.*"
    .venv-tensorflow/bin/python examples/tensorflow_export.py --out network

It writes ``network/model.onnx`` and, to compare with, ``network/example.npz``: an input and what Keras makes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers

SHAPE = (32, 32, 32)  # the recipe's window: depth, height, width
CHANNELS = 1
OPSET = 18


def trained_network() -> keras.Model:
    """Stands for your own, read with `keras.models.load_model`: takes (batch, depth, height, width, channels)."""
    keras.utils.set_random_seed(0)
    image = keras.Input((*SHAPE, CHANNELS))
    fine = layers.Conv3D(8, 3, padding="same", use_bias=False)(image)
    fine = layers.ReLU()(layers.BatchNormalization()(fine))
    coarse = layers.Conv3D(16, 3, strides=2, padding="same", activation="relu")(fine)
    coarse = layers.Conv3D(16, 3, padding="same")(coarse)
    coarse = layers.LeakyReLU(negative_slope=0.01)(layers.BatchNormalization()(coarse))
    back = layers.Conv3DTranspose(8, 2, strides=2, padding="same")(coarse)
    both = layers.Concatenate()([back, fine])
    logits = layers.Conv3D(2, 1)(both)  # before softmax: activation is the recipe's
    network = keras.Model(image, logits)
    rng = np.random.default_rng(0)
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = rng.normal(size=(2, *SHAPE, CHANNELS)).astype(np.float32)
    network.fit(images, (images > 1).astype(np.int32), epochs=2, verbose=0)
    return network


def channels_first(network: keras.Model) -> keras.Model:
    """The same network for (batch, channels, depth, height, width), which is what recipes know.

    tf2onnx's own ``--inputs-as-nchw`` and ``--outputs-as-nchw`` do the same for images of two dimensions only.
    """
    image = keras.Input((CHANNELS, *SHAPE), name="image")
    output = network(layers.Permute((2, 3, 4, 1))(image))
    return keras.Model(image, layers.Permute((4, 1, 2, 3), name="output")(output))


def main() -> None:
    """Exports the network and an example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("network"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    network = channels_first(trained_network())

    # None leaves the batch axis free; None in place of SHAPE would leave the window free as well
    signature = [tf.TensorSpec((None, CHANNELS, *SHAPE), tf.float32, name="image")]
    tf2onnx.convert.from_keras(
        network, input_signature=signature, opset=OPSET, output_path=str(out / "model.onnx")
    )
    image = np.random.default_rng(1).normal(size=(2, CHANNELS, *SHAPE)).astype(np.float32)
    np.savez(out / "example.npz", image=image, output=network.predict(image, verbose=0))
    print(f"{out / 'model.onnx'}: {(out / 'model.onnx').stat().st_size} bytes")


if __name__ == "__main__":
    main()
