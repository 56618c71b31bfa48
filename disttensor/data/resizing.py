"""Images to one size, with the rule of `keras.ops.image.resize`: no smoothing before an image is made smaller."""

from __future__ import annotations

import numpy as np


def resize_image(image: np.ndarray, size: tuple[int, int], interpolation: str, fit: str) -> np.ndarray:
    """An image in another size.

    Parameters
    ----------
    image : uint8 array, shape (height, width, channels)
    size : (height, width)
    interpolation : {"bilinear", "nearest"}
    fit : {"stretch", "crop", "pad"}
        What happens if the proportions differ: the image is distorted, loses equal parts on both sides, or gets black
        borders.

    Returns
    -------
    float32 array, shape (height, width, channels)
    """
    if fit == "crop":
        image = _cropped(image, size)
    elif fit == "pad":
        image = _padded(image, size)
    resized = image.astype(np.float32)
    for axis, (length, wanted) in enumerate(zip(image.shape[:2], size, strict=True)):
        if length != wanted:
            resized = _along(resized, axis, wanted, interpolation)
    return resized


def _cropped(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = image.shape[:2]
    kept_height = min(height, int(width * size[0] / size[1])) or height
    kept_width = min(width, int(height * size[1] / size[0])) or width
    top, left = int((height - kept_height) / 2), int((width - kept_width) / 2)
    return image[top : top + kept_height, left : left + kept_width]


def _padded(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = image.shape[:2]
    rows = (max(height, int(width * size[0] / size[1])) - height) // 2
    columns = (max(width, int(height * size[1] / size[0])) - width) // 2
    return np.pad(image, ((rows, rows), (columns, columns), (0, 0)))


def _along(image: np.ndarray, axis: int, wanted: int, interpolation: str) -> np.ndarray:
    """Resize along one axis; the centre of pixel i lies at i + 1/2."""
    length = image.shape[axis]
    centres = (np.arange(wanted) + 0.5) * (length / wanted)
    if interpolation == "nearest":
        return np.take(image, np.floor(centres).astype(np.int64), axis)
    position = np.clip(centres - 0.5, 0, length - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, length - 1)
    share = (position - below).astype(np.float32).reshape((-1,) + (1,) * (image.ndim - 1 - axis))
    low, high = np.take(image, below, axis), np.take(image, above, axis)
    return low + (high - low) * share
