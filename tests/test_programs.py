"""A process that trains model after model does not run out of pieces of memory."""

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pv_vae_jax.train import loop
from pv_vae_jax.train.programs import forget_programs

PIECES = Path("/proc/self/maps")
pytestmark = pytest.mark.skipif(not PIECES.exists(), reason="only Linux tells and limits the pieces of memory")


def pieces() -> int:
    return PIECES.read_bytes().count(b"\n")


def test_programs_are_forgotten_when_they_are_too_many_and_give_their_memory_back():
    gc.collect()
    scale = [jax.jit(lambda x, n=n: jnp.sin(n * x).sum()) for n in range(24)]
    before = pieces()
    values = [float(f(jnp.ones(8))) for f in scale]
    after = pieces()
    assert after > before + len(scale), "a program takes some"
    assert not forget_programs(most=after + 1_000) and all(f._cache_size() == 1 for f in scale)
    assert forget_programs(most=0) and all(f._cache_size() == 0 for f in scale)
    assert pieces() < after - len(scale)
    assert [float(f(jnp.ones(8))) for f in scale] == values, "what is needed again compiles again"


def test_every_stage_begins_with_it(monkeypatch):
    """So a loop over experiments in one process, a study or a notebook, need not know of it."""

    class Called(Exception):
        pass

    def call():
        raise Called

    monkeypatch.setattr(loop, "forget_programs", call)
    with pytest.raises(Called):
        loop.run_stage(None, None)
