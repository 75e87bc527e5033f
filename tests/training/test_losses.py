"""NT-Xent against a float64 reference and optax, in value and gradient."""

import functools

import jax
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss

from cryjax.training import losses


def reference(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1 of Chen et al. (2020), row by row in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    similarity = z @ z.T / temperature
    n = len(first)
    total = 0.0
    for i in range(2 * n):
        others = np.delete(similarity[i], i)
        total += np.logaddexp.reduce(others) - similarity[i, (i + n) % (2 * n)]
    return total / (2 * n)


def reference_gradient(first, second, temperature, step=1e-5):
    """Central differences in float64."""
    gradient = np.zeros(first.shape)
    for index in np.ndindex(*first.shape):
        moved = np.zeros(first.shape)
        moved[index] = step
        up = reference(first + moved, second, temperature)
        gradient[index] = (up - reference(first - moved, second, temperature)) / (2 * step)
    return gradient


def pair(batch, features, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(batch, features)) * scale
    return first.astype(np.float32), (first + rng.normal(size=first.shape)).astype(np.float32)


@pytest.mark.parametrize("block_size", [None, 1, 5, 64])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_value_and_gradient(block_size, temperature):
    first, second = pair(9, 4)
    loss = functools.partial(losses.nt_xent, temperature=temperature, block_size=block_size)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(first, second)
    np.testing.assert_allclose(value, reference(first, second, temperature), rtol=2e-6)
    expected = reference_gradient(first, second, temperature)
    np.testing.assert_allclose(gradients[0], expected, atol=2e-6 * max(1, np.abs(expected).max()))
    expected = reference_gradient(second, first, temperature)
    np.testing.assert_allclose(gradients[1], expected, atol=2e-6 * max(1, np.abs(expected).max()))


def test_equals_optax():
    first, second = pair(16, 8)
    labels = np.tile(np.arange(16), 2)
    expected = optax.losses.ntxent(np.concatenate([first, second]), labels, temperature=0.3)
    np.testing.assert_allclose(losses.nt_xent(first, second, temperature=0.3), expected, rtol=1e-5)


def test_scale_of_the_input_does_not_matter():
    first, second = pair(8, 4)
    value = losses.nt_xent(first, second, temperature=0.2)
    np.testing.assert_allclose(
        losses.nt_xent(1e3 * first, 1e-3 * second, temperature=0.2), value, rtol=1e-5
    )


def test_bounds():
    # All embeddings equal: every one of 2N - 1 others is as near, so log(2N - 1).
    same = np.ones((8, 4), np.float32)
    np.testing.assert_allclose(losses.nt_xent(same, same, temperature=0.1), np.log(15), rtol=1e-5)
    # Orthogonal pairs at a low temperature: nothing left to learn.
    apart = np.eye(8, dtype=np.float32)
    assert losses.nt_xent(apart, apart, temperature=0.05) < 1e-6


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_blocks_stay_finite_where_normalisers_lie_far_apart(temperature):
    # Half of the rows lie close together, the other half alone: their normalisers differ by tens.
    rng = np.random.default_rng(1)
    first = np.concatenate([np.ones((8, 16)) + 1e-3 * rng.normal(size=(8, 16)), np.eye(16)[:8]])
    second = np.roll(first, 1, axis=1).astype(np.float32)
    first = first.astype(np.float32)
    results = [
        jax.value_and_grad(
            functools.partial(losses.nt_xent, temperature=temperature, block_size=block_size),
            argnums=(0, 1),
        )(first, second)
        for block_size in (None, 4)
    ]
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    for blockwise, dense in zip(results[1][1], results[0][1], strict=True):
        np.testing.assert_allclose(blockwise, dense, atol=1e-4 * np.abs(dense).max())


def test_tiles_hold_no_matrix():
    shape = jax.ShapeDtypeStruct((8192, 128), np.float32)
    memory = {}
    for block_size in (None, 512):
        loss = functools.partial(losses.nt_xent, temperature=0.1, block_size=block_size)
        # Only compiled. Dense is forced by a limit that nothing reaches.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "_DENSE_LIMIT", 2**60)
            compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(shape, shape)
        memory[block_size] = compiled.compile().memory_analysis().temp_size_in_bytes
    assert memory[None] > 16_384**2 * 4
    # 26 MB with JAX 0.10, 30 MB with 0.12, whose dense form takes half of what it took.
    assert memory[512] < 16_384**2 * 4 / 32


def test_large_batches_are_tiled_unasked():
    shape = jax.ShapeDtypeStruct((8192, 128), np.float32)
    loss = functools.partial(losses.nt_xent, temperature=0.1)
    compiled = jax.jit(jax.grad(loss)).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16_384**2 * 4 / 20


def test_bfloat16_inputs_are_computed_in_float32():
    first, second = (x.astype(jax.numpy.bfloat16) for x in pair(16, 8))
    value = losses.nt_xent(first, second, temperature=0.05)
    assert value.dtype == np.float32
    expected = reference(np.float64(first), np.float64(second), 0.05)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_metrics():
    first = np.eye(16, dtype=np.float32)[:12]
    metrics = losses.contrastive_metrics(first, first)
    assert metrics["contrastive_accuracy"] == 1.0
    np.testing.assert_allclose(metrics["alignment"], 0.0, atol=1e-6)
    np.testing.assert_allclose(metrics["uniformity"], -4.0, rtol=1e-5)  # all at squared distance 2
    np.testing.assert_allclose(metrics["effective_rank"], 11.0, rtol=1e-4)  # 12 points, centred

    collapsed = np.ones((12, 1), np.float32) @ np.ones((1, 16), np.float32)
    collapsed = collapsed + 1e-2 * np.linspace(-1, 1, 12, dtype=np.float32)[:, None] * first[:1]
    metrics = losses.contrastive_metrics(collapsed, collapsed)
    np.testing.assert_allclose(metrics["effective_rank"], 1.0, rtol=1e-2)
    assert metrics["uniformity"] > -0.01


def softmax64(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_of_one_label_is_scikit_learns(smoothing):
    rng = np.random.default_rng(0)
    logits, true = 3 * rng.normal(size=(50, 4)).astype(np.float32), rng.integers(4, size=50)
    weights = np.array([0.5, 1.0, 2.0, 0.0], np.float32)
    found = losses.classification(
        logits, np.eye(4, dtype=np.float32)[true], multi_label=False, class_weights=weights,
        smoothing=smoothing,
    )  # fmt: skip
    assert found.shape == (50,)
    if smoothing:
        target = np.eye(4)[true] * (1 - smoothing) + smoothing / 4
        expected = -(weights * target * np.log(softmax64(logits))).sum(axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    else:
        total = log_loss(true, softmax64(logits), sample_weight=weights[true], labels=range(4))
        assert found.sum() / weights[true].sum() == pytest.approx(total, rel=1e-5)


def test_classification_of_several_labels_is_a_loss_for_each():
    rng = np.random.default_rng(1)
    logits = 3 * rng.normal(size=(40, 3)).astype(np.float32)
    targets = (rng.random((40, 3)) < 0.4).astype(np.float32)
    weights = np.array([1.0, 3.0, 0.5], np.float32)
    found = losses.classification(logits, targets, multi_label=True, class_weights=weights)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    each = -np.where(targets > 0, weights * np.log(probability), np.log(1 - probability))
    np.testing.assert_allclose(found, each.mean(axis=1), rtol=1e-5)


def test_classification_stays_finite_where_it_is_sure():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    for multi in (False, True):

        def loss(x, multi=multi):
            ones = np.ones(2, np.float32)
            target = np.eye(2, dtype=np.float32)[::-1]
            return losses.classification(x, target, multi_label=multi, class_weights=ones).mean()

        assert all(np.isfinite(x).all() for x in jax.value_and_grad(loss)(logits))
