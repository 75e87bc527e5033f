"""The table of a run says what the model really is: its shapes, and all of its parameters."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from cryjax.models import ENCODERS, Classifier, ProjectionHead, make_encoder
from cryjax.training import steps, summary

INPUTS = (70, 40)
KEY = jax.eval_shape(lambda: jax.random.key(0))  # shapes are all that is asked for


def made(name, head, *, remat=False):
    encoder = make_encoder(name, width=1 / 16).clone(remat=remat)
    init = functools.partial(steps.init_state, encoder=encoder, head=head, mels=INPUTS[1])
    return encoder, jax.eval_shape(functools.partial(init, optimizer=optax.sgd(0.1)), KEY)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_shapes_are_those_of_a_call_and_no_parameter_is_missing(name, remat):
    encoder, state = made(name, Classifier(3), remat=remat)
    variables = {
        "params": state.params["encoder"],
        "batch_stats": state.batch_stats["encoder"],
    }
    found = summary.layers(encoder, variables, INPUTS)
    assert sum(layer.parameters for layer in found) == sum(
        x.size for x in jax.tree.leaves(state.params["encoder"])
    )
    call = functools.partial(
        encoder.apply,
        capture_intermediates=lambda module, _: len(module.path) == 1,
        mutable=["intermediates"],
    )
    _, kept = jax.eval_shape(call, variables, jax.ShapeDtypeStruct((2, *INPUTS), jnp.float32))
    real = {name: part["__call__"][0].shape[1:] for name, part in kept["intermediates"].items()}
    assert {layer.name: layer.output for layer in found} == real
    blocks = [f"block{n}" for n in range(1, len(ENCODERS[name][0]) + 1)]
    assert [layer.name for layer in found] == ["norm0", *blocks, "dense"]


@pytest.mark.parametrize("head", [Classifier(3), ProjectionHead(16, 8)])
def test_the_lines_are_few_and_add_up(head):
    encoder, state = made("cnn14", head)
    lines = summary.model_lines(encoder, head, state, INPUTS)
    assert len(lines) <= 15 and max(map(len, lines)) <= 100
    counts = {line[:22].strip(): line.split()[-1].replace(",", "") for line in lines[2:]}
    total = int(counts.pop("in all"))
    assert total == sum(x.size for x in jax.tree.leaves(state.params))
    of_encoder = int(counts.pop("encoder"))
    of_head = sum(int(n) for name, n in counts.items() if name.startswith("head"))
    assert of_encoder + of_head == total
    assert sum(map(int, counts.values())) == total
