"""Fetch the emoji art from the npm registry into the cache, once. It serves training only and is never committed."""

import subprocess
import tarfile
from pathlib import Path

PACKAGES = {  # style -> npm package, version, folder of the drawings, file ending
    "noto": ("emoji-datasource-google", "16.0.0", "package/img/google/64", "png"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0", "package/img/twitter/64", "png"),
    "fluent": ("@lobehub/fluent-emoji-3d", "1.1.0", "package/assets", "webp"),
}


def fetch(cache: Path, codepoints: tuple[str, ...]) -> Path:
    """The folder of `STYLE/CODEPOINT.ENDING`, downloading what is missing with `npm pack`; about 60 MB once."""
    for style, (package, version, folder, ending) in PACKAGES.items():
        wanted = [point for point in codepoints if not (cache / "art" / style / f"{point}.{ending}").exists()]
        if not wanted:
            continue
        archive = cache / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not archive.exists():
            cache.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "pack", f"{package}@{version}"], cwd=cache, check=True, capture_output=True)
        _extract(archive, folder, ending, wanted, cache / "art" / style)
    return cache / "art"


def _extract(archive: Path, folder: str, ending: str, codepoints: list[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
        for point in codepoints:
            # some vendors keep the emoji variation selector in the name, some drop it
            found = next(
                (name for name in (f"{folder}/{point}{tail}.{ending}" for tail in ("", "-fe0f")) if name in names), None
            )
            member = tar.extractfile(found) if found else None
            if member is None:
                raise FileNotFoundError(f"{archive.name} has no drawing of {point}")
            (target / f"{point}.{ending}").write_bytes(member.read())
