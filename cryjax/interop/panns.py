"""Weights to and from the names and layouts of PANNs' PyTorch models (Kong et al., 2020).

`Cnn14`, `Cnn10`, `Cnn6`, `Cnn14_16k` of github.com/qiuqiangkong/audioset_tagging_cnn. It also reads
speechbrain's `Cnn14`, the same network without the last dense layer and with other names for the
batch norms.
"""

import collections
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cryjax.audio import frontend
from cryjax.command.errors import UserError, one_line
from cryjax.interop import weights
from cryjax.interop.model import Description
from cryjax.models.encoders import ENCODERS, fresh, make_encoder
from cryjax.models.heads import Classifier
from cryjax.training.checkpoints import leaf_shapes

_KERNEL_TO_TORCH = (3, 2, 0, 1)  # [height, width, in, out] -> [out, in, height, width]
_KERNEL_FROM_TORCH = (2, 3, 1, 0)
_HEAD = "fc_audioset"
_FRONT_END = ("spectrogram_extractor", "logmel_extractor")
# A file's own mel filters, computed by another version of librosa, differ from ours in rounding.
_FILTER_TOLERANCE = 1e-4


def _names(layers: int, blocks: int) -> dict[str, tuple[str, ...]]:
    """PyTorch's name of each layer -> its path in ours."""
    names: dict[str, tuple[str, ...]] = {"bn0": ("norm0",), "fc1": ("dense",)}
    for block in range(1, blocks + 1):
        for layer in range(1, layers + 1):
            for theirs, ours in (("conv", "conv"), ("bn", "norm")):
                name = f"conv_block{block}.{theirs}{layer}"
                names[name] = (f"block{block}", f"{ours}{layer}")
    return names


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def to_state_dict(
    variables: Mapping[str, Any], encoder: str, settings: frontend.FrontEnd
) -> dict[str, np.ndarray]:
    """Returns all tensors of the PyTorch class.

    Args:
      variables: {'encoder': {'params', 'batch_stats'}} and, with a classifier, 'head', which
        becomes `fc_audioset`.
      encoder: 'cnn6', 'cnn10' or 'cnn14'.
      settings: of the front end, whose filters are tensors of the class.
    """
    channels, layers, *_ = ENCODERS[encoder]
    params, stats = variables["encoder"]["params"], variables["encoder"]["batch_stats"]
    tensors: dict[str, np.ndarray] = {}
    for theirs, path in _names(layers, len(channels)).items():
        layer = {name: np.asarray(x) for name, x in _at(params, path).items()}
        if "scale" in layer:
            running = {name: np.asarray(x) for name, x in _at(stats, path).items()}
            tensors[f"{theirs}.weight"] = layer["scale"]
            tensors[f"{theirs}.bias"] = layer["bias"]
            tensors[f"{theirs}.running_mean"] = running["mean"]
            tensors[f"{theirs}.running_var"] = running["var"]
            tensors[f"{theirs}.num_batches_tracked"] = np.zeros((), np.int64)
        else:
            tensors |= _to_weight(theirs, layer)
    if "head" in variables:
        tensors |= _to_weight(_HEAD, variables["head"]["params"]["classifier"])
    basis = frontend.windowed_fourier_basis(settings).T[:, None]
    real, sine = np.split(basis, 2)
    tensors["spectrogram_extractor.stft.conv_real.weight"] = real
    tensors["spectrogram_extractor.stft.conv_imag.weight"] = -sine
    tensors["logmel_extractor.melW"] = frontend.mel_filters(settings)
    return {name: np.array(tensor, order="C") for name, tensor in tensors.items()}


def _to_weight(name: str, layer: Mapping[str, Any]) -> dict[str, np.ndarray]:
    kernel = np.asarray(layer["kernel"])
    turned = kernel.transpose(_KERNEL_TO_TORCH if kernel.ndim == 4 else (1, 0))
    return {f"{name}.weight": turned} | (
        {f"{name}.bias": np.asarray(layer["bias"])} if "bias" in layer else {}
    )


def _from_weight(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    weight = tensors[f"{name}.weight"]
    kernel = weight.transpose(_KERNEL_FROM_TORCH if weight.ndim == 4 else (1, 0))
    bias = tensors.get(f"{name}.bias")
    return {"kernel": kernel} | ({} if bias is None else {"bias": bias})


def _width(encoder: str, tensors: Mapping[str, np.ndarray]) -> float:
    """A width that gives a file's numbers of channels; the first block's if none does.

    They are rounded: of 6 and 13 channels, 6 / 64 would give 6 and 12, and 13 / 128 both.
    """
    channels, *_ = ENCODERS[encoder]
    names = [f"conv_block{block}.conv1.weight" for block in range(1, len(channels) + 1)]
    found = [len(tensors.get(name, ())) for name in names]
    pairs = [*zip(found, channels, strict=True)]
    of_blocks = [n / full for n, full in pairs]
    # The middle of all that are rounded to these numbers; no block has fewer than one channel.
    lowest = max((n - 0.5 if n > 1 else 0.0) / full for n, full in pairs)
    highest = min((n + 0.5) / full for n, full in pairs)
    widths = [width for width in (*of_blocks, (lowest + highest) / 2) if width > 0]
    fits = (x for x in widths if [*make_encoder(encoder, x).channels] == found)
    return next(fits, of_blocks[0])


def from_state_dict(
    tensors: Mapping[str, np.ndarray], settings: frontend.FrontEnd
) -> tuple[str, float, dict[str, Any]]:
    """Returns a state dict's encoder, and its classifier if it has one.

    Args:
      tensors: by name, float32.
      settings: of the front end; the file's own filters, if any, must match.

    Returns:
      The encoder's name, its width, and the variables as `to_state_dict` takes them.

    Raises:
      UserError: if it is no known network, incomplete, or made for another front end.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if "norm0.weight" in tensors:
        tensors = _from_speechbrain(tensors)
    blocks = {int(m[1]) for name in tensors if (m := re.match(r"conv_block(\d+)\.", name))}
    first = tensors.get("conv_block1.conv1.weight", np.zeros(0))
    form = len(blocks), 1 + ("conv_block1.conv2.weight" in tensors), first.shape[-1:]
    known = {(len(channels), n, (k,)): name for name, (channels, n, k, *_) in ENCODERS.items()}
    if form not in known:
        raise UserError(
            "the tensors do not match PANNs' Cnn6, Cnn10 or Cnn14, or speechbrain's Cnn14"
        )
    encoder = known[form]
    channels, layers, *_ = ENCODERS[encoder]
    _check_filters(tensors, settings)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for theirs, path in _names(layers, len(channels)).items():
        try:
            layer, running = _layer(tensors, theirs)
        except KeyError as error:
            raise UserError(
                f"a {encoder} without {error.args[0]}: the file is incomplete"
            ) from None
        for tree, leaves in (("params", layer), ("batch_stats", running)):
            if leaves:
                _put(variables[tree], path, leaves)
    width = _width(encoder, tensors)
    made, key = make_encoder(encoder, width), jax.random.key(0)
    needs = f"a {encoder} of width {width:g} with this front end"
    wanted = jax.eval_shape(functools.partial(fresh, made, mels=settings.mels), key)
    _check_shapes(variables, wanted, needs)
    found = {"encoder": variables}
    if f"{_HEAD}.weight" in tensors:
        found["head"] = {"params": {"classifier": _from_weight(tensors, _HEAD)}}
        head = Classifier(len(tensors[f"{_HEAD}.weight"]))
        wanted = jax.eval_shape(head.init, key, jnp.zeros((1, made.features)))
        _check_shapes(found["head"], wanted, "its classifier")
    return encoder, width, found


def _layer(
    tensors: Mapping[str, np.ndarray], name: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters and running statistics of a layer. Raises KeyError naming what is missing."""
    if not name.rpartition(".")[2].startswith("bn"):
        return _from_weight(tensors, name), {}
    return (
        {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]},
        {"mean": tensors[f"{name}.running_mean"], "var": tensors[f"{name}.running_var"]},
    )


def _put(tree: dict[str, Any], path: tuple[str, ...], leaves: dict[str, np.ndarray]) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaves


def _from_speechbrain(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames tensors as in PANNs; the missing dense layer becomes an identity.

    Its input, a sum of means and maxima of ReLUs, is never negative, so its own ReLU does nothing
    either.
    """
    renamed = {re.sub(r"\bnorm(\d)\.", r"bn\1.", name): x for name, x in tensors.items()}
    last = max((name for name in renamed if name.endswith(".conv2.weight")), default="")
    features = len(renamed[last]) if last else 0
    return renamed | {
        "fc1.weight": np.eye(features, dtype=np.float32),
        "fc1.bias": np.zeros(features, np.float32),
    }


def fitting_front_ends(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The presets whose mel filters are a file's; none if it has no filters."""
    theirs = next((x for n, x in tensors.items() if n.endswith("logmel_extractor.melW")), None)
    if theirs is None:
        return []
    return [name for name, preset in frontend.PRESETS.items() if _has_filters(theirs, preset)]


def _has_filters(theirs: np.ndarray, settings: frontend.FrontEnd) -> bool:
    ours = frontend.mel_filters(settings)
    if theirs.shape != ours.shape:
        return False
    return bool(np.abs(theirs - ours).max() < _FILTER_TOLERANCE * ours.max())


def _check_filters(tensors: Mapping[str, np.ndarray], settings: frontend.FrontEnd) -> None:
    theirs = tensors.get("logmel_extractor.melW")
    if theirs is not None and not _has_filters(theirs, settings):
        fitting = fitting_front_ends(tensors)
        remedy = f"give --front_end={fitting[0]}" if fitting else "no preset of cryjax fits"
        raise UserError(f"the file's own mel filters are those of another front end; {remedy}")


def _check_shapes(variables: Mapping[str, Any], wanted: Mapping[str, Any], needs: str) -> None:
    """Raises UserError if `variables` lack the shapes that a module, `needs`, wants."""
    found = leaf_shapes(variables)
    for name, shape in leaf_shapes(wanted).items():
        if found.get(name) != shape:
            raise UserError(
                f"the file's {name} is {found.get(name, 'missing')}, but {needs} needs {shape}"
            )


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The float tensors of a .safetensors file or, with PyTorch, of a .pth or .ckpt, as float32.

    Raises:
      UserError: if it cannot be read, or the package to read it is not installed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give --weights=FILE.pth or FILE.safetensors")
    reads = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    tensors = reads(path)
    if not tensors:
        raise UserError(f"{path}: has no float tensors")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has values that are not finite")
    return tensors


def read_description(path: pathlib.Path) -> Description | None:
    """The description in a .safetensors file of `cryjax.export`; None for any other file."""
    if path.suffix != ".safetensors":
        return None
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        text = (file.metadata() or {}).get("cryjax")
    try:
        return Description.from_json(text) if text else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: its 'cryjax' metadata is not from cryjax.export "
            f"({type(error).__name__}); export it again"
        ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f'{path} needs safetensors: pip install "cryjax[export]"') from error
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
    return {name: x.astype(np.float32) for name, x in tensors.items() if x.dtype.kind == "f"}


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} needs PyTorch to be read: pip install torch, or give a .safetensors file"
        ) from error
    try:
        # Weights only: no code in the file is run.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling and zip files raise
        reason = one_line(error)
        raise UserError(f"{path}: PyTorch cannot read weights from it ({reason})") from error
    while isinstance(found, collections.abc.Mapping) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, collections.abc.Mapping):
        raise UserError(f"{path}: has no named weights")
    return {
        name: x.float().numpy()
        for name, x in found.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point()
    }


def write_tensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], kind: str, **metadata: str
) -> None:
    """Writes a .safetensors file, its kernels in `kind`: 'float32' or 'float16'."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError('safetensors is missing: pip install "cryjax[export]"') from error
    stored: dict[str, Any] = {
        # The front end's filters are small, and identify it.
        name: x if name.split(".")[0] in _FRONT_END else weights.store(x, kind, axis=0)
        for name, x in tensors.items()
    }
    path.write_bytes(safetensors.numpy.save(stored, metadata={"format": "pt", **metadata}))
