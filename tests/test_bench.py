"""The benches: each runs small, compares what it times, and the page is what the result files say."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pv_vae_jax.cli.bench import benches, find_bench, find_clone, is_of, run_one
from pv_vae_jax.cli.main import main
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.vae import VAEConfig
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.train import roofline
from pv_vae_jax.train.loop import run_stage
from pv_vae_jax.train.metrics import read_metrics
from pv_vae_jax.train.state import create_state

find_clone()
from benchmarks import harness, page  # noqa: E402

NO_TORCH = "PyTorch is not installed: pip install -e '.[benchmark]'"


def pv_vae_bench(capsys, *arguments):
    status = main(["pv-vae", "bench", *map(str, arguments)])
    out = capsys.readouterr()
    return status, out.out, out.err


# The command.


def test_every_bench_tells_its_settings_and_is_listed(capsys):
    status, listed, _ = pv_vae_bench(capsys, "--list")
    assert status == 0 and len(listed.splitlines()) == len(benches())
    for name, line in benches().items():
        assert line and f"{name} " in listed
        bench = find_bench(name)
        fields = [field.name for field in dataclasses.fields(bench.Settings)]
        status, told, _ = pv_vae_bench(capsys, "--list", name)
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
        (("vae", "--threads=100000"), "cores allowed"),
    ],
)
def test_wrong_calls_say_what_to_do(arguments, told, capsys, tmp_path):
    status, _, error = pv_vae_bench(capsys, *arguments, f"--out={tmp_path}")
    assert status in (1, 2) and told in error
    assert not list(tmp_path.iterdir())


def test_a_package_without_its_clone_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("pv_vae_jax.cli.bench.CLONE", tmp_path)
    status, _, error = pv_vae_bench(capsys, "--list")
    assert status == 1 and "clone it" in error


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
        return is_of(path, "c", 2)

    assert record()
    assert not record(code="d") and not record(threads=1) and not record(settings=settings | {"side": 1})


def test_the_page_is_what_the_results_say():
    text = page.DOCUMENT.read_text()
    assert page.filled(text) == text, "run pv-vae bench --page"


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

SMALL = {
    "vae": dict(sizes="demo", parts="encode,video+gan", batch=1, frames=5, side=8, rounds=1),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_bench_runs_small(name, tmp_path):
    pytest.importorskip("torch", reason=NO_TORCH)
    record = run_one(name, {k: str(v) for k, v in SMALL[name].items()}, 0, tmp_path)
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == json.loads(json.dumps(record))
    assert record["results"] and record["device"]["platform"] == "cpu" and record["code"] == harness.code()
    assert len(find_bench(name).table(json.loads(path.read_text())["results"]).splitlines()) > 2


# How near the peak a step comes.


def test_utilisation_is_work_over_what_all_devices_could_do():
    assert roofline.utilisation(4e12, 2.0, 4, roofline.Peak(1e12, 1.0)) == pytest.approx(0.5)


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
    found = roofline.peak(kind)
    assert (found and found.flops) == flops


def test_memory_of_the_a100s_differs():
    assert roofline.peak("NVIDIA A100-SXM4-80GB").bandwidth > roofline.peak("NVIDIA A100-SXM4-40GB").bandwidth


def test_recomputation_is_not_counted():
    config = LatteConfig(latent_channels=4, depth=2, width=8, heads=2, remat="blocks")
    latents, t = jnp.zeros((1, 3, 2, 2, 4)), jnp.zeros(1)

    def flops(config):
        params = jax.eval_shape(Latte(config).init, jax.random.key(0), latents, t)["params"]
        loss = lambda p: Latte(config).apply({"params": p}, latents, t).sum()  # noqa: E731
        forward, both = roofline.model_flops(loss, params), roofline.model_flops(jax.grad(loss), params)
        return forward, both

    forward, both = flops(roofline.plain(config))
    # 12 tokens through two blocks of 12 d^2 weights, the embedding and the output; modulation is of one vector each.
    tokens = 12 * (2 * 12 * 8 * 8 + 2 * 4 * 8)
    conditioning = 256 * 8 + 8 * 8 + 2 * 8 * 48 + 8 * 16
    attention = 2 * (3 * 4 * 4 + 4 * 3 * 3) * 8
    assert forward == 2 * (tokens + conditioning + attention)
    assert 2.5 * forward < both <= 3 * forward
    assert flops(config)[1] > both + 0.5 * forward


def test_plain_keeps_everything_but_recomputation():
    config = VAEConfig(remat=True, remat_levels=("encoder/level0",), remat_blocks=("decoder/level_1",))
    assert roofline.plain(config) == VAEConfig()
    assert roofline.plain(LatteConfig(remat="dots", depth=4)) == LatteConfig(depth=4)


def test_the_clock_parts_its_window():
    now = [0.0]
    clock = roofline.Clock(lambda: now[0])

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
    monkeypatch.setitem(roofline.PEAKS, "cpu", roofline.Peak(1e9, 1e9))
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    rule = optax.sgd(0.1)
    params = {"w": jnp.ones((64, 32))}

    def step(state, batch, gan):
        loss = lambda p: jnp.square(batch["x"] @ p["w"]).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(state.params)
        return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, gradient)), {"loss": value}

    run_stage(
        name="stage",
        folder=tmp_path,
        mesh=mesh,
        create=lambda given: create_state(params, rule.init(params)),
        given=dict,
        step=step,
        options=lambda number, batch: {"gan": False},
        batches=lambda at: iter([{"x": np.ones((8, 64), np.float32)}] * 4),
        steps=4,
        log_every=2,
        checkpoint_every=2,
        unit="rows",
        units_per_step=8,
    )
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
