"""Atomic file writes."""

import json
import threading

import jax.numpy as jnp
import pytest

from pv_vae_jax.params_io import write_params
from pv_vae_jax.storage import atomic, partial, partials, write_json


def test_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """As two attempts at one task of Beam do."""
    both, path, replace = threading.Barrier(2), tmp_path / "a.json", type(tmp_path).replace
    failed = []

    def together(source, target):
        both.wait(20)  # both have written, and none has published
        return replace(source, target)

    def write(number):
        try:
            write_json(path, [number] * 10)
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(type(tmp_path), "replace", together)
    writers = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed and json.loads(path.read_text()) in ([0] * 10, [1] * 10)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_half_written_stays(tmp_path):
    path = tmp_path / "a[1].json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    earlier = {".a[1].json.ab12.partial", ".a[1].json.partial"}  # of earlier versions
    left = {partial(path).name, *earlier}
    for name in (*left, ".b.json.ab12.partial", partial(tmp_path / "b.json").name, partial(tmp_path / "a[1].npz").name):
        (tmp_path / name).touch()
    assert {path.name for path in partials(path)} == left


def test_a_temporary_name_keeps_the_suffix(tmp_path):
    """Some writers choose a format by it."""
    with atomic(tmp_path / "a.npz") as temporary:
        assert temporary.suffix == ".npz" and temporary.name.startswith(".a.")
        temporary.write_bytes(b"1")
    with pytest.raises(KeyError), atomic(tmp_path / "a.npz") as temporary:
        temporary.write_bytes(b"2")
        raise KeyError
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"] and (tmp_path / "a.npz").read_bytes() == b"1"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    """Weights above all, whose library makes files for the owner alone."""
    write_params(tmp_path / "vae.safetensors", {"a": jnp.zeros(3)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "vae.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
