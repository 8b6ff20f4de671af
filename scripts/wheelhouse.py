"""Everything a closed network needs to install anymix, in one folder and one tar.

    python scripts/wheelhouse.py --arch aarch64 --python 3.11 --torch 2.7.1 --extras npu

`pip download --platform` resolves for the target but for two things, which are mended here. It cannot leave
torch out (peft asks for it), so a stub without a body stands in for torch while the rest is resolved. And it
answers markers such as `python_version < "3.11"` for the machine it runs on, so each wheel's requirements are
walked for the target afterwards, and what is missing is asked for by name until nothing is.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

# pip has to be there anyway, and a bare interpreter has no other packaging
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
TORCH_FLOOR = "2.7.1"

INSTALL = """\
anymix {version} for Linux {arch}, Python {python}; {torch}

    sha256sum -c SHA256SUMS
    python -m pip --version                       # must speak of Python {python}
    python keep_torch.py > keep.txt               # keeps the torch that is there
    python -m pip install --no-index --find-links . -c keep.txt 'anymix{extras}'
    anymix doctor

From a source folder of anymix the same is `make install WHEELS=<this folder>`.
"""


@dataclass(frozen=True)
class Target:
    arch: str  # x86_64 or aarch64
    python: str  # 3.11

    @property
    def flags(self) -> list[str]:
        """pip's words for "glibc 2.28 or older": it does not count down from a platform by itself."""
        old = ["2014"] + (["2010", "1"] if self.arch == "x86_64" else [])
        tags = [f"manylinux_2_{minor}" for minor in range(28, 16, -1)] + [f"manylinux{name}" for name in old]
        platforms = [flag for tag in tags for flag in ("--platform", f"{tag}_{self.arch}")]
        return [*platforms, "--python-version", self.python, "--implementation", "cp", "--only-binary=:all:"]

    @property
    def markers(self) -> dict[str, str]:
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def requires(self, wheel: Path, extras: frozenset[str] = frozenset()) -> list[Requirement]:
        """What a wheel asks for on this target, markers answered and taken off."""
        found = []
        for line in metadata(wheel).get_all("Requires-Dist", []):
            wanted = Requirement(line)
            asked = [{**self.markers, "extra": extra} for extra in ("", *extras)]
            if wanted.marker is None or any(wanted.marker.evaluate(answers) for answers in asked):
                wanted.marker = None
                found.append(wanted)
        return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def pip(*arguments: str | Path) -> None:
    if subprocess.run([sys.executable, "-m", "pip", *map(str, arguments)]).returncode:
        raise SystemExit(f"pip {arguments[0]} failed, its reason stands above")


def local(version: str) -> str:
    """A version of its own for the stub (2.7.1+stub): of two equal ones pip takes the real wheel."""
    return f"{version}{'.' if '+' in version else '+'}stub"


def stub(folder: Path, version: str, requires: list[Requirement]) -> None:
    """A torch wheel of metadata alone, so that pip resolves the rest without its gigabytes."""
    info = f"torch-{version}.dist-info"
    files = {
        "METADATA": "\n".join(
            ["Metadata-Version: 2.1", "Name: torch", f"Version: {version}"]
            + [f"Requires-Dist: {wanted}" for wanted in requires]
        ),
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{info}/{name}", text + "\n")


def missing(wheels: dict[str, Path], target: Target, extras: frozenset[str]) -> list[str]:
    """Requirements that anymix[extras] reaches on the target and no wheel of the folder answers."""
    absent: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [("anymix", extras)]
    while todo:
        name, asked = todo.pop()
        if (name, asked) in seen:
            continue
        seen.add((name, asked))
        for wanted in target.requires(wheels[name], asked):
            key = str(canonicalize_name(wanted.name))
            if key in wheels:
                todo.append((key, frozenset(wanted.extras)))
            else:
                absent.add(str(wanted))
    return sorted(absent)


def by_name(folder: Path) -> dict[str, Path]:
    return {str(parse_wheel_filename(wheel.name)[0]): wheel for wheel in sorted(folder.glob("*.whl"))}


def pins(target: Target, also: list[str], folder: Path) -> Path:
    """constraints.txt as far as it applies: not to torch, what was asked for by hand, or Python 3.10."""
    free = {"torch", *(canonicalize_name(Requirement(wanted).name) for wanted in also)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if target.python != "3.10" else []
    kept = [line for line in lines if "==" in line and canonicalize_name(line.split("==")[0]) not in free]
    file = folder / "pins.txt"
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return file


def fetch_torch(options: argparse.Namespace, target: Target, folder: Path) -> Path:
    """torch alone, without what it asks for."""
    where = ["--index-url", options.index] if options.index else []
    pip("download", "--no-deps", "--dest", folder, *target.flags, *where, f"torch=={options.torch}")
    return by_name(folder)["torch"]


def gather(out: Path, target: Target, options: argparse.Namespace, work: Path) -> None:
    """Fill `out` with the wheels of anymix[extras] for the target; `work` is scratch."""
    extras = frozenset(filter(None, options.extras.split(",")))
    torch = None if options.torch == "none" else fetch_torch(options, target, work / "torch")
    version = local(str(metadata(torch)["Version"]) if torch else TORCH_FLOOR)
    stub(work, version, target.requires(torch) if torch else [])
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT)
    ours = f"{by_name(out)['anymix']}[{','.join(sorted(extras))}]" if extras else str(by_name(out)["anymix"])
    fixed = pins(target, options.also, work)
    where: list[str | Path] = ["--dest", out, "--find-links", work, "--constraint", fixed]
    wanted: list[str] = []
    absent = list(options.also)
    while True:
        wanted += absent
        pip("download", "--quiet", *target.flags, *where, ours, f"torch=={version}", *wanted)
        absent = missing(by_name(out), target, extras)
        if not absent:
            break
        if set(absent) <= set(wanted):
            raise SystemExit(f"pip downloaded no wheel for {', '.join(absent)}; ask for another version with --also")
    next(out.glob("torch-*-py3-none-any.whl")).unlink()
    if torch:
        shutil.move(torch, out)


def seal(out: Path, target: Target, options: argparse.Namespace) -> Path:
    """INSTALL.txt, SHA256SUMS and the tar beside the folder."""
    extras = f"[{options.extras}]" if options.extras else ""
    own = f"torch is not in this folder: the environment must have {TORCH_FLOOR} or newer"
    torch = own if options.torch == "none" else f"torch {options.torch} is in this folder"
    version = metadata(by_name(out)["anymix"])["Version"]
    text = INSTALL.format(version=version, arch=target.arch, python=target.python, torch=torch, extras=extras)
    (out / "INSTALL.txt").write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "scripts" / "keep_torch.py", out)
    sums = [f"{digest(file)}  {file.name}" for file in sorted(out.iterdir()) if file.name != "SHA256SUMS"]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    tar = out.with_name(f"{out.name}.tar")
    with tarfile.open(tar, "w") as archive:  # wheels are packed already
        archive.add(out, arcname=out.name)
    return tar


def digest(file: Path) -> str:
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Gather wheels for a machine without a network.")
    parser.add_argument("--arch", required=True, choices=("aarch64", "x86_64"))
    parser.add_argument("--python", required=True, choices=("3.10", "3.11", "3.12", "3.13"))
    parser.add_argument("--torch", required=True, help="a version such as 2.7.1, or none to use the target's own")
    parser.add_argument("--extras", default="", help="of anymix, such as npu,serve")
    parser.add_argument("--also", nargs="*", default=[], help="further requirements, such as torch-npu==2.7.1.post4")
    parser.add_argument("--index", help="where torch comes from, if not from pip's own configuration")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    target = Target(options.arch, options.python)
    out = options.out.resolve() / f"anymix-{target.arch}-py{target.python}-torch-{options.torch}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        gather(out, target, options, Path(scratch))
    tar = seal(out, target, options)
    print(f"{len(by_name(out))} wheels in {out}\n{tar} ({tar.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
