"""How states are written: the options that we give to Orbax, and the checksums beside each state."""

import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pv_vae_jax.params_io import find_damage
from pv_vae_jax.train.checkpoint import WRITE_LIMIT, Checkpoints


def test_states_are_renamed_and_have_an_hour_to_be_written(tmp_path):
    manager = Checkpoints(tmp_path)._manager
    options = manager._options
    assert options.atomicity_options.mode == ocp.options.AtomicityMode.ATOMIC_RENAME
    assert options.async_options.timeout_secs == WRITE_LIMIT == 3600
    manager.close()


@pytest.mark.parametrize("mode", ["ATOMIC_RENAME", "COMMIT_FILE"])
def test_a_state_has_checksums_wherever_orbax_writes_it(tmp_path, monkeypatch, mode):
    """In a temporary folder, or in place."""
    chosen = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode[mode])
    monkeypatch.setattr(ocp.options, "AtomicityOptions", lambda **_: chosen)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, jax.device_put({"w": np.zeros(1 << 12, np.float32)}))
    checkpoints.close()
    assert json.loads((tmp_path / "1" / "checksums.json").read_text()) and not find_damage(tmp_path / "1")


def test_checksums_are_those_of_the_newest_of_several_temporary_folders(tmp_path):
    checkpoints = Checkpoints.__new__(Checkpoints)  # without Orbax, which would remove these folders
    checkpoints._folder, checkpoints._saving = tmp_path, 1
    for name, age in (("1.orbax-checkpoint-tmp-7", 0), ("1.orbax-checkpoint-tmp-0", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "array").write_bytes(b"x")
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    checkpoints._write_checksums()
    assert (tmp_path / "1.orbax-checkpoint-tmp-7" / "checksums.json").is_file()
    assert not (tmp_path / "1.orbax-checkpoint-tmp-0" / "checksums.json").exists()
