"""Finding data files in a folder, and downloading the missing ones with pooch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.errors import UserError

_SECONDS_TO_CONNECT = 10


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public data set.

    Attributes:
        name: The file's published name.
        unpacked: What it is called once unpacked; either form is accepted.
        url: Where it is published.
        md5: The publisher's checksum.
        folders: Folders under the data directory to look in, besides the directory itself.
    """

    name: str
    unpacked: str
    url: str
    md5: str
    folders: tuple[str, ...] = ()

    def find(self, data_dir: Path) -> Path | None:
        """Look for the file under a data directory.

        Args:
            data_dir: The directory.

        Returns:
            Its path, or None where it is absent.
        """
        for folder in ("", *self.folders):
            for name in (self.name, self.unpacked):
                if (path := data_dir / folder / name).exists():
                    return path
        return None


def default_data_dir() -> Path:
    """Name the folder that downloads go to unless the user says otherwise.

    Returns:
        The operating system's cache folder for filteropt.
    """
    return Path(pooch.os_cache("filteropt"))


def fetch(files: tuple[RemoteFile, ...], data_dir: Path, console: Console) -> None:
    """Download the files that are not under ``data_dir`` yet, checking each checksum.

    Args:
        files: The files.
        data_dir: The directory to look in and to download to.
        console: Where the progress bar is drawn.

    Raises:
        UserError: If a file is absent and cannot be downloaded.
    """
    pooch.get_logger().setLevel("ERROR")
    for file in files:
        if file.find(data_dir) is not None:
            continue
        try:
            with _DownloadBar(file.name, console) as bar:
                pooch.retrieve(
                    file.url,
                    known_hash=f"md5:{file.md5}",
                    fname=file.name,
                    path=data_dir,
                    downloader=pooch.HTTPDownloader(progressbar=bar, timeout=_SECONDS_TO_CONNECT),
                )
        except (requests.RequestException, OSError, ValueError) as fault:
            raise UserError(f"{file.name} is not in {data_dir} and {_why(fault, file)}") from fault


def fingerprint(files: tuple[RemoteFile, ...], data_dir: Path) -> str:
    """Hash the contents of the files, so that a finished run is tied to the data it used.

    Args:
        files: The files, all present.
        data_dir: The directory they are under.

    Returns:
        Twelve hexadecimal digits; empty where there are no files.
    """
    digest = hashlib.sha256()
    for file in files:
        path = file.find(data_dir)
        assert path is not None, f"{file.name} was not fetched"
        for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if part.is_file():
                with part.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
    return digest.hexdigest()[:12] if files else ""


def _why(fault: Exception, file: RemoteFile) -> str:
    if isinstance(fault, requests.HTTPError):
        return f"its download failed ({fault})"
    if isinstance(fault, requests.RequestException):
        return f"the network cannot be reached ({file.url})"
    if isinstance(fault, ValueError):
        return f"its download from {file.url} does not have the published checksum"
    return f"could not be stored there ({fault})"


class _DownloadBar:
    """The part of tqdm's interface that pooch calls, drawn by rich."""

    def __init__(self, name: str, console: Console) -> None:
        self._progress = Progress(
            TextColumn(f"downloading {name}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("download", total=None)

    def __enter__(self) -> "_DownloadBar":
        if self._progress.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.console.is_terminal:
            self._progress.stop()

    @property
    def total(self) -> int:
        return int(self._progress.tasks[0].total or 0)

    @total.setter
    def total(self, size: int) -> None:
        self._progress.update(self._task, total=size)

    def update(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.reset(self._task, total=self.total)

    def close(self) -> None:
        """Nothing to do: the ``with`` statement stops the bar."""
