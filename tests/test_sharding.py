"""Where arrays live must not change what is computed: one device equals eight, whatever the mesh splits."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from pv_vae_jax.data.pipeline import batched, examples
from pv_vae_jax.layers.conv import CausalConv3D
from pv_vae_jax.layers.resample import Downsample, Upsample
from pv_vae_jax.losses import Objective
from pv_vae_jax.model import init_latte
from pv_vae_jax.models.discriminator import Discriminator, DiscriminatorConfig
from pv_vae_jax.models.latte import Latte, LatteConfig
from pv_vae_jax.models.vae import VAE
from pv_vae_jax.sharding.axes import MESH_AXES
from pv_vae_jax.sharding.mesh import make_mesh
from pv_vae_jax.sharding.rules import batch_sharding, check_split, host_share, partition, put_batch, state_sharding
from pv_vae_jax.train.configs import OptimizerConfig
from pv_vae_jax.train.dit_step import DiTStep
from pv_vae_jax.train.optim import accumulate_grads, optimizer
from pv_vae_jax.train.vae_step import VAEStep
from tests.conftest import TINY, perturbed

# Few layers, because compiling is what these tests cost; `direct` is what accelerators run.
SMALL = dataclasses.replace(TINY, patch=2)

STRATEGIES = {
    "data": dict(data=8),
    "fsdp": dict(data=2, fsdp=4),
    "fsdp+tensor": dict(data=1, fsdp=4, tensor=2),
    "space": dict(data=2, space=4),
    "context": dict(data=4, context=2),
    "fsdp+space+context": dict(data=1, fsdp=2, space=2, context=2),
}
STEPS = 5
LEARN = OptimizerConfig(warmup_steps=0)  # the default rate, so that five steps move a parameter by up to 2.5e-4


def vae_step():
    """A step with everything: filled form, adaptive GAN, both discriminators, EMA."""
    step = VAEStep(
        model=VAE(SMALL),
        objective=Objective(gan=0.5, gan_start=0, kl=1e-3),
        optimizer=optimizer(LEARN, STEPS),
        discriminator=Discriminator(DiscriminatorConfig(width=4, levels=1, lowering="direct")),
        discriminator_optimizer=optimizer(LEARN, STEPS),
        ema_decay=0.5,
    )

    def create():
        clip = jnp.zeros((1, 3, 16, 32, 3))
        params = perturbed(step.model.init(jax.random.key(0), clip)["params"])
        return step.create(params, step.discriminator.init(jax.random.key(1), clip)["params"])

    rng = np.random.default_rng(1)
    batch = {"video": rng.integers(0, 256, (8, 3, 16, 32, 3), np.uint8), "dropped": np.array([0, 1] * 4, np.int32)}
    return (lambda state, batch: step(state, batch, dropped=None, gan=True)), create, batch


def dit_step():
    """Four heads over two frames of 2 x 4 tokens."""
    model = Latte(LatteConfig(latent_channels=4, depth=2, width=32, heads=4, classes=3))
    step = DiTStep(model, optimizer(LEARN, STEPS), np.zeros(4, np.float32), np.ones(4, np.float32), ema_decay=0.5)
    rng = np.random.default_rng(2)
    mean = rng.standard_normal((8, 2, 2, 4, 4)).astype(np.float32)
    batch = {"mean": mean, "logvar": 0 * mean - 2, "label": np.arange(8, dtype=np.int32) % 3}

    def create():
        return step.create(perturbed(model.init(jax.random.key(0), mean, jnp.zeros(8), batch["label"])["params"]))

    return step, create, batch


def train(step, state, batch, mesh):
    """`STEPS` steps on the mesh: the last state, the losses, the compiled program's text."""
    sharding = state_sharding(mesh, jax.eval_shape(lambda: state))
    placed, inputs = jax.device_put(state, sharding), put_batch(mesh, batch)
    with jax.set_mesh(mesh):
        program = jax.jit(step, out_shardings=(sharding, None)).lower(placed, inputs).compile()
        losses = []
        for _ in range(STEPS):
            placed, logs = program(placed, inputs)
            losses.append(logs)
    return placed, jax.device_get(losses), program.as_text()


@pytest.fixture(scope="module")
def single(request):
    step, create, batch = {"vae": vae_step, "dit": dit_step}[request.param]()
    state = jax.jit(create)()
    return request.param, step, state, batch, train(step, state, batch, make_mesh(data=1))


# Compiling is the cost: the fast cases split pictures, tokens, heads and state; the slow ones are all the others.
FAST = (("vae", "fsdp+space+context"), ("dit", "fsdp+tensor"))


@pytest.mark.parametrize(
    ("single", "strategy"),
    [
        pytest.param(kind, strategy, marks=() if (kind, strategy) in FAST else pytest.mark.slow)
        for kind in ("vae", "dit")
        for strategy in STRATEGIES
    ],
    indirect=["single"],
)
def test_eight_devices_take_the_same_steps_as_one(single, strategy):
    kind, step, before, batch, (expected, expected_logs, _) = single
    mesh = make_mesh(**STRATEGIES[strategy])
    state, logs, text = train(step, before, batch, mesh)
    for a, b in zip(expected_logs, logs, strict=True):
        for name in a:
            np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, jax.device_get(state.params))
    assert min(jax.tree.leaves(moved)) > 5e-5  # else agreement would mean little
    split = [not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)]
    assert any(split) == ("fsdp" in strategy)
    if strategy == "space" and kind == "vae":
        assert "collective-permute" in text and not re.findall(r"all-gather[-\w]*\(", text)


@pytest.mark.parametrize(
    "layer",
    [Upsample(8, 2, 2, lowering="direct"), Downsample(2, 2), CausalConv3D(8)],
    ids=lambda layer: type(layer).__name__,
)
def test_fsdp_sends_parameters_and_no_activations(layer):
    """XLA's partitioner, left alone, gathers the whole batch for a gradient that `fsdp` splits."""
    x, mesh = jnp.zeros((8, 5, 16, 16, 8)), make_mesh(data=1, fsdp=8)
    params = layer.init(jax.random.key(0), x)
    shardings = state_sharding(mesh, params), batch_sharding(mesh, x.shape)
    assert not all(s.is_fully_replicated for s in jax.tree.leaves(shardings[0]))
    gradient = jax.grad(lambda params, x: jnp.sum(layer.apply(params, x) ** 2), argnums=(0, 1))
    with jax.set_mesh(mesh):
        text = jax.jit(gradient, in_shardings=shardings, out_shardings=shardings).lower(params, x).compile().as_text()
    sent = [a for line in re.findall(r"= (.*?) (?:all-|reduce-|collective-)[\w-]+\(", text) for a in shapes_in(line)]
    assert sent and max(sent) <= max(leaf.size for leaf in jax.tree.leaves(params)) < x.size / 8


@pytest.mark.parametrize(
    "strategy", [pytest.param(dict(data=8), marks=pytest.mark.slow), dict(data=2, fsdp=4)], ids=str
)
def test_gradients_of_a_class_table_do_not_depend_on_the_parts_of_a_batch(strategy):
    """XLA for TPUs got such sums wrong; this holds what they must be."""
    model = Latte(LatteConfig(latent_channels=4, depth=2, width=32, heads=4, classes=3))
    shape, mesh = (2, 4, 4, 4), make_mesh(**strategy)
    params = perturbed(jax.jit(lambda: init_latte(model, shape))())
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.standard_normal((16, *shape), np.float32),
        "t": rng.uniform(size=16).astype(np.float32),
        "label": rng.integers(0, 4, 16),  # each class several times, and the null class
    }

    def gradients(params, part):
        return jax.grad(
            lambda p: jnp.square(model.apply({"params": p}, part["x"], part["t"], part["label"]) - part["x"]).mean()
        )(params)

    with jax.set_mesh(mesh):
        params = jax.device_put(params, state_sharding(mesh, params))
        placed = put_batch(mesh, batch)

        @functools.partial(jax.jit, static_argnums=2)
        def mean(params, batch, parts):
            return accumulate_grads(lambda part, _: gradients(params, part), batch, jax.random.key(0), parts)

        one, two = (jax.device_get(mean(params, placed, parts)) for parts in (1, 2))
    table = one["label"]["table"]
    assert np.abs(table).max() > 1e-5
    chex.assert_trees_all_close(one, two, rtol=1e-4, atol=1e-6)


def shapes_in(text):
    """Sizes of the arrays in a type of HLO's text."""
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in re.findall(r"\w\[([\d,]*)\]", text)]


SIZES = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/encoder/level0/block0/conv1/kernel", (3, 3, 3, 8, 16), P(None, None, None, "fsdp", "tensor")),
        ("opt_state/1/0/mu/encoder/level0/conv2/kernel", (3, 3, 3, 8, 16), P(None, None, None, "tensor", "fsdp")),
        ("ema/pairs/spatial/mlp1/kernel", (3, 16, 64), P(None, "fsdp", "tensor")),
        ("params/decoder/level_0/block1/conv1/bias", (16,), P("tensor")),
        ("params/encoder/stem/kernel", (3, 3, 3, 3, 64), P(None, None, None, None, "fsdp")),  # no row: the largest
        ("params/encoder/conv1/kernel", (3, 3, 3, 3, 64), P(None, None, None, None, "tensor")),  # nothing left for fsdp
        ("params/encoder/conv1/kernel", (4, 3, 3, 3, 64), P("fsdp", None, None, None, "tensor")),  # what fsdp divides
        ("params/odd/kernel", (3, 7), P()),
        ("step", (), P()),
    ],
)
def test_the_first_rule_that_names_a_parameter_places_it(path, shape, spec):
    assert partition(path, shape, SIZES) == spec
    assert partition(path, shape, dict.fromkeys(MESH_AXES, 1)) == P()


def test_moments_and_averages_lie_as_their_parameters_and_little_stays_whole():
    _, create, _ = vae_step()
    shapes = jax.eval_shape(create)
    sharding = state_sharding(make_mesh(fsdp=4, tensor=2), shapes)
    spec = lambda tree: [s.spec for s in jax.tree.leaves(tree)]  # noqa: E731
    adam = sharding.opt_state[1][0]
    assert spec(sharding.params) == spec(sharding.ema) == spec(adam.mu) == spec(adam.nu)
    assert any("fsdp" in s for s in spec(sharding.discriminator.params))
    check_split(make_mesh(fsdp=4, tensor=2), shapes.params, sharding.params)


def test_a_run_that_would_keep_too_much_whole_is_refused():
    shapes = {"odd": jax.ShapeDtypeStruct((7, 99), jnp.float32), "even": jax.ShapeDtypeStruct((8, 512), jnp.float32)}
    for fsdp, fits in ((1, True), (8, False)):
        mesh = make_mesh(data=1, fsdp=fsdp)
        if fits:
            check_split(mesh, shapes, state_sharding(mesh, shapes))
            continue
        with pytest.raises(
            ValueError, match=r"fsdp=8 leaves 14.5% of the parameters' bytes replicated .*odd \(7, 99\)"
        ):
            check_split(mesh, shapes, state_sharding(mesh, shapes))


def test_batches_are_split_by_example_and_picture():
    mesh = make_mesh(data=2, space=2, context=2)
    batch = put_batch(mesh, {"video": np.zeros((4, 3, 8, 6, 3), np.uint8), "k": np.int32(1), "label": np.zeros(4)})
    assert {shard.data.shape for shard in batch["video"].addressable_shards} == {(2, 3, 4, 3, 3)}
    assert batch["k"].is_fully_replicated and batch["label"].addressable_shards[0].data.shape == (2,)
    assert batch_sharding(mesh, (4, 3, 7, 6, 3)).spec[2] is None  # a side that does not divide stays whole
    assert host_share(mesh) == ((0, 1), 2)


def test_meshes_are_refused_with_the_counts():
    assert dict(make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1, "space": 1, "context": 1}
    with pytest.raises(ValueError, match="needs 16 devices, got 8"):
        make_mesh(data=8, space=2)
    with pytest.raises(ValueError, match="only one mesh axis may be -1, not data and space: set --config.mesh.data=1"):
        make_mesh(space=-1)
    with pytest.raises(ValueError, match="needs 0 devices"):
        make_mesh(data=1, fsdp=0)


# Where devices lie, and which host reads what.


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX asks of a TPU to find its place."""

    id: int
    coords: tuple[int, int, int]
    process_index: int
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def v5e(side: int, slices: int = 1) -> list[Chip]:
    """Chips of square slices as `jax.devices()` lists them: host by host, a host being 2 x 2 chips."""
    hosts = [(x, y) for y in range(0, side, 2) for x in range(0, side, 2)]
    places = [(x + i, y + j, 0) for x, y in hosts for j in (0, 1) for i in (0, 1)]
    return [
        Chip(s * len(places) + n, place, (s * len(places) + n) // 4, s)
        for s in range(slices)
        for n, place in enumerate(places)
    ]


def hops(devices: np.ndarray, axis: int, side: int) -> set[int]:
    """Links of the torus from a device to the next along an axis of the mesh, around its end as well."""
    lines = np.moveaxis(devices, axis, -1).reshape(-1, devices.shape[axis])
    apart = lambda a, b: min(abs(a - b), side - abs(a - b))  # noqa: E731
    pairs = [(one.coords, other.coords) for line in lines for one, other in zip(line, np.roll(line, -1), strict=True)]
    return {sum(apart(a, b) for a, b in zip(*pair, strict=True)) for pair in pairs}


def test_axes_of_a_mesh_are_rings_of_a_torus():
    chips = v5e(16)
    assert hops(make_mesh(16, 16, devices=chips).devices, 0, 16) == {1}
    assert hops(make_mesh(16, 16, devices=chips).devices, 1, 16) == {1}
    assert max(hops(np.array(chips).reshape(16, 16), 0, 16)) > 1, "as they are listed they are none"
    for shape in ((1, 64, 4), (1, 32, 8)):  # an axis of the torus would have to be split
        assert make_mesh(*shape, devices=chips).devices.ravel().tolist() == chips
    assert make_mesh(1, 3, devices=chips[:3]).devices.ravel().tolist() == chips[:3], "no cuboid"


@pytest.mark.parametrize("shape", [(4, 4), (1, 16), (2, 4, 2), (1, 8, 2)])
def test_a_slice_is_one_step_along_data(shape):
    chips = v5e(4, slices=2)
    mesh = make_mesh(*shape, dcn_data=2, devices=chips[::-1])
    assert mesh.shape["data"] == 2 * shape[0] and mesh.shape["fsdp"] == shape[1]
    halves = np.split(mesh.devices, 2)
    assert [{chip.slice_index for chip in half.flat} for half in halves] == [{0}, {1}]
    assert make_mesh(fsdp=4, dcn_data=2, devices=chips).shape["data"] == 2 * 4
    for wrong, devices in ((1, chips), (4, chips), (2, v5e(4)), (2, jax.devices())):
        with pytest.raises(ValueError, match=r"is for \d slices, got \d: set --config.mesh.dcn_data="):
            make_mesh(dcn_data=wrong, devices=devices)


@pytest.mark.parametrize("shape", [(16, 1, 1), (2, 8, 1), (2, 4, 2), (1, 2, 8)], ids=str)
@pytest.mark.parametrize("order", ["torus", *range(4)])
def test_hosts_read_every_row_and_each_reads_what_its_devices_hold(shape, order):
    """The joined rows of all hosts are the global batch, in whatever order the devices lie."""
    chips = v5e(4)
    if order == "torus":
        mesh = make_mesh(*shape, devices=chips)
    else:
        mixed = np.random.default_rng(order).permutation(np.array(chips, object)).reshape(*shape, 1, 1)
        mesh = Mesh(mixed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    size, whole = 32, np.zeros(32, np.int64) - 1
    numbers = examples([{"row": np.int32(i)} for i in range(50)], seed=3)
    expected = batched(numbers, size)[5]["row"]
    for process in range(4):
        parts, count = host_share(mesh, process)
        held = {i for i, row in enumerate(mesh.devices.reshape(count, -1)) for d in row if d.process_index == process}
        assert set(parts) == held and list(parts) == sorted(held)
        read = batched(numbers, size, host_index=parts, host_count=count)[5]["row"]
        rows = np.arange(size).reshape(count, -1)[list(parts)].ravel()
        assert ((whole[rows] == -1) | (whole[rows] == read)).all(), "hosts that hold the same rows read the same"
        whole[rows] = read
    np.testing.assert_array_equal(whole, expected)


@pytest.mark.parametrize("order", range(3))
def test_a_batch_lands_where_its_sharding_says(order):
    mixed = np.random.default_rng(order).permutation(np.array(jax.devices()))
    mesh = make_mesh(data=2, fsdp=2, space=2, devices=list(mixed))
    video = np.random.default_rng(order).integers(0, 256, (8, 3, 4, 6, 3), np.uint8)
    placed = put_batch(mesh, {"video": video, "k": np.int32(3), "label": np.arange(8)})
    np.testing.assert_array_equal(placed["video"], video)
    np.testing.assert_array_equal(placed["label"], np.arange(8))
    assert int(placed["k"]) == 3 and placed["label"].dtype == np.int32
    for shard in placed["video"].addressable_shards:
        np.testing.assert_array_equal(shard.data, video[shard.index])
