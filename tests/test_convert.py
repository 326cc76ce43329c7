"""Published weights in and out: names, axes, types, faults, files that must not run, the command."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pv_vae_jax import load
from pv_vae_jax.cli.main import main
from pv_vae_jax.convert.files import read_tensors, write_tensors
from pv_vae_jax.convert.torch_file import read_torch
from pv_vae_jax.convert.wan import (
    LATENT_STATISTICS,
    LAYOUTS,
    WAN21_LATENTS,
    WAN22_LATENTS,
    LatentStatistics,
    detect_layout,
    from_wan,
    published_shapes,
    to_wan,
)
from pv_vae_jax.models.transformer_vae import TransformerVAEConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.typing import WeightsError
from tests import torch_fixture, wan_fixture

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(wan_fixture.CONFIGS)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the published names and shapes, on machines that have it."""
    folder = Path(os.environ.get("PV_VAE_SHARED", Path(__file__).parents[2] / "shared")) / "reference"
    if not folder.is_dir():
        pytest.skip("no published shapes here: set PV_VAE_SHARED to a folder that holds reference/")
    return folder


def flags_of(name: str) -> list[str]:
    """What makes the named architecture the small one of the tests, on the command line."""
    config = wan_fixture.CONFIGS[name]
    keys = ("latent_channels", "encoder_widths", "decoder_widths")
    return [f"--architecture={name}", *(f"--config.{key}={getattr(config, key)}" for key in keys)]


def convert(*arguments) -> tuple[int, str]:
    """Run the command in this process: exit status, what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = main(["pv-vae", "convert", *map(str, arguments)])
    return status, out.getvalue()


# Names and axes


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_published_ones(reference, name, layout):
    published = json.loads((reference / f"{name}_vae_param_shapes.json").read_text())
    ours = published_shapes(getattr(VAEConfig, name)(), layout)
    assert ours == {key: tuple(shape) for key, shape in published[layout].items()}
    assert len(ours) == published["totals"]["tensors"]
    assert sum(int(np.prod(shape)) for shape in ours.values()) == published["totals"]["parameters"]


def test_the_two_layouts_name_the_same_tensors(reference):
    published = json.loads((reference / "wan22_vae_param_shapes.json").read_text())
    pairs = zip(*(published_shapes(VAEConfig.wan22(), layout) for layout in ("diffusers", "original")), strict=True)
    assert dict(pairs) == published["diffusers_to_original"]
    assert (published["latents_mean"], published["latents_std"]) == tuple(map(list, WAN22_LATENTS))


def test_latent_statistics_of_wan21_are_those_of_diffusers():
    diffusers = import_diffusers()
    import inspect

    defaults = inspect.signature(diffusers.AutoencoderKLWan.__init__).parameters
    assert tuple(defaults["latents_mean"].default) == WAN21_LATENTS.mean
    assert tuple(defaults["latents_std"].default) == WAN21_LATENTS.std


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_changes_nothing(name, layout):
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS[name], layout)
    assert detect_layout(tensors) == layout
    params = from_wan(tensors, wan_fixture.CONFIGS[name])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    back = to_wan(params, wan_fixture.CONFIGS[name], layout)
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value.astype(np.float32), err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_reads_what_we_write(name):
    """It loads our file strictly, and its own reader of the original layout makes the same of our other file."""
    import_diffusers()
    import torch
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    config = wan_fixture.CONFIGS[name]
    params = from_wan(wan_fixture.random_weights(wan_fixture.CONFIGS[name]), config)
    tensors = to_wan(params, config, "diffusers")
    wan_fixture.diffusers_model(name, tensors)
    if name == "wan22":
        return  # its reader of the original layout knows Wan2.1 only; for Wan2.2 the names are checked by table
    original = {k: torch.from_numpy(v) for k, v in to_wan(params, config, "original").items()}
    theirs = convert_wan_vae_to_diffusers(original)
    assert theirs.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(theirs[key].numpy(), value, err_msg=key)


def import_diffusers():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours to mend
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[benchmark]'")
        return pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[benchmark]'")


# Faults


def test_every_fault_is_named_at_once():
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"], "original")
    del tensors["encoder.conv1.bias"], tensors["decoder.head.2.weight"]
    tensors["extra.weight"] = np.zeros(3, np.float32)
    tensors["conv2.weight"] = tensors["conv2.weight"][:2]
    tensors["conv1.bias"] = tensors["conv1.bias"].astype(np.int32)
    with pytest.raises(WeightsError) as error:
        from_wan(tensors, wan_fixture.CONFIGS["wan21"])
    text = str(error.value)
    assert "5 faults" in text
    for fault in (
        "missing encoder.conv1.bias (2,)",
        "missing decoder.head.2.weight (3, 3, 3, 3, 3)",
        "left over extra.weight (3,)",
        "conv2.weight has shape (2, 4, 1, 1, 1), expected (4, 4, 1, 1, 1)",
        "conv1.bias holds int32, expected floats",
    ):
        assert fault in text


def test_parameters_that_do_not_fit_are_named_at_once():
    config = wan_fixture.CONFIGS["wan21"]
    params = from_wan(wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"]), config)
    params["pad"] = {"token": np.zeros(4, np.float32)}  # of a config without one
    del params["encoder"]["norm"]
    with pytest.raises(WeightsError, match=r"(?s)2 faults.*missing encoder/norm/gamma.*left over pad/token"):
        to_wan(params, config, "original")


def test_a_pad_token_is_not_made_up():
    config = dataclasses.replace(wan_fixture.CONFIGS["wan21"], pad="learnable")
    with pytest.raises(WeightsError, match=r"(?s)missing pad.token \(4,\).*convert with pad=gaussian"):
        from_wan(wan_fixture.random_weights(config), config)


@pytest.mark.parametrize(
    ("value", "fault"), [(np.nan, "not finite"), (-np.inf, "not finite"), (1e39, "too large for float32")]
)
def test_numbers_that_float32_cannot_hold_are_named_and_nothing_is_written(tmp_path, value, fault):
    tensors = {k: v.astype(np.float64) for k, v in wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"]).items()}
    for name in ("quant_conv.bias", "decoder.conv_in.weight"):
        tensors[name].flat[1] = value
    save_file(tensors, tmp_path / "a.safetensors")
    status, out = convert(*flags_of("wan21"), tmp_path / "a.safetensors", tmp_path / "ours")
    assert status == 1 and "2 faults" in out
    assert f"quant_conv.bias is {fault}" in out and f"decoder.conv_in.weight is {fault}" in out
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "vae.", "model.", "module._orig_mod.first_stage.encoder."])
def test_what_a_wrapper_put_before_every_name_is_taken_off(tmp_path, prefix, layout):
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"], layout)
    wrapped = {prefix + name: value for name, value in tensors.items()}
    chex.assert_trees_all_equal(*(from_wan(t, wan_fixture.CONFIGS["wan21"]) for t in (wrapped, tensors)))
    save_file(wrapped, tmp_path / "a.safetensors")
    status, out = convert(*flags_of("wan21"), tmp_path / "a.safetensors", tmp_path / "ours")
    assert status == 0 and f"from the {layout} layout" in out, out


def test_a_prefix_that_only_some_names_have_is_named():
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"])
    vae, ema = ({prefix + name: value for name, value in tensors.items()} for prefix in ("vae.", "ema."))
    for mixed, prefixes, other in (
        (vae | {"dit.weight": tensors["quant_conv.bias"]}, "'vae.'", "dit.weight"),
        (vae | ema, "'ema.' and 'vae.'", "ema."),
        (ema | tensors, "'ema.'", "decoder."),
    ):
        with pytest.raises(WeightsError, match=f"names begin {prefixes} beside others, such as {other}"):
            from_wan(mixed, wan_fixture.CONFIGS["wan21"])


def test_a_network_that_is_no_wan_is_refused():
    with pytest.raises(WeightsError, match=r"not a Wan network.*zero.*interleave"):
        published_shapes(VAEConfig(), "original")
    with pytest.raises(WeightsError, match="not a Wan network, which would be a CNN"):
        published_shapes(TransformerVAEConfig(), "original")
    with pytest.raises(WeightsError, match="names of a Wan VAE.*got layer1.weight"):
        detect_layout({"layer1.weight": 0})
    with pytest.raises(ValueError, match="layout must be original or diffusers"):
        published_shapes(VAEConfig.wan21(), "comfy")


# Files


def test_a_pth_is_read_without_torch():
    """Every type, views, an empty tensor, a scalar and a parameter, from a file that `torch.save` wrote."""
    tensors = read_torch(torch_fixture.PATH)
    assert list(tensors) == list(torch_fixture.EXPECTED)
    for name, value in torch_fixture.EXPECTED.items():
        assert tensors[name].dtype == np.asarray(value).dtype, name
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


def test_torch_writes_the_pth_that_is_stored(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[benchmark]'")
    torch.save(torch_fixture.state_dict(), tmp_path / "new.pth")
    new, stored = read_torch(tmp_path / "new.pth"), read_torch(torch_fixture.PATH)
    assert new.keys() == stored.keys()
    assert all(new[k].dtype == stored[k].dtype and np.array_equal(new[k], stored[k]) for k in new)


def repack(path: Path, records: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of the stored .pth with some records replaced, or with None left out."""
    with zipfile.ZipFile(torch_fixture.PATH) as old, zipfile.ZipFile(path, "w", compression) as new:
        kept = {name: old.read(name) for name in old.namelist()}
        kept |= {f"tensors/{name}": data for name, data in records.items()}
        for name, data in kept.items():
            if data is not None:
                new.writestr(name, data)
    return path


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def stack_global(name: str, *rest: bytes) -> bytes:
    module, _, attribute = name.rpartition(".")
    return b"\x80\x02c" + module.encode() + b"\n" + attribute.encode() + b"\n" + b"".join(rest) + b"."


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (lambda flag: pickle.dumps({"a": Calls(os.system, f"touch {flag}")}, 2), "asks for posix.system"),
        (lambda flag: pickle.dumps(Calls(open, str(flag), "w"), 4), "asks for .*open"),
        (lambda flag: pickle.dumps(Calls(eval, f"open({str(flag)!r}, 'w')"), 2), "asks for .*eval"),
        (lambda flag: stack_global("torch._utils._rebuild_tensor_v2.__globals__", b"."), "asks for"),
        (lambda flag: stack_global("torch.FloatStorage", b")R"), "calls torch.FloatStorage"),
        # An attribute set on what an admitted name stands for.
        (lambda flag: stack_global("collections.OrderedDict", b"N}U\x01aK\x01s\x86b"), "its pickle"),
        (lambda flag: pickle.dumps({"weight": [1.0, 2.0]}, 2), "not tensors: weight"),
        (lambda flag: pickle.dumps([1], 2), "holds a list"),
        (lambda flag: b"\x80\x02garbage", "its pickle"),
        (lambda flag: b"", "its pickle"),
    ],
)
def test_a_pickle_that_asks_for_more_than_tensors_is_refused_and_not_run(tmp_path, pickled, message):
    flag = tmp_path / "it-ran"
    path = repack(tmp_path / "bad.pth", {"data.pkl": pickled(flag)})
    with pytest.raises(WeightsError, match=message):
        read_torch(path)
    assert not flag.exists()


def test_a_pickle_takes_no_more_memory_than_it_has_bytes(tmp_path):
    """The memo of the C unpickler grows to the largest index in the file: 4 GB for these."""
    path = repack(tmp_path / "bad.pth", {"data.pkl": b"\x80\x02}r\xff\xff\xff\x0f."})
    tracemalloc.start()
    try:
        assert read_torch(path) == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_damaged_archive_is_an_error_of_the_file(tmp_path):
    path = repack(tmp_path / "bad.pth", {"byteorder": b"little"})
    path.write_bytes(path.read_bytes().replace(b"little", b"lIttle", 1))
    with pytest.raises(WeightsError, match="bad.pth is damaged: Bad CRC-32"):
        read_torch(path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"data/0": b"\0" * 20}, "tensor float32 is broken: storage 0 has 20 bytes"),
        ({"data/0": None}, "tensor float32 is broken: .*data/0"),
        ({"byteorder": b"big"}, "big-endian"),
        ({"data.pkl": None}, "one data.pkl, got 0"),
    ],
)
def test_records_that_do_not_fit_are_refused(tmp_path, records, message):
    with pytest.raises(WeightsError, match=message):
        read_torch(repack(tmp_path / "bad.pth", records))


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    """Shape and stride come from the file: an unchecked one would read memory that is not the file's."""
    with zipfile.ZipFile(torch_fixture.PATH) as archive:
        data = archive.read("tensors/data.pkl")
    shape = b"K\x02K\x03\x86"  # (2, 3), the first tensor's
    assert shape in data
    for wrong in (b"K\x02K\x09\x86", b"K\x09K\x03\x86"):
        with pytest.raises(WeightsError, match="beyond its storage"):
            read_torch(repack(tmp_path / "bad.pth", {"data.pkl": data.replace(shape, wrong, 1)}))


def test_a_compressed_record_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="compressed records"):
        read_torch(repack(tmp_path / "bad.pth", {}, zipfile.ZIP_DEFLATED))


def test_an_old_pth_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(pickle.dumps({"weight": 1}, 2))
    with pytest.raises(WeightsError, match=r"PyTorch 1.6.*torch.save\(.*safetensors"):
        read_torch(path)


def test_files_that_are_not_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    (tmp_path / "a.ckpt").write_bytes(b"no")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="expected weights as"):
        read_tensors(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        read_tensors(tmp_path / "b.pth")


def in_shards(folder: Path, tensors: dict, suffix: str = ".safetensors") -> Path:
    """`tensors` in two files of a folder, and the index that says which holds what."""
    folder.mkdir()
    names = sorted(tensors)
    where = {name: f"model-{1 + i % 2}-of-2{suffix}" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_shards_are_read_by_their_index_by_their_folder_and_without_an_index(tmp_path):
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"])
    index = in_shards(tmp_path / "vae", tensors)
    (tmp_path / "vae" / "config.json").write_text("{}")
    for source in (index, index.parent):
        chex.assert_trees_all_equal(read_tensors(source), tensors)
    save_file({"of another": np.zeros(1)}, tmp_path / "vae" / "other.safetensors")
    assert read_tensors(index.parent).keys() == tensors.keys(), "the index decides"
    assert convert(*flags_of("wan21"), index, tmp_path / "ours")[0] == 0
    index.unlink()
    assert read_tensors(index.parent).keys() == tensors.keys() | {"of another"}


def test_shards_that_do_not_fit_together_are_refused(tmp_path):
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"])
    index = in_shards(tmp_path / "vae", tensors)
    good = index.read_text()
    for damaged in ("{", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', good.replace("model-1", "../model-1")):
        index.write_text(damaged)
        with pytest.raises(WeightsError, match=r"index.json does not say which files hold what"):
            read_tensors(index)
    index.write_text(good)
    (tmp_path / "vae" / "model-2-of-2.safetensors").rename(tmp_path / "lost")
    with pytest.raises(FileNotFoundError, match=r"no weights file .*model-2-of-2.safetensors"):
        read_tensors(index)
    (tmp_path / "vae" / "model-1-of-2.safetensors").rename(tmp_path / "vae" / "a.safetensors")
    shutil.copy(tmp_path / "vae" / "a.safetensors", tmp_path / "vae" / "fp16.safetensors")
    index.unlink()
    with pytest.raises(WeightsError, match=r"fp16.safetensors holds .* again, as another file there does"):
        read_tensors(tmp_path / "vae")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_tensors(in_shards(tmp_path / "empty", {}).parent)


def test_half_precision_survives_files(tmp_path):
    ramp = np.arange(8, dtype=np.float32)
    tensors = {"bf16": ramp.astype(jnp.bfloat16), "fp16": ramp.astype(np.float16)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    found = read_tensors(tmp_path / "a.safetensors")
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in tensors.items()}
    assert all(np.array_equal(found[k], tensors[k]) for k in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# The command


@pytest.mark.parametrize("name", NAMES)
def test_the_command_converts_both_ways(tmp_path, name):
    """diffusers -> ours -> original -> ours -> diffusers: the weights come back."""
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS[name])
    save_file({k: v.astype(jnp.bfloat16) for k, v in tensors.items()}, tmp_path / "a.safetensors")
    status, out = convert(*flags_of(name), tmp_path / "a.safetensors", tmp_path / "ours")
    assert status == 0 and "from the diffusers layout" in out, out
    model = load(tmp_path / "ours")
    assert model.vae.config == wan_fixture.CONFIGS[name]
    assert model.meta == {"source": "a.safetensors, diffusers layout"}
    assert convert("--to=original", tmp_path / "ours", tmp_path / "b.safetensors")[0] == 0
    assert convert(tmp_path / "b.safetensors", *flags_of(name), tmp_path / "again")[0] == 0
    assert convert("--to=diffusers", tmp_path / "again", tmp_path / "c.safetensors")[0] == 0
    back = load_file(tmp_path / "c.safetensors")
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value.astype(jnp.bfloat16).astype(np.float32), err_msg=key)
    files = ["a.safetensors", "again", "b.safetensors", "c.safetensors", "ours"]
    assert sorted(p.name for p in tmp_path.iterdir()) == files


@pytest.mark.parametrize("name", NAMES)
def test_the_command_reads_what_torch_saves(tmp_path, name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[benchmark]'")
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS[name], "original")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "a.pth")
    status, out = convert(*flags_of(name), tmp_path / "a.pth", tmp_path / "ours")
    assert status == 0, out
    expected = from_wan(tensors, wan_fixture.CONFIGS[name])
    chex.assert_trees_all_equal(load(tmp_path / "ours").vae_params, expected)


def test_nothing_is_written_when_a_tensor_is_wrong(tmp_path):
    tensors = wan_fixture.random_weights(wan_fixture.CONFIGS["wan22"], "original")
    del tensors["encoder.conv1.weight"]
    tensors["conv2.bias"] = np.zeros(5, np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    status, out = convert(*flags_of("wan22"), tmp_path / "a.safetensors", tmp_path / "ours")
    assert status == 1 and out.startswith("pv-vae convert: ") and "2 faults" in out
    assert "missing encoder.conv1.weight" in out and "conv2.bias has shape (5,), expected (4,)" in out
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_command_says_what_is_wrong(tmp_path):
    save_file(wan_fixture.random_weights(wan_fixture.CONFIGS["wan22"]), tmp_path / "a.safetensors")
    for arguments, message in (
        ((tmp_path / "a.safetensors",), "takes SOURCE and TARGET"),
        ((tmp_path / "none.pth", tmp_path / "ours"), "no weights file"),
        ((tmp_path / "a.safetensors", tmp_path), "exists; name another target"),
        ((tmp_path / "a.safetensors", tmp_path / "ours"), "latent channels are 4.*--architecture"),
        (("--to=original", tmp_path / "a", tmp_path / "b.pth"), "written as .safetensors, got"),
        (
            ("--to=original", "--architecture=wan22", "tiny-synthetic", tmp_path / "b.safetensors"),
            "give no other flags",
        ),
        (("--to=original", "tiny-synthetic", tmp_path / "b.safetensors"), "not a Wan network"),
        (("--to=original", tmp_path / "gone", tmp_path / "b.safetensors"), "no model at"),
        (
            ("--architecture=wan22", "--config.width=3", tmp_path / "a.safetensors", tmp_path / "b"),
            "unknown config key",
        ),
    ):
        status, out = convert(*arguments)
        assert status in (1, 2), out
        assert re.search(message, out), out
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_published_statistics_travel_with_a_full_model(tmp_path, monkeypatch):
    assert LATENT_STATISTICS == {"wan22": WAN22_LATENTS, "wan21": WAN21_LATENTS}
    monkeypatch.setattr(VAEConfig, "wan21", lambda: wan_fixture.CONFIGS["wan21"])
    monkeypatch.setitem(LATENT_STATISTICS, "wan21", LatentStatistics(mean=(0.5,) * 4, std=(2.0,) * 4))
    save_file(wan_fixture.random_weights(wan_fixture.CONFIGS["wan21"]), tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "ours")[0] == 0  # seen by its latent channels
    statistics = load(tmp_path / "ours").meta["latent_statistics"]
    assert (statistics["mean"], statistics["std"]) == ([0.5] * 4, [2.0] * 4)


def test_the_module_is_the_command():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pv_vae_jax", "convert", "only-one"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "pv-vae convert: pv-vae convert takes SOURCE and TARGET" in done.stderr
