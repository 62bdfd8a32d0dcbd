"""The readers of IDX and of CIFAR's binary records, and the downloads, on tiny files."""

import ast
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import experiments
from experiments import data
from experiments.errors import UserError
from experiments.fetch import RemoteFile, fetch, fingerprint
from experiments.formats import read_cifar, read_idx

Serve = Callable[[dict[str, bytes]], str]


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_mnist(folder: Path, *, zipped: bool = True, train: int = 70, test: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        for stem, array in (
            (f"{name}-images-idx3-ubyte", pixels(count, 28, 28, seed=count)),
            (f"{name}-labels-idx1-ubyte", labels),
        ):
            raw = idx_bytes(array)
            path = folder / (f"{stem}.gz" if zipped else stem)
            path.write_bytes(gzip.compress(raw) if zipped else raw)


def cifar_record(labels: list[int], image: np.ndarray) -> bytes:
    return bytes(labels) + image.tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, blob in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            archive.addfile(info, io.BytesIO(blob))


@pytest.mark.parametrize("zipped", [True, False], ids=["gzip", "raw"])
@pytest.mark.parametrize("folder", [".", "mnist", "MNIST/raw"])
def test_mnist_loader_reads_what_was_written(tmp_path: Path, zipped: bool, folder: str) -> None:
    write_mnist(tmp_path / folder, zipped=zipped)
    read = data.MNIST.load(tmp_path)
    assert read.train_images.shape == (70, 1, 28, 28)
    assert read.train_images.dtype == torch.uint8
    np.testing.assert_array_equal(read.train_images[:, 0].numpy(), pixels(70, 28, 28, seed=70))
    np.testing.assert_array_equal(read.test_labels.numpy(), np.arange(20) % 10)


def test_idx_reader_keeps_any_number_of_dimensions(tmp_path: Path) -> None:
    for shape in ((5,), (2, 3), (2, 3, 4), (1, 2, 3, 4)):
        array = pixels(*shape)
        (tmp_path / "array").write_bytes(idx_bytes(array))
        np.testing.assert_array_equal(read_idx(tmp_path / "array"), array)


GOOD_IDX = idx_bytes(pixels(3, 4, 4))
ZIPPED_IDX = gzip.compress(GOOD_IDX, mtime=0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GOOD_IDX[:-1], "truncated: 63 bytes where its header says 64"),
        (GOOD_IDX + b"\0", "too long: 65 bytes"),
        (GOOD_IDX[:9], "its header is incomplete"),
        (b"", "not an IDX file"),
        (b"PK\x03\x04" + GOOD_IDX, "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\0", "IDX type 0x0d"),
        (ZIPPED_IDX[:-12], "cannot read"),
        (ZIPPED_IDX[:20] + b"\xff" * 20, "cannot read"),
        (ZIPPED_IDX[:-8] + bytes(8), "cannot read"),
    ],
    ids=["short", "long", "header", "empty", "zip", "type", "cut", "garbled", "checksum"],
)
def test_idx_reader_refuses_damaged_files(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(69), "one label per image"),
        ("train-images-idx3-ubyte", np.zeros((70, 27, 28)), "28 x 28"),
        ("t10k-labels-idx1-ubyte", np.full(20, 10), "label 10 of 10 classes"),
    ],
)
def test_mnist_loader_refuses_inconsistent_files(
    tmp_path: Path, name: str, array: np.ndarray, message: str
) -> None:
    write_mnist(tmp_path, zipped=False)
    (tmp_path / name).write_bytes(idx_bytes(array))
    with pytest.raises(UserError, match=message):
        data.MNIST.load(tmp_path)


def write_cifar(folder: Path, source: data.Source, *, unpacked: bool) -> dict[str, np.ndarray]:
    coarse = [7] if source is data.CIFAR100 else []
    classes = 100 if source is data.CIFAR100 else 10
    train = ["train.bin"] if coarse else [f"data_batch_{k}.bin" for k in range(1, 6)]
    images, members = {}, {}
    for k, name in enumerate([*train, "test.bin" if coarse else "test_batch.bin"]):
        images[name] = pixels(4, 3, 32, 32, seed=k)
        members[f"{source.files[0].unpacked}/{name}"] = b"".join(
            cifar_record([*coarse, (classes - 1 - 2 * k + n) % classes], image)
            for n, image in enumerate(images[name])
        )
    if unpacked:
        for name, blob in members.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(blob)
    else:
        write_tar(folder / source.files[0].name, members)
    return images


@pytest.mark.parametrize("unpacked", [False, True], ids=["tar.gz", "folder"])
@pytest.mark.parametrize("source", [data.CIFAR10, data.CIFAR100], ids=["cifar10", "cifar100"])
def test_cifar_loader_reads_what_was_written(
    tmp_path: Path, source: data.Source, unpacked: bool
) -> None:
    images = write_cifar(tmp_path, source, unpacked=unpacked)
    read = source.load(tmp_path)
    *train, test = images
    np.testing.assert_array_equal(
        read.train_images.numpy(), np.concatenate([images[name] for name in train])
    )
    np.testing.assert_array_equal(read.test_images.numpy(), images[test])
    classes = 100 if source is data.CIFAR100 else 10
    assert read.train_labels[:2].tolist() == [classes - 1, 0]


def test_cifar_reader_refuses_damaged_files(tmp_path: Path) -> None:
    record = cifar_record([3], pixels(3, 32, 32))
    archive = tmp_path / "archive.tar.gz"

    def read(path: Path = archive) -> None:
        read_cifar(path, "folder", ("part.bin",), 1, 10)

    write_tar(archive, {"folder/part.bin": record + record[:-1]})
    with pytest.raises(UserError, match="not a whole number of 3073-byte records"):
        read()
    write_tar(archive, {"folder/part.bin": b""})
    with pytest.raises(UserError, match="truncated: 0 bytes"):
        read()
    write_tar(archive, {"folder/part.bin": b"\x0a" + record[1:]})
    with pytest.raises(UserError, match="label 10 of 10 classes"):
        read()
    write_tar(archive, {"folder/other.bin": record})
    with pytest.raises(UserError, match=r"does not contain folder/part\.bin"):
        read()
    write_tar(archive, {"folder/part.bin": record * 50})
    whole = archive.read_bytes()
    for broken in (whole[: len(whole) // 2], b"not an archive", whole[:200] + bytes(500)):
        archive.write_bytes(broken)
        with pytest.raises(UserError, match="cannot read"):
            read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot read"):
        read(tmp_path / "empty")


def test_experiments_never_import_a_loader_of_pickles() -> None:
    imported = set()
    for path in Path(experiments.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in {"torch.load", "np.load", "pd.read_pickle"}
    assert imported
    assert not imported & {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib"}


def test_bundled_split_is_stratified_and_fixed() -> None:
    first, second = data.DIGITS.load(Path()), data.DIGITS.load(Path())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first.test_labels) == 360
    assert len(first.train_labels) == 1437
    shares = torch.bincount(first.test_labels) / torch.bincount(first.train_labels)
    assert (shares - 0.25).abs().max() < 0.02


def test_validation_images_come_from_the_training_images_only() -> None:
    whole = data.DIGITS.load(Path())
    held_out = data.hold_out_validation(whole)
    train = {image.numpy().tobytes() for image in whole.train_images}
    assert len(held_out.train_labels) + len(held_out.test_labels) == len(whole.train_labels)
    assert all(image.numpy().tobytes() in train for image in held_out.test_images)


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    root = tmp_path_factory.mktemp("served")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def start(files: dict[str, bytes]) -> str:
            for name, blob in files.items():
                (root / name).write_bytes(blob)
            return f"http://127.0.0.1:{server.server_port}/"

        yield start
        server.shutdown()
        thread.join()


def remote(url: str, blob: bytes, name: str = "file.gz") -> RemoteFile:
    md5 = hashlib.md5(blob, usedforsecurity=False).hexdigest()
    return RemoteFile(name, "file", f"{url}{name}", md5)


def test_fetch_downloads_once_and_checks_the_sum(tmp_path: Path, serve: Serve) -> None:
    blob = bytes(range(256)) * 300
    file = remote(serve({"file.gz": blob}), blob)
    console = Console(file=io.StringIO(), force_terminal=True)
    fetch((file,), tmp_path / "cache", console)
    assert (tmp_path / "cache/file.gz").read_bytes() == blob
    serve({"file.gz": b"changed on the server"})
    fetch((file,), tmp_path / "cache", console)
    assert (tmp_path / "cache/file.gz").read_bytes() == blob
    with pytest.raises(UserError, match="does not have the published checksum"):
        fetch((file,), tmp_path / "other", console)
    assert list((tmp_path / "other").iterdir()) == []


def test_fetch_leaves_files_of_the_user_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"unpacked by the user")
    fetch((remote("http://127.0.0.1:9/", b""),), tmp_path, Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fetch_names_the_cause_of_a_failure(tmp_path: Path, serve: Serve) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(UserError, match="the network cannot be reached"):
        fetch((remote("http://127.0.0.1:9/", b""),), tmp_path, console)
    with pytest.raises(UserError, match="404"):
        fetch((remote(serve({}), b"", name="absent.gz"),), tmp_path, console)


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    files = (remote("", b""),)
    (tmp_path / "file.gz").write_bytes(b"one")
    first = fingerprint(files, tmp_path)
    (tmp_path / "file.gz").write_bytes(b"two")
    assert fingerprint(files, tmp_path) != first
    assert fingerprint((), tmp_path) == ""
