"""The header of a patch file, read with the standard library only."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from efface.card import read_header
from efface.errors import BadInput

ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(
    path: Path, entries: Any = None, card: Any = None, numbers: int = 24, pad: int = 0, shared: Any = None
) -> Path:
    """A safetensors file written by hand; `pad`: spaces that end its header, as the format allows."""
    metadata = {"efface": "patch 1", "card": json.dumps(card or {}), "shared": json.dumps(shared or {})}
    header = {"__metadata__": metadata, "a|delta": ENTRY} if entries is None else entries
    text = json.dumps(header).encode() + b" " * pad
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(numbers))
    return path


def test_card_shared_names_and_shapes_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "p.safetensors", card={"method": "UCE()"}, shared={"b|delta": "a|delta"})
    header = read_header(file)
    assert header.card == {"method": "UCE()"}
    assert header.shared == {"b|delta": "a|delta"}
    assert header.shapes == {"a|delta": (2, 3)}
    assert read_header(str(file)) == header


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    file = write(tmp_path / "p.safetensors", card={"method": "UCE()"})
    code = (
        "import sys; from efface.card import read_header; print(read_header(sys.argv[1]).card['method'])\n"
        "assert not {'torch', 'numpy', 'safetensors'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("UCE()", "")


@pytest.mark.parametrize("length", [640, 896, 1152, 19280])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    """640 is 80 02 in the file's first bytes, as in a pickle of protocol 2; 19280 is "PK", as in a zip file."""
    plain = write(tmp_path / "p.safetensors").read_bytes()
    short = int.from_bytes(plain[:8], "little")
    file = write(tmp_path / "p.safetensors", pad=length - short)
    assert file.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK")
    assert read_header(file).shapes == {"a|delta": (2, 3)}


METADATA = {"efface": "patch 1", "card": "{}", "shared": "{}"}


@pytest.mark.parametrize(
    "entries",
    [
        [],
        "text",
        {"__metadata__": METADATA, "a": []},
        {"__metadata__": METADATA, "a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 24]}},
        {"__metadata__": METADATA, "a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 24]}},
        {"__metadata__": METADATA, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0]}},
        {"__metadata__": METADATA, "a": {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}},
        {"__metadata__": METADATA, "a": {"shape": [3], "data_offsets": [0, 24]}},
        {"__metadata__": {**METADATA, "card": "no json"}},
        {"__metadata__": {**METADATA, "card": "[]"}},
        {"__metadata__": {**METADATA, "shared": "1"}},
        {"__metadata__": {"efface": "patch 1", "card": "{}"}},
        {"__metadata__": None},
        {"__metadata__": {**METADATA, "efface": "patch 2"}},
        {"a|delta": ENTRY},
        {"__metadata__": METADATA, "a|delta": {**ENTRY, "shape": [2, 4]}},
        {"__metadata__": METADATA, "a|delta": {**ENTRY, "shape": [2**60, 2**60]}},
        {"__metadata__": METADATA, "a|delta": ENTRY, "b|delta": {**ENTRY, "data_offsets": [24, 48]}},
    ],
)
def test_a_bad_header_is_one_line_with_the_file(tmp_path: Path, entries: Any) -> None:
    with pytest.raises(BadInput) as told:
        read_header(write(tmp_path / "p.safetensors", entries))
    assert str(tmp_path / "p.safetensors") in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a safetensors"),
        (b"\x10", "not a safetensors"),
        (b"\xff" * 8, "not a safetensors"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "bad header"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "bad header"),
        (b"PK\x03\x04\x00\x00\x08\x08archive", "pickle"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00a.", "pickle"),
        (b"\x80\x05\x95\x0c\x00\x00\x00\x00\x00\x00\x00}.", "pickle"),
        (b'{"model": "a json file"}', "not a safetensors"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "p.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=said) as told:
        read_header(tmp_path / "p.safetensors")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("numbers", [0, 23, 25])
def test_missing_or_further_numbers_are_noticed(tmp_path: Path, numbers: int) -> None:
    with pytest.raises(BadInput, match="24 bytes of numbers expected"):
        read_header(write(tmp_path / "p.safetensors", numbers=numbers))
