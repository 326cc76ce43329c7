"""The local launcher: a grid of settings becomes commands; one failure stops the others."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "launch" / "local.py"
spec = importlib.util.spec_from_file_location("launch_local", PATH)
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)


def test_a_sweep_is_the_grid_of_its_axes():
    grid = local.settings(["config.seed=0,1", "config.video.drop_ratio=0.5,1.0"])
    assert [local.name_of(s) for s in grid] == [f"seed={s},video.drop_ratio={r}" for s in (0, 1) for r in (0.5, 1.0)]
    assert local.settings([]) == [{}]
    with pytest.raises(SystemExit, match="config.KEY=VALUE"):
        local.settings(["seed"])


def test_commands_name_folders_and_pass_flags_through(capsys):
    assert (
        local.main(["--config", "c.py", "--workdir", "w", "--sweep", "config.seed=1", "--config.a=2", "--dry-run"]) == 0
    )
    assert "train --config c.py --workdir w/seed=1 --config.seed=1 --config.a=2" in capsys.readouterr().out


def test_output_is_prefixed_and_a_failure_stops_the_rest(capsys):
    say = [sys.executable, "-c", "print('hello')"]
    assert local.Sweep(1).run({"a": say}) == 0
    assert capsys.readouterr().out == "[a] hello\n"
    fail = [sys.executable, "-c", "import sys; sys.exit(3)"]
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    began = time.time()
    assert local.Sweep(2).run({"bad": fail, "long": sleep, "later": say}) == 3
    assert time.time() - began < 30
    captured = capsys.readouterr()
    assert "[bad] failed with exit status 3" in captured.err and "later" not in captured.out


def test_an_error_of_the_run_is_the_status_of_the_launcher(tmp_path):
    command = [sys.executable, str(PATH), "--config", str(tmp_path / "none.py"), "--workdir", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PATH.parents[1])
    assert done.returncode == 1 and "no experiment file" in done.stdout
