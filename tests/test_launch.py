"""Launching: every back end makes the same runs of one description, and what it makes is valid where it goes.

Commands of clusters are played by scripts that record how they are called.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
sys.path.insert(0, str(LAUNCH))

import experiment as description  # noqa: E402
import gke  # noqa: E402
import local  # noqa: E402
import xla_flags  # noqa: E402

from pv_vae_jax.model import load  # noqa: E402
from pv_vae_jax.params_io import weights_hash  # noqa: E402
from tests.test_cli import tiny_experiment  # noqa: E402, F401

BASE = ["--config", "experiments/demo.py", "--workdir", "/mnt/runs/demo"]
SWEEP = ["--sweep", "config.seed=0,1", "--sweep", "config.video.drop_ratio=0.5,1.0", "--config.image.steps=2"]
OWN = {
    "local": [],
    "slurm": ["--nodes", "2", "--gpus-per-node", "4"],
    "tpu_vm": ["--tpu", "me@pod", "--zone", "us-west4-a", "--project", "p"],
    "gke": ["--image", "repo/image:1", "--tpu", "v5e", "--topology", "4x4", "--claim", "runs:/mnt/runs"],
    "xpk": ["--cluster", "c", "--device-type", "v5litepod-16", "--image", "repo/image:1"],
    "xm": [],
}


def launch(*arguments, env=None, **options) -> subprocess.CompletedProcess:
    """`python launch ...` as a user calls it."""
    command = [sys.executable, str(LAUNCH), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=env, **options)


def dry(backend: str, *arguments) -> str:
    done = launch(backend, *BASE, *OWN[backend], *arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """`commands(name)` puts a command in the path that records its arguments; calling the result returns them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, body: str = ""):
        log = tmp_path / f"{name}.log"
        record = f"{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\" >> {log}"
        (folder / name).write_text(f"#!/bin/bash\n{record}\n{body}\n")
        (folder / name).chmod(0o755)
        return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return make


# The description.


def test_a_sweep_is_the_grid_of_its_axes():
    points = description.grid(["config.seed=0,1", "config.video.drop_ratio=0.5,1.0"])
    assert [description.name_of(p) for p in points] == [
        f"seed={s},video.drop_ratio={r}" for s in (0, 1) for r in (0.5, 1.0)
    ]
    assert description.grid([]) == ({},)
    widths = description.grid(["config.vae.encoder_widths=(8,8),(16,16)"])
    assert [p["config.vae.encoder_widths"] for p in widths] == ["(8,8)", "(16,16)"]
    for wrong in ("seed", "config.seed", "config.seed=", "seed=1"):
        with pytest.raises(ValueError, match="config.KEY=VALUE"):
            description.grid([wrong])
    for wrong, why in (
        (["config.seed=0,,1"], "empty value"),
        (["config.data.source=it's,so"], "is not closed"),
        (["config.vae.encoder_widths=(8,8"], "is not closed"),
        (["config.seed=0", "config.seed=1"], "names config.seed twice"),
        (["config.seed=0,0"], "share the folder seed=0"),
        (["config.data.source=a/b,a_b"], "share the folder data.source=a_b"),
    ):
        with pytest.raises(ValueError, match=why):
            description.grid(wrong)


def test_what_is_swept_is_not_given_as_well(capsys):
    call = ["--config", "e.py", "--workdir", "w", "--sweep", "config.seed=1,2"]
    with pytest.raises(SystemExit):
        description.parse(description.make_parser(""), [*call, "--config.seed=3"])
    assert "--config.seed is both swept and set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        description.parse(description.make_parser(""), [*call, "-config.seed=3"])
    experiment, _ = description.parse(description.make_parser(""), [*call, "--config.seed_of=3"])
    assert experiment.flags == ("--config.seed_of=3",)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5,1.0", ["0.5", "1.0"]),
        ("((5,16,4),(5,32,2)),((5,16,1),)", ["((5,16,4),(5,32,2))", "((5,16,1),)"]),
        ("synthetic,'synthetic:fall,walk'", ["synthetic", "synthetic:fall,walk"]),
        ('("encoder","pad"),("pad",)', ['("encoder","pad")', '("pad",)']),
        ('"encoder,pad",so', ["encoder,pad", "so"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_values_are_parted_by_commas_outside_brackets_and_quotes(text, values):
    assert list(description.values_of(text)) == values


@pytest.mark.parametrize("backend", OWN)
def test_every_back_end_runs_the_same_points(backend):
    """Whatever is printed around them, the commands of the runs are there, once each (once a process)."""
    text = dry(backend, *SWEEP).replace('"', "").replace("'", "").replace(",\n", " ")
    text = re.sub(r"\n\s+- ", " ", text)
    for seed in (0, 1):
        for ratio in ("0.5", "1.0"):
            folder = f"/mnt/runs/demo/seed={seed},video.drop_ratio={ratio}"
            wanted = (
                f"--config experiments/demo.py --workdir {folder} "
                f"--config.seed={seed} --config.video.drop_ratio={ratio} --config.image.steps=2"
            )
            assert text.count(wanted) == 1, text


@pytest.mark.parametrize("backend", OWN)
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sweep", "seed=1"], "--sweep must be config.KEY=VALUE,VALUE, got 'seed=1'"),
        (["--env", "1A=2"], "--env must be NAME=VALUE"),
        (["--workdir", "s3://bucket/run"], "mount the bucket"),
        (["--restarts", "-1"], "--restarts must be at least 0"),
        (["stray"], "unknown argument 'stray'"),
        (["--xla-set", "fast"], "invalid choice: 'fast'"),
        (["--name", ""], "--name must not be empty"),
        (
            ["--workdir", "gs://b/r", "--sweep", "config.data.size=[8,8]"],
            "must not hold [, which has a meaning",
        ),
    ],
)
def test_a_wrong_call_ends_with_status_2_and_says_why(backend, flags, says, capsys):
    module = __import__(backend)
    with pytest.raises(SystemExit) as stopped:
        module.main([*BASE, *OWN[backend], *flags, "--dry-run"])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "flags", "says"),
    [
        ("local", ["--processes", "0"], "--processes must be at least 1, got 0"),
        ("local", ["--parallel", "0"], "--parallel must be at least 1, got 0"),
        ("local", ["--port", "9000", "--parallel", "2"], "--port needs --parallel 1"),
        ("slurm", ["--nodes", "0"], "--nodes must be at least 1, got 0"),
        ("slurm", ["--time", "a day"], "--time must be"),
        ("slurm", ["--sbatch", "partition"], "--sbatch must be an option"),
        ("slurm", ["--sbatch=--comment=a\nb"], "--sbatch must be an option"),
        ("slurm", ["--sbatch=--array=0-3"], "--sbatch=--array=0-3 breaks the script: give the values to --sweep"),
        ("slurm", ["--sbatch=-a 0-3"], "breaks the script"),
        ("slurm", ["--sbatch=-a0-3"], "breaks the script"),
        ("slurm", ["--sbatch=--wrap=hostname"], "sbatch is given a script already"),
        ("slurm", ["--sbatch=--signal=TERM@60"], "the script waits for the signal it asks for"),
        ("slurm", ["--config", "none.py"], "no experiment file none.py"),
        ("tpu_vm", ["--config", "none.py"], "no experiment file none.py"),
        ("gke", ["--claim", "runs"], "NAME:/PATH"),
        ("gke", ["--claim", "runs:/mnt/run"], "--workdir must be in /mnt/run, got"),
        ("gke", ["--claim", ""], "--claim must not be empty"),
        ("gke", ["--topology", "16"], "--topology"),
        ("gke", ["--topology", "4x4x4"], "--tpu v5e needs --topology with 2 numbers"),
        ("gke", ["--topology", "3x3"], "its first two numbers must be even"),
        ("gke", ["--chips-per-host", "3"], "--chips-per-host must divide the number of chips of 4x4, got 3"),
        ("gke", ["--chips-per-host", "0"], "at least 1"),
        ("gke", ["--nodes", "2"], "--nodes needs --gpu"),
        ("gke", ["--workdir", "/mnt/runs/../etc"], "--workdir must be in /mnt/runs"),
        ("gke", ["--gpu", "nvidia-l4"], "not allowed with"),
        ("xpk", ["--device-type", "h100-80gb-8"], "--device-type must be a TPU"),
        ("xpk", ["--workdir", "runs/demo"], "lost with the container"),
        ("gke", ["--namespace", "A B"], "lower case, digits and dashes, got 'A B'"),
        ("xm", ["--vertex", "a100=8"], "--vertex and --image must be given together"),
        ("xm", ["--vertex", "a100=8", "--image", "i"], "must be a bucket's folder"),
        ("xm", ["--vertex", "a100", "--image", "i"], "KIND=COUNT"),
        ("xm", ["--vertex", "h100=8", "--image", "i"], "--vertex must be one of a100, l4,"),
        ("xm", ["--vertex", "tpu_v5e=4", "--image", "i"], "use `launch gke` for others"),
        ("xm", ["--processes", "0"], "--processes must be at least 1, got 0"),
        ("xm", ["--python", "none/python"], "--python must be an interpreter, got "),
        ("xm", ["--vertex", "a100=8", "--image", "i", "--workdir", "/gcs/b", "--python", "p"], "an image has its own"),
        ("gke", ["--slices", "0"], "--slices must be at least 1, got 0"),
        ("xpk", ["--slices", "0"], "--slices must be at least 1, got 0"),
        ("tpu_vm", ["--slices", "0"], "--slices must be at least 1, got 0"),
    ],
)
def test_a_back_end_checks_its_own_flags(backend, flags, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        __import__(backend).main([*BASE, *OWN[backend], *flags, "--dry-run"])
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_a_file_of_flags_with_an_open_quote_is_told(tmp_path, capsys):
    (tmp_path / "launch.txt").write_text("--env 'A=x\n")
    with pytest.raises(SystemExit):
        description.parse(description.make_parser(""), [*BASE, f"@{tmp_path / 'launch.txt'}"])
    assert "No closing quotation in the line" in capsys.readouterr().err


def test_flags_come_from_a_file(tmp_path):
    (tmp_path / "launch.txt").write_text("# a comment\n--sweep config.seed=0,1\n\n--env 'A=x y'\n")
    lines = dry("local", f"@{tmp_path / 'launch.txt'}").splitlines()
    assert len(lines) == 2 and all(line.startswith("A='x y' ") for line in lines)


def test_the_launcher_lists_its_back_ends_and_their_flags():
    listed = launch().stdout
    for backend in OWN:
        assert f"  {backend} " in listed
        assert "--dry-run" in launch(backend, "--help").stdout
    done = launch("cloud")
    assert done.returncode == 2 and "expected one of local, slurm" in done.stderr


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("demo", "demo"),
        ("Run_3.2/x", "run-3-2-x"),
        ("2026-11-25", "run-2026-11-25"),
        ("é", "run"),
        ("a" * 99, "a" * 40),
    ],
)
def test_names_are_dns_labels(text, label):
    assert description.dns_label(text) == label and re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", label)


# Compiler flags.


def test_no_set_of_compiler_flags_is_on_unless_asked_for():
    for backend in OWN:
        plain = dry(backend)
        assert "XLA_FLAGS" not in plain and "LIBTPU_INIT_ARGS" not in plain
    assert "--xla_tpu_overlap_compute_collective_tc=true" in dry("tpu_vm", "--xla-set", "tpu-overlap")
    both = dry("local", "--xla-set", "gpu-overlap", "--env", "XLA_FLAGS=--xla_dump_to=d", "--cpu-devices", "2")
    for flag in (*xla_flags.SETS["gpu-overlap"].flags, "--xla_dump_to=d", "--xla_force_host_platform_device_count=2"):
        assert flag in both


def test_xla_knows_the_flags():
    """All of those in XLA_FLAGS are parsed by every build, and an unknown one ends the process."""
    flags = [flag for chosen in xla_flags.SETS.values() if chosen.variable == "XLA_FLAGS" for flag in chosen.flags]
    code = "import jax; jax.devices()"
    for extra, ends_well in (([], True), (["--xla_gpu_no_such_flag=true"], False)):
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, *extra])}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) is ends_well, done.stderr


def test_launchers_and_package_agree_on_names():
    processes = pytest.importorskip("pv_vae_jax.sharding.processes", reason="this package starts no processes yet")
    names = description.COORDINATOR, description.COUNT, description.INDEX
    assert names == (processes.COORDINATOR, processes.COUNT, processes.INDEX)


@pytest.mark.parametrize(
    ("backend", "flags", "asks"),
    [
        ("tpu_vm", [], True),
        ("xpk", [], True),
        ("gke", [], True),
        ("gke", ["--topology", "2x2"], False),
        ("local", [], False),
        ("slurm", [], False),
    ],
)
def test_on_several_hosts_with_tpus_jax_asks_the_machine(backend, flags, asks):
    assert ("--coordinator=auto" in dry(backend, *flags)) is asks


# This machine.


def process(code: str, label: str = "", **environment) -> local.Process:
    return local.Process(label, (sys.executable, "-c", code), environment)


def test_a_plain_run_is_one_command_without_variables():
    (line,) = dry("local", "--config.a=2", "--stage", "video").splitlines()
    assert shlex.split(line) == [
        *(sys.executable, "-m", "pv_vae_jax", "train", *BASE),
        *("--config.a=2", "--stage", "video"),
    ]
    old = subprocess.run(
        [sys.executable, str(LAUNCH / "local.py"), *BASE, "--dry-run"], capture_output=True, text=True, timeout=60
    )
    assert old.stdout.split() == shlex.split(line)[:-3]


def test_processes_are_told_who_they_are_and_share_out_the_gpus():
    lines = dry("local", *SWEEP[:2], "--processes", "2", "--gpus", "2", "--parallel", "2").splitlines()
    told = [dict(word.split("=", 1) for word in shlex.split(line) if re.match("[A-Z_]+=", word)) for line in lines]
    assert [t["JAX_PROCESS_ID"] for t in told] == ["0", "1"] * 2 and {t["JAX_NUM_PROCESSES"] for t in told} == {"2"}
    assert [t["CUDA_VISIBLE_DEVICES"] for t in told] == ["0,1", "2,3", "4,5", "6,7"]
    addresses = [t["JAX_COORDINATOR_ADDRESS"] for t in told]
    assert addresses[0] == addresses[1] != addresses[2] == addresses[3]


def test_gpus_are_given_out_of_those_that_are_visible(monkeypatch):
    """A scheduler or --env names them; the others belong to somebody else."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5a,6")
    for flags, expected in (([], ["4", "GPU-5a"]), (["--env", "CUDA_VISIBLE_DEVICES=2,7"], ["2", "7"])):
        lines = dry("local", "--processes=2", "--gpus=1", *flags).splitlines()
        assert [re.search("CUDA_VISIBLE_DEVICES=([^ ]+)", line)[1] for line in lines] == expected
    assert len(dry("local", *SWEEP[:2], "--parallel=8", "--gpus=1").splitlines()) == 2, (
        "as many runs as there are points"
    )
    done = launch("local", *BASE, "--processes=2", "--gpus=2", "--dry-run")
    assert done.returncode == 2 and "4 GPUs are needed, and CUDA_VISIBLE_DEVICES=4,GPU-5a,6 names 3" in done.stderr


def test_processes_of_a_run_meet_through_jax_distributed():
    """Two processes of two devices each, and a sum over all four."""
    code = (
        "import os, jax, numpy as np\n"
        "from jax.sharding import NamedSharding, PartitionSpec as P\n"
        "names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'\n"
        "address, count, index = (os.environ[n] for n in names)\n"
        "jax.distributed.initialize(address, int(count), int(index))\n"
        "sharding = NamedSharding(jax.sharding.Mesh(jax.devices(), 'x'), P('x'))\n"
        "x = jax.make_array_from_process_local_data(sharding, np.full(2, 1.0 + jax.process_index()))\n"
        "print('total', float(jax.jit(lambda x: x.sum())(x)), flush=True)\n"
    )
    run = description.Run(0, "", ("-c", code))
    own = description.Experiment("x", "", "")
    args = argparse.Namespace(cpu_devices=2, gpus=0, processes=2)
    devices = lambda index: local.devices_of(args, [], 0, index) | {"XLA_FLAGS": CPU2}  # noqa: E731
    made = local.processes_of(own, run, 2, local.free_port(), devices)
    assert [p.label for p in made] == ["0", "1"]
    env = {"XLA_FLAGS": ""}
    done = in_a_launcher(made, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("total 6.0") == 2, "both; Gloo's own messages may stand on the same line"


CPU2 = "--xla_force_host_platform_device_count=2"


def in_a_launcher(processes, env) -> subprocess.CompletedProcess:
    """`run_together` in a process of its own, free of this one's XLA_FLAGS."""
    code = (
        f"import sys, threading; sys.path.insert(0, {str(LAUNCH)!r}); import local\n"
        f"processes = [local.Process(*p) for p in {[(p.label, p.command, p.environment) for p in processes]!r}]\n"
        "sys.exit(local.run_together(processes, threading.Event(), 5.0))"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def test_lines_carry_a_prefix_and_a_failure_stops_the_rest(capfd):
    say, fail = process("print('hello')", "a"), process("import sys; sys.exit(3)", "bad")
    sleep = process("import time; time.sleep(60)", "long")
    assert local.Sweep(1).run({"a": lambda slot: [say]}) == 0
    assert capfd.readouterr().out == "[a] hello\n"
    began = time.monotonic()
    points = {"bad": lambda slot: [fail], "long": lambda slot: [sleep], "later": lambda slot: [say]}
    assert local.Sweep(2).run(points) == 3
    assert local.Sweep(1).run({"": lambda slot: [sleep, fail, sleep]}) == 3  # the processes of one run alike
    assert time.monotonic() - began < 30
    captured = capfd.readouterr()
    assert "[bad] failed with exit status 3" in captured.err and "hello" not in captured.out


def test_a_run_that_dies_is_started_again_a_limited_number_of_times(tmp_path, capfd):
    """The process is killed until its fourth start, as a machine might."""
    count = tmp_path / "count"
    code = f"import os, signal; f = open({str(count)!r}, 'a'); f.write('x'); f.close()\n"
    code += f"if os.path.getsize({str(count)!r}) < 4: os.kill(os.getpid(), signal.SIGKILL)"
    assert local.Sweep(1, restarts=3).run({"": lambda slot: [process(code)]}) == 0
    assert count.read_text() == "xxxx" and "restart 3 of 3 from" in capfd.readouterr().err
    count.unlink()
    assert local.Sweep(1, restarts=2).run({"": lambda slot: [process(code)]}) == 128 + signal.SIGKILL
    assert count.read_text() == "xxx"
    wrong = f"f = open({str(count)!r}, 'a'); f.write('y'); f.close(); raise SystemExit(2)"
    assert local.Sweep(1, restarts=2).run({"": lambda slot: [process(wrong)]}) == 2
    assert count.read_text() == "xxxy"  # a wrong call is wrong again


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_run_which_ends_in_order(tmp_path, number):
    saved = tmp_path / "saved"
    code = (
        "import signal, sys, time\n"
        f"def save(*_): open({str(saved)!r}, 'w').close(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); print('up', flush=True); time.sleep(60)\n"
    )
    body = f"import sys; sys.path.insert(0, {str(LAUNCH)!r}); import local\n"
    body += f"make = lambda slot: [local.Process('r', (sys.executable, '-c', {code!r}), {{}})]\n"
    body += "sys.exit(local.Sweep(1, restarts=5).run({'r': make, 'next': make}))"
    launcher = subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True)
    with launcher:
        assert launcher.stdout.readline() == "[r] up\n"
        launcher.send_signal(number)
        rest = launcher.stdout.read()
    assert launcher.returncode == 128 + number and saved.exists() and rest == ""


def test_a_process_that_ignores_sigterm_is_killed(tmp_path):
    ready = tmp_path / "ready"
    deaf = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf += f"f = open('{ready}.part', 'w'); f.write(str(os.getpid())); f.close()\n"
    deaf += f"os.rename('{ready}.part', '{ready}')\n"
    deaf += "time.sleep(60)"
    fail = f"import os, time\nwhile not os.path.exists({str(ready)!r}): time.sleep(0.05)\nraise SystemExit(7)"
    assert local.Sweep(1, grace=0.5).run({"": lambda slot: [process(deaf), process(fail)]}) == 7
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.read_text()), 0)


def test_a_bare_name_means_a_shipped_experiment(capsys):
    import slurm

    for module in (local, slurm):
        call = ["--config", "demo", "--workdir", "/mnt/runs/demo", "--dry-run"]
        assert module.main(call) == 0 and "train --config demo --workdir" in capsys.readouterr().out
        with pytest.raises(SystemExit):
            module.main(["--config", "dmo", *call[2:]])
        assert "no experiment file dmo" in capsys.readouterr().err


def test_an_error_of_the_run_is_the_status_of_the_launcher(tmp_path):
    done = launch("local", "--config", tmp_path / "none.py", "--workdir", tmp_path / "w")
    assert done.returncode == 2 and "no experiment file" in done.stderr
    flags = ["--workdir", tmp_path / "w", "--restarts", "3", "--config.image.stepz=1"]
    done = launch("local", "--config", ROOT / "experiments" / "demo.py", *flags)
    assert done.returncode == 2 and "did you mean" in done.stdout and "restart" not in done.stderr, "wrong stays wrong"


# SLURM.

SBATCH_OPTIONS = {
    "job-name": r"[a-z][a-z0-9-]*",
    "nodes": r"[1-9]\d*",
    "ntasks-per-node": r"[1-9]\d*",
    "gpus-per-node": r"[1-9]\d*",
    "cpus-per-task": r"[1-9]\d*",
    "time": r"(\d+-)?\d+(:\d\d){0,2}",
    "output": r"[\w-]+(%[jAa]_?)+\.log",
    "open-mode": r"append|truncate",
    "signal": r"(B:)?[A-Z]+\d*@\d+",
    "array": r"0-[1-9]\d*%[1-9]\d*",
    "partition": r"\w+",
    "requeue": None,
    "no-requeue": None,
}


def check_sbatch(text: str) -> dict[str, str | None]:
    """The options of a batch script, all known and well formed; sbatch stops reading them at the first command."""
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    options = {}
    for line in lines[1:first]:
        name, equals, value = line.removeprefix("#SBATCH --").partition("=")
        assert name in SBATCH_OPTIONS, line
        pattern = SBATCH_OPTIONS[name]
        assert not equals if pattern is None else re.fullmatch(pattern, value), line
        options[name] = value
    return options


def bash_parses(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "flags", [[], SWEEP, ["--nodes", "1", "--gpus-per-node", "0", "--restarts", "0", "--sbatch=--partition=long"]]
)
def test_batch_scripts_are_valid(flags):
    text = dry("slurm", *flags)
    bash_parses(text)
    options = check_sbatch(text)
    assert ("array" in options) is (flags is SWEEP)
    assert ("requeue" in options) is ("--restarts" not in flags) is not ("no-requeue" in options)


# Plays srun: two tasks, each with its own number.
SRUN = """
while [ "${1:0:2}" = -- ]; do shift; done
for SLURM_PROCID in 0 1; do export SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID; "$@" || exit $?; done
"""
SHOW = '[ "$1" = show ] && printf "node7\\nnode8\\n" || true'


def test_a_batch_script_starts_its_point_on_every_task_and_requeues(tmp_path, commands):
    requeued, started = commands("scontrol", SHOW), tmp_path / "started"
    commands("srun", SRUN)
    stub = tmp_path / "stub"
    stub.write_text(
        f'#!/bin/bash\necho "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $JAX_LOCAL_DEVICE_IDS $A $*"'
        f" >> {started}\nexit ${{STATUS:-0}}\n"
    )
    stub.chmod(0o755)
    text = dry("slurm", *SWEEP[:2], "--python", stub, "--env", "A=x y", "--restarts", "1")
    env = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_ARRAY_TASK_ID": "1"}
    env |= {"SLURM_SUBMIT_DIR": str(tmp_path)}

    def sbatch(**more) -> int:
        return subprocess.run(["bash"], input=text, text=True, env={**os.environ, **env, **more}, timeout=60).returncode

    assert sbatch() == 0
    folder = "/mnt/runs/demo/seed=1 --config.seed=1"
    wanted = f"x y -m pv_vae_jax train --config experiments/demo.py --workdir {folder}"
    assert started.read_text().splitlines() == [f"node7:20041 2 {i} {i} {wanted}" for i in (0, 1)]
    assert not [call for call in requeued() if call[0] == "requeue"]
    assert sbatch(STATUS="143") == 143 and requeued()[-1] == ["requeue", "41"]
    assert sbatch(STATUS="143", SLURM_ARRAY_JOB_ID="40") == 143 and requeued()[-1] == ["requeue", "40_1"]
    before = len(requeued())
    for more in ({"STATUS": "2"}, {"STATUS": "1", "SLURM_RESTART_COUNT": "1"}):
        assert sbatch(**more) == int(more["STATUS"])
    assert not [call for call in requeued()[before:] if call[0] == "requeue"]


@pytest.mark.parametrize(("deaf", "status", "signals"), [(False, 143, ["TERM"]), (True, 137, ["TERM", "KILL"])])
def test_a_batch_script_that_is_warned_ends_its_step_and_requeues(tmp_path, commands, deaf, status, signals):
    """SLURM warns it alone; a step that does not listen is killed before the limit."""
    up = tmp_path / "up"
    trap = "trap '' TERM" if deaf else "trap 'exit 143' TERM"
    wait = "for ((i = 0; i < 600; i++)); do sleep 0.1; done"
    commands("srun", f"{trap}\necho $$ > {up}.part\nmv {up}.part {up}\n{wait}")
    requeued, signalled = commands("scontrol"), commands("scancel", f'kill "-${{1#--signal=}}" "$(cat {up})"')
    path = tmp_path / "job.sh"
    text = dry("slurm", "--nodes", "1", "--gpus-per-node", "1")
    assert "second < 90" in text and "#SBATCH --signal=B:USR1@120\n" in text
    path.write_text(text.replace("second < 90", "second < 2"))
    env = {**os.environ, "SLURM_JOB_ID": "41", "SLURM_SUBMIT_DIR": str(tmp_path)}
    with subprocess.Popen(["bash", path], env=env) as job:
        until = time.monotonic() + 60
        while not up.exists() and time.monotonic() < until:
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=60) == status
    assert signalled() == [[f"--signal={name}", "41.0"] for name in signals]
    assert requeued() == [["requeue", "41"]]


def read_by_slurm(line: str) -> list[str]:
    """Words of a line of options as sbatch parts them: quotes group, a backslash escapes, a bare `#` ends the line."""
    assert line.startswith("#SBATCH ")
    return shlex.split(line.removeprefix("#SBATCH "), comments=True)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--partition=gpu", ["--partition=gpu"]),
        ("-p gpu", ["-p", "gpu"]),
        ("--exclusive", ["--exclusive"]),
        ("--comment=a b", ["--comment=a b"]),
        ("--comment=a#b", ["--comment=a#b"]),
        ("--comment='x", ["--comment='x"]),
        ('--comment="x\\', ['--comment="x\\']),
        ("--constraint=a&(b|c)", ["--constraint=a&(b|c)"]),
        ("--comment a b", ["--comment", "a b"]),
    ],
)
def test_sbatch_reads_an_option_as_it_was_given(option, words):
    lines = dry("slurm", f"--sbatch={option}").splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    assert read_by_slurm(lines[first - 1]) == words


# TPU VM.


def test_a_tpu_vm_gets_the_commit_an_installation_and_the_runs(commands, tmp_path):
    text = dry("tpu_vm", *SWEEP[:2])
    bash_parses(text)
    calls = commands("gcloud", 'cat > /dev/null; case "$*" in *"seed=0 "*) exit 2 ;; esac')
    assert launch("tpu_vm", *BASE, *OWN["tpu_vm"], *SWEEP[:2], "--restarts", "2").returncode == 2
    assert [call[3] for call in calls()] == ["scp", "ssh", "ssh"], "a wrong call is wrong again"
    (tmp_path / "gcloud.log").unlink()
    calls = commands("gcloud", 'cat > /dev/null; case "$*" in *"seed=0 "*) exit 1 ;; esac')
    archived = commands("git")
    done = launch("tpu_vm", *BASE, *OWN["tpu_vm"], *SWEEP[:2], "--restarts", "2")
    assert done.returncode == 1  # the first point fails three times, and the second is not tried
    assert [call[0] for call in archived()] == ["archive"]
    verbs = [call[3] for call in calls()]
    assert verbs == ["scp", "ssh", "ssh", "ssh", "ssh"]
    for call in calls():
        assert call[:3] == ["compute", "tpus", "tpu-vm"]
        assert {"--zone=us-west4-a", "--project=p", "--worker=all"} <= set(call)
    remote = [call[-1].removeprefix("--command=") for call in calls()[1:]]
    for command in remote:
        bash_parses(command)
    assert ".[tpu,video,gcs]" in remote[0] and len(set(remote[1:])) == 1
    assert remote[1].startswith("cd demo && .venv/bin/python -m pv_vae_jax train ")


# Kubernetes: the fields that the APIs require, with their types; nothing else may be there.

NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
ENV = {"name": r"[A-Za-z_]\w*", "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": r"metadata\..+"}}}
POD = {
    "restartPolicy": "Never|OnFailure",  # Always is refused in a Job
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {"*": r"[A-Za-z0-9][\w.-]*"},
    "containers": [
        {
            "name": NAME,
            "image": r"\S+",
            "command": [str],
            "env?": [ENV],
            "resources": {"limits": {"*": int}},
            "volumeMounts": [{"name": NAME, "mountPath": r"/\S*"}],
        }
    ],
    "volumes": [
        {"name": NAME, "persistentVolumeClaim?": {"claimName": r"[a-z0-9.-]+"}, "emptyDir?": {"medium": "Memory"}}
    ],
}
RULE = {"name": r"[A-Za-z]([\w,:]*\w)?", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
EXIT_CODES = {"containerName": NAME, "operator": "In|NotIn", "values": [int]}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": "Indexed",
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": EXIT_CODES}]},
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": r"jobset\.x-k8s\.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": NAME, "labels": {"*": r"[\w.-]*"}, "annotations": {"*": str}},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [RULE]},
        "replicatedJobs": [{"name": NAME, "replicas": int, "template": {"spec": JOB}}],
    },
}


def check(value, schema, path="") -> None:
    """`value` has the fields of `schema` and no others: `name?` may be missing, `*` is any name, text is a pattern."""
    if isinstance(schema, dict):
        assert isinstance(value, dict) and value, path
        fields = {name.rstrip("?"): inner for name, inner in schema.items()}
        for name, inner in value.items():
            assert name in fields or "*" in fields, f"{path}.{name} is unknown"
            check(inner, fields.get(name, fields.get("*")), f"{path}.{name}")
        missing = {name for name in schema if not name.endswith("?") and name != "*"} - set(value)
        assert not missing, f"{path} misses {missing}"
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for i, inner in enumerate(value):
            check(inner, schema[0], f"{path}[{i}]")
    elif isinstance(schema, str):
        assert isinstance(value, str) and re.fullmatch(schema, value), f"{path}: {value!r}"
    else:
        assert type(value) is schema, f"{path}: {value!r}"


GPU = ["--image", "i", "--gpu", "nvidia-h100-80gb", "--nodes", "2", "--claim", "runs:/mnt/runs"]


@pytest.mark.parametrize("own", [OWN["gke"], GPU], ids=["tpu", "gpu"])
def test_manifests_have_the_fields_that_kubernetes_requires(own):
    done = launch("gke", *BASE, *own, *SWEEP, "--env", "A=yes: '#", "--dry-run")
    manifests = list(yaml.safe_load_all(done.stdout))
    assert [m["metadata"]["name"] for m in manifests] == [f"demo-{i}" for i in range(4)]
    for manifest in manifests:
        check(manifest, JOBSET, "jobset")
        (workers,) = manifest["spec"]["replicatedJobs"]
        pod = workers["template"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "A", "value": "yes: '#"} in container["env"]
        mounts, volumes = ({v["name"] for v in where} for where in (container["volumeMounts"], pod["volumes"]))
        assert mounts == volumes
        # The longest name that a pod gets, and the limit of a DNS label.
        assert len(f"{manifest['metadata']['name']}-{workers['name']}-0-00-abcde") <= 63


def test_a_run_in_a_bucket_needs_no_claim(capsys):
    own = OWN["gke"][:-2]
    done = launch("gke", *BASE, *own, "--workdir", "gs://b/run", "--dry-run")
    manifest = yaml.safe_load(done.stdout)
    check(manifest, JOBSET, "jobset")
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounts = [mount["name"] for mount in pod["containers"][0]["volumeMounts"]]
    assert mounts == [volume["name"] for volume in pod["volumes"]] == ["memory"]
    with pytest.raises(SystemExit):
        gke.main([*BASE, *own, "--dry-run"])
    assert "--workdir must be in the volume of a --claim or at gs://BUCKET/FOLDER, got" in capsys.readouterr().err


def test_images_and_machines_can_reach_buckets():
    """Every back end passes --workdir gs://... on, which needs the extra."""
    assert "ARG EXTRAS=tpu,video,gcs\n" in (LAUNCH / "Dockerfile").read_text()
    assert ".[tpu,video,gcs]" in dry("tpu_vm")


@pytest.mark.parametrize(
    ("kind", "topology", "per_host", "hosts", "chips"),
    [("v5e", "4x4", "", 4, 4), ("v5e", "1x1", "", 1, 1), ("v5e", "2x4", 8, 1, 8), ("v5p", "2x2x4", "", 4, 4)],
)
def test_a_slice_has_as_many_pods_as_hosts(kind, topology, per_host, hosts, chips):
    flags = ["--tpu", kind, "--topology", topology, *(["--chips-per-host", per_host] if per_host else [])]
    manifest = yaml.safe_load(dry("gke", *flags))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["parallelism"] == job["completions"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


@pytest.mark.parametrize("backend", ["gke", "xpk", "tpu_vm"])
def test_a_run_on_several_slices_asks_for_them_and_has_them_in_its_mesh(backend):
    several, one = dry(backend, "--slices", "3"), dry(backend, "--slices", "1")
    assert several.count("--config.mesh.dcn_data=3") == 1 and one == dry(backend) and "dcn_data" not in one
    if backend == "gke":
        (workers,) = yaml.safe_load(several)["spec"]["replicatedJobs"]
        assert workers["replicas"] == 3 and workers["template"]["spec"]["parallelism"] == 4, "hosts of each slice"
        check(yaml.safe_load(several), JOBSET, "jobset")
        assert "--coordinator=auto" in dry("gke", "--topology", "2x2", "--slices", "2"), "a host each, and two slices"
    elif backend == "xpk":
        assert "--num-slices=3" in shlex.split(several) and "num-slices" not in one
    else:
        calls = re.findall("gcloud compute tpus (.*)", several)
        assert [call.split()[:2] for call in calls] == [["queued-resources", "ssh"], ["queued-resources", "scp"]]
        assert all("--worker=all --node=all" in call for call in calls)


def test_flags_of_tpus_are_refused_for_gpus(capsys):
    with pytest.raises(SystemExit):
        gke.main([*BASE, *GPU, "--topology", "4x4", "--dry-run"])
    assert "--topology needs --tpu" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gke.main([*BASE, *GPU, "--slices", "2", "--dry-run"])
    assert "--slices needs --tpu" in capsys.readouterr().err


def test_pods_with_gpus_are_told_who_they_are():
    manifest = yaml.safe_load(launch("gke", *BASE, *GPU, "--dry-run").stdout)
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    told = {entry["name"]: entry for entry in container["env"]}
    assert told["JAX_COORDINATOR_ADDRESS"]["value"] == "demo-workers-0-0.demo:12355"
    assert told["JAX_NUM_PROCESSES"]["value"] == "2"
    assert "job-completion-index" in told["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_yaml_says_what_the_tree_says():
    tree = {"a": [{"b": 1, "c": ["x", "y: z", ""]}, {"d": {"e-f/g.h": "no"}}], "i": 'quo"te\n', "1": ["true"], "k": "é"}
    assert yaml.safe_load(gke.to_yaml(tree)) == tree


def test_kubectl_gets_what_a_dry_run_prints(tmp_path, commands):
    got = tmp_path / "got"
    calls = commands("kubectl", f"cat > {got}")
    assert launch("gke", *BASE, *OWN["gke"], "--namespace", "video").returncode == 0
    assert calls() == [["apply", "--namespace=video", "--filename=-"]] and got.read_text() == dry("gke")


def test_a_missing_command_is_named():
    done = launch("slurm", *BASE, env={"PATH": "/nowhere"})
    assert done.returncode == 127 and "no command 'sbatch' here" in done.stderr


def test_xpk_gets_one_workload_a_run(commands):
    calls = commands("xpk", "cat > /dev/null")
    done = launch("xpk", *BASE, *OWN["xpk"], *SWEEP[:2], "--name", "n" * 50, "--env", "A=x y", "--restarts", "2")
    assert done.returncode == 0, done.stderr
    assert len(calls()) == 2
    for index, call in enumerate(calls()):
        flags = dict(part.partition("=")[::2] for part in call[2:])
        assert call[:2] == ["workload", "create"] and flags["--workload"] == "n" * 33 + f"-{index}"
        assert flags["--max-restarts"] == "2" and flags["--restart-on-exit-codes"] == "1"
        assert flags["--env"] == "A=x y" and flags["--docker-image"] == "repo/image:1"
        assert shlex.split(flags["--command"])[1:4] == ["-m", "pv_vae_jax", "train"]


# xmanager.


def test_xmanager_has_a_work_unit_for_every_run():
    flags = ["--image", "i", "--vertex", "tpu_v3=8", "--processes", "2", "--restarts", "3"]
    text = dry("xm", *SWEEP[:2], *flags, "--workdir", "/gcs/bucket/demo")
    assert re.findall("# work unit (.*)", text) == [f"demo-{i} on Vertex AI, tpu_v3=8, i" for i in (0, 1)]
    # What a work unit calls is a call of `launch local`.
    call = shlex.split(text.splitlines()[1])
    assert call[:2] == ["python", "launch/local.py"]
    done = subprocess.run(
        [sys.executable, *call[1:], "--dry-run"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.count("-m pv_vae_jax train") == 2 and "/gcs/bucket/demo/seed=0 --config.seed=0" in done.stdout


def test_work_units_of_xmanager_have_the_interpreter_that_is_named(tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    text = dry("xm", *SWEEP[:2], "--python", os.path.relpath(tmp_path / "python", ROOT))
    calls = [shlex.split(line)[:2] for line in text.splitlines()[1::2]]
    assert calls == [[str(tmp_path / "python"), str(LAUNCH / "local.py")]] * 2, "the link itself, by its whole path"


def test_xmanager_finds_machines_for_what_is_offered():
    vertex = pytest.importorskip("xmanager.cloud.vertex", reason="xmanager is not installed: pip install -e '.[xm]'")
    import xm as backend
    from xmanager import xm, xm_local

    machines = {"a100": "a2-highgpu-8g", "l4": "g2-standard-96", "tpu_v2": "cloud-tpu", "tpu_v3": "cloud-tpu"}
    for kind, name in backend.VERTEX.items():
        executor = xm_local.Vertex(xm.JobRequirements(**{name: 8}))
        spec = vertex.get_machine_spec(xm.Job(executable=None, executor=executor))
        assert spec["accelerator_count"] == 8
        assert spec["machine_type"] == machines.get(kind, "n1-standard-4")


def test_without_xmanager_the_extra_is_named(monkeypatch, capsys):
    import xm

    monkeypatch.setitem(sys.modules, "xmanager", None)
    assert xm.main(BASE) == 1 and "pip install '.[xm]'" in capsys.readouterr().err


def test_xmanager_runs_a_sweep_on_this_machine(tmp_path):
    pytest.importorskip("xmanager", reason="xmanager is not installed: pip install -e '.[xm]'")
    none, home = tmp_path / "none.py", {"HOME": str(tmp_path)}  # xmanager keeps its records in the home folder
    done = launch("xm", "--config", none, "--workdir", tmp_path / "w", "--sweep", "config.seed=0,1", env=home)
    said = [line for line in done.stdout.splitlines() if "no experiment file" in line]
    assert sorted(line[:5] for line in said) == ["[w-0]", "[w-1]"] and done.returncode == 1


@pytest.fixture(scope="module")
def xmanager_alone(tmp_path_factory) -> str:
    """The interpreter of an environment that holds xmanager and not this package."""
    if kept := os.environ.get("PV_VAE_XMANAGER"):
        return kept
    folder = tmp_path_factory.mktemp("xmanager")
    python = str(folder / "bin" / "python")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=26"],  # older ones do not come to an end
        [python, "-m", "pip", "install", "--quiet", "xmanager>=0.8.5"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode:
            pytest.skip(f"xmanager cannot be installed here: {done.stderr.strip()[-300:]}")
    return python


@pytest.mark.slow
@pytest.mark.timeout(2_400)
def test_a_sweep_by_xmanager_from_its_own_environment_ends_with_every_model(xmanager_alone, tiny_experiment, tmp_path):  # noqa: F811
    command = [xmanager_alone, str(LAUNCH), "xm", "--python", sys.executable, "--config", str(tiny_experiment)]
    command += ["--workdir", str(tmp_path / "w"), "--sweep", "config.seed=0,1", "--stage=image"]
    # xmanager keeps its records in the home folder, and has no business with this package.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    no_package = subprocess.run([xmanager_alone, "-c", "import pv_vae_jax"], cwd=tmp_path, env=env, capture_output=True)
    assert no_package.returncode, "it is there as well"
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    models = [load(tmp_path / "w" / f"seed={seed}" / "image" / "model") for seed in (0, 1)]
    assert weights_hash(models[0].vae_params) != weights_hash(models[1].vae_params)
