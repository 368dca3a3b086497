"""Labels beside crowded points."""

from efface.bench._labels import leader, place


def test_labels_of_crowded_points_cover_neither_each_other_nor_a_point() -> None:
    points = [(300.0 + 24 * (k % 5), 200.0 + 19 * (k // 5)) for k in range(30)]
    boxes = place(points, [(90.0, 14.0)] * 30, (0.0, 0.0, 800.0, 500.0))
    for i, a in enumerate(boxes):
        assert min(a) >= 0 and a[2] <= 800 and a[3] <= 500
        assert not [b for b in boxes[:i] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]
        assert not [p for p in points if a[0] < p[0] < a[2] and a[1] < p[1] < a[3]]


def test_a_label_stands_right_of_a_point_that_is_alone() -> None:
    (box,) = place([(100.0, 50.0)], [(30.0, 10.0)], (0.0, 0.0, 400.0, 400.0))
    assert box == (107.0, 45.0, 137.0, 55.0)


def test_where_no_place_is_free_a_label_still_has_one() -> None:
    assert place([(5.0, 5.0)], [(30.0, 10.0)], (0.0, 0.0, 10.0, 10.0)) == [(5.0, 5.0, 35.0, 15.0)]


def test_a_leader_ends_at_its_label() -> None:
    assert leader((0.0, 5.0), (8.0, 0.0, 20.0, 10.0)) == [(0.0, 5.0), (4.0, 5.0), (8.0, 5.0)]
