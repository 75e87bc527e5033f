"""PANNs' and speechbrain's weights say here what they say in PyTorch, and come back bit for bit."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import lively
from cryjax.audio import frontend
from cryjax.command.errors import UserError
from cryjax.interop import panns, run
from cryjax.interop.model import read_run
from cryjax.models import ENCODERS, encoders, make_encoder

REFERENCE = pathlib.Path(__file__).with_name("reference.npz")
CLASSES = 5
NETWORKS = {
    "Cnn14_16k": ("cnn14", "panns_16k"),
    "Cnn10": ("cnn10", "panns_32k"),
    "Cnn6": ("cnn6", "panns_32k"),
}


def torch_weights(encoder: str, front_end: str) -> dict[str, np.ndarray]:
    """A PyTorch model's tensors by its own names and shapes, with `make_reference`'s values."""
    channels, layers, size, _, features = ENCODERS[encoder]
    mels = frontend.PRESETS[front_end].mels
    shapes = {"bn0": (mels,), "fc1": (features, channels[-1]), "fc_audioset": (CLASSES, features)}
    before = 1
    for block, width in enumerate(channels, 1):
        for layer in range(1, layers + 1):
            shapes[f"conv_block{block}.conv{layer}"] = (width, before, size, size)
            shapes[f"conv_block{block}.bn{layer}"] = (width,)
            before = width
    found = {}
    for name, shape in shapes.items():
        parts = {"weight": shape}
        if len(shape) == 1:
            parts |= {part: shape for part in ("bias", "running_mean", "running_var")}
        if len(shape) == 2:
            parts["bias"] = shape[:1]
        found |= {f"{name}.{part}": lively.tensor(f"{name}.{part}", s) for part, s in parts.items()}
    return found


@pytest.mark.parametrize("width", [0.02, 0.1, 1 / 3, 0.412, 1.37])
def test_numbers_of_channels_tell_the_width_however_they_were_rounded(width):
    encoder = make_encoder("cnn6", width)
    draw = functools.partial(encoders.fresh, encoder, mels=64)
    shapes = jax.eval_shape(draw, jax.random.key(0))
    variables = {"encoder": jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)}
    settings = frontend.PRESETS["panns_32k"]
    tensors = panns.to_state_dict(variables, "cnn6", settings)
    _, found, back = panns.from_state_dict(tensors, settings)
    assert make_encoder("cnn6", found) == encoder
    assert jax.tree.map(np.shape, back["encoder"]) == jax.tree.map(np.shape, shapes)


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=pytest.mark.slow) if "14" in name else name for name in NETWORKS],
)
def test_equal_to_pytorch(network, tmp_path):
    """Its own front end included."""
    encoder, front_end = NETWORKS[network]
    settings = frontend.PRESETS[front_end]
    tensors = torch_weights(encoder, front_end)
    name, width, variables = panns.from_state_dict(tensors, settings)
    assert (name, width) == (encoder, 1.0)
    labels = tuple(map(str, range(CLASSES)))
    source = lively.source(encoder, settings, labels, multi_label=True, width=width)
    source = dataclasses.replace(source, variables=variables)
    if encoder == "cnn6":  # the largest would take a while
        run.write(tmp_path / "run", name, width, front_end, 1.0, variables, labels)
        source = read_run(str(tmp_path / "run"))
    found = jax.jit(source.function)(source.variables, lively.waveform(settings.sample_rate))
    with np.load(REFERENCE) as reference:
        for output, value in found.items():
            wanted = reference[f"{network}/{output}"]
            assert wanted.std() > 0.01
            np.testing.assert_allclose(value, wanted, atol=1e-4 * np.abs(wanted).max())
    back = panns.to_state_dict(source.variables, name, settings)
    assert tensors.keys() == {
        key for key in back if "extractor" not in key and "num_batches" not in key
    }
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)


@pytest.mark.slow
def test_speechbrain():
    tensors = {
        name.replace("bn", "norm"): lively.tensor(name.replace("bn", "norm"), tensor.shape)
        for name, tensor in torch_weights("cnn14", "cssl_sound").items()
        if not name.startswith("fc")
    }
    settings = frontend.PRESETS["cssl_sound"]
    name, width, variables = panns.from_state_dict(tensors, settings)
    assert (name, width) == ("cnn14", 1.0) and "head" not in variables
    source = lively.source("cnn14", settings, width=1.0)
    encoder = source.function.keywords["encoder"]
    found = jax.jit(encoder.apply)(variables["encoder"], lively.spectrogram())
    with np.load(REFERENCE) as reference:
        wanted = reference["speechbrain/embedding"]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.fixture
def small():
    """A narrow CNN6 with its front end's tensors."""
    source = lively.source("cnn6", "panns_16k", ("a", "b"))
    return panns.to_state_dict(source.variables, "cnn6", source.description.front_end)


def test_a_file_is_written_and_read(small, tmp_path):
    path = tmp_path / "model.safetensors"
    panns.write_tensors(path, small, "float32")
    back = panns.read_tensors(path)
    assert back.keys() | {n for n in small if "num_batches" in n} == small.keys()
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, small[name])
    panns.write_tensors(path, small, "float16")
    half = safetensors.numpy.load_file(path)
    assert half["fc1.weight"].dtype == np.float16 and half["fc1.bias"].dtype == np.float32
    assert half["logmel_extractor.melW"].dtype == np.float32
    assert panns.fitting_front_ends(panns.read_tensors(path)) == ["panns_16k"]


def test_the_front_end_is_the_files_own(small):
    with pytest.raises(UserError, match="another front end; give --front_end=panns_16k"):
        panns.from_state_dict(small, frontend.PRESETS["panns_32k"])
    small["logmel_extractor.melW"] = small["logmel_extractor.melW"] * 1.1
    with pytest.raises(UserError, match="no preset of cryjax fits"):
        panns.from_state_dict(small, frontend.PRESETS["panns_16k"])


def test_other_networks_are_named(small, tmp_path):
    settings = frontend.PRESETS["panns_16k"]
    renamed = {f"module.{name}": x for name, x in small.items()}
    assert panns.from_state_dict(renamed, settings)[:2] == ("cnn6", 1 / 16)
    for gone, said in (
        ("conv_block4.bn1.running_mean", "conv_block4.bn1"),
        ("fc1.weight", "cnn6 without fc1.weight"),
    ):
        with pytest.raises(UserError, match=said):
            panns.from_state_dict({k: v for k, v in small.items() if k != gone}, settings)
    with pytest.raises(UserError, match=r"dense/kernel is .*, but a cnn6"):
        panns.from_state_dict(small | {"fc1.weight": small["fc1.weight"][:-1]}, settings)
    head = {"fc_audioset.weight": small["fc_audioset.weight"][:, :-1]}
    with pytest.raises(UserError, match=r"classifier/kernel is .*, but its classifier needs"):
        panns.from_state_dict(small | head, settings)
    bare = {k: v for k, v in small.items() if k != "fc_audioset.bias"}
    with pytest.raises(UserError, match="classifier/bias is missing, but its classifier needs"):
        panns.from_state_dict(bare, settings)
    with pytest.raises(UserError, match="do not match PANNs' Cnn6"):
        panns.from_state_dict({"fc1.weight": small["fc1.weight"]}, settings)
    broken = small | {"fc1.bias": small["fc1.bias"] * np.nan}
    path = tmp_path / "broken.safetensors"
    panns.write_tensors(path, broken, "float32")
    with pytest.raises(UserError, match=r"fc1\.bias has values that are not finite"):
        panns.read_tensors(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        panns.read_tensors(path)
    with pytest.raises(UserError, match="no such file"):
        panns.read_tensors(tmp_path / "missing.pth")
