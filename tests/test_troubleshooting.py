"""Every message that docs/troubleshooting.md explains is provoked here, in the way a newcomer meets it."""

import contextlib
import dataclasses
import errno
import importlib.util
import io
import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pv_vae_jax.cli.main import advice_on, main
from pv_vae_jax.data import video_writing
from pv_vae_jax.data.latents import LatentSource, write_latents
from pv_vae_jax.data.listing import video_folder
from pv_vae_jax.data.prepare.encoding import ClipSettings
from pv_vae_jax.data.prepare.tasks import plan
from pv_vae_jax.data.shards import BrokenRecordError
from pv_vae_jax.losses import Objective
from pv_vae_jax.model import load
from pv_vae_jax.model_folder import SHIPPED
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.params_io import STATE_MARK
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import check_split, state_sharding
from pv_vae_jax.train.checkpoint import CheckpointError, Checkpoints
from pv_vae_jax.train.config_files import load_experiment, parse_overrides
from pv_vae_jax.train.health import HealthMonitor
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.writers import StageWriters
from pv_vae_jax.typing import ConfigError
from tests import wan_fixture

WAN22 = {"latent_channels": 4, "encoder_widths": (2, 4, 8, 8), "decoder_widths": (3, 6, 12, 12)}
ROOT = Path(__file__).resolve().parents[1]
DEMO = str(ROOT / "experiments" / "demo.py")
ENTRIES = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


def says(*arguments) -> str:
    """What a command that fails prints, run in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        assert main(["pv-vae", *map(str, arguments)]) in (1, 2), err.getvalue()
    return err.getvalue()


def python(code: str, **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, cwd=ROOT)


def train_with(tmp_path, *overrides) -> str:
    flags = [f"--config.{setting}" for setting in overrides]
    return says("train", "--config", DEMO, "--workdir", tmp_path / "run", *flags)


def made(tmp_path):
    """A work directory of the demo in which nothing was trained yet."""
    return open_run(load_experiment(DEMO), tmp_path / "run")


def no_backend(platform: str):
    def provoke(tmp_path) -> str:
        code = "import sys; from pv_vae_jax.cli.main import main; "
        code += f"sys.exit(main(['pv-vae', 'train', '--config', {DEMO!r}, '--workdir', {str(tmp_path / 'w')!r}]))"
        done = python(code, JAX_PLATFORMS=platform)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "'jax[tpu]'" in done.stderr
        return done.stderr

    return provoke


def old_jax_on_a_gpu(tmp_path) -> str:
    class Gpu:
        platform, process_index = "gpu", 0

    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning) as caught:
        patch.setattr(jax, "__version__", "0.11.1")
        patch.setattr(jax, "__version_info__", (0, 11, 1))
        make_mesh(devices=[Gpu()])
    return str(caught[0].message)


def falls_back(detector: str, answer: str):
    """JAX believes that the machine has the device, and has no build for it."""

    def provoke(tmp_path) -> str:
        code = f"import jax._src.hardware_utils as h; h.{detector} = lambda: {answer}; import jax; jax.devices()"
        done = python(code, JAX_PLATFORMS="")
        assert done.returncode == 0
        return done.stderr

    return provoke


def versions_apart(tmp_path) -> str:
    from jax._src.lib import check_jaxlib_version

    with pytest.raises(RuntimeError) as caught:
        check_jaxlib_version("0.10.2", "0.4.1", "0.10.0")
    return str(caught.value)


def out_of_memory(tmp_path) -> str:
    """A network whose parameters no machine holds."""
    import pv_vae_jax.cli.inspect as inspect

    def run(values, positional, overrides):
        jax.block_until_ready(jax.jit(lambda: jnp.zeros((1 << 44,)))())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "run", run)
        message = says("inspect", "--config", DEMO)
    assert "batch_size" in message and "Traceback" not in message
    return message


def too_many_programs(tmp_path) -> str:
    """XLA at the limit, where it may also die without a word, so that it is not taken there."""
    return advice_on(RuntimeError("INTERNAL: Failed to materialize symbols: { (<xla_jit_dylib_0>, { fusion }) }"))


def test_the_advice_on_memory_is_taken_by_the_demo():
    """The page's flags and the message's, each set of them together."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text().split("### `RESOURCE_EXHAUSTED")[1].split("###")[0]
    for text in (page, advice_on(RuntimeError("RESOURCE_EXHAUSTED: out of memory"))):
        flags = re.findall(r"--config\.[\w.]+=[-\w]+", text)
        _, overrides = parse_overrides(flags)
        mesh = make_mesh(**dataclasses.asdict(load_experiment(DEMO, overrides).mesh))
        assert mesh.shape["fsdp"] == jax.device_count(), text


def whole_everywhere(tmp_path) -> str:
    shapes = {"odd": jax.ShapeDtypeStruct((7, 99), jnp.float32), "even": jax.ShapeDtypeStruct((8, 512), jnp.float32)}
    mesh = make_mesh(data=1, fsdp=8)
    with pytest.raises(ConfigError) as caught:
        check_split(mesh, shapes, state_sharding(mesh, shapes))
    return str(caught.value)


def of_jaxlib(text: bytes):
    """As it stands in the library that prints it: provoking it takes minutes, or another processor."""
    return lambda tmp_path: _text_in_jaxlib(text)


def _text_in_jaxlib(text: bytes) -> str:
    folder = Path(jaxlib.__file__).parent
    for path in sorted(folder.glob("*.so*"), key=lambda path: -path.stat().st_size):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if (at := content.find(text)) >= 0:
                return content[at : content.find(b"\0", at)].decode()
    return ""


def in_use(tmp_path) -> str:
    with made(tmp_path).lock("image"):
        return train_with(tmp_path)


def other_configuration(tmp_path) -> str:
    made(tmp_path).folder("image").mkdir()
    return train_with(tmp_path, "seed=7")


def not_empty(tmp_path) -> str:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").touch()
    return train_with(tmp_path)


def older_version(tmp_path) -> str:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"name": "demo", "seed": 0}')
    return train_with(tmp_path)


def other_draws(tmp_path) -> str:
    run = made(tmp_path)
    run.folder("image").mkdir()
    path = run.workdir / "config.json"
    path.write_text(path.read_text().replace('"draws": 2', '"draws": 1'))
    with pytest.raises(ConfigError) as caught, run.lock("image"):
        pass
    return str(caught.value)


def full_disk(tmp_path) -> str:
    """The limit on a file's size stands for the disk."""
    state = jax.device_put({"w": np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.close()
    checkpoints, old = Checkpoints(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, old[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(2, state)
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    return str(caught.value)


def without_jinja(tmp_path) -> str:
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *more: find(name, *more) if name != "jinja2" else None)
        return says("analyze", "tiny-synthetic", "--out", tmp_path / "out")


def stale(tmp_path) -> str:
    from pv_vae_jax.data.latents import LatentSource, StaleLatentsError

    manifest = {"records": 1, "key": {"encoder": "aa"}, "class_names": ["x"], "mean": [0.0], "std": [1.0]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StaleLatentsError) as caught:
        LatentSource(tmp_path, {"encoder": "bb"})
    return str(caught.value)


def lost_latents(tmp_path) -> str:
    folder = tmp_path / "run" / "latents"
    records = [{"mean": np.zeros((1, 1, 1, 1)), "logvar": np.zeros((1, 1, 1, 1)), "label": np.int32(0)}]
    write_latents(folder, records, key={}, total=1, class_names=("a",))
    (folder / "00000.array_record").unlink()
    with pytest.raises(BrokenRecordError) as caught:
        LatentSource(folder)
    return str(caught.value)


def not_finite(tmp_path) -> str:
    from pv_vae_jax.train.nan_check import NonFiniteError, check_finite

    with pytest.raises(NonFiniteError) as caught:
        check_finite("video", [(120, {"mse": 0.1, "kl": float("nan"), "loss": float("nan")})])
    return str(caught.value)


def warned(stage: str, **means: float):
    """What a stage whose windows look like this says."""

    def provoke(tmp_path) -> str:
        monitor = HealthMonitor(stage, Objective(kl=0.1))
        return "".join(text for step in (60, 120) for text in monitor.check(step, means))

    return provoke


def without_tensorboard(tmp_path) -> str:
    find = importlib.util.find_spec
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *more: name != "tensorboardX" and find(name, *more))
        return train_with(tmp_path, f"data.source={tmp_path / 'clip'}")


def broken_writer(tmp_path) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as err:
        writers = StageWriters(dataclasses.replace(made(tmp_path), writers=[None]), "video", 0, tmp_path)
        writers.write(1, {"scalars": {"loss": 1.0}})
        writers.close()
    return err.getvalue()


def no_folder(tmp_path) -> str:
    (tmp_path / "clips").mkdir()
    return train_with(tmp_path, f"data.source={tmp_path / 'clip'}")


def no_videos(tmp_path) -> str:
    (tmp_path / "notes").mkdir()
    return train_with(tmp_path, f"data.source={tmp_path / 'notes'}")


def broken_video(tmp_path) -> str:
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video at all")
    return train_with(tmp_path, f"data.source={tmp_path / 'clips'}")


def one_broken_video(tmp_path) -> str:
    av = pytest.importorskip("pv_vae_jax.data.video_writing", reason="PyAV is not installed")
    (tmp_path / "clips" / "train").mkdir(parents=True)
    (tmp_path / "clips" / "test").mkdir()
    for name in ("train/a.mp4", "train/b.mp4", "test/c.mp4"):
        av.write_video(tmp_path / "clips" / name, np.zeros((17, 32, 32, 3), np.uint8))
    (tmp_path / "clips" / "train" / "broken.mp4").write_bytes(b"no video at all")
    return train_with(tmp_path, f"data.source={tmp_path / 'clips'}")


def too_many_open_files(tmp_path) -> str:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")

    def fail(*_, **__):
        raise av.error.OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"intact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(av, "open", fail)
        return train_with(tmp_path, f"data.source={tmp_path / 'clips'}")


def without_pyav(tmp_path) -> str:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        return says("reconstruct", "--frames=17", "--size=32", "--out", tmp_path / "out", tmp_path / "a.mp4")


def without_encoder(tmp_path) -> str:
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_writing, "ENCODER", "none of this build")
        return says("reconstruct", "--out", tmp_path / "out", tmp_path / "absent.mp4")


def prepared_before(tmp_path) -> str:
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    (tmp_path / "clips").mkdir()
    for name in "ab":
        (tmp_path / "clips" / f"{name}.mp4").write_bytes(b"not looked at")
    listing = video_folder(tmp_path / "clips", "train")
    plan(listing, tmp_path / "out" / "train", ClipSettings())
    key = json.loads((tmp_path / "out" / "train" / "key.json").read_text())
    del key["reading"]
    (tmp_path / "out" / "train" / "key.json").write_text(json.dumps(key))
    return says("prepare", tmp_path / "clips", "--out", tmp_path / "out")


def unfinished(tmp_path) -> str:
    state = tmp_path / "run" / "image" / "checkpoints" / "41"
    state.mkdir(parents=True)
    (state / STATE_MARK).touch()
    return says("reconstruct", "--model", tmp_path / "run", "a.mp4")


def misfit(tmp_path) -> str:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "tiny-synthetic", folder)
    tensors = load_file(folder / "vae.safetensors")
    del tensors["decoder/head/bias"]
    save_file(tensors, folder / "vae.safetensors")
    with pytest.raises(ValueError) as caught:
        load(folder)
    return str(caught.value)


def flipped(tmp_path) -> str:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "tiny-synthetic", folder)
    data = bytearray((folder / "vae.safetensors").read_bytes())
    data[-2] ^= 1  # the last number stays finite
    (folder / "vae.safetensors").write_bytes(data)
    return says("sample", "--model", folder, "--out", tmp_path)


def other_weights(tmp_path) -> str:
    tensors = wan_fixture.random_weights(VAEConfig.wan22(**WAN22), "original")
    del tensors["encoder.conv1.weight"]
    tensors["conv2.bias"] = np.zeros(5, np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    flags = [f"--config.{key}={value}" for key, value in WAN22.items()]
    return says("convert", "--architecture=wan22", *flags, tmp_path / "a.safetensors", tmp_path / "ours")


def old_torch_file(tmp_path) -> str:
    (tmp_path / "old.pth").write_bytes(b"\x80\x02" + bytes(64))
    return says("convert", tmp_path / "old.pth", tmp_path / "model")


def launch(*arguments, **environment):
    def provoke(tmp_path) -> str:
        command = [sys.executable, str(ROOT / "launch"), *arguments]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
        assert done.returncode
        return done.stderr

    return provoke


FAR = ["slurm", "--config", DEMO, "--workdir"]

# In the order of the page.
PROVOKE = [
    no_backend("tpu"),
    no_backend("cuda"),
    old_jax_on_a_gpu,
    falls_back("has_visible_nvidia_gpu", "True"),
    falls_back("num_available_tpu_chips_and_device_id", "(4, 'x')"),
    versions_apart,
    out_of_memory,
    too_many_programs,
    lambda tmp_path: train_with(tmp_path, "mesh.data=64"),
    lambda tmp_path: train_with(tmp_path, "image.batch_size=6"),
    whole_everywhere,
    of_jaxlib(b"Very slow compile?"),
    of_jaxlib(b"Loading XLA:CPU AOT result"),
    lambda tmp_path: train_with(tmp_path, "video.step=3"),
    lambda tmp_path: train_with(tmp_path, "video.steps=many"),
    lambda tmp_path: says("train", "--config", "experiments/demp.py", "--workdir", tmp_path),
    lambda tmp_path: says("trian"),
    lambda tmp_path: train_with(tmp_path, "data.frames=16"),
    lambda tmp_path: train_with(tmp_path, "data.size=33"),
    lambda tmp_path: train_with(tmp_path, "vae.latent_channels=32"),
    lambda tmp_path: train_with(tmp_path, "latte.attention=splash"),
    other_configuration,
    in_use,
    not_empty,
    lambda tmp_path: says("evaluate", "--workdir", tmp_path / "run"),
    older_version,
    full_disk,
    not_finite,
    warned("video", kl=0.8, loss=0.13),
    warned("video", kl=5e3, loss=30.0),
    warned("decoder", kl=9.0, loss=9.0, discriminator=0.02),
    without_tensorboard,
    broken_writer,
    stale,
    lost_latents,
    other_draws,
    without_jinja,
    no_folder,
    no_videos,
    broken_video,
    one_broken_video,
    too_many_open_files,
    lambda tmp_path: train_with(tmp_path, "data.source=program:mine"),
    without_pyav,
    without_encoder,
    prepared_before,
    lambda tmp_path: says("sample", "--model", tmp_path / "none", "--out", tmp_path),
    unfinished,
    misfit,
    flipped,
    other_weights,
    old_torch_file,
    launch(*FAR, "/shared/run", PATH="/nowhere"),
    launch(*FAR, "s3://bucket/run"),
    lambda tmp_path: says("train", "--config", DEMO, "--workdir", "s3://bucket/run"),
]


def test_every_entry_is_provoked():
    assert len(ENTRIES) == len(PROVOKE)


@pytest.mark.parametrize(("entry", "provoke"), list(zip(ENTRIES, PROVOKE, strict=False)), ids=[e[:40] for e in ENTRIES])
def test_the_page_shows_the_real_message(entry, provoke, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    message = " ".join(provoke(tmp_path).split())
    pattern = ".*".join(re.escape(part) for part in entry.split("..."))
    assert re.search(pattern, message), f"the page says\n{entry}\nthe program says\n{message}"
