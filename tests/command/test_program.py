"""Where what was compiled is kept."""

import pathlib

import jax
import pytest

from cryjax.command import program


@pytest.fixture
def cache_dir():
    """Gives the name of JAX's setting, which is as before afterwards."""
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    yield name
    jax.config.update(name, before)


def test_compiled_programs_are_kept_among_the_users_files(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(cache_dir, None)
    program._keep_compiled()
    kept = pathlib.Path(jax.config.jax_compilation_cache_dir)
    assert kept.parent == tmp_path / "cryjax" and kept.name.startswith("compiled-")


def test_what_the_user_says_stays(cache_dir, tmp_path):
    jax.config.update(cache_dir, str(tmp_path))
    program._keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
