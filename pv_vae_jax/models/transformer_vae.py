"""Transformer PV-VAE (paper table 7): patches, block-causal attention, pixel shuffle; otherwise a `VAE` like the CNN.

    model = TransformerVAE(TransformerVAEConfig())   # t4s16c64, 12 + 12 layers, 1.2 B parameters

A latent position is one token: a patch of `p_t x p_s x p_s` pixels, of `1 x p_s x p_s` for frame 0, which has its own
embedding. A token of latent frame `i` attends to all tokens of frames `i - window .. i`, in the encoder and in the
decoder, so nothing mixes time backwards: truncated and filled dropping agree, and an image is the case T = 0.

Published: the patch sizes, layers, heads, the pixel-shuffle output. Ours, for want of more: rotary positions in time
and space (`layers.rotary`; they hold for any size and length), pre-norm layers with RMS norm and GELU, residual
branches that start at zero, and the window. The default window covers the five latent frames of the paper's clips, so
it hides nothing in training, and longer clips then hold no distance in time that training has not seen.

Images hand over a video model, as with the CNN: the matrices of later patches are those of frame 0 plus a part that
starts at zero. A fresh network is a per-frame model exactly; a trained one nearly, because distances in time turn the
attention a little.

Streaming works as with the CNN (`pv_vae_jax.streaming`, `layers.cache`) and gives the numbers of the whole pass. What
differs: a layer remembers the keys and values of `window` latent frames instead of one or two frames of its input, so
the cache is larger (`2 layers window h w width` values an example), a network without a window (0) cannot stream, and
neither can splash attention, whose mask must be known when compiling.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from pv_vae_jax.layers.attention import IMPLEMENTATIONS, Implementation, MaskFunction, dot_product_attention
from pv_vae_jax.layers.cache import CACHE, continues
from pv_vae_jax.layers.initializers import lecun_normal
from pv_vae_jax.layers.norm import RMSNorm
from pv_vae_jax.layers.remat import REMATS, Remat, remat
from pv_vae_jax.layers.rotary import rotary_angles, rotate
from pv_vae_jax.models.vae import VAE, Compression, PadToken, _low_variance_bias_init
from pv_vae_jax.sharding.axes import TOKEN_AXES, constrain
from pv_vae_jax.typing import Array, check_dtype, check_sizes

HIDDEN_AXES = ("batch", "time", "tokens", "hidden")
HEAD_AXES = ("batch", "time", "whole", "heads", "channels")


@dataclasses.dataclass(frozen=True)
class TransformerVAEConfig(Compression):
    """Architecture of a `TransformerVAE`; the defaults are the paper's (table 7), its silences filled by us.

    Attributes:
      kind: says in JSON which kind of VAE this is.
      time_factor: frames of a patch, `p_t`.
      space_factor: side of a patch in pixels, `p_s`.
      latent_channels: `z`.
      width, heads: of every layer; the hidden layer is four times as wide.
      encoder_layers, decoder_layers: their numbers.
      window: latent frames a token looks back; 0 is all of them, which rules out streaming.
      pad: the dropped latent frames: one `learnable` vector (the paper's recipe) or `gaussian` draws (its ablation).
      attention: who computes it, see `layers.attention`.
      remat: what the backward pass keeps of a layer, see `layers.remat`.
      dtype: compute type; parameters, posterior and pixels are float32.
    """

    kind: Literal["transformer"] = "transformer"
    time_factor: int = 4
    space_factor: int = 16
    latent_channels: int = 64
    width: int = 2048
    heads: int = 16
    encoder_layers: int = 12
    decoder_layers: int = 12
    window: int = 4
    pad: Literal["learnable", "gaussian"] = "learnable"
    attention: Implementation = "auto"
    remat: Remat = "none"
    dtype: str = "float32"

    def __post_init__(self):
        check_sizes(self, "time_factor", "space_factor", "latent_channels", "heads", "encoder_layers", "decoder_layers")
        check_dtype(self.dtype)
        if self.window < 0:
            raise ValueError(f"window counts latent frames, 0 for all; got {self.window}")
        if self.width % (2 * self.heads) or self.width // self.heads < 6:
            raise ValueError(f"heads need an even width of 6 or more each; width is {self.width}, heads {self.heads}")
        known = {
            "kind": ("transformer",),
            "pad": ("learnable", "gaussian"),
            "attention": IMPLEMENTATIONS,
            "remat": REMATS,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {' or '.join(map(repr, values))}, got {getattr(self, name)!r}")


def frame_causal(tokens: int, window: int, past: int = 0, start: Array | int = 0) -> MaskFunction:
    """Mask: a query sees the keys of its own latent frame and of the `window` before it, of all before it if 0.

    Args:
      tokens: of a latent frame.
      window: latent frames a query looks back.
      past: latent frames of keys that precede those of the queries (a cache).
      start: latent frames of the clip before the queries; of `past`, only the last `start` are filled.
    """

    def mask(query: Array, key: Array) -> Array:
        query, key = query // tokens, key // tokens - past  # latent frame, counted from the first of the queries
        seen = key <= query
        if window:
            seen = seen & (query - key <= window)
        if past:
            seen = seen & (key >= -start)
        return seen

    return mask


class Layer(nn.Module):
    """Attention, then the hidden layer, each pre-norm and residual.

    Attributes:
      config: of the network.
      streaming: keep keys and values for the next chunk.
    """

    config: TransformerVAEConfig
    streaming: bool

    @nn.compact
    def __call__(self, x: Array, angles: Array, start: Array):
        """Tokens `x (b, g, n, d)`, their `angles`, the latent frames before them -> tokens, and None for the scan."""
        c = self.config
        g, n = x.shape[1:3]
        into: dict[str, Any] = dict(dtype=c.dtype, kernel_init=lecun_normal)
        back: dict[str, Any] = dict(dtype=c.dtype, kernel_init=nn.initializers.zeros)

        qkv = nn.Dense(3 * c.width, name="qkv", **into)(RMSNorm(name="norm1")(x))
        qkv = rearrange(qkv, "b g n (three heads e) -> three b g n heads e", three=3, heads=c.heads)
        # Tokens meet here, so devices split heads instead.
        q, k, v = (rearrange(constrain(a, HEAD_AXES), "b g n heads e -> b (g n) heads e") for a in qkv)
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = self._remember(k, n), self._remember(v, n, name="values")
        past = k.shape[1] // n - g
        # One latent frame alone (an image) sees all of itself: a kernel is faster without a mask.
        mask = frame_causal(n, c.window, past, start) if g + past > 1 else None
        y = dot_product_attention(q, k, v, mask=mask, implementation=c.attention).reshape(x.shape)
        x = constrain(x + nn.Dense(c.width, name="proj", **back)(y), TOKEN_AXES)

        y = nn.gelu(nn.Dense(4 * c.width, name="mlp1", **into)(RMSNorm(name="norm2")(x)))
        y = constrain(y, HIDDEN_AXES)
        return constrain(x + nn.Dense(c.width, name="mlp2", **back)(y), TOKEN_AXES), None

    def _remember(self, x: Array, tokens: int, name: str = "keys") -> Array:
        """`x (b, m, heads, e)` behind what earlier chunks left: `window` latent frames, zeros where there were none.

        The first chunk of a clip has nothing before it.
        """
        before = self.get_variable(CACHE, name)
        size = self.config.window * tokens
        joined = x if before is None else jnp.concatenate([before, x], axis=1)
        if self.streaming:
            missing = max(size - joined.shape[1], 0)
            filled = jnp.pad(joined, ((0, 0), (missing, 0), (0, 0), (0, 0)))
            self.put_variable(CACHE, name, filled[:, filled.shape[1] - size :])
        return joined


class Trunk(nn.Module):
    """`layers` layers over a grid of tokens `(b, g, h, w, d)`, under `nn.scan`, and a norm."""

    config: TransformerVAEConfig
    layers: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        b, g, h, w, d = x.shape
        start = self.get_variable(CACHE, "seen", jnp.int32(0))  # latent frames of earlier chunks
        if not c.window and continues(self):
            raise ValueError(
                "a VAE whose window is 0 looks back without end and cannot stream: take the whole clip as one chunk"
            )
        streaming = self.is_mutable_collection(CACHE) and not self.is_initializing()
        if streaming:
            self.put_variable(CACHE, "seen", start + g)
        layers = nn.scan(
            remat(Layer, c.remat),
            variable_axes={"params": 0, CACHE: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.layers,
        )(c, streaming, name="layers")
        angles = rotary_angles(start + jnp.arange(g), h, w, d // c.heads)
        x, _ = layers(constrain(x.reshape(b, g, h * w, d), TOKEN_AXES), angles, start)
        return RMSNorm(name="norm")(x).reshape(b, g, h, w, d)


class Affine(nn.Module):
    """A matrix and a bias, for others to multiply by."""

    inputs: int
    outputs: int
    kernel_init: nn.initializers.Initializer = lecun_normal

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs))
        return kernel, self.param("bias", nn.initializers.zeros, (self.outputs,))


class PatchEmbedding(nn.Module):
    """Pixels `(b, 1 + T, H, W, 3)` -> tokens `(b, g, h, w, d)`; without frame 0 unless the chunk `begins` a clip.

    The matrix of later patches is that of frame 0, averaged over the frames, plus one of its own that starts at zero.
    """

    config: TransformerVAEConfig

    @nn.compact
    def __call__(self, video: Array, begins: bool) -> Array:
        c = self.config
        p, f, parts = c.space_factor, c.time_factor, []
        first, first_bias = Affine(3 * p * p, c.width, name="first")()
        later, later_bias = Affine(3 * p * p * f, c.width, nn.initializers.zeros, name="later")()
        later, later_bias = later + jnp.tile(first / f, (f, 1)), later_bias + first_bias
        first, first_bias, later, later_bias = (a.astype(c.dtype) for a in (first, first_bias, later, later_bias))
        video = video.astype(c.dtype)
        if begins:
            patches = rearrange(video[:, :1], "b g (h p) (w q) c -> b g h w (p q c)", p=p, q=p)
            parts.append(patches @ first + first_bias)
        if video.shape[1] > begins:
            patches = video[:, int(begins) :]
            patches = rearrange(patches, "b (g f) (h p) (w q) c -> b g h w (f p q c)", f=f, p=p, q=p)
            parts.append(patches @ later + later_bias)
        return jnp.concatenate(parts, axis=1)


class PixelShuffle(nn.Module):
    """Tokens `(b, g, h, w, d)` -> pixels `(b, 1 + T, H, W, 3)`.

    `kernel` has columns for frame 0, then for a later patch; the latter are added to those of frame 0, repeated, and
    start at zero. One array, because the adaptive GAN weight is taken at the decoder's last kernel, images included.
    """

    config: TransformerVAEConfig

    @nn.compact
    def __call__(self, x: Array, begins: bool) -> Array:
        c = self.config
        p, f, parts = c.space_factor, c.time_factor, []
        one = 3 * p * p  # columns of a frame
        kernel = self.param("kernel", _first_columns(one), (c.width, (1 + f) * one))
        bias = self.param("bias", nn.initializers.zeros, ((1 + f) * one,))
        if begins:
            y = x[:, :1] @ kernel[:, :one].astype(c.dtype) + bias[:one].astype(c.dtype)
            parts.append(rearrange(y, "b g h w (p q c) -> b g (h p) (w q) c", p=p, q=p))
        if x.shape[1] > begins:
            later = kernel[:, one:] + jnp.tile(kernel[:, :one], (1, f))
            y = x[:, int(begins) :] @ later.astype(c.dtype) + (bias[one:] + jnp.tile(bias[:one], f)).astype(c.dtype)
            parts.append(rearrange(y, "b g h w (f p q c) -> b (g f) (h p) (w q) c", f=f, p=p, q=p))
        return jnp.concatenate(parts, axis=1)


def _first_columns(count: int) -> nn.initializers.Initializer:
    """Draw the first `count` columns; the others are zero."""

    def initialise(key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[:, :count].set(lecun_normal(key, (shape[0], count), dtype))

    return initialise


class Encoder(nn.Module):
    """Clip `(b, 1 + T, H, W, 3)` -> moments `(b, g, h, w, 2 z)`."""

    config: TransformerVAEConfig

    @nn.compact
    def __call__(self, video: Array) -> Array:
        c = self.config
        x = PatchEmbedding(c, name="embed")(video, begins=not continues(self))
        x = Trunk(c, c.encoder_layers, name="trunk")(x).astype(jnp.float32)
        return nn.Dense(
            2 * c.latent_channels, bias_init=_low_variance_bias_init, kernel_init=lecun_normal, name="moments"
        )(x)


class Decoder(nn.Module):
    """Latents `(b, g, h, w, z)` -> features `(b, g, h, w, d)`, then pixels through `head`."""

    config: TransformerVAEConfig

    def setup(self):
        c = self.config
        self.embed = nn.Dense(c.width, dtype=c.dtype, kernel_init=lecun_normal)
        self.trunk = Trunk(c, c.decoder_layers)
        self.head = PixelShuffle(c)

    def features(self, latents: Array) -> Array:
        """Everything up to the last matrix: `(b, g, h, w, z)` -> `(b, g, h, w, d)`."""
        return self.trunk(self.embed(latents))

    def to_pixels(self, features: Array, begins: bool = True) -> Array:
        """The last matrix and pixel shuffle: features -> `(b, 1 + T, H, W, 3)` float32."""
        return self.head(features, begins).astype(jnp.float32)

    def __call__(self, latents: Array) -> Array:
        begins = not continues(self)
        return self.to_pixels(self.features(latents), begins)


class TransformerVAE(VAE):
    """A `VAE`, methods and parameter tops included, whose encoder and decoder are transformers.

    Its features, between `decode_features` and `to_pixels`, are tokens `(b, g, h, w, d)`.
    """

    config: TransformerVAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.pad == "learnable":
            self.pad = PadToken(self.config.latent_channels)
