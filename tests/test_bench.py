"""The benches: each runs small, compares what it times, and the page is what the result files say."""

import dataclasses
import json
import math

import pytest

from pv_vae_jax.cli.bench import benches, find_bench, find_clone, is_of, run_one
from pv_vae_jax.cli.main import main

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
