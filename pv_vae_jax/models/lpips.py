"""LPIPS v0.1 (Zhang et al., arXiv 1801.03924): a perceptual distance of two pictures, from ImageNet features.

Features at five depths are normalised over channels; their squared differences are weighted by a learned head and
averaged over the picture. The literature evaluates with AlexNet and trains with VGG. The module runs with any weights;
only the published ones make it LPIPS.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pv_vae_jax.typing import Array

# A convolution (its number in torchvision's `features`, channels, kernel, stride, padding), "tap" after its ReLU, or a
# max pool (window, stride).
Layers = tuple[Any, ...]  # "tap", or numbers
ALEXNET: Layers = (
    *((0, 64, 11, 4, 2), "tap", (3, 2)),
    *((3, 192, 5, 1, 2), "tap", (3, 2)),
    *((6, 384, 3, 1, 1), "tap"),
    *((8, 256, 3, 1, 1), "tap"),
    *((10, 256, 3, 1, 1), "tap"),
)
VGG16: Layers = (
    *((0, 64, 3, 1, 1), (2, 64, 3, 1, 1), "tap", (2, 2)),
    *((5, 128, 3, 1, 1), (7, 128, 3, 1, 1), "tap", (2, 2)),
    *((10, 256, 3, 1, 1), (12, 256, 3, 1, 1), (14, 256, 3, 1, 1), "tap", (2, 2)),
    *((17, 512, 3, 1, 1), (19, 512, 3, 1, 1), (21, 512, 3, 1, 1), "tap", (2, 2)),
    *((24, 512, 3, 1, 1), (26, 512, 3, 1, 1), (28, 512, 3, 1, 1), "tap"),
)
BACKBONES = {"alexnet": ALEXNET, "vgg16": VGG16}

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
LEAST_SIDE = 32  # smaller pictures leave AlexNet's last layers without a pixel


class ImageBackbone(nn.Module):
    """Convolutions and ReLUs of an image classifier, `layers` of `BACKBONES`; returns the features at its taps."""

    layers: Layers

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        """Pictures `(n, h, w, 3)`, normalised for the network -> features `(n, h', w', c)` at every tap."""
        taps = []
        for layer in self.layers:
            if layer == "tap":
                taps.append(x)
            elif len(layer) == 2:
                x = nn.max_pool(x, (layer[0],) * 2, (layer[1],) * 2, "VALID")
            else:
                number, channels, kernel, stride, pad = layer
                conv = nn.Conv(channels, (kernel,) * 2, stride, pad, precision="highest", name=f"conv{number}")
                x = nn.relu(conv(x))
        return taps


class LPIPS(nn.Module):
    """The distance; with its parameters bound, a `losses.Perceptual`. `backbone` is `alexnet` or `vgg16`."""

    backbone: str = "alexnet"

    def setup(self):
        self.features = ImageBackbone(BACKBONES[self.backbone])
        widths = [before[1] for before, after in zip(self.layers, self.layers[1:], strict=False) if after == "tap"]
        self.heads = [self.param(f"head{i}", nn.initializers.ones, (w,), jnp.float32) for i, w in enumerate(widths)]

    @property
    def layers(self) -> Layers:
        return BACKBONES[self.backbone]

    def __call__(self, a: Array, b: Array) -> Array:
        """Distance `(n,)` of pictures `(n, h, w, 3)` in [-1, 1], not [0, 1]."""
        return self.by_layer(a, b).sum(axis=1)

    def by_layer(self, a: Array, b: Array) -> Array:
        """The part `(n, taps)` of the distance that each depth contributes."""
        n = len(a)
        shift, scale = (jnp.asarray(channels, a.dtype)[None, None, None] for channels in (SHIFT, SCALE))
        x = (jnp.concatenate([a, b]) - shift) / scale
        terms = []
        for tap, head in zip(self.features(x), self.heads, strict=True):
            # The constant goes under the root: the norm of dead features has no gradient, and must not give NaN.
            unit = tap / (jnp.sqrt(jnp.sum(tap * tap, axis=-1, keepdims=True) + 1e-20) + 1e-10)
            difference = jnp.square(unit[:n] - unit[n:]).mean(axis=(1, 2))
            terms.append(jnp.einsum("nc,c->n", difference, head, precision=jax.lax.Precision.HIGHEST))
        return jnp.stack(terms, axis=1)
