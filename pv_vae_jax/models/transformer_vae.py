"""Transformer PV-VAE (paper table 7): patches, block-causal attention, pixel shuffle. Used like the CNN `VAE`.

    model = TransformerVAE(TransformerVAEConfig())   # t4s16c64, 12 + 12 layers, 1.2 B parameters

A latent position is one token: a patch of `p_t x p_s x p_s` pixels, of `1 x p_s x p_s` for frame 0, which has its own
embedding. A token of latent frame `i` attends to all tokens of frames `i - window .. i`, in the encoder and in the
decoder, so nothing mixes time backwards: truncated and filled dropping agree, and an image is the case T = 0.

The paper gives the patch sizes, layers, heads and the pixel-shuffle output. Ours: rotary positions in time and space
(`layers.embeddings`; they extend to any size and length), pre-norm layers with RMS norm and GELU, residual branches
that start at zero, and the window. The default window covers the five latent frames of the paper's clips, so it hides
nothing in training, and longer clips contain no distance in time that training has not seen.

Image training initialises video training, as with the CNN: the matrices of later patches are those of frame 0 plus a
part that starts at zero. A fresh network is a per-frame model exactly; a trained one nearly, because distances in time
turn the attention a little.

Streaming works as with the CNN (`pv_vae_jax.streaming`, `layers.cache`) and gives the same numbers as one pass over the
clip. The differences: a layer caches the keys and values of `window` latent frames instead of one or two frames of its
input, so the cache is larger (`2 layers window h w width` values an example); and neither a network without a window
(0) nor splash attention, which needs its mask when compiling, can stream.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from pv_vae_jax.layers.attention import IMPLEMENTATIONS, Implementation, MaskFunction, dot_product_attention
from pv_vae_jax.layers.blocks import RMSNorm
from pv_vae_jax.layers.cache import CACHE, continues
from pv_vae_jax.layers.embeddings import rotary_angles, rotate
from pv_vae_jax.layers.initializers import lecun_normal
from pv_vae_jax.layers.remat import REMATS, Remat, remat
from pv_vae_jax.models.vae import VAE, PadToken, low_variance_bias_init
from pv_vae_jax.models.vae_config import Compression
from pv_vae_jax.sharding.axes import HEAD_AXES, HIDDEN_AXES, TOKEN_AXES, constrain
from pv_vae_jax.typing import DTYPES, Array, check_choices, check_sizes


@dataclasses.dataclass(frozen=True)
class TransformerVAEConfig(Compression):
    """Architecture of a `TransformerVAE`; the defaults are the paper's (table 7), and ours where it gives none.

    Attributes:
      kind: tells this kind of VAE from others in JSON.
      time_factor: frames of a patch, `p_t`.
      space_factor: side of a patch in pixels, `p_s`.
      latent_channels: channels of the latents, `z`.
      width, heads: channels and attention heads of every layer; the hidden layer is four times as wide.
      encoder_layers, decoder_layers: number of layers.
      window: latent frames a token looks back; 0 is all of them, which rules out streaming.
      pad: fills the dropped latent frames with one `learnable` vector (the paper's recipe) or with `gaussian` draws
        (its ablation).
      attention: implementation of attention, see `layers.attention`.
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
        check_choices(self, kind=("transformer",), pad=("learnable", "gaussian"), dtype=DTYPES)
        check_choices(self, attention=IMPLEMENTATIONS, remat=REMATS)
        if self.window < 0:
            raise ValueError(f"window must be a number of latent frames, or 0 for all, got {self.window}")
        if self.width % (2 * self.heads) or self.width // self.heads < 6:
            raise ValueError(
                f"heads must divide width into even parts of at least 6 channels, got heads={self.heads} and "
                f"width={self.width}"
            )


def frame_causal(tokens: int, window: int, past: int = 0, start: Array | int = 0) -> MaskFunction:
    """Mask: a query sees the keys of its own latent frame and of the `window` before it, of all before it if 0.

    Args:
      tokens: tokens of a latent frame.
      window: latent frames a query looks back.
      past: latent frames of keys that come before those of the queries (a cache).
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
      config: the config of the network.
      streaming: keeps keys and values for the next chunk.
    """

    config: TransformerVAEConfig
    streaming: bool

    @nn.compact
    def __call__(self, x: Array, angles: Array, start: Array):
        """Tokens `x (b, g, n, d)`, their `angles`, the latent frames before them -> tokens, and None for the scan."""
        c = self.config
        b, g, n, d = x.shape
        into: dict[str, Any] = dict(dtype=c.dtype, kernel_init=lecun_normal)
        back: dict[str, Any] = dict(dtype=c.dtype, kernel_init=nn.initializers.zeros)

        qkv = nn.Dense(3 * c.width, name="qkv", **into)(RMSNorm(name="norm1")(x))  # (b, g, n, 3 d)
        qkv = rearrange(qkv, "b g n (three heads e) -> three b g n heads e", three=3, heads=c.heads)
        # Tokens meet here, so devices split heads instead.
        q, k, v = (rearrange(constrain(a, HEAD_AXES), "b g n heads e -> b (g n) heads e") for a in qkv)
        q, k = rotate(q, angles), rotate(k, angles)
        k, v = self._with_cache(k, n, name="keys"), self._with_cache(v, n, name="values")  # (b, (past + g) n, heads, e)
        past = k.shape[1] // n - g
        # One latent frame alone (an image) sees all of itself: a kernel is faster without a mask.
        mask = frame_causal(n, c.window, past, start) if g + past > 1 else None
        y = dot_product_attention(q, k, v, mask=mask, implementation=c.attention).reshape(b, g, n, d)
        x = constrain(x + nn.Dense(c.width, name="proj", **back)(y), TOKEN_AXES)

        y = nn.gelu(nn.Dense(4 * c.width, name="mlp1", **into)(RMSNorm(name="norm2")(x)))
        y = constrain(y, HIDDEN_AXES)  # (b, g, n, 4 d)
        return constrain(x + nn.Dense(c.width, name="mlp2", **back)(y), TOKEN_AXES), None

    def _with_cache(self, x: Array, tokens: int, name: str) -> Array:
        """Put the cached `window` latent frames of earlier chunks before `x (b, m, heads, e)`, and cache the newest.

        The first chunk of a clip has no cache before it; a cache that is not full starts with zeros.
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
                "window must be at least 1 to stream, got 0: such a VAE looks back without end, so give the clip as "
                "one chunk"
            )
        streaming = self.is_mutable_collection(CACHE) and not self.is_initializing()
        if streaming:
            self.put_variable(CACHE, "seen", start + g)
        scan = nn.scan(
            remat(Layer, c.remat),
            variable_axes={"params": 0, CACHE: 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.layers,
        )
        layers = scan(config=c, streaming=streaming, name="layers")
        angles = rotary_angles(start + jnp.arange(g), h, w, d // c.heads)  # (g h w, e / 2)
        x, _ = layers(constrain(x.reshape(b, g, h * w, d), TOKEN_AXES), angles, start)  # (b, g, n, d)
        return RMSNorm(name="norm")(x).reshape(b, g, h, w, d)


class Affine(nn.Module):
    """The parameters of a dense layer: its matrix `(inputs, outputs)` and bias `(outputs,)`."""

    inputs: int
    outputs: int
    kernel_init: nn.initializers.Initializer = lecun_normal

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", self.kernel_init, (self.inputs, self.outputs), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, (self.outputs,), jnp.float32)


class PatchEmbedding(nn.Module):
    """Pixels `(b, 1 + T, H, W, 3)` -> tokens `(b, g, h, w, d)`; a chunk has frame 0 only if it `begins` a clip.

    The matrix of later patches is that of frame 0, averaged over the frames, plus a part that starts at zero.
    """

    config: TransformerVAEConfig

    @nn.compact
    def __call__(self, video: Array, begins: bool) -> Array:
        c = self.config
        p, f, parts = c.space_factor, c.time_factor, []
        first, first_bias = Affine(inputs=3 * p * p, outputs=c.width, name="first")()
        zeros = nn.initializers.zeros
        later, later_bias = Affine(inputs=3 * p * p * f, outputs=c.width, kernel_init=zeros, name="later")()
        later, later_bias = later + jnp.tile(first / f, (f, 1)), later_bias + first_bias
        first, first_bias, later, later_bias = (a.astype(c.dtype) for a in (first, first_bias, later, later_bias))
        video = video.astype(c.dtype)
        if begins:
            patches = rearrange(video[:, :1], "b g (h p) (w q) c -> b g h w (p q c)", p=p, q=p)
            parts.append(patches @ first + first_bias[None, None, None, None])
        if video.shape[1] > begins:
            patches = video[:, int(begins) :]
            patches = rearrange(patches, "b (g f) (h p) (w q) c -> b g h w (f p q c)", f=f, p=p, q=p)
            parts.append(patches @ later + later_bias[None, None, None, None])
        return jnp.concatenate(parts, axis=1)  # (b, g, h, w, d)


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
        frame = 3 * p * p  # columns of one frame
        kernel = self.param("kernel", _first_columns(frame), (c.width, (1 + f) * frame))
        bias = self.param("bias", nn.initializers.zeros, ((1 + f) * frame,), jnp.float32)[None, None, None, None]
        if begins:
            y = x[:, :1] @ kernel[:, :frame].astype(c.dtype) + bias[..., :frame].astype(c.dtype)
            parts.append(rearrange(y, "b g h w (p q c) -> b g (h p) (w q) c", p=p, q=p))
        if x.shape[1] > begins:
            later = kernel[:, frame:] + jnp.tile(kernel[:, :frame], (1, f))
            later_bias = (bias[..., frame:] + jnp.tile(bias[..., :frame], f)).astype(c.dtype)
            y = x[:, int(begins) :] @ later.astype(c.dtype) + later_bias
            parts.append(rearrange(y, "b g h w (f p q c) -> b (g f) (h p) (w q) c", f=f, p=p, q=p))
        return jnp.concatenate(parts, axis=1)  # (b, 1 + T, H, W, 3)


def _first_columns(count: int) -> nn.initializers.Initializer:
    """Draw the first `count` columns; the others are zero."""

    def init(key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[:, :count].set(lecun_normal(key, (shape[0], count), dtype))

    return init


class Encoder(nn.Module):
    """Clip `(b, 1 + T, H, W, 3)` -> moments `(b, g, h, w, 2 z)`."""

    config: TransformerVAEConfig

    @nn.compact
    def __call__(self, video: Array) -> Array:
        c = self.config
        x = PatchEmbedding(c, name="embed")(video, begins=not continues(self))  # (b, g, h, w, d)
        x = Trunk(config=c, layers=c.encoder_layers, name="trunk")(x).astype(jnp.float32)
        to_moments = nn.Dense(
            2 * c.latent_channels, bias_init=low_variance_bias_init, kernel_init=lecun_normal, name="moments"
        )
        return to_moments(x)  # (b, g, h, w, 2 z)


class Decoder(nn.Module):
    """Latents `(b, g, h, w, z)` -> features `(b, g, h, w, d)`, then pixels through `head`."""

    config: TransformerVAEConfig

    def setup(self):
        c = self.config
        self.embed = nn.Dense(c.width, dtype=c.dtype, kernel_init=lecun_normal)
        self.trunk = Trunk(config=c, layers=c.decoder_layers)
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
    """A `VAE` with the same methods and top-level parameters, whose encoder and decoder are transformers.

    The features between `decode_features` and `to_pixels` are tokens `(b, g, h, w, d)`.
    """

    config: TransformerVAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        if self.config.pad == "learnable":
            self.pad = PadToken(self.config.latent_channels)
