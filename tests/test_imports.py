"""The rooms of the package may import each other along the arrows of the design only, and importing stays light.

The import graph is read from the syntax trees, so an import inside a function counts as well.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "pv_vae_jax"

# Room -> rooms it may import. A room is a folder or a module right below the package; "" is the package itself.
NETWORKS = {"typing", "pixels", "sharding", "layers", "models"}
METHOD = NETWORKS | {"messages", "batching", "dropping", "masking", "losses", "flow", "predictive", "streaming"}
DISK = {"storage", "locks", "params_io", "versions", "hub"}
ALLOWED = {
    "typing": {"messages"},
    "messages": set(),
    "storage": {"messages"},
    "locks": {"storage"},
    "batching": set(),
    "versions": set(),
    "pixels": set(),
    "params_io": {"typing", "storage"},
    "hub": {"typing"},
    "sharding": {"typing"},
    "layers": {"typing", "sharding"},
    "models": {"typing", "messages", "sharding", "layers"},
    "dropping": set(),  # the arithmetic of k, without jax
    "masking": {"typing", "dropping"},
    "losses": NETWORKS,
    "flow": {"typing"},
    "predictive": NETWORKS | {"dropping", "masking"},
    "streaming": NETWORKS,
    "convert": {"typing", "messages", "storage", "layers", "models"},
    "data": {
        "storage",
        "locks",
        "messages",
        "batching",
        "dropping",
    },  # no jax: loader processes must not start it
    "model_inputs": METHOD,
    "model_folder": METHOD | DISK,
    "model": METHOD | DISK | {"convert", "model_inputs", "model_folder"},
    "sampling": METHOD | {"model", "model_inputs"},
    "evaluation": METHOD | DISK | {"convert", "data", "model", "model_folder", "sampling"},
    "train": METHOD | DISK | {"convert", "data", "model", "model_folder", "sampling", "evaluation"},
    # A report opens the folder of a run, so it is above train; training itself never imports it.
    "report": METHOD | DISK | {"convert", "data", "model", "model_folder", "sampling", "evaluation", "train"},
    "": METHOD | DISK | {"model", "sampling"},
}
ALLOWED["cli"] = set(ALLOWED)
for arrows in ALLOWED.values():
    arrows |= {"_lazy", "progress"}  # the lists of names that packages export, and progress bars
ALLOWED["_lazy"] = ALLOWED["progress"] = set()
# Settings of the feature network and of a study lie in studies.
EXPERIMENTS = {"train", "losses", "models", "dropping"}

# Third-party packages a room must not name at all.
FORBIDDEN = {
    "data": {"jax", "jaxlib", "flax", "optax", "orbax", "chex"},
    "models": {"ml_collections", "grain", "orbax", "absl"},
    "layers": {"ml_collections", "grain", "orbax", "absl"},
    "flow": {"ml_collections", "grain", "orbax", "absl", "flax"},
    "masking": {"ml_collections", "grain", "orbax", "absl", "flax"},
    "predictive": {"ml_collections", "grain", "orbax", "absl"},
    "streaming": {"ml_collections", "grain", "orbax", "absl"},
}
# Loaded where they are used, never by `import pv_vae_jax`.
HEAVY = ("grain", "orbax", "av", "PIL", "tensorboardX", "tensorflow", "torch", "skimage", "ml_collections")
HEAVY += ("matplotlib", "jinja2", "gcsfs", "fsspec", "huggingface_hub")


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def room_of(path: Path) -> str:
    """`pv_vae_jax/models/vae.py` -> `models`, `pv_vae_jax/train/configs.py` -> `config`, the package's own init -> ``.

    `__main__.py` is the command line's other door.
    """
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return {"__init__": "", "__main__": "cli"}.get(parts[0], parts[0])


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, absolute dotted name) of every import, at any depth of the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: resolve against the file's own package
                package = path.relative_to(ROOT).parent.parts
                base = ".".join(package[: len(package) - node.level + 1] + ((base,) if base else ()))
            # `from pv_vae_jax import models` names a room in its list, not in its base.
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def target_room(name: str) -> str | None:
    """Room that an imported name belongs to; None outside the package."""
    top, _, rest = name.partition(".")
    if top != PACKAGE:
        return None
    first = rest.partition(".")[0]
    inside = ROOT / PACKAGE / first
    return first if first and (inside.is_dir() or inside.with_suffix(".py").exists()) else ""


def wrong_arrows(path: Path, room: str, allowed: set[str]) -> list[str]:
    wrong = []
    for line, name in imports_of(path):
        target = target_room(name)
        if target is not None and target != room and target not in allowed:
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {room or PACKAGE} must not import {name}")
    return wrong


def test_rooms_import_along_the_arrows_only():
    wrong = []
    for path in modules(ROOT / PACKAGE):
        room = room_of(path)
        assert room in ALLOWED, f"{path.relative_to(ROOT)} is in a room without arrows: add {room!r} to ALLOWED"
        wrong += wrong_arrows(path, room, ALLOWED[room])
    assert not wrong, "\n".join(wrong)


def test_experiments_import_configs_and_launchers_import_nothing():
    wrong = [w for path in modules(ROOT / "experiments") for w in wrong_arrows(path, "experiments", EXPERIMENTS)]
    wrong += [w for path in modules(ROOT / "launch") for w in wrong_arrows(path, "launch", set())]
    assert not wrong, "\n".join(wrong)


def test_arrows_make_no_circle():
    free, order = dict(ALLOWED), []
    while free:
        ready = [room for room, needs in free.items() if not needs & set(free) - {room}]
        assert ready, f"these rooms import each other in a circle: {sorted(free)}"
        order += ready
        free = {room: needs for room, needs in free.items() if room not in ready}
    assert order[-1] == "cli"


def test_forbidden_packages_are_not_named():
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {room_of(path)} must not import {name}"
        for path in modules(ROOT / PACKAGE)
        for line, name in imports_of(path)
        if name.partition(".")[0] in FORBIDDEN.get(room_of(path), ())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_modules_is_a_package():
    bare = {p.parent for p in modules(ROOT / PACKAGE) if not (p.parent / "__init__.py").exists()}
    assert not bare, f"find_packages would leave these out of the wheel: {sorted(map(str, bare))}"


def test_the_walker_sees_every_form_of_import(tmp_path):
    source = "import a.b\nfrom c import d as e\ndef f():\n    from g.h import i, j\n    import k\n"
    (tmp_path / "m.py").write_text(source)
    names = [name for _, name in imports_of(tmp_path / "m.py")]
    assert sorted(names) == ["a.b", "c.d", "g.h.i", "g.h.j", "k"]
    assert target_room("pv_vae_jax.models.vae.VAE") == "models"
    assert target_room("pv_vae_jax.typing") == "typing"
    assert target_room("pv_vae_jax.VAE") == "" and target_room("jax.numpy") is None


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pv_vae_jax", HEAVY),
        ("import pv_vae_jax.data.synthetic", ("jax", "flax", "optax")),
        (  # everything that training and `pv-vae inspect` import, pieces of clu among it
            "import clu.metrics, clu.parameter_overview, pv_vae_jax.cli.inspect, pv_vae_jax.train.stages",
            ("tensorflow", "clu.metric_writers", "tensorboardX", "wandb"),
        ),
        ("from pv_vae_jax.data import count_frames, iterate_at_rate, probe, read_video", ("jax", "flax", "optax")),
    ],
)
def test_importing_is_light(statement, absent):
    """In a fresh interpreter: nothing heavy comes along, and no device is started."""
    code = (
        f"import sys; {statement}; heavy = [m for m in {absent!r} if m in sys.modules]; assert not heavy, heavy\n"
        "bridge = sys.modules.get('jax._src.xla_bridge'); assert not (bridge and bridge._backends), 'started a device'"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
