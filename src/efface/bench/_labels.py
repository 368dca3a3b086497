"""Where the labels of a scatter plot go, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, pi, sin

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""left, bottom, right, top"""

DISTANCES = (7, 11, 17, 25, 35, 48, 64, 84, 110, 142, 180, 230, 290)
TURNS = (0, 6, -6, 12, 3, -3, 9, -9, 1, -1, 5, -5, 7, -7, 11, -11, 2, -2, 4, -4, 8, -8, 10, -10)
"""Twelfths of half a turn, best first: right, above, below, left, ..."""


def place(points: Sequence[Point], sizes: Sequence[Point], frame: Box) -> list[Box]:
    """A box for each label: the nearest to its point that lies in the frame and covers no point, label or leader.

    Greedy, in the order given; where nothing is free, the label goes where it covers least.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    labels: list[Box] = []
    for (x, y), (w, h) in zip(points, sizes, strict=True):
        best, least = (x, y, x + w, y + h), float("inf")
        for far in DISTANCES:
            for turn in TURNS:
                mid = x + cos(turn * pi / 12) * (far + w / 2), y + sin(turn * pi / 12) * (far + h / 2)
                box = mid[0] - w / 2, mid[1] - h / 2, mid[0] + w / 2, mid[1] + h / 2
                if box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]:
                    continue
                covered = 20 * sum(_shared(box, label) for label in labels)
                if covered < least:
                    covered += sum(_shared(box, other) for other in taken)
                if covered < least:
                    path = leader((x, y), box)
                    covered += sum(40 for a, b in path for o in labels if o[0] < a < o[2] and o[1] < b < o[3])
                if covered < least:
                    best, least = box, covered
            if least == 0:
                break
        labels.append(best)
        taken += [(a - 1, b - 1, a + 1, b + 1) for a, b in leader((x, y), best)[2:]]
    return labels


def leader(point: Point, box: Box) -> list[Point]:
    """Points every few steps from a point to the nearest point of its label's box."""
    x, y = point
    end = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    steps = max(1, round(hypot(end[0] - x, end[1] - y) / 4))
    return [(x + (end[0] - x) * i / steps, y + (end[1] - y) * i / steps) for i in range(steps + 1)]


def _shared(a: Box, b: Box) -> float:
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0.0
    return (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
