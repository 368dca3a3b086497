"""The file of units: whole lines or none, one writer, flat memory, a fast start."""

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from filelock import FileLock

from efface.bench import units
from efface.bench.store import Folder
from efface.bench.units import Units
from efface.bench.work import Done
from efface.errors import BadInput, EffaceError

CARD = {"title": "x"}


def done(name: str, seconds: float = 0.5) -> Done:
    return Done(name, [{"id": name, "file": f"samples/{name}.png"}], {f"samples/{name}.png": b"png"}, seconds)


def test_a_unit_comes_back_as_it_was_and_its_pictures_lie_beside_it(tmp_path: Path) -> None:
    with units.opened(tmp_path / "run", CARD, resume=False) as one:
        one.add(done("a/0"))
        one.add(done("b/0", 1.5))
        assert units.seconds(one, ["a/0", "b/0"]) == 2
    with units.opened(tmp_path / "run", CARD, resume=True) as again:
        assert list(again.at) == ["a/0", "b/0"]
        assert again.read("b/0")["rows"] == done("b/0").rows
    assert (tmp_path / "run/samples/a/0.png").read_bytes() == b"png"


def test_a_half_line_at_the_end_is_dropped_and_its_unit_done_again(tmp_path: Path) -> None:
    with units.opened(tmp_path / "run", CARD, resume=False) as one:
        one.add(done("a"))
        one.add(done("b"))
    path = tmp_path / "run" / units.FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with units.opened(tmp_path / "run", CARD, resume=True) as again:
        assert list(again.at) == ["a"]
        again.add(done("b"))
    assert path.read_bytes() == whole


def test_a_damaged_line_before_the_last_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    with units.opened(tmp_path / "run", CARD, resume=False) as one:
        one.add(done("a"))
    path = tmp_path / "run" / units.FILE
    path.write_bytes(b"noise\n" + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(BadInput, match="line 1 is damaged"), units.opened(tmp_path / "run", CARD, resume=True):
        pass
    assert path.read_bytes() == before


def test_two_processes_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with (
        units.opened(tmp_path / "run", CARD, resume=False),
        pytest.raises(BadInput, match="another process is at this run"),
        units.opened(tmp_path / "run", CARD, resume=True),
    ):
        pass
    with units.opened(tmp_path / "run", CARD, resume=True):
        pass
    assert FileLock(tmp_path / "run" / units.LOCK).acquire(timeout=0)


@pytest.mark.parametrize(("key", "value"), [("format", 0), ("efface", "0.0.9")])
def test_a_folder_of_another_version_is_refused(tmp_path: Path, key: str, value: object) -> None:
    with units.opened(tmp_path / "run", CARD, resume=False):
        pass
    path = tmp_path / "run" / units.CARD
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BadInput, match="was written by efface"), units.opened(tmp_path / "run", CARD, resume=True):
        pass


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for resume, said in ((True, "holds no benchmark that could be resumed, but mine.txt"), (False, "not empty")):
        with pytest.raises(BadInput, match=said), units.opened(tmp_path, CARD, resume):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / units.CARD).write_text("[]")
    with pytest.raises(BadInput, match="is damaged"), units.opened(tmp_path, CARD, resume=True):
        pass


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    # /dev/full answers every write as a full disk does
    one = Units(Folder(tmp_path))
    one.add(done("a"))
    whole = (tmp_path / units.FILE).read_bytes()
    (tmp_path / units.FILE).rename(tmp_path / "kept")
    (tmp_path / units.FILE).symlink_to("/dev/full")
    with pytest.raises(EffaceError, match=r"No space left on device.*1 units are kept, go on with --resume"):
        one.add(done("b"))
    assert (tmp_path / "kept").read_bytes() == whole and list(one.at) == ["a"]


def test_a_line_that_is_cut_by_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Units(Folder(tmp_path))
    one.add(done("a"))
    whole = (tmp_path / units.FILE).read_bytes()
    real = Path.open

    def short(self: Path, mode: str = "r", **more: object) -> object:
        file = real(self, mode, **more)  # type: ignore[call-overload]
        if mode != "ab":
            return file

        class Cut:
            def __enter__(self) -> "Cut":
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, line: bytes) -> int:
                return file.write(line[:9])

        return Cut()

    monkeypatch.setattr(Path, "open", short)
    with pytest.raises(EffaceError, match="No space left"):
        one.add(done("b"))
    monkeypatch.undo()
    assert (tmp_path / units.FILE).read_bytes() == whole


def test_a_hundred_thousand_items_start_in_seconds_and_flat_memory(tmp_path: Path) -> None:
    rows = [
        {"id": f"named-{i:06d}@0", "prompt": "a dog on a blue background", "seed": i, "file": f"samples/none/{i}.png",
         "verdicts": []} for i in range(8)
    ]  # fmt: skip
    tail = json.dumps(rows)
    with (tmp_path / units.FILE).open("w") as file:
        file.writelines(f'{{"unit":"none/named/{i:06d}","seconds":1.0,"rows":{tail}}}\n' for i in range(12_500))
    (tmp_path / units.CARD).write_text(json.dumps({"format": units.FORMAT, "efface": units.__version__, **CARD}))
    tracemalloc.start()
    begun = time.monotonic()
    with units.opened(tmp_path, CARD, resume=True) as one:
        seconds = time.monotonic() - begun
        assert len(one.at) == 12_500 and one.read("none/named/012499")["rows"][7]["seed"] == 7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 8e6 < (tmp_path / units.FILE).stat().st_size
