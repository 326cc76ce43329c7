"""Feature networks on CPU: frames a second against the same network in PyTorch, and memory over many clips.

    python benchmarks/feature_network.py [--networks own i3d] [--size 256] [--clips 4] [--repeats 5] [--counts 256 2048]

Both sides run in one process, in turn, on the same uint8 clips of 17 frames: resize to the network's size, forward,
features back on the host. The PyTorch networks are written with their usual modules (`Conv2d`, `Conv3d`, `BatchNorm3d`,
`MaxPool3d`), hold the same weights, and must return the same features first. The aim: at least as fast.

Memory is the peak of a process that sends so many clips, made as they are needed, through our network with
`evaluation.feature_networks.extract`. The aim: 2,048 clips take no more than 256 of them do, to a tenth.
Results go to `benchmarks/results/feature_network.json`. Timings are worth something on an idle machine only.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # runs from a clone, installed or not

FRAMES, MIB = 17, 2**20
AIM_SPEED, AIM_MEMORY = 1.0, 1.1


def torch_networks():
    """`own(config)` and `i3d()`: modules from uint8 clips `(b, t, h, w, 3)` to features `(b, d)`."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from pv_vae_jax.models.feature_net import FLOOR, LAGS
    from pv_vae_jax.models.i3d import CLASSES, MIXED

    def same(x, kernel, stride):
        """TensorFlow's padding of the last axes."""
        pads = []
        for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads) if any(pads) else x

    def prepare(video, side, antialias):
        """`(b, 3, t, side, side)` in [-1, 1]."""
        b, t = video.shape[:2]
        x = video.permute(0, 1, 4, 2, 3).flatten(0, 1).float() / 127.5 - 1
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=antialias)
        return x.view(b, t, 3, side, side).transpose(1, 2)

    class Own(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.side, before = config.side, 3
            self.space, self.time, self.norm = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
            for i, width in enumerate(config.widths):
                self.space.append(nn.Conv2d(before, width, 5 if i == 0 else 3, stride=2))
                if i:
                    self.norm.append(nn.LayerNorm(width, eps=1e-6))
                    self.time.append(
                        nn.Conv3d(width, width, (3, 1, 1), padding=(1, 0, 0), padding_mode="replicate", bias=False)
                    )
                before = width
            self.features = nn.Linear(sum(config.widths) * (1 + len(LAGS)), config.features)

        def forward(self, video):
            x, pooled = prepare(video, self.side, True), []
            b, _, t = x.shape[:3]
            for i, space in enumerate(self.space):
                x = x.transpose(1, 2).flatten(0, 1)
                x = space(same(x, space.kernel_size, space.stride))
                x = x.view(b, t, *x.shape[1:]).transpose(1, 2)
                if i:
                    y = F.gelu(self.norm[i - 1](x.movedim(1, -1)), approximate="tanh").movedim(-1, 1)
                    x = x + self.time[i - 1](y)
                x = F.gelu(x, approximate="tanh")
                for size in (x.abs(), *((x[:, :, lag:] - x[:, :, :-lag]).abs() for lag in LAGS)):
                    pooled.append(torch.log(size.mean((2, 3, 4)) + FLOOR) - np.log(10 * FLOOR))
            return self.features(torch.cat(pooled, 1))

        def load(self, params):
            put = lambda target, value: target.data.copy_(torch.tensor(np.array(value)))  # noqa: E731
            for i, space in enumerate(self.space):
                put(space.weight, np.moveaxis(np.asarray(params[f"space{i}"]["kernel"]), (2, 3), (1, 0)))
                put(space.bias, params[f"space{i}"]["bias"])
                if i:
                    put(self.norm[i - 1].weight, params[f"norm{i}"]["scale"])
                    put(self.norm[i - 1].bias, params[f"norm{i}"]["bias"])
                    kernel = np.asarray(params[f"time{i}"]["kernel"])
                    kernel = kernel.reshape(3, -1, kernel.shape[-1]).transpose(2, 1, 0)  # taps in out -> out in taps
                    put(self.time[i - 1].weight, kernel[..., None, None])
            put(self.features.weight, np.asarray(params["features"]["kernel"]).T)
            put(self.features.bias, params["features"]["bias"])

    class Unit(nn.Module):
        def __init__(self, into, out, kernel, stride=1):
            super().__init__()
            self.conv = nn.Conv3d(into, out, kernel, stride=stride, bias=False)
            self.norm = nn.BatchNorm3d(out, eps=1e-3)

        def forward(self, x):
            return F.relu(self.norm(self.conv(same(x, self.conv.kernel_size, self.conv.stride))))

        def load(self, params):
            kernel = np.moveaxis(np.asarray(params["kernel"]), (3, 4), (1, 0))
            self.conv.weight.data.copy_(torch.tensor(kernel))
            for target, name in ((self.norm.bias.data, "beta"), (self.norm.running_mean, "mean")):
                target.copy_(torch.tensor(np.array(params[name])))
            self.norm.running_var.copy_(torch.tensor(np.array(params["variance"])))

    class Pool(nn.Module):
        def __init__(self, window, stride):
            super().__init__()
            self.window, self.pool = window, nn.MaxPool3d(window, stride)
            self.stride = stride

        def forward(self, x):
            # After a ReLU zeros are as good as minus infinity.
            return self.pool(same(x, self.window, self.stride))

    class Mixed(nn.Module):
        def __init__(self, into, widths):
            super().__init__()
            a, b1, b2, c1, c2, d = widths
            self.branch0, self.branch1a, self.branch1b = Unit(into, a, 1), Unit(into, b1, 1), Unit(b1, b2, 3)
            self.branch2a, self.branch2b, self.branch3 = Unit(into, c1, 1), Unit(c1, c2, 3), Unit(into, d, 1)
            self.pool = Pool((3, 3, 3), (1, 1, 1))

        def forward(self, x):
            parts = self.branch0(x), self.branch1b(self.branch1a(x)), self.branch2b(self.branch2a(x))
            return torch.cat([*parts, self.branch3(self.pool(x))], 1)

    class I3D(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"Conv3d_1a_7x7": Unit(3, 64, 7, 2), "pool2": Pool((1, 3, 3), (1, 2, 2))})
            self.layers.update({"Conv3d_2b_1x1": Unit(64, 64, 1), "Conv3d_2c_3x3": Unit(64, 192, 3)})
            self.layers["pool3"], into = Pool((1, 3, 3), (1, 2, 2)), 192
            for name, widths in MIXED.items():
                if name == "Mixed_4b":
                    self.layers["pool4"] = Pool((3, 3, 3), (2, 2, 2))
                if name == "Mixed_5b":
                    self.layers["pool5"] = Pool((2, 2, 2), (2, 2, 2))
                self.layers[name] = Mixed(into, widths)
                into = widths[0] + widths[2] + widths[4] + widths[5]
            self.average, self.logits = nn.AvgPool3d((2, 7, 7), (1, 1, 1)), nn.Linear(into, CLASSES)

        def forward(self, video):
            x = prepare(video, 224, False)
            for layer in self.layers.values():
                x = layer(x)
            return self.logits(self.average(x)[..., 0, 0].transpose(1, 2)).mean(1)

        def load(self, params):
            for name, layer in self.layers.items():
                if isinstance(layer, Unit):
                    layer.load(params[name])
                elif isinstance(layer, Mixed):
                    for branch, unit in layer.named_children():
                        if isinstance(unit, Unit):
                            unit.load(params[name][branch])
            self.logits.weight.data.copy_(torch.tensor(np.array(params["Logits"]["kernel"]).T))
            self.logits.bias.data.copy_(torch.tensor(np.array(params["Logits"]["bias"])))

    return Own, I3D


def ours(name: str):
    """Our network with its parameters: the shipped one, or I3D with weights drawn at their usual scale."""
    import jax
    import jax.numpy as jnp

    from pv_vae_jax.evaluation.feature_networks import FeatureNetwork, own_network, resize
    from pv_vae_jax.models import i3d

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

    return FeatureNetwork("i3d", "drawn", None, i3d.LEAST_FRAMES, "half_pixel", apply, params)


def compare(name: str, size: int, clips: int, repeats: int) -> dict:
    """Frames a second of both, in turn."""
    import torch

    from pv_vae_jax.evaluation.feature_networks import extract
    from pv_vae_jax.models.feature_net import FeatureNetConfig

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = ours(name)
    Own, I3D = torch_networks()
    theirs = (Own(FeatureNetConfig()) if name == "own" else I3D()).eval()
    theirs.load(network.params)
    video = np.random.default_rng(1).integers(0, 256, (clips, FRAMES, size, size, 3), dtype=np.uint8)

    def run_ours() -> np.ndarray:
        return extract(network, video, count=clips, batch_size=clips)

    def run_theirs() -> np.ndarray:
        with torch.inference_mode():
            return theirs(torch.from_numpy(video)).numpy()

    a, b = run_ours(), run_theirs()  # also compiles and warms up
    difference = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))
    if difference > 1e-3:
        raise RuntimeError(f"{name}: the two networks differ by {difference:.2g} of the largest feature")
    times = {"jax": [], "torch": []}
    for _ in range(repeats):
        for side, call in (("jax", run_ours), ("torch", run_theirs)):
            start = time.perf_counter()
            call()
            times[side].append(time.perf_counter() - start)
    speed = {side: clips * FRAMES / statistics.median(values) for side, values in times.items()}
    return {
        "network": name,
        "clips": clips,
        "size": size,
        "repeats": repeats,
        "largest_difference": difference,
        "frames_per_second": speed,
        "seconds": times,
        "ratio": speed["jax"] / speed["torch"],
        "aim": AIM_SPEED,
        "met": speed["jax"] >= AIM_SPEED * speed["torch"],
    }


def memory(count: int, size: int) -> dict:
    """Peak memory of this process after `count` clips."""
    import resource

    from pv_vae_jax.evaluation.feature_networks import extract, own_network

    block = np.random.default_rng(0).integers(0, 256, (FRAMES, size, size, 3), dtype=np.uint8)
    clips = (np.roll(block, i, axis=1) for i in range(count))
    start = time.perf_counter()
    features = extract(own_network(), clips, count=count, batch_size=8)
    assert features.shape[0] == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    return {"clips": count, "size": size, "peak_mib": peak, "seconds": time.perf_counter() - start}


def child(*arguments: object) -> dict:
    """This file in a process of its own."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["own", "i3d"], choices=["own", "i3d"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="*", default=[256, 2048])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "feature_network.json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, *rest = args.child
        found = memory(*map(int, rest)) if kind == "memory" else compare(kind, *map(int, rest))
        print(json.dumps(found))
        return
    result = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "load_before": os.getloadavg()[0],
        "speed": [],
        "memory": [],
    }
    for name in args.networks:
        found = child(name, args.size, args.clips, args.repeats)
        result["speed"].append(found)
        a, b = (found["frames_per_second"][side] for side in ("jax", "torch"))
        print(f"{name}: {a:.1f} frames/s, PyTorch {b:.1f}: {found['ratio']:.2f} x")
    for count in args.counts:
        found = child("memory", count, args.size)
        result["memory"].append(found)
        print(f"{count} clips: peak {found['peak_mib']:.0f} MiB, {found['seconds']:.0f} s")
    if len(result["memory"]) > 1:
        growth = result["memory"][-1]["peak_mib"] / result["memory"][0]["peak_mib"]
        result["growth"] = {"ratio": growth, "aim": AIM_MEMORY, "met": growth <= AIM_MEMORY}
        print(f"growth {growth:.3f}")
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
