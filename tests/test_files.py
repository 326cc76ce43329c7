"""Files that are there whole or not at all."""

import json
import threading

import pytest

from pv_vae_jax.storage import partials, write_json


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
    for name in (".a[1].json.ab12.partial", ".a[1].json.partial", ".b.json.ab12.partial"):
        (tmp_path / name).touch()
    assert {left.name for left in partials(path)} == {".a[1].json.ab12.partial", ".a[1].json.partial"}
