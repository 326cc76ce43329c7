"""Memory, FLOPs and traffic of the paper-size training steps on TPU topologies that are not there.

  python -m benchmarks topologies                                  # compile the rows that have no result yet
  python -m benchmarks topologies --config.only=v5e:4x4            # rows whose name contains this
  python -m benchmarks topologies --config.compile=False           # only write the tables of docs/scaling.md again

Needs the extra `tpu-topology`, and no TPU. Each row is compiled by a process of its own and takes one to several
minutes; every finished row is kept in `benchmarks/results/topologies.json`, so the command goes on where it stopped.
"""

import dataclasses
import json
import subprocess

from benchmarks import harness
from pv_vae_jax.storage import write_json, write_text

IN_SET = False  # hours
RESULTS = harness.RESULTS / "topologies.json"
DOCUMENT = harness.HERE.parent / "docs" / "scaling.md"
LIMIT = 3600  # seconds for one row
# Share of a chip's peak that the step's products and convolutions are assumed to reach, and of the links' bandwidth
# that collectives are: assumptions, not measurements.
COMPUTE_SHARE, LINK_SHARE = 0.4, 0.7


@dataclasses.dataclass(frozen=True)
class Row:
    """One program: stage, picture side, topology, mesh, examples of the global batch."""

    stage: str
    size: int
    topology: str
    mesh: dict
    batch: int

    @property
    def key(self) -> str:
        mesh = ",".join(f"{axis}={n}" for axis, n in self.mesh.items())
        return f"{self.stage} {self.size} {self.topology} {mesh} batch {self.batch}"

    @property
    def strategy(self) -> str:
        return " x ".join(f"{axis} {n}" for axis, n in self.mesh.items() if n > 1)


def rows() -> list[Row]:
    """The table: most wanted first."""
    found = [
        Row("video", 256, "v5e:4x4", {"fsdp": 16}, 16),
        Row("video", 512, "v5e:4x4", {"fsdp": 4, "space": 4}, 4),
        Row("diffusion", 256, "v5e:4x4", {"fsdp": 16}, 64),
        Row("image", 256, "v5e:4x4", {"fsdp": 16}, 16),
        Row("decoder", 256, "v5e:4x4", {"fsdp": 16}, 16),
        Row("video", 256, "v5e:2x4", {"fsdp": 8}, 8),
        Row("video", 256, "v5e:4x4", {"data": 16}, 16),
        Row("diffusion", 256, "v5e:4x4", {"data": 16}, 64),
        Row("diffusion", 256, "v5e:4x4", {"fsdp": 8, "tensor": 2}, 64),
        Row("diffusion", 256, "v5e:4x4", {"fsdp": 4, "context": 4}, 64),
    ]
    larger = {"v5p:2x2x1": 4, "v6e:2x4": 8, "v5p:4x4x4": 64, "v5e:16x16": 256, "v6e:16x16": 256}
    for topology, chips in larger.items():
        found.append(Row("video", 256, topology, {"fsdp": chips}, chips))
        # Latte-XL is 1152 = 9 x 128 wide: no more than 128 chips can share a matrix evenly.
        shared = {"fsdp": chips} if chips <= 64 else {"data": chips // 64, "fsdp": 64}
        found.append(Row("diffusion", 256, topology, shared, 4 * chips))
        space = {"fsdp": chips // 4, "space": 4} if chips > 4 else {"space": 4}
        found.append(Row("video", 512, topology, space, max(chips // 4, 1)))
    for stage in ("image", "decoder"):
        found.append(Row(stage, 512, "v5e:4x4", {"fsdp": 4, "space": 4}, 4 if stage == "decoder" else 16))
    return found


def experiment(row: Row):
    """The paper's networks at this row's size, in bfloat16 with every level recomputed."""
    from pv_vae_jax.models.latte import LatteConfig
    from pv_vae_jax.models.vae import VAEConfig
    from pv_vae_jax.train.configs import DataConfig, DiffusionConfig, Experiment, Objective, VAEStageConfig

    wide = ("encoder/level0", "encoder/level1", "decoder/level_3", "decoder/level_4")  # where pixels are many
    vae = VAEConfig.paper(dtype="bfloat16", remat=True, remat_blocks=wide)
    stage = dict(steps=1, batch_size=row.batch)
    gan = Objective(gan=0.1)
    return Experiment(
        name="paper",
        data=DataConfig(frames=17, size=row.size),
        vae=vae,
        image=VAEStageConfig(images=True, **stage),
        video=VAEStageConfig(drop_ratio=1.0, objective=gan, **stage),
        decoder=VAEStageConfig(frozen=("encoder", "pad"), objective=gan, **stage),
        latte=LatteConfig.xl(dtype="bfloat16", remat="blocks"),
        diffusion=DiffusionConfig(steps=1, batch_size=row.batch),
    ).validate()


def measure(row: Row) -> dict:
    """Compile one row in this process."""
    import jax

    from pv_vae_jax.sharding.hlo import step_flops
    from pv_vae_jax.sharding.mesh import make_mesh
    from pv_vae_jax.sharding.rules import check_split
    from pv_vae_jax.sharding.topology import DoesNotFit, compile_step, quick_compilation, topology_devices
    from pv_vae_jax.train.plan import plan_stage

    chosen = experiment(row)
    mesh = make_mesh(**({"data": 1} | row.mesh), devices=topology_devices(row.topology))
    (plan,) = plan_stage(chosen, row.stage, mesh)
    check_split(mesh, plan.state.params, plan.sharding.params)
    result = dataclasses.asdict(row) | {"chips": mesh.size}
    with quick_compilation(), jax.set_mesh(mesh):
        traced = plan.trace()
        result["flops"] = step_flops(traced.jaxpr.jaxpr) / mesh.size
        try:
            compiled = compile_step(traced.lower())
        except DoesNotFit as error:
            return result | {"fault": str(error)}
    result["peak_bytes"] = compiled.peak_bytes
    result["traffic"] = {kind: dataclasses.asdict(sent) for kind, sent in compiled.traffic.items()}
    return result


def read() -> dict[str, dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(key: str, result: dict) -> None:
    write_json(RESULTS, read() | {key: result})


# Tables


def sent_bytes(traffic: dict) -> float:
    """What one chip sends, from the bytes of the results: an all-reduce goes round twice."""
    return sum(sent["bytes"] * (2 if kind == "all-reduce" else 1) for kind, sent in traffic.items())


def times(result: dict) -> tuple[float, float]:
    """Seconds of compute and of communication a step, by the assumptions above."""
    from pv_vae_jax.sharding.topology import CHIPS

    chip = CHIPS[result["topology"].split(":")[0]]
    return result["flops"] / (COMPUTE_SHARE * chip.flops), sent_bytes(result["traffic"]) / (LINK_SHARE * chip.links)


def memory_table(results: list[dict]) -> str:
    rows = []
    for r in results:
        mesh = " x ".join(f"{axis} {n}" for axis, n in r["mesh"].items())
        peak = r.get("fault") or f"{r['peak_bytes'] / 2**30:.1f}"
        sent = None if "fault" in r else f"{sent_bytes(r['traffic']) / 1e6:,.0f}"
        start = r["stage"], r["size"], r["topology"], r["chips"], mesh, r["batch"]
        rows.append((*start, peak, f"{r['flops'] / 1e12:.1f}", sent))
    head = ("step", "px", "topology", "chips", "mesh", "batch", "peak GiB a chip", "TFLOP a chip", "MB sent a chip")
    return harness.markdown(head, rows)


def time_table(results: list[dict]) -> str:
    """Weak scaling: a chip's work stays, and with it what it sends, (n - 1) / n of each result around a ring."""
    counts = (8, 64, 512, 4096)
    rows = []
    for r in results:
        if "fault" in r:
            continue
        compute, sending = times(r)
        part = sending / (1 - 1 / r["chips"])  # of a ring without end
        shares = [compute / (compute + part * (1 - 1 / n)) for n in counts]
        mesh = " x ".join(axis if axis in ("data", "fsdp") else f"{axis} {n}" for axis, n in r["mesh"].items())
        kind = r["topology"].split(":")[0]
        listed = ", ".join(f"{share:.0%}" for share in shares)
        rows.append((r["stage"], r["size"], kind, mesh, f"{compute:.2f}", f"{sending:.3f}", listed))
    efficiency = f"efficiency at {', '.join(map(str, counts))} chips"
    return harness.markdown(("step", "px", "TPU", "strategy", "compute, s", "sent, s", efficiency), rows)


def write_tables() -> None:
    results = list(read().values())
    text = DOCUMENT.read_text()
    for name, table in (("memory", memory_table(results)), ("time", time_table(results))):
        begin, end = f"<!-- {name}: benchmarks/topologies.py -->", f"<!-- end of {name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    write_text(DOCUMENT, text)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    only: rows whose name contains this.
    compile: whether to compile what is missing.
    """

    only: str = ""
    compile: bool = True


def run(settings: Settings) -> dict:
    """Compile the rows that are missing, write the tables."""
    for row in rows() if settings.compile else ():
        if row.key in read() or settings.only not in row.key:
            continue
        print(row.key, flush=True)
        try:
            compile_row(row)
        except subprocess.TimeoutExpired:
            print(f"  not compiled within {LIMIT} s: left out", flush=True)
    write_tables()
    return {"results": {}, "aims": []}


def compile_row(row: Row) -> None:
    """Measure a row in a process of its own and keep it."""
    found = harness.in_process("topologies", "measure_row", row.key, env={"JAX_PLATFORMS": "cpu"}, timeout=LIMIT)
    keep(row.key, found)


def measure_row(key: str) -> dict:
    """`measure` by the name of a row."""
    return measure(next(row for row in rows() if row.key == key))


def table(results: dict) -> str:
    """Nothing: its tables are in docs/scaling.md."""
    return ""
