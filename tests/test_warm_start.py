"""Warm starts of a stage: from models and training states, all of them or parts, without reading the rest."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from pv_vae_jax.model import Model, load, save
from pv_vae_jax.model_folder import find_model
from pv_vae_jax.models.vae import VAE, VAEConfig
from pv_vae_jax.params_io import read_params, restore_params, write_params
from pv_vae_jax.train.checkpoint import Checkpoints
from pv_vae_jax.train.configs import DataConfig, Experiment, MeshConfig, VAEStageConfig
from pv_vae_jax.train.optim import optimizer
from pv_vae_jax.train.run import open_run
from pv_vae_jax.train.state import stage_key
from pv_vae_jax.train.vae_stage import VAEStage
from pv_vae_jax.train.vae_step import VAEStep
from pv_vae_jax.train.warm_start import first_parameters
from pv_vae_jax.typing import ConfigError, WeightsError

TINY = VAEConfig(
    patch=2,
    latent_channels=4,
    time_factors=(2,),
    space_factors=(2,),
    encoder_widths=(8, 8),
    decoder_widths=(8, 8),
    encoder_blocks=1,
    decoder_blocks=1,
)
STAGE = VAEStageConfig(steps=2, batch_size=1)
EXPERIMENT = Experiment(
    data=DataConfig(clips=2, test_clips=1, frames=3, size=8), vae=TINY, video=STAGE, mesh=MeshConfig(data=1)
)
EXPERIMENT = dataclasses.replace(EXPERIMENT, latte=dataclasses.replace(EXPERIMENT.latte, latent_channels=4))


def same(a, b) -> bool:
    a, b = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    return len(a) == len(b) and all(p == q and np.array_equal(x, y) for (p, x), (q, y) in zip(a, b, strict=True))


def shapes_of(config: VAEConfig):
    return jax.eval_shape(VAE(config).init, jax.random.key(0), jnp.zeros((1, 3, 8, 8, 3)))["params"]


def read_model(folder: Path, shapes):
    """The parts of a model folder's VAE that a warm start reads."""
    return read_params(folder / "vae.safetensors", shapes, strict=False)


def drawn(config: VAEConfig, seed: int):
    """Parameters of the right shapes, without compiling their initialisers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes_of(config))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run that stopped in its video stage: its folder, the state's folder, parameters and moving average."""
    run = open_run(EXPERIMENT, tmp_path_factory.mktemp("other") / "run")
    params, ema = drawn(TINY, 1), drawn(TINY, 2)
    step = VAEStep(model=VAE(TINY), objective=STAGE.objective, optimizer=optimizer(STAGE.optimizer, 2), seed=0)
    state = step.create(jax.device_put(params)).replace(ema=jax.device_put(ema))
    checkpoints = Checkpoints(run.folder("video") / "checkpoints")
    for number in (1, 2):
        checkpoints.save(number, state if number == 2 else state.replace(ema=state.params))
    checkpoints.close()
    return run.workdir, run.folder("video") / "checkpoints" / "2", params, ema


def begin(tmp_path, vae=TINY, **changes):
    """What a video stage with these settings starts from."""
    experiment = dataclasses.replace(EXPERIMENT, vae=vae, video=dataclasses.replace(STAGE, **changes)).validate()
    run = open_run(experiment, tmp_path / "mine")
    return first_parameters(VAEStage(experiment, "video"), run)


def test_from_a_training_state(other, tmp_path):
    workdir, state, params, ema = other
    assert same(begin(tmp_path / "a", init_from=str(state)), ema)
    assert same(begin(tmp_path / "b", init_from=str(workdir / "video")), ema), "the newest state of a stage"
    assert same(begin(tmp_path / "c", init_from=str(state), init_weights="params"), params)
    assert same(begin(tmp_path / "d", init_from=str(state.parent / "1")), params), "not the newest"


def test_a_stage_loads_before_it_is_finished_and_after(other, tmp_path):
    workdir, state, params, ema = other
    for path in (state, workdir / "video"):
        found = load(path)
        assert same(found.vae_params, ema) and found.vae.config == TINY
        assert found.meta == {"experiment": EXPERIMENT.name, "stage": "video", "images": False, "steps": 2}
    assert same(load(state.parent / "1").vae_params, params)
    with pytest.raises(FileNotFoundError, match=f"stage video is not finished.* from step 2; give {state}"):
        load(workdir)
    shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(workdir / "video", tmp_path / "run" / "diffusion")
    with pytest.raises(FileNotFoundError, match="is a training state of diffusion, which holds no VAE"):
        load(tmp_path / "run" / "diffusion")
    save(tmp_path / "run" / "video" / "model", Model(VAE(TINY), params, meta={"finished": True}))
    assert load(tmp_path / "run" / "video").meta == load(tmp_path / "run").meta == {"finished": True}
    assert find_model(tmp_path / "run" / "video") == tmp_path / "run" / "video" / "model"


def test_the_encoder_alone_fits_another_decoder(other, tmp_path):
    workdir, state, _, ema = other
    save(tmp_path / "model", Model(VAE(TINY), ema))
    wider = dataclasses.replace(TINY, decoder_widths=(8, 16))
    for i, source in enumerate((state, tmp_path / "model")):
        found = begin(tmp_path / str(i), vae=wider, init_from=str(source), init_parts=("encoder",))
        assert found.keys() == {"encoder"} and same(found["encoder"], ema["encoder"])
        with pytest.raises(WeightsError, match="decoder/.*has shape .*, expected .*; decoder/"):
            begin(tmp_path / f"all{i}", vae=wider, init_from=str(source))


def test_parts_that_are_not_taken_are_drawn(other, tmp_path):
    video = dataclasses.replace(STAGE, init_from=str(other[1]), init_parts=("encoder",))
    run = open_run(dataclasses.replace(EXPERIMENT, video=video), tmp_path / "mine")
    stage = VAEStage(run.experiment, "video")
    stage.save_model(run, jax.jit(stage.init_state)(stage.restored(run)))
    found = read_model(run.folder("video") / "model", shapes_of(TINY))
    fresh = jax.jit(VAE(TINY).init)(stage_key(0, "vae"), jnp.zeros((1, 3, 8, 8, 3)))["params"]
    assert same(found["encoder"], other[3]["encoder"])
    np.testing.assert_allclose(
        found["decoder"]["stem"]["kernel"], fresh["decoder"]["stem"]["kernel"], rtol=0, atol=1e-6
    )


def test_only_what_is_asked_for_is_read(other, tmp_path):
    """Of a state with a decoder a hundred times as large, by TensorStore's own count; of a model, by its damage."""
    import tensorstore as ts

    large = dataclasses.replace(TINY, decoder_widths=(8, 256))
    encoder = {"encoder": shapes_of(TINY)["encoder"]}
    params = drawn(large, 1)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {"ema": params, "params": params})
    checkpoints.close()

    def read_bytes() -> int:
        counts = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(value["value"] for count in counts for value in count["values"])

    before = read_bytes()
    assert same(restore_params(tmp_path / "checkpoints" / "1", "ema", encoder)["encoder"], params["encoder"])
    read = read_bytes() - before
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert 0 < read < whole / 10

    params["decoder"] = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params["decoder"])
    (tmp_path / "model").mkdir()
    write_params(tmp_path / "model" / "vae.safetensors", params)
    assert same(read_model(tmp_path / "model", encoder)["encoder"], params["encoder"])
    with pytest.raises(WeightsError, match="decoder/stem/kernel is not finite"):
        read_model(tmp_path / "model", shapes_of(large))
    wide = {name: np.full(leaf.shape, 1e300) for name, leaf in flatten_dict(params, sep="/").items()}
    save_file(wide, tmp_path / "model" / "vae.safetensors")
    with pytest.raises(WeightsError, match="decoder/stem/kernel is too large for float32"):
        read_model(tmp_path / "model", shapes_of(large))


def test_what_cannot_be_a_start_is_refused(other, tmp_path):
    workdir, state, _, ema = other
    save(tmp_path / "model", Model(VAE(TINY), ema))
    with pytest.raises(ConfigError, match="must start from a VAE of the same architecture"):
        begin(tmp_path / "a", vae=dataclasses.replace(TINY, shortcut_time="interleave"), init_from=str(state))
    with pytest.raises(ConfigError, match="video.init_weights=params needs a training state"):
        begin(tmp_path / "b", init_from=str(tmp_path / "model"), init_weights="params")
    with pytest.raises(
        ConfigError, match=r"video.init_parts must be among this VAE's parts \(encoder, decoder\), got 'pad'"
    ):
        gaussian = dataclasses.replace(TINY, pad="gaussian")
        begin(tmp_path / "c", vae=gaussian, init_from=str(state), init_parts=("encoder", "pad"))
    with pytest.raises(ConfigError, match="init_parts must name parts of the VAE .*, got dekoder"):
        begin(tmp_path / "d", init_from=str(state), init_parts=("dekoder",))
    with pytest.raises(ConfigError, match="init_parts needs init_from"):
        begin(tmp_path / "e", init_parts=("encoder",))
    with pytest.raises(FileNotFoundError, match="no model at"):
        begin(tmp_path / "f", init_from=str(tmp_path / "nowhere"))
    open_run(Experiment(), tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="new: this run has neither finished a stage nor saved a state of one"):
        load(tmp_path / "new")
    for data in (workdir / "video" / "checkpoints" / "1" / "default" / "d").glob("*"):
        data.write_bytes(b"flipped" + data.read_bytes()[7:])
    with pytest.raises(WeightsError, match="is damaged"):
        begin(tmp_path / "g", init_from=str(state.parent / "1"))


def test_a_flipped_byte_of_a_training_state_is_noticed(other, tmp_path):
    """TensorStore reads some flipped bytes as other numbers; `checksums.json` of the state tells."""
    run = tmp_path / "run"
    shutil.copytree(other[0], run)
    state = run / "video" / "checkpoints" / "2"
    largest = max((path for path in state.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    flipped = bytearray(largest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    largest.write_bytes(bytes(flipped))
    for read in (lambda: begin(tmp_path, init_from=str(state)), lambda: load(state), lambda: load(run / "video")):
        with pytest.raises(WeightsError, match=r"checkpoints/2 is damaged: the CRC-32 of .* has changed"):
            read()


PEAK = """
import sys
import jax
from pv_vae_jax.model import load

def memory(name):  # MiB of this process
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) / 1024

load("tiny-synthetic")  # what imports and the first array need
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
before = memory("VmRSS")
params = jax.block_until_ready(load(sys.argv[1]).vae_params)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
print((memory("VmHWM") - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_starting_from_a_model_takes_little_more_memory_than_its_parameters(tmp_path):
    large = dataclasses.replace(TINY, decoder_widths=(384, 384), decoder_blocks=5)
    save(tmp_path / "model", Model(VAE(large), drawn(large, 0)))
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path / "model"], capture_output=True, text=True, check=True)
    ratio, size = map(float, done.stdout.split())
    assert size > 300 and 0.9 < ratio < 1.2, done.stdout
