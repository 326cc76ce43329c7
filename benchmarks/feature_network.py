"""Feature networks: frames a second beside the same network in PyTorch, and memory over many clips.

Both sides run in one process, in turns, on the same uint8 clips of 17 frames: resize to the network's size, forward,
features back on the host. Both hold the same weights and must return the same features first. `own` is the shipped
network, `i3d` has weights drawn at their usual scale.

Memory is the highest resident size (Linux) of a process that sends so many clips, made as they are needed, through our
`own` network with `evaluation.networks.extract.extract`: it should not grow with their number.
"""

import dataclasses
import time

from benchmarks import harness

NETWORKS = ("own", "i3d")
FRAMES, MIB = 17, 2**20


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields.

    networks: own, i3d.
    side: of the clips, before networks resize them.
    clips: at once, for speed.
    counts: of the clips whose peak memory is compared; empty measures none.
    against: torch, or none.
    rounds, seconds: of the turns, see `harness.take_turns`.
    """

    networks: tuple[str, ...] = NETWORKS
    side: int = 256
    clips: int = 4
    counts: tuple[int, ...] = (256, 2048)
    against: str = "torch"
    rounds: int = 9
    seconds: float = 60.0


def run(settings: Settings) -> dict:
    """Time every network, then send every count of clips through ours, each in a process of its own."""
    speed, aims = {}, []
    for name in harness.names(settings.networks, NETWORKS, "network"):
        speed[name] = compare(name, settings)
        for ratio in speed[name]["ratios"].values():
            aims.append(harness.aim(f"feature network {name}: ours / PyTorch", ratio, most=1.0))
    memory = []
    for count in sorted(settings.counts):
        memory.append(harness.in_process("feature_network", "measure_memory", count, settings.side))
        print(memory[-1], flush=True)
    if len(memory) > 1:
        growth = memory[-1]["peak_mib"] / memory[0]["peak_mib"]
        what = f"feature network: peak memory of {memory[-1]['clips']:,} clips / of {memory[0]['clips']:,}"
        aims.append(harness.aim(what, growth, most=1.1))
    return {"results": {"speed": speed, "memory": memory}, "aims": aims}


def our_network(name: str):
    """Our network with its parameters: the shipped one, or I3D with weights drawn at their usual scale."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pv_vae_jax.evaluation.networks import i3d
    from pv_vae_jax.evaluation.networks.extract import FeatureNetwork, own_network, resize

    if name == "own":
        return own_network()
    model, rng = i3d.I3D(), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 9, 224, 224, 3)))["params"]
    draw = lambda s: rng.standard_normal(s.shape, np.float32) * (2 / np.prod(s.shape[:-1])) ** 0.5  # noqa: E731
    params = jax.tree_util.tree_map_with_path(
        lambda path, s: (
            draw(s) if path[-1].key == "kernel" else np.full(s.shape, path[-1].key == "variance", np.float32)
        ),
        shapes,
    )

    def apply(params, video):
        return model.apply({"params": params}, resize(video, i3d.SIDE, "half_pixel")).logits

    return FeatureNetwork("i3d", "drawn", None, "half_pixel", least_frames=i3d.LEAST_FRAMES, apply=apply, params=params)


def compare(name: str, settings: Settings) -> dict:
    """Times of both sides for `settings.clips` clips."""
    import numpy as np

    from pv_vae_jax.evaluation.networks.extract import extract

    network, clips, side = our_network(name), settings.clips, settings.side
    video = np.random.default_rng(1).integers(0, 256, (clips, FRAMES, side, side, 3), dtype=np.uint8)
    sides = {"ours": lambda: extract(network, video, count=clips, batch_size=clips)}
    found = {"clips": clips, "frames": FRAMES, "side": side}
    if settings.against != "none":
        sides["torch"] = torch_side(name, network.params, video)
        a, b = sides["ours"](), sides["torch"]()
        found["difference"] = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))
        if not found["difference"] < 1e-3:
            raise RuntimeError(f"{name}: the two sides differ by {found['difference']:.1e} of the largest feature")
    times = harness.take_turns(sides, settings.rounds, seconds=settings.seconds)
    rates = {which: round(1e3 * clips * FRAMES / t["median_ms"], 1) for which, t in times.items()}
    print(f"{name}: {rates} frames/s", flush=True)
    return found | {"times": times, "frames_per_second": rates, "ratios": harness.ratios(times)}


def torch_side(name: str, params, video):
    """PyTorch's call: features of `video` on the host."""
    torch = harness.need("torch")
    from benchmarks.torch_features import I3D, Own
    from pv_vae_jax.evaluation.networks.feature_net import FeatureNetConfig

    device = harness.torch_device()
    network = Own(FeatureNetConfig()) if name == "own" else I3D()
    network.load(params)
    network = network.eval().to(device)

    def work():
        with torch.inference_mode():
            return network(torch.from_numpy(video).to(device)).cpu().numpy()

    return work


def measure_memory(count: int, side: int) -> dict:
    """Highest resident size of this process after `count` clips."""
    import numpy as np

    from pv_vae_jax.evaluation.networks.extract import extract, own_network

    block = np.random.default_rng(0).integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8)
    clips = (np.roll(block, i, axis=1) for i in range(count))
    start = time.perf_counter()
    features = extract(own_network(), clips, count=count, batch_size=8)
    if len(features) != count:
        raise RuntimeError(f"{len(features)} features of {count} clips")
    peak = harness.resident("VmHWM") / MIB
    return {"clips": count, "side": side, "peak_mib": round(peak, 1), "seconds": round(time.perf_counter() - start, 2)}


def table(results: dict) -> str:
    """A row a network, then a row a count of clips."""
    head = ("network", "clips at once", "ours, frames/s", "torch, frames/s", "ours / torch, time")
    rows = []
    for name, r in results["speed"].items():
        rates = r["frames_per_second"]
        clips = f"{r['clips']} x {r['frames']} x {r['side']} x {r['side']}"
        rows.append((name, clips, rates["ours"], rates.get("torch"), r["ratios"].get("torch")))
    parts = [harness.markdown(head, rows)]
    if results["memory"]:
        rows = [(r["clips"], r["peak_mib"], r["seconds"]) for r in results["memory"]]
        parts.append(harness.markdown(("clips through own, 8 at a time", "peak resident MiB", "seconds"), rows))
    return "\n\n".join(parts)
