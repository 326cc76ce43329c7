"""What a step costs, read from its trace and from compiled programs; TPU programs where libtpu is installed."""

import dataclasses
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pv_vae_jax.layers.attention import dot_product_attention
from pv_vae_jax.layers.conv import CausalConv3D
from pv_vae_jax.sharding.hlo import Traffic, step_flops, traffic
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import array_shardings
from pv_vae_jax.sharding.topology import peak_bytes, topology_devices
from pv_vae_jax.train.config_files import load_experiment
from pv_vae_jax.train.configs import STAGES
from pv_vae_jax.train.plan import plan_stage
from tests.test_cli import fails, pv_vae, tiny_experiment  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]


def test_flops_of_products_convolutions_and_loops():
    x, w = jnp.zeros((4, 8)), jnp.zeros((8, 8))
    loop = lambda w, x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=5)[0]  # noqa: E731
    assert step_flops(jax.make_jaxpr(loop)(w, x).jaxpr) == 5 * 2 * 4 * 8 * 8
    again = jax.grad(lambda w: jax.checkpoint(lambda w: jnp.sin(x @ w) @ w)(w).sum())
    assert step_flops(jax.make_jaxpr(again)(w).jaxpr) == (2 + 1 + 3) * 2 * 4 * 8 * 8  # forward, once more, backward
    video, kernel = jnp.zeros((2, 3, 4, 4, 5)), jnp.zeros((3, 3, 3, 5, 7))
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1, 1), "SAME", dimension_numbers=numbers)  # noqa: E731
    assert step_flops(jax.make_jaxpr(conv)(video, kernel).jaxpr) == 2 * (2 * 3 * 4 * 4 * 7) * 27 * 5


def test_traffic_of_a_program_on_eight_devices():
    mesh = make_mesh(data=8)
    split = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())

    def program(w, x):
        carry, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=5)
        return jax.lax.with_sharding_constraint(carry, whole), x.sum(axis=0)

    w = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=split)
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=split)
    found = traffic(jax.jit(program).lower(w, x).compile().as_text())
    assert found["all-reduce"] == Traffic(1, 64 * 4)
    # The result once; the matrix in the loop or before it, as the compiler likes.
    assert found["all-gather"].bytes - 16 * 64 * 4 in (64 * 64 * 4, 5 * 64 * 64 * 4)
    assert found.keys() == {"all-reduce", "all-gather"}


SIDE = 512  # of a square matrix of 1 MiB


def chain(w, x):
    """Its gradient keeps four activations of 32 MiB each."""
    for _ in range(4):
        x = jnp.tanh(x @ w)
    return x.sum()


def test_peak_memory_is_what_a_process_takes():
    """Arguments of 33 MiB, a result of 1 MiB, and the activations, beside what the system counts."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell the peak since a moment")
    code = f"""
import re
import jax, jax.numpy as jnp
from pv_vae_jax.sharding.topology import peak_bytes
from tests.test_topology import chain
shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (({SIDE}, {SIDE}), (32 * {SIDE}, {SIDE}))]
program = jax.jit(jax.grad(chain)).lower(*shapes).compile()
held = lambda name: int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
jax.block_until_ready(jnp.zeros(8))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = held("VmRSS")
jax.block_until_ready(program(*(jnp.ones(s.shape) for s in shapes)))
print(peak_bytes(program) / 2**20, held("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told, taken = map(float, done.stdout.split())
    assert told >= 33 + 1 + 4 * 32 and 0.75 * told < taken < 1.5 * told, (told, taken)


def test_what_inspect_prints_is_what_a_step_has(tiny_experiment):  # noqa: F811
    """The state against one that is placed, the work and the memory against the compiler's own counts."""
    experiment = load_experiment(tiny_experiment, {"diffusion.steps": "1"})
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    (plan,) = plan_stage(experiment, "diffusion", mesh)
    with jax.set_mesh(mesh):
        place = lambda a, sharding: jax.device_put(jnp.zeros(a.shape, a.dtype), sharding)  # noqa: E731
        state = jax.tree.map(place, plan.state, plan.sharding)
        traced = plan.trace()
        compiled, flops = traced.lower().compile(), step_flops(traced.jaxpr.jaxpr)
        found = traffic(compiled.as_text())
    rows = array_shardings(plan.state, plan.sharding)
    leaves, parameters = jax.tree.leaves(state), sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(row.device_bytes for row in rows) == sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    memory = compiled.memory_analysis()
    batch = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(plan.batch)) // 2
    state_bytes = sum(leaf.nbytes for leaf in leaves)
    whole = pytest.approx(state_bytes + batch, rel=0.01)
    assert memory.argument_size_in_bytes == whole, "data=2 holds the state whole and half of the batch"
    assert peak_bytes(compiled) > state_bytes + batch + 4 * parameters, "gradients are held as well"
    # The compiler counts every operation, but those of a loop's body once; there is one pair of blocks here.
    assert 0.5 < flops / 2 / compiled.cost_analysis()["flops"] < 1
    reduced = found["all-reduce"].bytes
    assert 4 * parameters <= reduced < 4.2 * parameters, "the gradients, and a few sums"


TEXT = """HloModule m

%cond (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %g = f32[8,4]{1,0:T(8,128)} all-gather(%x), channel_id=1, dimensions={0}
  %r = (bf16[4]{0}, f32[]{:T(128)}) all-reduce(%a, %b), to_apply=%sum
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%t), condition=%cond, body=%body
  %s = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), dimensions={0}
  %d = f32[8,4]{1,0} all-gather-done(%s)
  %p = u8[3,5]{1,0} collective-permute(%y), source_target_pairs={{0,1}}
}
"""


def test_traffic_counts_loops_and_asynchronous_pairs():
    assert traffic(TEXT) == {
        "all-gather": Traffic(12 + 1, 13 * 8 * 4 * 4),
        "all-reduce": Traffic(12, 12 * (8 + 4)),
        "collective-permute": Traffic(1, 15),
    }


def test_what_leaves_a_slice_is_counted_by_itself():
    """Eight devices as two slices of four: sums along `data` cross the network, those along `fsdp` do not."""
    mesh, spec = make_mesh(data=2, fsdp=4), jax.P(("data", "fsdp"))
    turn = {"data": [(0, 1), (1, 0)], "fsdp": [(i, (i + 1) % 4) for i in range(4)]}

    def program(x):
        ring = [jax.lax.ppermute(x, axis, turn[axis]) for axis in ("data", "fsdp")]
        return jax.lax.psum(x, "data"), jax.lax.psum(2 * x, "fsdp"), jax.lax.psum(3 * x, ("data", "fsdp")), *ring

    out = (jax.P("fsdp"), jax.P("data"), jax.P(), spec, spec)
    split = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=out))
    text = split.lower(jax.ShapeDtypeStruct((64, 8), jnp.float32)).compile().as_text()
    part = 8 * 8 * 4
    assert traffic(text) == {"all-reduce": Traffic(3, 3 * part), "collective-permute": Traffic(2, 2 * part)}
    assert traffic(text, 4) == {
        "all-reduce": Traffic(1, part),
        "collective-permute": Traffic(1, part),
        "between slices": Traffic(3, 3 * part),
    }
    # As TPUs write it; and no groups are one of all devices.
    assert traffic(SLICES, 4) == {"all-gather": Traffic(2, 64), "between slices": Traffic(5, 1024 + 4 * 32)}


SLICES = """ENTRY %main (x: f32[4]) -> f32[4] {
  %send = (bf16[64,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%x, %token), channel_id=3, is_host_transfer=true
  %done = token[] send-done(%send), channel_id=3
  %recv = (bf16[64,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) recv(%token), channel_id=4, is_host_transfer=true
  %a = f32[8]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %b = f32[8]{0} all-gather(%x), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %c = f32[8]{0} all-reduce(%x), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  %e = f32[8]{0} all-gather(%x), replica_groups=mesh['data'=4,'fsdp'=2] {'data':(2)2,'fsdp'}, dimensions={0}
  %f = f32[8]{0} all-gather(%x), replica_groups=mesh['data'=4,'fsdp'=2] {'data':(1)2}, dimensions={0}
  %d = f32[8]{0} all-reduce(%x), replica_groups={}, to_apply=%sum, frontend_attributes={a={{1,2}}}
}
"""


def test_inspect_refuses_what_the_mesh_cannot_split(tiny_experiment):  # noqa: F811
    call = ("inspect", "--config", tiny_experiment, "--config.mesh.data=1")
    assert "video.batch_size 4 is not a multiple of the 3 devices" in fails(*call, "--config.mesh.data=3")
    assert "mesh.space 8 does not divide the width of the latents, 4" in fails(*call, "--config.mesh.space=8")
    assert "mesh.tensor 4 does not divide the 2 heads" in fails(*call, "--config.mesh.tensor=4", "--stage=diffusion")
    assert "--slices is for --topology: add it" in fails(*call, "--slices=2")
    assert "is for 2 slices, got 1: set --config.mesh.dcn_data=1" in fails(*call, "--config.mesh.dcn_data=2")


def test_layers_take_the_kernels_of_the_devices_that_a_program_is_for():
    """They may be absent: the platform is that of the mesh in context, not that of this process."""
    here = make_mesh(data=1).abstract_mesh
    of = {"axis_sizes": here.axis_sizes, "axis_names": here.axis_names, "axis_types": here.axis_types}
    device = dataclasses.replace(here.abstract_device, platform="tpu")

    def network(x, q):
        y, _ = CausalConv3D(4).init_with_output(jax.random.key(0), x)
        return y.sum() + dot_product_attention(q, q, q).sum()

    def has(mesh):
        with jax.sharding.use_abstract_mesh(mesh):
            text = str(
                jax.make_jaxpr(lambda *args: network(*args))(jnp.zeros((1, 3, 8, 8, 4)), jnp.zeros((1, 32, 2, 8)))
            )
        return "custom_vjp_call" in text, "lhs_spec=(0, 4, 1, 2, 3)" in text  # attention's own gradient, a 3-D kernel

    assert has(here)[0] and has(jax.sharding.AbstractMesh(**of, abstract_device=device)) == (False, True)


@pytest.fixture(scope="module")
def topology():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs the extra tpu-topology")
    return "v5e:2x2"


def test_a_step_is_compiled_for_a_tpu_that_is_not_here(topology, tiny_experiment):  # noqa: F811
    command = [sys.executable, "-m", "pv_vae_jax", "inspect", "--config", str(tiny_experiment), "--stage=diffusion"]
    command += [f"--topology={topology}", "--config.mesh.data=1", "--config.mesh.fsdp=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    for words in ("of TPU v5 lite, v5e:2x2", "peak memory a device", "all-gather", "params/pairs/spatial/mlp1/kernel"):
        assert words in done.stdout


def test_two_slices_are_compiled_and_the_network_between_them_is_a_row(topology, tiny_experiment):  # noqa: F811
    command = [sys.executable, "-m", "pv_vae_jax", "inspect", "--config", str(tiny_experiment), "--stage=diffusion"]
    command += [f"--topology={topology}", "--slices=2", "--summary", "--config.mesh.data=1", "--config.mesh.fsdp=4"]
    command += ["--config.diffusion.batch_size=8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stderr
    assert "'data': 2, 'fsdp': 4" in done.stdout and "2 x v5e:2x2" in done.stdout
    assert "between slices" in done.stdout and "all-gather" in done.stdout


def shipped():
    """(experiment, topology, flags) of every line that an experiment names."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        for topology, settings in runpy.run_path(str(path)).get("TOPOLOGIES", {}).items():
            yield pytest.param(path, topology, settings, id=f"{path.stem}-{topology}")


def test_every_shipped_experiment_names_a_topology():
    named = {case.values[0] for case in shipped()}
    assert named == {
        path for path in (ROOT / "experiments").glob("*.py") if "def get_config() -> Experiment" in path.read_text()
    }


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("path, name, settings", list(shipped()))
def test_a_shipped_experiment_fits_the_topologies_it_names(topology, path, name, settings):
    experiment = load_experiment(path)
    for stage in (stage for stage in STAGES if stage != "latents" and getattr(experiment, stage).steps):
        command = [sys.executable, "-m", "pv_vae_jax", "inspect", "--config", str(path), f"--stage={stage}"]
        command += [f"--topology={name}", *(f"--config.{setting}" for setting in settings)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
        assert done.returncode == 0 and "peak memory a device" in done.stdout, done.stderr


def test_what_does_not_fit_is_told_with_the_amount(topology):
    from pv_vae_jax.sharding.topology import DoesNotFit, compile_step, quick_compilation

    mesh = make_mesh(data=1, devices=topology_devices(topology)[:1])
    big = jax.ShapeDtypeStruct((1 << 17, 1 << 16), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P()))
    with quick_compilation(), pytest.raises(DoesNotFit, match=r"does not fit: it needs .*G, a chip has 15.75G"):
        compile_step(jax.jit(lambda a: a * 2).lower(big))


def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(ValueError, match="expected a TPU topology such as v5e:4x4.*got 'v9:2x2'"):
        topology_devices("v9:2x2")
    code = "from pv_vae_jax.sharding.topology import topology_devices; topology_devices('nope')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("Traceback"), "libtpu says something of its own"


def test_without_libtpu_the_extra_is_named(monkeypatch, tiny_experiment):  # noqa: F811
    monkeypatch.setitem(sys.modules, "libtpu", None)
    line = fails("inspect", "--config", tiny_experiment, "--topology=v5e:2x2")
    assert "pip install libtpu" in line
