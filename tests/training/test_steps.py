"""The step learns, repeats, and uses its key and both views as SimCLR says."""

import functools

import jax
import numpy as np
import pytest

from cryjax.audio import augment, frontend
from cryjax.models import Classifier, ProjectionHead, make_encoder
from cryjax.training import losses, optimizers, steps

RECIPE = {
    "settings": "small_8k",
    "crop": {"seconds": 0.3},
    "transforms": [("gain", {"decibels": (-3.0, 3.0)})],
}


def initial(encoder, head, optimizer):
    """A fresh state; compiled as one, which is quicker than operation by operation."""
    init = functools.partial(
        steps.init_state, encoder=encoder, head=head, optimizer=optimizer, mels=40
    )
    return jax.jit(init)(jax.random.key(0))


@pytest.fixture(scope="module")
def made():
    encoder, head = make_encoder("cnn6", 1 / 16), ProjectionHead(32, 16)
    optimizer = optimizers.make_optimizer("adamw", 3e-3, weight_decay=0.0)
    state = initial(encoder, head, optimizer)
    options = {"encoder": encoder, "head": head, "optimizer": optimizer, "recipe": RECIPE}
    step = jax.jit(functools.partial(steps.simclr_step, **options, temperature=0.2))
    return state, step, options


@pytest.fixture(scope="module")
def batch():
    """Bursts of tones of different pitch: easy to tell apart. (A band's mean is taken out.)"""
    rng = np.random.default_rng(0)
    pitch, seconds = np.geomspace(200, 3500, 16)[:, None], np.arange(6000) / 8000
    tones = np.sin(2 * np.pi * pitch * seconds) * (np.sin(2 * np.pi * 10 * seconds) > 0)
    tones += 0.01 * rng.normal(size=(16, 6000))
    return {"audio": (9000 * tones).astype(np.int16), "length": np.full(16, 6000, np.int32)}


def test_learns_to_tell_clips_apart(made, batch):
    state, step, _ = made
    first = None
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1))
        first = first or float(metrics["loss"])
    assert int(state.step) == 30
    assert first > 0.8 * np.log(31) and metrics["loss"] < 0.6 * first
    assert metrics["contrastive_accuracy"] > 0.8


def test_is_a_function_of_state_batch_and_key(made, batch):
    state, step, _ = made
    one, other = (step(state, batch, jax.random.key(1))[1]["loss"] for _ in range(2))
    assert one == other
    assert step(state, batch, jax.random.key(2))[1]["loss"] != one
    # The step's own key is folded from its number: the same batch has new views at the next.
    later = state.replace(step=state.step + 1)
    assert step(later, batch, jax.random.key(1))[1]["loss"] != one


def test_loss_and_statistics_are_those_of_both_views_in_one_pass(made, batch):
    state, step, options = made
    new, metrics = step(state, batch, jax.random.key(1))
    views = jax.jit(functools.partial(augment.two_views, **RECIPE))(
        jax.random.fold_in(jax.random.key(1), 0), batch["audio"], batch["length"]
    )
    variables = {
        "params": state.params["encoder"],
        "batch_stats": state.batch_stats["encoder"],
    }
    apply = functools.partial(options["encoder"].apply, train=True, mutable=["batch_stats"])
    embeddings, changed = jax.jit(apply)(variables, np.concatenate(views))
    first, second = np.split(options["head"].apply({"params": state.params["head"]}, embeddings), 2)
    loss = losses.nt_xent(first, second, temperature=0.2)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    for ours, theirs in zip(
        jax.tree.leaves(new.batch_stats["encoder"]),
        jax.tree.leaves(changed["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_embedding_is_in_eval_mode(made, batch):
    """Each window alone gives what it gives among others, and nothing is updated."""
    state, _, options = made
    variables = {
        "params": state.params["encoder"],
        "batch_stats": state.batch_stats["encoder"],
    }
    settings = frontend.PRESETS["small_8k"]
    embed = jax.jit(functools.partial(steps.embed, encoder=options["encoder"], settings=settings))
    whole = embed(variables, batch["audio"][:4])
    np.testing.assert_allclose(embed(variables, batch["audio"][:1]), whole[:1], atol=1e-5)


def plain_loss(params, state, options, views, chunks):
    """Each chunk encoded by itself, NT-Xent over all: what chunking must differentiate exactly."""
    size = len(views[0]) // chunks
    projections, stats = [], []
    for n in range(chunks):
        part = np.concatenate([view[n * size : (n + 1) * size] for view in views])
        embeddings, changed = options["encoder"].apply(
            {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]},
            part,
            train=True,
            mutable=["batch_stats"],
        )
        found = options["head"].apply({"params": params["head"]}, embeddings)
        projections.append((found[:size], found[size:]))
        stats.append(changed["batch_stats"])
    first, second = (jax.numpy.concatenate(view) for view in zip(*projections, strict=True))
    mean = jax.tree.map(lambda *x: sum(x) / chunks, *stats)
    return losses.nt_xent(first, second, temperature=0.2), mean


@pytest.mark.parametrize(("chunks", "remat"), [(1, True), (2, False), (4, True)])
def test_chunks_and_remat_change_no_gradient(made, batch, chunks, remat):
    state, _, options = made
    views = jax.jit(functools.partial(augment.two_views, **RECIPE))(
        jax.random.key(5), batch["audio"], batch["length"]
    )
    views = tuple(map(np.asarray, views))
    (loss, stats), gradients = jax.jit(
        jax.value_and_grad(
            lambda params: plain_loss(params, state, options, views, chunks), has_aux=True
        )
    )(state.params)
    ours = jax.jit(
        lambda params: steps._gradients(
            params,
            state.batch_stats["encoder"],
            views,
            options["encoder"].clone(remat=remat),
            options["head"],
            functools.partial(losses.nt_xent, temperature=0.2),
            chunks,
        )
    )(state.params)
    np.testing.assert_allclose(ours[0], loss, rtol=1e-5)
    for mine, theirs in ((ours[1], gradients), (ours[2], stats)):
        assert jax.tree.structure(mine) == jax.tree.structure(theirs)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (np.abs(b).max() + 1e-2))


@pytest.mark.slow
def test_chunks_save_memory(made):
    _, _, options = made
    batch = {
        "audio": jax.ShapeDtypeStruct((64, 6000), np.int16),
        "length": jax.ShapeDtypeStruct((64,), np.int32),
    }
    state, key = jax.eval_shape(lambda: made[0]), jax.random.key(0)

    def memory(chunks):
        step = functools.partial(steps.simclr_step, **options, chunks=chunks, temperature=0.2)
        compiled = jax.jit(step).lower(state, batch, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(8) < 0.7 * memory(1)  # the views themselves are the rest


def test_supervised_step_is_plain_gradient_descent_with_an_average(batch):
    """One step of SGD on what the step itself sees, by hand: scales, weights, frozen, average."""
    encoder, head = make_encoder("cnn6", 1 / 16), Classifier(3)
    optimizer = optimizers.make_optimizer("sgd", 0.1, weight_decay=0.0)
    state = initial(encoder, head, optimizer)
    state = state.replace(average=state.live, step=state.step + 5)
    targets = np.eye(3, dtype=np.float32)[np.arange(16) % 3]
    weights = np.array([0.5, 1.0, 2.0], np.float32)
    recipe = RECIPE | {"transforms": []}
    step = functools.partial(
        steps.supervised_step,
        encoder=encoder.clone(frozen=1), head=head, recipe=recipe,
        optimizer=optimizers.by_layer(optimizer, encoder=0.5, blocks=4, frozen=1),
        loss=functools.partial(losses.classification, multi_label=False, class_weights=weights),
        decay=0.99,
    )  # fmt: skip
    after, metrics = jax.jit(step)(state, batch | {"target": targets}, jax.random.key(1))
    step_key = jax.random.fold_in(jax.random.key(1), 5)
    keys = jax.vmap(lambda place: jax.random.split(jax.random.fold_in(step_key, place), 3))(
        np.arange(16)
    )
    x = augment.view(keys[:, 0], batch["audio"], batch["length"], **recipe)

    def loss(params):
        variables = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
        embeddings, changed = encoder.clone(frozen=1).apply(
            variables, x, train=True, mutable=["batch_stats"]
        )
        probability = jax.nn.softmax(head.apply({"params": params["head"]}, embeddings))
        each = -jax.numpy.log((probability * targets).sum(axis=1))
        return (each * (targets @ weights)).mean(), changed["batch_stats"]

    (value, stats), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    of_layer = {"norm0": 0.0, "block1": 0.0}
    rates = {
        "encoder": {name: 0.1 * of_layer.get(name, 0.5) for name in state.params["encoder"]},
        "head": 0.1,
    }
    expected = jax.tree.map(
        lambda rate, *trees: jax.tree.map(lambda p, g: p - rate * g, *trees),
        rates, state.params, gradients,
    )  # fmt: skip
    live = {"params": expected, "batch_stats": {"encoder": stats}}
    average = jax.tree.map(lambda old, new: 0.4 * old + 0.6 * new, state.live, live)  # 6 / (9 + 6)
    for found, wanted in ((after.live, live), (after.average, average)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, wanted
        )


def test_an_update_that_is_not_finite_is_not_made(batch):
    encoder, head = make_encoder("cnn6", 1 / 16), Classifier(3)
    optimizer = optimizers.make_optimizer("adamw", 0.1, weight_decay=0.1)
    state = initial(encoder, head, optimizer)
    state = state.replace(average=state.live)

    def step(state, loss):
        targets = np.eye(3, dtype=np.float32)[np.arange(16) % 3]
        made = functools.partial(
            steps.supervised_step,
            encoder=encoder, head=head, optimizer=optimizer, loss=loss, decay=0.9,
            recipe=RECIPE | {"transforms": []},
        )  # fmt: skip
        return jax.jit(made)(state, batch | {"target": targets}, jax.random.key(1))

    with jax.debug_nans(False):
        for bad in (
            lambda logits, _: logits.sum(axis=-1) * jax.numpy.nan,
            lambda logits, _: jax.numpy.sqrt(0.0 * logits).sum(axis=-1),  # its gradient alone
        ):
            after, metrics = step(state, bad)
            assert metrics["skipped"] == 1 and int(after.step) == int(state.step) + 1

            def check(now, before):
                counts = np.issubdtype(before.dtype, np.integer)  # of steps: the schedule's too
                np.testing.assert_array_equal(now, before + 1 if counts else before)

            jax.tree.map(check, after, state)
    after, metrics = step(state, lambda logits, _: logits.sum(axis=-1))
    assert metrics["skipped"] == 0
    assert np.any(after.params["head"]["classifier"]["bias"])


def test_dropout_keeps_the_expected_embedding_and_draws_for_each_example(batch):
    encoder, head = make_encoder("cnn6", 1 / 16), Classifier(3)
    optimizer = optimizers.make_optimizer("sgd", 0.1, weight_decay=0.0)
    state = initial(encoder, head, optimizer)
    # Logits that are the sum of the embedding show what of it was kept.
    ones = jax.tree.map(jax.numpy.ones_like, state.params["head"])
    state = state.replace(params=state.params | {"head": ones})
    step = jax.jit(
        functools.partial(
            steps.supervised_step, encoder=encoder, head=head, optimizer=optimizer,
            recipe=RECIPE | {"transforms": []}, loss=lambda logits, _: logits[:, 0],
        ),
        static_argnames="dropout",
    )  # fmt: skip
    labelled = batch | {"target": np.eye(3, dtype=np.float32)[np.arange(16) % 3]}
    seen = [
        float(step(state, labelled, jax.random.key(n), dropout=0.5)[1]["loss"]) for n in range(30)
    ]
    # Crops draw by chance too, and are the same for the same key.
    whole = [
        float(step(state, labelled, jax.random.key(n), dropout=0.0)[1]["loss"]) for n in range(30)
    ]
    assert np.mean(seen) == pytest.approx(np.mean(whole), rel=0.1)
    assert np.std(np.array(seen) - np.array(whole)) > 0
