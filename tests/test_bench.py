"""The benches: each runs small, compares what it times, and the page is what the result files say."""

import dataclasses
import json
import math
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import __main__ as command
from benchmarks import harness, page
from benchmarks.__main__ import run_one
from benchmarks.registry import benches, find_bench, in_set, is_of
from pv_vae_jax.cli.main import MOVED, main, run_command
from pv_vae_jax.layers.conv import conv2d, default_lowering
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.train import mfu
from pv_vae_jax.train.config_files import override
from pv_vae_jax.train.configs import Experiment, Objective, VAEStageConfig
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.state import create_state
from pv_vae_jax.train.writers import read_metrics
from pv_vae_jax.typing import ConfigError
from tests.toy_stage import ToyStage, toy_run

NO_TORCH = "PyTorch is not installed: pip install -e '.[benchmark]'"


def bench_command(capsys, *arguments):
    status = run_command(command, "python -m benchmarks", list(map(str, arguments)))
    out = capsys.readouterr()
    return status, out.out, out.err


# The command.


def test_every_bench_tells_its_settings_and_is_listed(capsys):
    status, listed, _ = bench_command(capsys, "--list")
    assert status == 0 and len(listed.splitlines()) == len(benches())
    for name, line in benches().items():
        assert line and f"{name} " in listed
        bench = find_bench(name)
        fields = [field.name for field in dataclasses.fields(bench.Settings)]
        status, told, _ = bench_command(capsys, "--list", name)
        assert status == 0 and all(f"--config.{field}=" in told for field in fields)
        described = bench.Settings.__doc__
        assert all(field in described for field in fields), f"{name}: a setting is not described"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "name one bench"),
        (("vea",), "did you mean 'vae'"),
        (("vae", "--page"), "name one bench"),
        (("vae", "--config.sise=3"), "did you mean 'side'"),
        (("vae", "--config.sizes=huge"), "unknown size huge: choose of demo"),
        (("--all", "--config.rounds=1"), "for a single bench"),
        (("--accelerator",), "JAX finds a CPU alone"),
        (("vae", "--threads=100000"), "cores allowed"),
    ],
)
def test_wrong_calls_say_what_to_do(arguments, told, capsys, tmp_path):
    status, _, error = bench_command(capsys, *arguments, f"--out={tmp_path}")
    assert status in (1, 2) and told in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MOVED)
def test_commands_that_moved_say_where_they_are(name, capsys):
    assert main(["pv-vae", name, "--help"]) == 2
    assert MOVED[name] in capsys.readouterr().err
    program, module = re.match(r"'(pv-vae|python -m) ([\w.]+)", MOVED[name]).groups()
    home = f"pv_vae_jax/cli/{module}.py" if program == "pv-vae" else f"{module.replace('.', '/')}/__main__.py"
    assert (page.DOCUMENT.parents[1] / home).is_file() and ("clone" in MOVED[name]) == (program != "pv-vae")


def test_a_missing_package_names_the_extra():
    with pytest.raises(ImportError, match=r"\[benchmark\]"):
        harness.need("no_such_package_at_all")


# Times.


def test_turns_alternate_and_medians_count(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def call(name, durations):
        left = iter(durations)

        def run():
            order.append(name)
            clock[0] += next(left)

        return run

    times = harness.take_turns(
        {"a": call("a", [9, 8, 1, 2, 30]), "b": call("b", [1, 1, 4, 4, 4])}, 3, warmup=1, seconds=1000
    )
    assert order == list("ab" * 5)
    assert times["a"] == {"median_ms": 2000, "least_ms": 1000, "most_ms": 30000, "rounds": 3, "first_s": 9}
    assert harness.ratios(times, "a") == {"b": 0.5}
    assert harness.fastest(times, "b") == "b" and harness.fastest(times, "c") is None


def test_slow_calls_end_after_three_rounds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def run():
        clock[0] += 10

    assert harness.take_turns({"a": run}, 50, seconds=5)["a"]["rounds"] == 3


def test_aims_hold_their_bounds():
    assert harness.aim("x", 0.7, most=0.7)["met"] and not harness.aim("x", 0.71, most=0.7)["met"]
    assert harness.aim("x", 1.5, least=1.5)["met"] and not harness.aim("x", 1.4, least=1.5)["met"]
    assert not harness.aim("x", math.nan, most=1)["met"]


# Results and the page.


def test_a_result_of_other_code_or_settings_is_measured_again(tmp_path):
    settings = json.loads(json.dumps(dataclasses.asdict(find_bench("streaming").Settings())))
    path = tmp_path / "streaming_cpu.json"

    def record(**changed):
        path.write_text(json.dumps({"bench": "streaming", "code": "c", "settings": settings, "threads": 2} | changed))
        return is_of(path, "c", 2, {})

    assert record() and not is_of(path, "c", 2, {"side": 1})
    assert not record(code="d") and not record(threads=1) and not record(settings=settings | {"side": 1})


def test_what_an_accelerator_shows_ends_in_one_file(tmp_path, monkeypatch):
    """Also what failed leaves the others, and the same command goes on with that alone."""
    device, asked, broken = {"platform": "gpu", "kind": "H200", "count": 1}, [], {"roofline"}

    def run(line, cwd):
        name, *flags = line[3:]
        asked.append(name)
        if name in broken:
            return SimpleNamespace(returncode=1)
        overrides = dict(flag.removeprefix("--config.").split("=") for flag in flags if flag.startswith("--config."))
        settings = dataclasses.asdict(override(find_bench(name).Settings(), overrides))
        record = {"bench": name, "code": "c", "settings": settings, "threads": len(os.sched_getaffinity(0))}
        harness.result_path(name, device, tmp_path).write_text(json.dumps(record))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(harness, "in_process", lambda *_: device)
    monkeypatch.setattr(harness, "code", lambda: "c")
    monkeypatch.setattr(command.subprocess, "run", run)
    sent = tmp_path / "accelerator_h200.json"
    told = lambda: [record["bench"] for record in json.loads(sent.read_text())["records"]]  # noqa: E731
    with pytest.raises(ChildProcessError, match="^roofline failed"):
        command.run_accelerator(0, tmp_path, False)
    assert asked == ["paper", "roofline", "wan22"] and told() == ["paper", "wan22"]
    broken.clear()
    assert command.run_accelerator(0, tmp_path, False) == sent
    assert asked[3:] == ["roofline"] and told() == ["paper", "roofline", "wan22"]
    device["platform"] = "cpu"
    with pytest.raises(ConfigError, match="JAX finds a CPU alone: install it for your accelerator"):
        command.run_accelerator(0, tmp_path, False)


def test_the_page_is_what_the_results_say():
    text = page.DOCUMENT.read_text()
    assert page.filled(text) == text, "run python -m benchmarks --page"


def test_the_page_follows_the_results(tmp_path):
    record = next(r for r in harness.read_results() if r.get("bench") == "streaming")
    record["results"]["rows"][0]["seconds"] = 1234.5
    record["aims"] = [harness.aim("something", 3.0, most=2.0)]
    (tmp_path / "streaming_cpu.json").write_text(json.dumps(record))
    tables = page.tables(tmp_path)
    assert "1234.5" in tables and "| something | " in tables and "**missed**" in tables
    assert "1234.5" not in page.tables()
    with pytest.raises(ValueError, match="marks"):
        page.filled("no marks here")


# Each bench, small.

MODEL = dict(
    patch=2,
    latent_channels=4,
    time_factors=(2,),
    space_factors=(2,),
    encoder_widths=(8, 8),
    decoder_widths=(8, 8),
    encoder_blocks=1,
    decoder_blocks=1,
)
ONE = dict(rounds=1, seconds=0)
SMALL = {
    "vae": dict(sizes="test", **ONE),
    "latte": dict(sizes="test", vae="test", batch=2, frames=5, side=8, steps=2, **ONE),
    "lowerings": dict(shapes="1x3x4x4x2x3", **ONE),
    "attention": dict(shapes="2x4x2x8", **ONE),
    "remat": dict(vae="test", latte="test", batch=1, side=32, **ONE),
    "truncation": dict(size="test", **ONE),
    "feature-network": dict(networks="own", side=32, clips=1, counts="()", **ONE),
    "roofline": dict(steps="VAE test", rounds=1, peak_side=64, against="none"),
    "paper": dict(batch=1, frames=5, side=8, warmup=0, timed=1, vae="test", latte="test", dtype="float32"),
}


@pytest.fixture
def small_networks(monkeypatch):
    """A VAE and a transformer called `test`, one of each kind of layer."""
    from benchmarks import vae

    monkeypatch.setitem(vae.CPU_CASES, "test", vae.Case(MODEL, 1, 5, 8))
    monkeypatch.setattr(VAEConfig, "test", lambda **changes: VAEConfig(**MODEL | changes), raising=False)
    size = dict(depth=4, width=16, heads=2)
    monkeypatch.setattr(LatteConfig, "test", lambda **changes: LatteConfig(**size | changes), raising=False)
    monkeypatch.setattr("benchmarks.latte.SIZES", ("test",))
    monkeypatch.setattr("benchmarks.roofline.STEPS", ("VAE test",))
    monkeypatch.setattr("benchmarks.compile.KINDS", ("VAE test",))


def run_small(name, folder, **changed):
    threads = len(os.sched_getaffinity(0))
    record = run_one(name, {k: str(v) for k, v in (SMALL.get(name, {}) | changed).items()}, threads, folder)
    (path,) = folder.iterdir()
    assert json.loads(path.read_text()) == json.loads(json.dumps(record))
    assert record["device"]["platform"] == "cpu" and record["code"] == harness.code()
    assert record["settings"] == dataclasses.asdict(find_bench(name).Settings()) | record["settings"]
    assert len(find_bench(name).table(json.loads(path.read_text())["results"]).splitlines()) > 2
    return record["results"]


def test_every_bench_of_the_set_is_tried_here():
    elsewhere = {"wan22", "streaming", "compile", "data"}  # they start processes of their own: their parts, below
    assert {name for name in benches() if in_set(name)} <= set(SMALL) | elsewhere


def test_vae(small_networks, tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    found = run_small("vae", tmp_path, parts="encode,decode")["test"]
    assert set(found) == {"encode", "decode"}
    for part in found.values():
        assert part["difference"] < 1e-4 and set(part["times"]) == {"ours", "torch, contiguous", "torch, channels last"}
        fastest = part["times"][part["fastest"]]["median_ms"]
        assert fastest == min(t["median_ms"] for name, t in part["times"].items() if name != "ours")
        assert part["ratio"] == pytest.approx(part["times"]["ours"]["median_ms"] / fastest, abs=1e-3)


@pytest.mark.slow
def test_the_steps_of_both_sides_learn_alike(small_networks):
    """One update of the same parameters, on the mean: equal losses before, nearly equal ones after."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from benchmarks import vae
    from benchmarks.torch_vae import TorchStep

    config = VAEConfig(**MODEL)
    params = vae.draw_params(config)
    params["encoder"]["moments"]["bias"][4:] = -60  # hardly any noise: both sides draw their own
    video = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), dtype=np.uint8)
    discriminator, dropped = vae.draw_discriminator(video), np.array([0, 1], np.int32)
    step, state, options = vae.our_step(config, params, "video+gan", discriminator)
    program = jax.jit(lambda state, batch: step(state, batch, **options))
    batch = {"video": jnp.asarray(video), "dropped": jnp.asarray(dropped)}
    device = torch.device("cpu")
    rates = (vae.RATE, vae.KL, vae.EMA)
    other = TorchStep(params, config, torch.contiguous_format, device, *rates, gan=vae.GAN, discriminator=discriminator)
    losses = []
    for _ in range(3):
        state, logs = program(state, batch)
        losses.append((float(logs["loss"]), other(torch.tensor(video), torch.tensor(dropped))))
    ours, theirs = np.transpose(losses)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    assert ours[2] < ours[0]
    theirs = dict(other.discriminator.named_parameters())["patch_3d.conv0.weight"].detach().numpy()
    np.testing.assert_allclose(
        np.transpose(state.discriminator.params["patch_3d"]["conv0"]["kernel"], (4, 3, 0, 1, 2)), theirs, atol=2e-5
    )


@pytest.mark.slow
def test_latte(small_networks, tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    found = run_small("latte", tmp_path, parts="train")["test"]["train"]
    assert found["difference"] < 1e-4 and found["ratio"] > 0 and found["flops"] > 0


def test_both_transformers_sample_the_same(small_networks):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from benchmarks import latte
    from benchmarks.torch_latte import TorchLatte, load_flax, sample

    settings = latte.Settings(parts=("train",), vae="test", batch=2, frames=5, side=8, steps=3, dtype="float32")
    bench = latte.Bench("test", settings)
    network = TorchLatte(bench.config, bench.shape)
    load_flax(network, bench.params)
    ours, _ = bench.ours("sample")
    theirs = sample(
        network, torch.tensor(bench.noise), torch.tensor(bench.label), 3, 1.5, torch.autocast("cpu", enabled=False)
    )
    np.testing.assert_allclose(ours(), theirs.numpy(), atol=1e-4)


def test_lowerings_follow_what_was_fastest(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason=NO_TORCH)
    (found,) = run_small("lowerings", tmp_path).values()
    assert set(found["times"]) == {"direct", "sum2d", "taps_in", "taps_out", "torch"} and found["auto"] == "taps_out"
    assert default_lowering(64, 64, "cpu") == "taps_in" and default_lowering(128, 128, "cpu") == "sum2d"
    assert {default_lowering(3, 3, platform) for platform in ("gpu", "tpu")} == {"direct"}
    assert default_lowering(128, 128, "gpu") == "sum2d" and default_lowering(128, 128, "tpu") == "direct"


def test_attention(tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    (found,) = run_small("attention", tmp_path).values()
    assert found["auto"] == found["best"] == "xla" and set(found["times"]) == {"xla", "jax.nn", "torch"}


def test_remat_saves_memory_and_nothing_else():
    from benchmarks import remat

    def step(state, batch, again):
        layer = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w)  # noqa: E731
        layer = jax.checkpoint(layer) if again else layer

        def loss(w):
            x, _ = jax.lax.scan(lambda x, _: (layer(w, x), None), batch, length=8)
            return jnp.square(x).mean()

        value, gradient = jax.value_and_grad(loss)(state)
        return state - gradient, {"loss": value}

    given = lambda: (jnp.eye(16), jnp.ones((64, 16)))  # noqa: E731
    steps = {name: (lambda s, b, again=name != "none": step(s, b, again), *given()) for name in ("none", "again")}
    found = remat.time_policies(steps, remat.Settings(**ONE))
    assert found["again"]["memory_of_none"] < found["none"]["memory_of_none"] == 1
    assert "| again |" in remat.table({"chain": found})


@pytest.mark.slow
def test_policies_differ_in_what_is_computed_again(small_networks, monkeypatch):
    from benchmarks import remat

    monkeypatch.setattr(VAEConfig, "paper", lambda **changes: VAEConfig(**MODEL | changes))
    for steps in (remat.latte_steps("test", 1, 8), remat.vae_steps("test")):
        flops = {name: mfu.model_flops(*step) for name, step in steps.items()}
        assert min(flops, key=flops.get) == "none" and len(flops) == 4
        assert flops["remat" if "remat" in flops else "blocks"] > flops["none"]


@pytest.mark.slow
def test_truncation_saves_the_encoder_s_work(small_networks):
    from benchmarks import truncation

    case, config, params = truncation.chosen(truncation.Settings(size="test"))
    flops = {name: f for name, (_, f) in truncation.programs(case, config, params, 1.0).items()}
    found = truncation.count(flops, case, config, params)
    assert list(flops) == ["filled", "k = 0", "k = 1", "k = 2"]
    assert flops["k = 0"] == flops["filled"] > flops["k = 1"] > flops["k = 2"]
    # Groups of 1, 2 and 2 frames: of 5 frames, 5, 3 and 1 are seen; the causal encoder needs as much of its work.
    assert found["encoder_share_saved"] == pytest.approx(1 - (5 + 3 + 1) / 15, abs=0.05)


def test_roofline(small_networks, tmp_path, monkeypatch):
    def step(state, batch):
        loss = lambda kernel: jnp.tanh(conv2d(batch, kernel)).sum()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(state)
        return state - gradient, {"loss": value}

    a_step = lambda kind: (step, jnp.ones((3, 3, 4, 4)), jnp.ones((2, 16, 16, 4)))  # noqa: E731
    monkeypatch.setattr("benchmarks.roofline.a_step", a_step)
    found = run_small("roofline", tmp_path)
    measured = found["steps"]["VAE test"]
    assert {"convolution", "elementwise"} <= set(measured["kinds"])
    assert sum(kind["share"] for kind in measured["kinds"].values()) == pytest.approx(1, abs=1e-3)
    assert measured["gib_accessed"] > 0 and min(found["peaks"][k] for k in ("flops", "bandwidth")) > 0


def test_kinds_of_instructions_carry_their_work():
    from benchmarks.roofline import instruction_kinds

    @jax.jit
    def work(x, kernel, w):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return (jnp.tanh(y) @ w).sum()

    given = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 16)), jnp.ones((16, 32))
    kinds = instruction_kinds(work.lower(*given).compile().as_text())
    flops = {name: max(f for kind, f in kinds.values() if kind == name) for name in ("convolution", "matrix product")}
    assert flops == {"convolution": 2 * 2 * 64 * 16 * 36, "matrix product": 2 * 2 * 64 * 16 * 32}
    assert "elementwise" in {kind for kind, _ in kinds.values()}


def test_the_paper_s_columns_stand_beside_ours():
    from benchmarks import paper

    ours = dict(parameters_M=658, latent="t4s16c64", inference=dict(per_second=1.5, GiB=2.5))
    ours |= dict(training=dict(per_second=3.5, GiB=4.5), protocol=dataclasses.asdict(paper.Settings()))
    lines = paper.table(ours).splitlines()
    assert "| ours: paper VAE, Latte-XL, bfloat16 | t4s16c64 | 658 | 1.5 | 2.5 | 3.5 | 4.5 |" in lines
    assert "| paper: PV-VAE | t4s16c64 | 661 | 0.69 | 7.97 | 4.4 | 33.34 |" in lines


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "latte", "remat", "truncation", "paper"])
def test_a_bench_runs_whole(name, small_networks, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason=NO_TORCH)
    monkeypatch.setattr(VAEConfig, "paper", lambda **changes: VAEConfig(**MODEL | changes))
    found = run_small(name, tmp_path)
    if name == "vae":
        assert set(found["test"]) == {"encode", "decode", "image", "video", "decoder", "video+gan"}
        assert all(part["difference"] < 1e-4 for part in found["test"].values())
    if name == "latte":
        assert set(found["test"]) == {"train", "online", "sample"}


@pytest.mark.slow
def test_wan22_sides_agree(tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[benchmark]'")
    from benchmarks import wan22

    settings = wan22.Settings(frames=5, side=16, widths="test")
    wan22.write_weights(tmp_path / "weights.safetensors", "test")
    clip = np.random.default_rng(1).uniform(-1, 1, (1, 5, 16, 16, 3)).astype(np.float32)
    for name, side in (("ours", wan22.Ours), ("diffusers", wan22.Diffusers)):
        network = side(tmp_path / "weights.safetensors", clip, "float32", settings)
        latents = network.encode(network.place(clip))
        found = {"latents": latents, "video": network.decode(latents)}
        np.savez(tmp_path / f"{name}.npz", **{key: wan22.last_axis(x) for key, x in found.items()})
    assert max(wan22.compare(tmp_path, 1e-4).values()) < 1e-4
    with pytest.raises(RuntimeError, match="disagree"):
        wan22.compare(tmp_path, 0.0)


@pytest.mark.slow
def test_a_start_is_parted(small_networks):
    from benchmarks import compile

    found = compile.first_step("VAE test")
    assert found["programs"] >= 1 and found["total_s"] == pytest.approx(
        sum(found[f"{part}_s"] for part in ("prepare", "trace", "compile", "run")), abs=0.03
    )


def test_programs_of_a_stage():
    from benchmarks.compile import programs, programs_of_the_demo

    counts = programs_of_the_demo()
    assert counts["filled"] == dict(image=1, video=1, decoder=1, diffusion=1)
    assert counts["truncated"] == dict(image=1, video=5, decoder=1, diffusion=1)
    stage = VAEStageConfig(steps=9, drop_ratio=1.0, objective=Objective(gan=1.0, gan_start=5))
    assert programs(Experiment(video=stage), "video") == 10


@pytest.mark.slow
def test_reading(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed: pip install -e '.[video]'")
    from benchmarks import data
    from pv_vae_jax.data.video_writing import write_video

    write_video(tmp_path / "a.mp4", data.texture(24, 48, 64, 0), fps=24, crf=20)
    changed = dict(seconds=0.01, batches=10, step=0.0, steps=2, batch_size=1, side=32, videos=tmp_path)
    (tmp_path / "out").mkdir()
    found = run_small("data", tmp_path / "out", **changed)
    (rates,) = found["frames_per_second_and_core"].values()
    assert {"PyAV", "read_video", "files", "records", "latents"} <= set(rates) and min(rates.values()) > 0


def test_feature_networks(tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    found = run_small("feature-network", tmp_path)
    own = found["speed"]["own"]
    assert own["difference"] < 1e-4 and found["memory"] == []
    assert own["frames_per_second"]["ours"] == pytest.approx(17e3 / own["times"]["ours"]["median_ms"], rel=1e-2)
    assert own["ratios"]["torch"] == pytest.approx(
        own["times"]["ours"]["median_ms"] / own["times"]["torch"]["median_ms"], abs=1e-3
    )


def test_memory_over_many_clips_is_of_a_process_each(monkeypatch, tmp_path):
    from benchmarks import feature_network

    here = feature_network.measure_memory(3, 16)
    assert here["clips"] == 3 and here["peak_mib"] > 50
    asked = []

    def in_process(bench, function, count, side):
        asked.append((bench, function, count, side))
        return {"clips": count, "side": side, "peak_mib": 100.0 + count, "seconds": 1.0}

    monkeypatch.setattr(harness, "in_process", in_process)
    monkeypatch.setattr(feature_network, "compare", lambda name, settings: {"ratios": {"torch": 0.8}})
    found = feature_network.run(feature_network.Settings(counts=(30, 10), networks=("own",)))
    assert asked == [("feature_network", "measure_memory", count, 256) for count in (10, 30)]
    faster, flat = found["aims"]
    assert faster["value"] == 0.8 and faster["met"] and flat["value"] == pytest.approx(130 / 110, abs=1e-4)
    assert not flat["met"]


def test_a_process_of_its_own_answers_and_tells_its_failure():
    assert harness.in_process("harness", "ms", 12.345) == "12.3 ms"
    with pytest.raises(RuntimeError, match="harness.names ended with status 1"):
        harness.in_process("harness", "names", ["a"], ["b"], "thing")


# How near the peak a step comes.


def test_utilisation_is_work_over_what_all_devices_could_do():
    assert mfu.utilisation(4e12, 2.0, 4, mfu.Peak(1e12, 1.0)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v4 lite", None),
        ("cpu", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_found_by_the_device(kind, flops):
    found = mfu.peak(kind)
    assert (found and found.flops) == flops


def test_memory_of_the_a100s_differs():
    assert mfu.peak("NVIDIA A100-SXM4-80GB").bandwidth > mfu.peak("NVIDIA A100-SXM4-40GB").bandwidth


def test_recomputation_is_not_counted():
    config = LatteConfig(latent_channels=4, depth=2, width=8, heads=2, remat="blocks")
    latents, t = jnp.zeros((1, 3, 2, 2, 4)), jnp.zeros(1)

    def flops(config):
        params = jax.eval_shape(Latte(config).init, jax.random.key(0), latents, t)["params"]
        loss = lambda p: Latte(config).apply({"params": p}, latents, t).sum()  # noqa: E731
        forward, both = mfu.model_flops(loss, params), mfu.model_flops(jax.grad(loss), params)
        return forward, both

    forward, both = flops(mfu.without_remat(config))
    # 12 tokens through two blocks of 12 d^2 weights, the embedding and the output; modulation is of one vector each.
    tokens = 12 * (2 * 12 * 8 * 8 + 2 * 4 * 8)
    conditioning = 256 * 8 + 8 * 8 + 2 * 8 * 48 + 8 * 16
    attention = 2 * (3 * 4 * 4 + 4 * 3 * 3) * 8
    assert forward == 2 * (tokens + conditioning + attention)
    assert 2.5 * forward < both <= 3 * forward
    assert flops(config)[1] > both + 0.5 * forward


def test_plain_keeps_everything_but_recomputation():
    config = VAEConfig(remat=True, remat_levels=("encoder/level0",), remat_blocks=("decoder/level_1",))
    assert mfu.without_remat(config) == VAEConfig()
    assert mfu.without_remat(LatteConfig(remat="dots", depth=4)) == LatteConfig(depth=4)


def test_the_clock_parts_its_window():
    now = [0.0]
    clock = mfu.StepTimer(lambda: now[0])

    def spend(part, seconds):
        with clock(part):
            now[0] += seconds

    spend("data", 1)
    spend("checkpoint", 2)
    spend("data", 1)
    now[0] += 4
    elapsed, shares = clock.read()
    assert elapsed == 8 and shares == {"data": 0.25, "checkpoint": 0.25, "compute": 0.5}
    now[0] += 3
    assert clock.read() == (3.0, {"compute": 1.0})


def test_a_run_on_a_known_device_writes_its_utilisation(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(mfu.PEAKS, "cpu", mfu.Peak(1e9, 1e9))
    rule = optax.sgd(0.1)
    params = {"w": jnp.ones((64, 32))}

    def step(state, batch, gan):
        loss = lambda p: jnp.square(batch["x"] @ p["w"]).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, gradient)), {"loss": value}

    create, batch = lambda: create_state(params, rule.init(params)), {"x": np.ones((8, 64), np.float32)}
    stage = ToyStage(step, create, batch, steps=4, unit="rows", units=8, static_args={"gan": False})
    run_stage(stage, toy_run(tmp_path, log_every=2, checkpoint_every=2))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        # Two products of 8 x 64 by 64 x 32 a step: forward, and the gradient of the weights.
        flops_per_second = row["rows_per_second"] / 8 * 2 * (2 * 8 * 64 * 32)
        busy = row["compute"] + row["data_wait"]
        assert row["mfu"] == pytest.approx(flops_per_second / busy / 1e9, rel=1e-6)
        parts = {k: v for k, v in row.items() if k.endswith("_wait") or k == "compute"}
        assert sum(parts.values()) == pytest.approx(1) and min(parts.values()) >= 0
    assert "checkpoint_wait" in rows[1]
    assert "of peak" in capsys.readouterr().err
