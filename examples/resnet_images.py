"""Train a residual network on small images, in one process or many.

    python examples/resnet_images.py                                          # embedded digits, one process
    mpirun -n 4 python examples/resnet_images.py                              # the same training on four
    mpirun -n 8 python examples/resnet_images.py --dataset cifar10 --data cifar-10-python.tar.gz --blocks 3 --epochs 60

With 3 blocks a stage this is ResNet-20 of He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.
Batch normalization takes the statistics of the global batch, so the number of processes does not change the training.
The last line is ``test_accuracy=…``.
"""

from __future__ import annotations

import argparse

import numpy as np

import disttensor as keras
from disttensor import distributed, layers


def load(dataset: str, path: str | None) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images as floats from 0 to 1, shape (n, height, width, channels), and labels 0 to 9."""
    source = getattr(keras.datasets, dataset)
    train, test = source.load_data(path) if path else source.load_data()
    brightest = train[0].max()

    def prepared(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = images if images.ndim == 4 else images[..., np.newaxis]
        return images.astype("float32") / brightest, labels.reshape(-1)

    return prepared(*train), prepared(*test)


def convolution(x: keras.KerasTensor, filters: int, size: int, strides: int = 1) -> keras.KerasTensor:
    """A convolution without bias, which batch normalization would take away again."""
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def residual_block(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    """Two convolutions whose result is added to the input."""
    y = layers.ReLU()(convolution(x, filters, 3, strides))
    y = convolution(y, filters, 3)
    shortcut = x if strides == 1 and x.shape[-1] == filters else convolution(x, filters, 1, strides)
    return layers.ReLU()(layers.Add()([y, shortcut]))


def resnet(shape: tuple[int, ...], blocks: int, filters: int) -> keras.Model:
    """Three stages of residual blocks; each stage halves the image and doubles the filters."""
    inputs = keras.Input(shape)
    x = layers.ReLU()(convolution(inputs, filters, 3))
    for stage in range(3):
        for block in range(blocks):
            x = residual_block(x, filters * 2**stage, strides=2 if stage > 0 and block == 0 else 1)
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["digits", "cifar10", "fashion_mnist", "mnist"], default="digits")
    parser.add_argument("--data", metavar="FILE", help="file of the data set; default: embedded, cached or downloaded")
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks in each stage (default: %(default)s)")
    parser.add_argument("--filters", type=int, default=16, help="filters of the first stage (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of the global batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="at the start; it falls to 0 as a cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=2)
    return parser.parse_args()


def main() -> None:
    """Train and report."""
    options = parse_arguments()
    keras.utils.set_random_seed(options.seed)
    (x_train, y_train), (x_test, y_test) = load(options.dataset, options.data)
    model = resnet(x_train.shape[1:], options.blocks, options.filters)
    steps = options.epochs * -(-len(x_train) // options.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    if distributed.is_main():
        print(f"{options.dataset}: {model.count_params()} weights, {distributed.size()} process(es)")
    model.fit(x_train, y_train, options.batch_size, options.epochs, verbose=options.verbose)
    results = model.evaluate(x_test, y_test, batch_size=500, verbose=0, return_dict=True)
    if distributed.is_main():
        print(f"test_accuracy={results['accuracy']:.4f}")


if __name__ == "__main__":
    main()
