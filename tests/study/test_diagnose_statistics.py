"""The statistics of `diagnose`, against slow references and against gradients whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from ortholora.study.diagnose.blocks import figures_of_point
from ortholora.study.diagnose.direction import direction, ratio, surely
from ortholora.study.diagnose.noise import noise_per_row, spread
from ortholora.study.diagnose.products import cross_products, jackknife, left_out, over_groups


def gram_of(gradients: np.ndarray) -> np.ndarray:
    """`[N, M, T, P]` → `[N, M, T, M, T]`."""
    return np.einsum("nkap,nlbp->nkalb", gradients, gradients)


def draw(mean: np.ndarray, noise: float, blocks: int, groups: int, seed: int = 0) -> np.ndarray:
    """Gradients `[blocks, groups, T, P]` around `mean [T, P]`, with noise of this length."""
    generator = np.random.default_rng(seed)
    size = mean.shape[1]
    return mean + generator.normal(scale=noise / math.sqrt(size), size=(blocks, groups, *mean.shape))


def two_tasks(cosine: float, size: int = 200, lengths: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    mean = np.zeros((2, size))
    mean[0, 0] = lengths[0]
    mean[1, :2] = lengths[1] * cosine, lengths[1] * math.sqrt(1 - cosine**2)
    return mean


@pytest.fixture(scope="module")
def gradients() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 5, 4, 7))


def products_slowly(gradients: np.ndarray) -> np.ndarray:
    """Every pair of different micro-batches, one after the other."""
    blocks, groups, tasks, _ = gradients.shape
    found = np.zeros((blocks, tasks, tasks))
    for block, a, b in itertools.product(range(blocks), range(tasks), range(tasks)):
        found[block, a, b] = np.mean(
            [gradients[block, i, a] @ gradients[block, j, b] for i, j in itertools.permutations(range(groups), 2)]
        )
    return found


def test_products_are_of_different_micro_batches(gradients):
    np.testing.assert_allclose(cross_products(gram_of(gradients)), products_slowly(gradients))


def test_two_micro_batches_are_two_halves(gradients):
    first, second = gradients[:, 0], gradients[:, 1]
    halves = (first @ second.swapaxes(1, 2) + second @ first.swapaxes(1, 2)) / 2
    np.testing.assert_allclose(cross_products(gram_of(gradients[:, :2])), halves)


def test_each_micro_batch_is_left_out_once(gradients):
    without = left_out(gram_of(gradients))
    for k in range(gradients.shape[1]):
        np.testing.assert_allclose(without[k], products_slowly(np.delete(gradients, k, axis=1)))


def test_the_jackknife_of_a_mean_is_the_standard_error_of_a_mean():
    """For a linear figure it is the textbook's; one task has the gradient 1, so that products are means."""
    values = np.random.default_rng(2).normal(size=9)
    gradients = np.stack([values, np.ones(9)], 1)[None, :, :, None]
    found = jackknife(gram_of(gradients), lambda products: products[..., 0, 1])
    plain = over_groups(values[:, None])
    np.testing.assert_allclose(found.value, plain.value)
    np.testing.assert_allclose(found.error, plain.error)
    np.testing.assert_allclose(found.p, plain.p)


def test_cosines_are_those_without_noise():
    found = direction(gram_of(draw(two_tasks(-0.6), noise=1.5, blocks=300, groups=16)))
    assert found.determined.all()
    assert found.cosines.value[:, 0, 1].mean() == pytest.approx(-0.6, abs=0.02)
    inside = (found.cosines.low[:, 0, 1] < -0.6) & (found.cosines.high[:, 0, 1] > -0.6)
    assert inside.mean() > 0.9
    errors = found.cosines.error[:, 0, 1]
    assert errors.mean() == pytest.approx(found.cosines.value[:, 0, 1].std(), rel=0.25)
    naive = draw(two_tasks(-0.6), noise=1.5, blocks=300, groups=16)[:, 0]
    shrunk = np.einsum("np,np->n", naive[:, 0], naive[:, 1]) / np.prod(np.linalg.norm(naive, axis=2), 1)
    assert shrunk.mean() > -0.3  # what one micro-batch shows


def test_where_there_is_only_noise_no_length_is_determined_and_no_sign_is_sure():
    found = direction(gram_of(draw(np.zeros((2, 200)), noise=1.0, blocks=400, groups=16)))
    assert found.determined.mean() < 0.05
    assert np.isnan(found.cosines.value[~found.determined.all(1)]).all()
    p = found.products.p[:, 0, 1]
    assert (p < 0.05).mean() < 0.07
    assert surely(p).sum() <= 1


def test_sure_blocks_are_mostly_right():
    quiet = draw(two_tasks(0.0), noise=3.0, blocks=150, groups=16, seed=3)
    loud = draw(two_tasks(-0.8), noise=3.0, blocks=50, groups=16, seed=4)
    found = direction(gram_of(np.concatenate([quiet, loud])))
    sure = surely(found.products.p[:, 0, 1])
    assert sure[150:].mean() > 0.5
    assert sure[:150].sum() <= 0.1 * sure.sum() + 1


def test_what_was_not_judged_is_not_sure():
    assert surely(np.array([np.nan, 1e-9, 0.9])).tolist() == [False, True, False]
    assert not surely(np.full(3, np.nan)).any()


def test_zero_gradients_are_legal():
    gradients = draw(two_tasks(0.5), noise=1.0, blocks=2, groups=8)
    gradients[0] = 0
    found = direction(gram_of(gradients))
    assert not found.determined[0].any()
    assert np.isnan(found.cosines.value[0]).all()
    assert (found.products.p[0] == 1).all()


def test_ratios_of_lengths_have_intervals():
    found = ratio(gram_of(draw(two_tasks(0.3, lengths=(2.0, 0.5)), noise=1.0, blocks=300, groups=16)))
    assert np.nanmedian(found.value[:, 0, 1]) == pytest.approx(math.log(4), abs=0.05)
    inside = (found.low[:, 0, 1] < math.log(4)) & (found.high[:, 0, 1] > math.log(4))
    assert inside.mean() > 0.88
    np.testing.assert_allclose(found.value[:, 1, 0], -found.value[:, 0, 1])


def test_noise_per_row_does_not_depend_on_the_micro_batches():
    for rows in (1, 4):
        gradients = draw(two_tasks(0.0), noise=3.0 / math.sqrt(rows), blocks=300, groups=8)
        assert noise_per_row(gram_of(gradients), rows).mean(0) == pytest.approx([9.0, 9.0], rel=0.05)


def test_every_block_has_its_lengths_noise_and_ratios():
    """Against the truth; where a block has no gradient, nothing is told."""
    gradients = draw(two_tasks(0.0, lengths=(2.0, 0.5)), noise=1.0, blocks=40, groups=16)
    gradients[0, :, 1] = 0
    gradients[1:, :, 0] *= 10  # a task of weight 0.1
    arrays = {
        "gram": gram_of(gradients),
        "losses": np.ones((16, 2)),
        "roles": np.array(["A", "B"] * 20),
        "layers": np.repeat(np.arange(20), 2).astype(str),
        "names": np.arange(40).astype(str),
    }
    found = figures_of_point(arrays, ["a", "b"], [0.1, 1.0], 4, [8, 8])["matrices"]
    assert math.isnan(found["lengths"]["b"][0])
    assert math.isnan(found["noise_rows"]["b"][0])
    assert math.isnan(found["pairs"]["a~b"]["log_ratio"]["value"][0])
    assert np.nanmean(found["lengths"]["a"][1:]) == pytest.approx(2.0, rel=0.05)
    assert np.nanmean(found["noise_rows"]["a"][1:]) == pytest.approx(4 / 2.0**2, rel=0.1)  # 4 rows: tr Σ = 4
    assert np.nanmean(found["noise_rows"]["b"][1:]) == pytest.approx(4 / 0.5**2, rel=0.2)
    ratios = found["pairs"]["a~b"]["log_ratio"]
    assert np.nanmean(ratios["value"][1:]) == pytest.approx(math.log(4), abs=0.1)
    known = ~np.isnan(ratios["value"])
    assert (ratios["low"][known] < ratios["value"][known]).all()
    assert (ratios["value"][known] < ratios["high"][known]).all()


def test_the_spread_is_that_of_unequal_noise():
    """Against the formula, with covariances that are known."""
    generator, mean = np.random.default_rng(5), two_tasks(-0.4, size=20)
    scales = generator.uniform(0.2, 1.5, size=mean.shape)
    rows = 4
    gradients = mean + scales / math.sqrt(rows) * generator.normal(size=(2000, 8, *mean.shape))
    found = spread(gram_of(gradients), rows)
    covariance = scales**2
    one = (mean[0] ** 2 * covariance[1]).sum() + (mean[1] ** 2 * covariance[0]).sum()
    assert found.one[:, 0, 1].mean() == pytest.approx(one, rel=0.1)
    assert found.two[:, 0, 1].mean() == pytest.approx((covariance[0] * covariance[1]).sum(), rel=0.1)


def test_with_so_many_rows_the_sign_is_right_nine_times_of_ten():
    """Told the truth, it is right: steps of that many rows are drawn."""
    mean, noise = two_tasks(-0.3), 6.0
    found = spread(gram_of(draw(mean, noise / 2, blocks=400, groups=16)), 4)
    truth = type(found)(*(np.full((1, 2, 2), values[:, 0, 1].mean()) for values in (found.mean, found.one, found.two)))
    rows = float(truth.rows_needed()[0, 0, 1])
    assert truth.right(rows)[0, 0, 1] == pytest.approx(0.9)
    steps = draw(mean, noise / math.sqrt(rows), blocks=4000, groups=1, seed=9)[:, 0]
    assert (np.einsum("np,np->n", steps[:, 0], steps[:, 1]) < 0).mean() == pytest.approx(0.9, abs=0.03)


def test_rows_needed_where_one_kind_of_noise_is_missing():
    ones = np.ones((1, 1, 1))
    z = norm.ppf(0.9)
    kind = type(spread(np.ones((1, 2, 2, 2, 2)), 1))
    assert kind(ones, ones, 0 * ones).rows_needed()[0, 0, 0] == pytest.approx(z**2)
    assert kind(ones, 0 * ones, ones).rows_needed()[0, 0, 0] == pytest.approx(z)
    assert kind(0 * ones, ones, ones).rows_needed()[0, 0, 0] == math.inf
    assert kind(0 * ones, ones, ones).right(5)[0, 0, 0] == 0.5
