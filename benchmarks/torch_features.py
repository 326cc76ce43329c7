"""The feature networks of `evaluation/networks/{feature_net,i3d}.py` in PyTorch, of its users' usual modules.

`nn.Conv2d`, `nn.Conv3d`, `nn.BatchNorm3d`, `nn.MaxPool3d`; uint8 clips `(b, t, h, w, 3)` in, features `(b, d)` out.
`load` of each copies the Flax parameters over.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pv_vae_jax.evaluation.networks.feature_net import FLOOR, LAGS
from pv_vae_jax.evaluation.networks.i3d import CLASSES, MIXED


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
