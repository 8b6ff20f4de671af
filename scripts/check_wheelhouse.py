"""Is a wheelhouse whole? Before it is carried to where nothing can be fetched.

    python scripts/check_wheelhouse.py dist/anymix-aarch64-py3.11-torch-2.7.1.tar

Takes the tar or its folder; what it is for (architecture, Python, torch) stands in its name. Lists what is wrong:
a wheel for another machine or Python, a requirement no wheel answers or the wheel there does not satisfy, a file
without or with another checksum, no torch where one was promised. Exit code 1 if there is anything.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename
from pip._vendor.packaging.version import Version

import wheelhouse

NAME = re.compile(r"anymix-(?P<arch>x86_64|aarch64)-py(?P<python>3\.\d+)-torch-(?P<torch>[\w.+]+)")
GLIBC = (2, 28)  # of openEuler 20.03, Kylin V10, Ubuntu 20.04 and newer
ELF = {"x86_64": 62, "aarch64": 183}  # e_machine, elf.h
ALSO = ("INSTALL.txt", "SHA256SUMS", "keep_torch.py")


def wrong(folder: Path, extras: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with a wheelhouse folder, one sentence each; nothing where it is whole."""
    named = NAME.fullmatch(folder.name)
    if not named:
        return [f"{folder.name} does not say what it is for, expected anymix-ARCH-pyVERSION-torch-VERSION"]
    target = wheelhouse.Target(named["arch"], named["python"])
    found = [f"{name} is absent" for name in ALSO if not (folder / name).is_file()]
    found += broken(folder)
    if found:
        return found
    wheels = wheelhouse.by_name(folder)
    found += [text for wheel in wheels.values() if (text := misfit(wheel.name, target) or inside(wheel, target))]
    found += unlisted(folder) + torches(wheels, named["torch"])
    if "anymix" not in wheels:
        return [*found, "anymix itself is absent"]
    absent = wheelhouse.missing(wheels, target, extras)
    found += [f"no wheel answers {wanted}" for wanted in absent if not wanted.startswith("torch")]
    return found + unsatisfied(wheels, target, extras)


def broken(folder: Path) -> list[str]:
    """Wheels that are no archives any more, as a copy cut short leaves them."""
    return [f"{wheel.name} is cut short" for wheel in sorted(folder.glob("*.whl")) if not zipfile.is_zipfile(wheel)]


def misfit(name: str, target: wheelhouse.Target) -> str:
    """Why a wheel cannot be installed on the target, or ''."""
    minor = int(target.python.partition(".")[2])
    reasons = []
    for tag in parse_wheel_filename(name)[3]:
        reason = _platform(tag.platform, target.arch) or _python(tag.interpreter, tag.abi, minor)
        if not reason:
            return ""
        reasons.append(reason)
    return f"{name} {sorted(reasons)[0]}"


def inside(wheel: Path, target: wheelhouse.Target) -> str:
    """Why a wheel's own libraries cannot be loaded on the target, whatever its name says, or ''."""
    with zipfile.ZipFile(wheel) as archive:
        for name in (name for name in archive.namelist() if re.search(r"\.so(\.\d+)*$", name)):
            with archive.open(name) as stream:
                head = stream.read(20)
            if head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") != ELF[target.arch]:
                return f"{wheel.name} holds {name}, which is not built for {target.arch}"
    return ""


def _platform(platform: str, arch: str) -> str:
    if platform == "any":
        return ""
    found = re.fullmatch(r"(?:manylinux_(\d+)_(\d+)|manylinux(?:1|2010|2014)|linux)_(\w+)", platform)
    if not found or found[3] != arch:
        return f"is for {platform}, not for {arch}"
    if found[1] and (int(found[1]), int(found[2])) > GLIBC:
        return f"needs glibc {found[1]}.{found[2]}, newer than {GLIBC[0]}.{GLIBC[1]}"
    return ""


def _python(interpreter: str, abi: str, minor: int) -> str:
    if interpreter in (f"cp3{minor}", f"py3{minor}", "py3"):
        return ""
    older = re.fullmatch(r"(cp|py)3(\d+)", interpreter)
    if older and int(older[2]) <= minor and (older[1] == "py" or abi == "abi3"):
        return ""
    return f"is for {interpreter}-{abi}, not for Python 3.{minor}"


def unlisted(folder: Path) -> list[str]:
    """Files whose checksum is absent from SHA256SUMS or another, and lines of it that name no file."""
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {file.name: file for file in folder.iterdir() if file.name != "SHA256SUMS"}
    found = [f"{name} is not in SHA256SUMS" for name in sorted(there.keys() - sums.keys())]
    found += [f"SHA256SUMS names {name}, which is absent" for name in sorted(sums.keys() - there.keys())]
    both = sorted(there.keys() & sums.keys())
    return found + [
        f"{name} is not what SHA256SUMS says" for name in both if wheelhouse.digest(there[name]) != sums[name]
    ]


def torches(wheels: dict[str, Path], promised: str) -> list[str]:
    if promised == "none":
        return ["torch is in it, and would replace the target's own"] if "torch" in wheels else []
    if "torch" not in wheels:
        return [f"torch {promised} is absent"]
    version = str(parse_wheel_filename(wheels["torch"].name)[1])
    return [] if version.startswith(promised) else [f"torch is {version}, not {promised}"]


def unsatisfied(wheels: dict[str, Path], target: wheelhouse.Target, extras: frozenset[str]) -> list[str]:
    """Requirements of reached wheels that the wheel of that name does not satisfy."""
    found, seen, todo = set(), set(), [("anymix", extras)]
    while todo:
        at = todo.pop()
        if at in seen or at[0] not in wheels:
            continue
        seen.add(at)
        for wanted in target.requires(wheels[at[0]], at[1]):
            key = str(canonicalize_name(wanted.name))
            todo.append((key, frozenset(wanted.extras)))
            if key in wheels:
                version = Version(str(parse_wheel_filename(wheels[key].name)[1]))
                if not wanted.specifier.contains(version, prereleases=True):
                    found.add(f"{at[0]} asks for {wanted}, and {wheels[key].name} is there")
    return sorted(found)


def summary(folder: Path) -> str:
    wheels = list(folder.glob("*.whl"))
    built = sum("none-any" not in wheel.name for wheel in wheels)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    made = f"{len(wheels)} wheels, {built} of them built for its machine, {size:.0f} MB"
    return f"{folder.name}: {made}, all checksums right"


def main() -> int:
    parser = argparse.ArgumentParser(description="List what a wheelhouse lacks.")
    parser.add_argument("wheelhouse", type=Path, help="the tar of `make wheelhouse`, or its folder")
    parser.add_argument("--extras", default="", help="of anymix, such as npu,serve, which it must answer as well")
    options = parser.parse_args()
    extras = frozenset(filter(None, options.extras.split(",")))
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.wheelhouse.resolve()
        if folder.is_file():
            with tarfile.open(folder) as archive:
                if hasattr(tarfile, "data_filter"):  # 3.11.2 and older have none
                    archive.extraction_filter = tarfile.data_filter
                archive.extractall(scratch)
            folder = next(Path(scratch).iterdir())
        found = wrong(folder, extras)
        print("\n".join(found) or summary(folder))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
