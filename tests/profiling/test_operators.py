import pytest

from edgevit.profiling.operators import exp_part, kind_of, work_of


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("FusedMatMul", "product"),
        ("conv2d", "product"),
        ("LayerNormalization", "normalisation"),
        ("ReorderInput", "copy"),
        ("Transpose", "reshape"),
        ("Add", "element-wise"),
        ("BiasGelu", "activation"),
        ("Softmax", "softmax"),
        ("Unheard", "other"),
    ],
)
def test_kinds(op: str, kind: str) -> None:
    assert kind_of(op) == kind


def test_what_needs_exp() -> None:
    assert exp_part("softmax") == "softmax"
    assert exp_part("Erf") == exp_part("Gelu") == "GELU"
    assert exp_part("Sigmoid") == "other"
    assert exp_part("Relu") is None


def test_a_grouped_convolution() -> None:
    # 8 x 4 x 4 outputs, each of 3 x 3 taps of one channel.
    flops, moved = work_of("Conv", [[1, 8, 4, 4], [8, 1, 3, 3], [8]], [[1, 8, 4, 4]], views=False)
    assert flops == 2 * 128 * 9
    assert moved == 4 * (128 + 72 + 8 + 128)


@pytest.mark.parametrize(
    ("op", "takes", "gives", "inner"),
    [
        ("MatMul", [[2, 5, 7], [7, 3]], [2, 5, 3], 7),
        ("FusedMatMul", [[2, 7, 5], [2, 7, 3]], [2, 5, 3], 7),  # the left one transposed
        ("FusedMatMul", [[2, 5, 7], [2, 3, 7]], [2, 5, 3], 7),  # the right one
        ("linear", [[2, 5, 7], [3, 7], [3]], [2, 5, 3], 7),
        ("addmm", [[3], [5, 7], [7, 3]], [5, 3], 7),
    ],
)
def test_products(op: str, takes: list[list[int]], gives: list[int], inner: int) -> None:
    size = 1
    for number in gives:
        size *= number
    assert work_of(op, takes, [gives], views=False)[0] == 2 * size * inner


def test_a_weight_that_was_packed_away_is_read_all_the_same() -> None:
    told = work_of("Gemm", [[1, 7], [3]], [[1, 3]], views=False)
    assert told == [2 * 3 * 7, 4 * (7 + 3 + 3 + 7 * 3)]


def test_views_move_nothing_where_there_are_views() -> None:
    assert work_of("transpose", [[4, 4]], [[4, 4]], views=True) == [0, 0]
    assert work_of("Transpose", [[4, 4]], [[4, 4]], views=False) == [0, 128]
