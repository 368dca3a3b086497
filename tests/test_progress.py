"""Progress is heard by whoever listens, and by nobody else."""

import threading

import pytest

from efface.progress import listening, track

Heard = list[tuple[str, int, int | None]]


def test_a_listener_hears_every_item_when_it_is_finished() -> None:
    heard: Heard = []
    with listening(lambda *what: heard.append(what)):
        for item in track(["a", "b"], "drawing"):
            assert heard[-1] == ("drawing", "ab".index(item), 2)
    assert heard == [("drawing", 0, 2), ("drawing", 1, 2), ("drawing", 2, 2)]


@pytest.mark.parametrize("total", [None, 2])
def test_the_total_of_an_iterator_is_what_is_said_or_not_known(total: int | None) -> None:
    heard: Heard = []
    with listening(lambda *what: heard.append(what)):
        assert list(track(iter("ab"), "reading", total)) == ["a", "b"]
    assert heard[-1] == ("reading", 2, total)


def test_nobody_is_told_outside_and_items_come_all_the_same() -> None:
    heard: Heard = []
    with listening(lambda *what: heard.append(what)):
        pass
    assert list(track(range(3), "x")) == [0, 1, 2]
    assert heard == []


def test_a_listener_is_gone_after_an_exception() -> None:
    heard: Heard = []
    with pytest.raises(KeyboardInterrupt), listening(lambda *what: heard.append(what)):
        raise KeyboardInterrupt
    list(track("ab", "x"))
    assert heard == []


def test_the_inner_listener_hears_alone_and_the_outer_one_again_after_it() -> None:
    outer: Heard = []
    inner: Heard = []
    with listening(lambda *what: outer.append(what)):
        with listening(lambda *what: inner.append(what)):
            list(track("a", "in"))
        list(track("a", "out"))
    assert {what for what, *_ in inner} == {"in"} and {what for what, *_ in outer} == {"out"}


def test_another_thread_is_not_heard() -> None:
    heard: Heard = []
    with listening(lambda *what: heard.append(what)):
        thread = threading.Thread(target=lambda: list(track("ab", "elsewhere")))
        thread.start()
        thread.join()
    assert heard == []
