"""What one sees of a run while it trains: writers, evaluation, early warnings and profiles."""

import importlib
import inspect
import io
import json
import shutil
import struct
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from pv_vae_jax.evaluation.velocity import BINS, TIMES, velocity_loss
from pv_vae_jax.flow import flow_matching_loss
from pv_vae_jax.losses import Objective
from pv_vae_jax.model import init_latte
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.train import loop
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.health import HealthMonitor
from pv_vae_jax.train.profiling import parse_window
from pv_vae_jax.train.stages import train
from pv_vae_jax.train.state import create_state
from pv_vae_jax.train.writers import (
    JsonlWriter,
    MetricWriter,
    StageWriters,
    TensorBoardWriter,
    WandbWriter,
    read_metrics,
)
from pv_vae_jax.typing import ConfigError
from tests.test_cli import fails, files, pv_vae, tiny_experiment  # noqa: F401
from tests.toy_stage import ToyStage, toy_run

# Recorded: stages of the demo at three seeds; stage video with kl=0.1 and with learning_rate=0.2 (docs/recipes.md);
# stage image with gan=1, gan_start=0, rates of 1e-4 and, for the discriminator, 0.01.
CURVES = json.loads((Path(__file__).parent / "data" / "curves.json").read_text())
CLIPS = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 24, 3), np.uint8)


# Writers


@pytest.fixture
def clu_writers(monkeypatch):
    """`clu.metric_writers` with a stub for its one submodule that imports TensorFlow."""
    for name in [name for name in sys.modules if name.startswith("clu.metric_writers")]:
        monkeypatch.delitem(sys.modules, name)
    stub = types.ModuleType("clu.metric_writers.summary_writer")
    stub.SummaryWriter = type("SummaryWriter", (), {})
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    yield importlib.import_module("clu.metric_writers")
    for name in [name for name in sys.modules if name.startswith("clu.metric_writers")]:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("writer", [MetricWriter, JsonlWriter, TensorBoardWriter, WandbWriter])
def test_writers_have_the_methods_of_clu(clu_writers, writer):
    wanted = clu_writers.MetricWriter.__abstractmethods__
    assert len(wanted) >= 9
    for name in wanted:
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (writer, clu_writers.MetricWriter))
        assert [(p.name, p.kind) for p in ours.values()] == [(p.name, p.kind) for p in theirs.values()], name
        assert all((p.default is p.empty) == (theirs[p.name].default is p.empty) for p in ours.values()), name


def events(folder: Path) -> list:
    """`(tag, step, value)` of everything in the event files of a folder, read without TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def write_all(writer) -> None:
    writer.write_hparams({"video.steps": 700, "video.frozen": ("pad",)})
    writer.write_scalars(3, {"loss": np.float32(0.5)})
    writer.write_images(3, {"one": CLIPS[0, 0], "strip": CLIPS[:, 0]})
    writer.write_videos(3, {"clip": CLIPS})
    writer.write_texts(3, {"note": "all is well"})
    writer.write_histograms(3, {"weights": np.arange(100.0)}, {"weights": 10})
    writer.write_summaries(3, {})
    writer.write_audios(3, {}, sample_rate=8)
    writer.flush()
    writer.close()


def test_tensorboard_holds_everything_and_moves(clu_writers, tmp_path):
    """Through clu's own `MultiWriter`, beside our JSON lines."""
    Image = pytest.importorskip("PIL.Image")
    write_all(clu_writers.MultiWriter([TensorBoardWriter(tmp_path), JsonlWriter(tmp_path)]))
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 0.5}]
    found = {tag: value for tag, step, value in events(tmp_path / "tensorboard")}
    assert {"loss", "one/0", "strip/0", "strip/1", "clip/0", "clip/1", "weights"} <= found.keys()
    assert found["loss"].simple_value == 0.5 and found["weights"].histo.num == 100
    assert any("note" in tag for tag in found) and any("hparams" in tag for tag in found)
    still = np.asarray(Image.open(io.BytesIO(found["strip/1"].image.encoded_image_string)))
    np.testing.assert_array_equal(still, CLIPS[1, 0])
    moving = Image.open(io.BytesIO(found["clip/1"].image.encoded_image_string))
    assert moving.format == "GIF" and moving.n_frames == 5 and moving.size == (24, 16)


def test_wandb_gets_rising_steps_of_its_own_and_gifs(tmp_path, monkeypatch):
    """A stand-in takes the calls, for what wandb itself keeps is hard to read; the test below has wandb itself."""
    calls = []

    def note(name):
        return lambda *args, **kw: calls.append((name, args, kw))

    def video(path, format):
        return format, Path(path).read_bytes()[:4]

    config = types.SimpleNamespace(update=note("config"))
    run = types.SimpleNamespace(define_metric=note("define"), log=note("log"), finish=note("finish"), config=config)
    stand_in = types.SimpleNamespace(
        init=lambda **kw: calls.append(("init", (), kw)) or run,
        Image=lambda picture: picture.shape,
        Video=video,
        Histogram=lambda np_histogram: np_histogram[0].sum(),
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    write_all(WandbWriter(tmp_path / "video"))
    WandbWriter(tmp_path / "video", 3)
    inits = [kw for name, _, kw in calls if name == "init"]
    assert inits[0] == inits[1] and inits[0]["resume"] == "allow", "a resumed stage goes on in its run"
    assert ("define", ("*",), {"step_metric": "step"}) in calls and calls[-2][0] == "init"
    logged = [args[0] for name, args, kw in calls if name == "log" and not kw]
    assert all(row["step"] == 3 for row in logged)
    rows = {name: value for row in logged for name, value in row.items()}
    assert rows["loss"] == 0.5 and rows["strip"] == [(16, 24, 3)] * 2
    assert rows["clip"] == [("gif", b"GIF8")] * 2 and rows["note"] == "all is well" and rows["weights"] == 100
    assert ("finish", (), {}) in calls
    stage, settings = tmp_path / "video", toy_run(tmp_path / "video", writers=("wandb",))
    for spool in ("a", "b"):  # of a run in a bucket, each start writes to a local folder of its own
        StageWriters(settings, "video", 0, tmp_path / spool).close()
    last = [kw for name, _, kw in calls if name == "init"][-2:]
    assert [kw["id"] for kw in last] == [inits[0]["id"]] * 2 and last[0]["name"] == f"{tmp_path.name}/{stage.name}"
    shutil.rmtree(stage)
    WandbWriter(stage)
    assert calls[-2][2]["id"] != inits[0]["id"], "another run in the same place is another run"
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb, or leave it out of writers"):
        WandbWriter(tmp_path / "video")


def test_wandb_itself_keeps_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs pip install wandb, the extra [wandb]")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    folder = tmp_path / "video"
    folder.mkdir()
    write_all(WandbWriter(folder))
    (run,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    wanted, until = (b'"all is well"', b"video.steps"), time.monotonic() + 30
    while not all(part in run.read_bytes() for part in wanted):  # a process of W&B's own writes the last of it
        assert time.monotonic() < until
        time.sleep(0.1)
    names = [path.name for path in (run.parent / "files" / "media").rglob("*") if path.is_file()]
    assert sorted((name.split("_")[0], name[-3:]) for name in names) == [
        *[("clip", "gif")] * 2, ("one", "png"), *[("strip", "png")] * 2,
    ]  # fmt: skip


class Noting(MetricWriter):
    """A program's writer."""

    def __init__(self, wait=None, fail=False):
        self.rows, self.closed, self._wait, self._fail = [], 0, wait, fail

    def write_scalars(self, step, scalars):
        if self._wait:
            assert self._wait.wait(60)
        if self._fail:
            raise ConnectionError("no route to the dashboard")
        self.rows.append((step, dict(scalars)))

    def close(self):
        self.closed += 1


def test_nothing_waits_for_a_slow_writer_or_ends_with_a_broken_one(tmp_path, capsys):
    gate = threading.Event()
    slow, broken = Noting(gate), Noting(fail=True)
    run = toy_run(tmp_path)
    run.writers = (broken, slow)
    writers = StageWriters(run, "video", 0, tmp_path)
    for step in (1, 2, 3):
        writers.write(step, {"scalars": {"loss": float(step)}})
    assert slow.rows == [] and len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    gate.set()
    writers.close()
    assert slow.rows == [(step, {"video/loss": float(step)}) for step in (1, 2, 3)]
    assert slow.closed == broken.closed == 0, "the next stage writes to them too"
    told = capsys.readouterr().err
    assert told.count("left out") == 1 and "Noting.write_scalars failed (no route to the dashboard)" in told


def test_a_dashboard_that_cannot_be_reached_at_the_start_ends_no_training(tmp_path, monkeypatch, capsys):
    def init(**_):
        raise RuntimeError("no login")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    writers = StageWriters(toy_run(tmp_path, writers=("wandb",)), "video", 0, tmp_path)
    writers.write(1, {"scalars": {"loss": 1.0}})
    writers.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]
    assert "wandb cannot start (no login): it is left out, training goes on" in capsys.readouterr().err


def test_curves_that_cannot_be_closed_leave_nothing_else_open(tmp_path, monkeypatch):
    """As on a full disk: the state being written is still waited for, and the loader stopped."""
    closed = []

    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch["x"].mean()}

    class Stage(ToyStage):
        def batches(self, run, start):
            try:
                while True:
                    yield {"x": np.ones(4, np.float32)}
            finally:
                closed.append("stream")

    def fail(self, close=StageWriters.close):
        close(self)
        raise OSError("no space left")

    def close(self, close=loop.Checkpoints.close):
        close(self)
        closed.append("states")

    monkeypatch.setattr(StageWriters, "close", fail)
    monkeypatch.setattr(loop.Checkpoints, "close", close)
    stage = Stage(step, lambda: create_state({"w": jnp.zeros(())}, ()), {"x": np.ones(4, np.float32)}, steps=2)
    with pytest.raises(OSError, match="no space left"):
        loop.run_stage(stage, toy_run(tmp_path))
    assert closed == ["states", "stream"]


def test_the_first_line_says_that_tensorboard_is_missing(tmp_path, monkeypatch, tiny_experiment):  # noqa: F811
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorboardX" else find(name, *more)
    )
    call = ("train", "--config", tiny_experiment, "--workdir", tmp_path / "run", "--config.image.init_from=nowhere")
    assert pv_vae(*call)[2].startswith("no TensorBoard files, only metrics.jsonl: pip install tensorboardX pillow")
    assert "TensorBoard" not in pv_vae(*call, "--config.writers=()")[2]
    assert "must be among tensorboard, wandb, got 'tensorbord'" in fails(*call, "--config.writers=tensorbord")


# Evaluation while training


ON = {"evaluation.every": "2", "evaluation.sample_every": "3", "evaluation.clips": "3", "sampling.steps": "2"}
SHORT = {"image.steps": "0", "decoder.steps": "0", "video.objective.gan": "0", "mesh.data": "1"}


@pytest.fixture(scope="module")
def watched(tmp_path_factory, tiny_experiment):  # noqa: F811
    """Two runs of stages video, latents and diffusion: with everything on, and plain; and a writer of the first."""
    folder, writer = tmp_path_factory.mktemp("watched"), Noting()
    flags = [f"--config.{name}={value}" for name, value in (SHORT | ON).items()]
    call = ("train", "--config", tiny_experiment, "--workdir", folder / "on", *flags, "--profile=2:2")
    said = ""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pv_vae_jax.evaluation.comparison.LEAST_CLIPS", 3)
        for stage in ("video", "latents", "diffusion"):
            status, _, error = pv_vae(*call, f"--stage={stage}")
            assert status == 0, error
            said += error
    train(load_experiment(tiny_experiment, SHORT | {"writers": "()"}), folder / "off", writers=[writer])
    return folder / "on", folder / "off", said, writer


def test_evaluation_changes_no_bit(watched):
    on, off, *_ = watched
    for stage in ("video", "diffusion"):
        for name, data in files(off / stage / "model").items():
            assert name == "config.json" or files(on / stage / "model")[name] == data, f"{stage}/{name}"
        mine, plain = (read_metrics(folder / stage / "metrics.jsonl") for folder in (on, off))
        terms = [name for name in plain[-1] if not name.endswith(("_per_second", "_wait", "compute"))]
        assert "loss" in terms and [[row[t] for t in terms if t in row] for row in mine] == [
            [row[t] for t in terms if t in row] for row in plain
        ]
        assert not any(name.startswith("eval") for row in plain for name in row)


def test_evaluation_is_written_shown_and_its_cost_told(watched):
    on, _, said, _ = watched
    video, diffusion = (read_metrics(on / stage / "metrics.jsonl") for stage in ("video", "diffusion"))
    assert [row["step"] for row in video if "eval/psnr" in row] == [2, 4]
    assert {"eval/ssim", "eval/predicted", "eval/copying", "evaluation_wait"} <= video[-1].keys()
    bins = [name for name in diffusion[1] if name.startswith("eval_loss/t")]
    assert len(bins) == BINS and np.mean([diffusion[1][name] for name in bins]) == pytest.approx(
        diffusion[1]["eval/velocity_loss"]
    )
    assert "eval/velocity_loss" not in diffusion[2], "step 3 draws clips alone"
    distances = [name for name in diffusion[2] if "distance" in name]
    assert len(distances) == 2 and all(np.isfinite(diffusion[2][name]) for name in distances)
    assert not any("distance" in name for name in diffusion[1])
    boards = {stage: events(on / stage / "tensorboard") for stage in ("video", "diffusion")}
    shapes = {
        tag: (v.image.height, v.image.width) for tag, step, v in boards["video"] if v.HasField("image") and step == 4
    }
    assert shapes["eval/strip/2"] == (3 * 16, 5 * 16), "truth, reconstruction and prediction, over frames"
    assert shapes["eval/truth_reconstruction_prediction/0"] == (16, 3 * 16)
    assert {tag for tag, step, v in boards["diffusion"] if v.HasField("image")} == {
        f"eval/samples/{i}" for i in range(3)
    }
    assert "video, step 4: eval/psnr " in said and "% of the time" in said


def test_scores_are_those_of_the_saved_model(watched):
    """The last evaluation scores the moving average that is saved, on the first test clips, as `evaluate` does."""
    from pv_vae_jax.evaluation.prediction import score_prediction
    from pv_vae_jax.evaluation.reconstruction import score_reconstruction
    from pv_vae_jax.model import load
    from pv_vae_jax.train.run import reopen_run

    on = watched[0]
    model, row = load(on / "video" / "model"), read_metrics(on / "video" / "metrics.jsonl")[-1]
    source = reopen_run(on).source("test", random=False)
    video = np.stack([source[i]["video"] for i in range(3)])
    found = score_reconstruction(model.vae, model.vae_params, video)
    assert row["eval/psnr"] == pytest.approx(found.psnr, abs=1e-4)
    errors = score_prediction(model.vae, model.vae_params, video)
    assert row["eval/predicted"] == pytest.approx(errors.average(), rel=1e-4)
    assert row["eval/copying"] == pytest.approx(errors.average("copying"), rel=1e-4)


def test_a_programs_writer_gets_every_stage(watched):
    _, off, _, writer = watched
    for stage in ("video", "diffusion"):
        rows = read_metrics(off / stage / "metrics.jsonl")
        assert [step for step, row in writer.rows if f"{stage}/loss" in row] == [row["step"] for row in rows]
    assert not writer.closed


def test_velocity_loss_is_the_mean_over_real_clips(monkeypatch):
    """By bins and in padded batches as for each clip alone."""
    monkeypatch.setattr("pv_vae_jax.evaluation.velocity.BATCH", 2)
    latte = Latte(LatteConfig(latent_channels=4, depth=2, width=8, heads=2, classes=2))
    params = jax.jit(lambda: init_latte(latte, (2, 2, 2, 4)))()
    params = jax.tree.map(lambda p: p + 0.1 * np.random.default_rng(0).standard_normal(p.shape, np.float32), params)
    data = np.random.default_rng(1).standard_normal((3, 2, 2, 2, 4), np.float32)
    labels = np.array([0, 1, 1], np.int32)
    found = velocity_loss(latte, params, data, labels)
    apply, expected = jax.jit(latte.apply), np.zeros(BINS)
    for i in range(3):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i // 2), (2, *data.shape[1:]))[i % 2][None]
        for j, t in enumerate(TIMES):
            velocity = lambda x, t, i=i: apply({"params": params}, x, t, labels[i : i + 1])  # noqa: E731
            expected[j] += flow_matching_loss(velocity, data[i : i + 1], noise, jnp.full((1,), t)) / 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Early warnings


def warnings_of(curve: list[dict]) -> list[str]:
    """What a monitor says of recorded windows of one stage."""
    stage, frozen = curve["stage"], tuple(curve.get("frozen", ()))
    monitor = HealthMonitor(stage, Objective(**curve.get("objective", {})), frozen)
    return [text for row in curve["rows"] for text in monitor.check(row["step"], row)]


@pytest.mark.parametrize("name", [name for name in CURVES if name.startswith("demo")])
def test_nothing_is_said_of_healthy_runs(name):
    assert len(CURVES[name]["rows"]) >= 4 and warnings_of(CURVES[name]) == []


@pytest.mark.parametrize(
    ("name", "word"), [("dead", "carry next to nothing"), ("runaway", "run away"), ("gan", "discriminator wins")]
)
def test_a_sick_run_is_named_within_200_steps(name, word):
    (said,) = warnings_of(CURVES[name])
    step = int(said.split("step ")[1].split(":")[0])
    assert word in said and step <= 200 and f"{CURVES[name]['stage']}." in said
    heading = said.split("'")[1]
    assert f"### {heading}\n" in (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


def test_latents_that_cannot_move_are_not_blamed():
    rows = [{"step": step, "kl": kl, "loss": 0.1} for step, kl in ((100, 1e4), (200, 2e4))]
    assert warnings_of({"stage": "decoder", "frozen": ["encoder"], "rows": rows}) == []
    assert len(warnings_of({"stage": "decoder", "rows": rows})) == 1, "each sickness once"


def test_warnings_reach_the_terminal(tmp_path, capsys):
    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": jnp.ones(()), "kl": jnp.full((), 1e4)}

    stage = ToyStage(step, lambda: create_state({"w": jnp.zeros(())}, ()), {"x": np.ones(4, np.float32)}, steps=2)
    stage.config.objective = Objective()
    loop.run_stage(stage, toy_run(tmp_path))
    assert capsys.readouterr().err.count("image, step 1: the latents run away, kl is 1e+04 nats a value") == 1


# Profiles


@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__")  # jaxlib's; as an error it ends the process
def test_a_profile_holds_its_steps_and_their_parts(watched):
    on, _, said, _ = watched
    (path,) = (on / "video" / "profile").rglob("*.xplane.pb")
    assert f"pip install xprof, xprof --logdir {on / 'video' / 'profile'}" in said
    profile, steps = ProfileData.from_file(str(path)), set()
    for plane in profile.planes:
        for line in plane.lines:
            steps |= {dict(event.stats).get("step_num") for event in line.events if event.name == "video"}
    assert steps == {2, 3}
    content = path.read_bytes()  # the programs, which viewers read the names of operations from
    for scope in (b"video_step", b"encoder", b"decoder", b"losses", b"optimizer"):
        assert scope in content, scope


def test_profiles_of_what_cannot_be_traced(tmp_path, capsys):
    for text in ("10", "1:3", "10:0", "a:b", "10:3:1"):
        with pytest.raises(ConfigError, match=f"--profile must be START:COUNT such as 10:3, .* got '{text}'"):
            parse_window(text)
    assert parse_window("") is None

    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch["x"].mean()}

    def trained(folder, window):
        stage = ToyStage(step, lambda: create_state({"w": jnp.zeros(())}, ()), {"x": np.ones(4, np.float32)}, steps=3)
        loop.run_stage(stage, toy_run(folder, profile=parse_window(window)))
        return list(folder.rglob("*.xplane.pb"))

    assert not trained(tmp_path / "late", "10:3")
    assert "image: ended before step 10, nothing was profiled" in capsys.readouterr().err
    assert len(trained(tmp_path / "cut", "3:9")) == 1, "the stage ends within the window"
    assert len(trained(tmp_path / "again", "2:1")) == 1, "another trace can begin"


def test_a_device_that_runs_out_of_memory_leaves_a_profile_of_it(tmp_path, capsys):
    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": jnp.zeros((1 << 44,))}

    stage = ToyStage(step, lambda: create_state({"w": jnp.zeros(())}, ()), {"x": np.ones(4, np.float32)}, steps=3)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        loop.run_stage(stage, toy_run(tmp_path))
    assert (tmp_path / "memory.prof").read_bytes()[:2] == b"\x1f\x8b" and "memory.prof" in capsys.readouterr().err
