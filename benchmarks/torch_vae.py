"""The video VAE of `pv_vae_jax.models.vae` in PyTorch, written as its users write such networks.

It exists to be timed and compared: one `VAEConfig` drives both networks, the modules carry the names of the Flax
parameters, and `load_flax` copies those over. Tensors are `(b, c, t, h, w)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pv_vae_jax.models.discriminator import DiscriminatorConfig
from pv_vae_jax.models.vae import VAEConfig


class CausalConv3d(nn.Conv3d):
    """Stride-1 convolution, padded on the left only in time."""

    def __init__(self, into: int, out: int, kernel: tuple[int, int, int] = (3, 3, 3)):
        super().__init__(into, out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))
        self.left = kernel[0] - 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 0, 0, 0, self.left, 0)) if self.left else x)


class RMSNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.scale = channels**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.scale * self.gamma.view(-1, 1, 1, 1)


class ResidualBlock(nn.Module):
    def __init__(self, into: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = RMSNorm(into), CausalConv3d(into, out)
        self.norm2, self.conv2 = RMSNorm(out), CausalConv3d(out, out)
        self.shortcut = CausalConv3d(into, out, (1, 1, 1)) if into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class FrameAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels)
        self.to_qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = self.norm(x).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)
        y = self.proj(F.scaled_dot_product_attention(*self.to_qkv(y).chunk(3, dim=-1)))
        return x + y.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class TimeDown(nn.Conv3d):
    """Frame 0 passes; a 3-tap convolution of stride 2 over the clip makes the others."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :1], super().forward(x)], dim=2) if x.shape[2] > 1 else x


class TimeUp(CausalConv3d):
    """Frame 0 passes; every later frame becomes two."""

    def __init__(self, channels: int):
        super().__init__(channels, 2 * channels, (3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        if t == 1:
            return x
        later = super().forward(x[:, :, 1:]).view(b, 2, c, t - 1, h, w)
        later = torch.stack((later[:, 0], later[:, 1]), dim=3).reshape(b, c, 2 * (t - 1), h, w)
        return torch.cat([x[:, :, :1], later], dim=2)


def per_frame(op: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D module to every frame."""
    b, _, t = x.shape[:3]
    y = op(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (b, t)).transpose(1, 2)


class Downsample(nn.Module):
    def __init__(self, channels: int, time: int, space: int):
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if space == 2 else None
        self.time_conv = TimeDown(channels) if time == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = per_frame(nn.Sequential(self.pad, self.conv), x)
        return self.time_conv(x)


class Upsample(nn.Module):
    def __init__(self, channels: int, time: int, space: int):
        super().__init__()
        self.time_conv = TimeUp(channels) if time == 2 else nn.Identity()
        self.repeat = nn.Upsample(scale_factor=2, mode="nearest-exact")
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if space == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.time_conv(x)
        return per_frame(nn.Sequential(self.repeat, self.conv), x) if self.conv is not None else x


def average_down(x: Tensor, features: int, time: int, space: int, pad: str) -> Tensor:
    missing = -x.shape[2] % time
    if missing:
        first = x[:, :, :1] if pad == "first" else torch.zeros_like(x[:, :, :1])
        x = torch.cat([first] * missing + [x], dim=2)
    b, c, t, h, w = x.shape
    x = x.view(b, c, t // time, time, h // space, space, w // space, space).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, features, -1, t // time, h // space, w // space).mean(dim=2)


def duplicate_up(x: Tensor, features: int, time: int, space: int, over_time: str) -> Tensor:
    b, c, t, h, w = x.shape
    dealt = time if over_time == "interleave" else 1
    x = x.repeat_interleave(features * dealt * space**2 // c, dim=1)
    x = x.view(b, features, dealt, space, space, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, features, t * dealt, h * space, w * space)
    return x.repeat_interleave(time // dealt, dim=2)[:, :, time - 1 :]


class Level(nn.Module):
    def __init__(
        self, config: VAEConfig, into: int, out: int, blocks: int, time: int, space: int, up: bool, last: bool
    ):
        super().__init__()
        self.names = [f"block{i}" for i in range(blocks)]
        for i, name in enumerate(self.names):
            self.add_module(name, ResidualBlock(out if i else into, out))
        if not last:
            self.add_module("up" if up else "down", (Upsample if up else Downsample)(out, time, space))
            self.names.append("up" if up else "down")
        self.args, self.is_up = (out, time, space), up
        self.pad, self.over_time = config.shortcut_pad, config.shortcut_time
        self.has_shortcut = config.shortcuts and not (up and last)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.names:
            y = getattr(self, name)(y)
        if not self.has_shortcut:
            return y
        if self.is_up:
            return y + duplicate_up(x, *self.args, self.over_time)
        return y + average_down(x, *self.args, self.pad)


class Middle(nn.Module):
    def __init__(self, channels: int, attention: bool):
        super().__init__()
        self.block0, self.block1 = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
        self.attention = FrameAttention(channels) if attention else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.block1(self.attention(self.block0(x)))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        c, self.patch = config, config.patch
        factors = list(zip(c.time_factors, c.space_factors, strict=True)) + [(1, 1)]
        self.stem = CausalConv3d(3 * c.patch**2, c.encoder_widths[0])
        self.levels, into = len(factors), c.encoder_widths[0]
        for i, ((time, space), out) in enumerate(zip(factors, c.encoder_widths, strict=True)):
            level = Level(c, into, out, c.encoder_blocks, time, space, up=False, last=i == self.levels - 1)
            self.add_module(f"level{i}", level)
            into = out
        self.middle = Middle(into, c.mid_attention)
        self.norm, self.head = RMSNorm(into), CausalConv3d(into, 2 * c.latent_channels)
        self.moments = CausalConv3d(2 * c.latent_channels, 2 * c.latent_channels, (1, 1, 1))

    def forward(self, video: Tensor) -> Tensor:
        b, c, t, h, w = video.shape
        p = self.patch
        x = video.view(b, c, t, h // p, p, w // p, p).permute(0, 1, 6, 4, 2, 3, 5)
        x = self.stem(x.reshape(b, c * p * p, t, h // p, w // p))
        for i in range(self.levels):
            x = getattr(self, f"level{i}")(x)
        return self.moments(self.head(F.silu(self.norm(self.middle(x)))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        c, self.patch = config, config.patch
        factors = list(zip(c.time_factors, c.space_factors, strict=True))[::-1] + [(1, 1)]
        into = c.decoder_widths[-1]
        self.latents = CausalConv3d(c.latent_channels, c.latent_channels, (1, 1, 1))
        self.stem, self.middle = CausalConv3d(c.latent_channels, into), Middle(into, c.mid_attention)
        self.levels = len(factors)
        for i, ((time, space), out) in enumerate(zip(factors, c.decoder_widths[::-1], strict=True)):
            level = Level(c, into, out, c.decoder_blocks, time, space, up=True, last=i == self.levels - 1)
            self.add_module(f"level_{i}", level)
            into = out
        self.norm, self.head = RMSNorm(into), CausalConv3d(into, 3 * c.patch**2)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.stem(self.latents(latents)))
        for i in range(self.levels):
            x = getattr(self, f"level_{i}")(x)
        x = self.head(F.silu(self.norm(x)))
        b, c, t, h, w = x.shape
        p = self.patch
        x = x.view(b, 3, p, p, t, h, w).permute(0, 1, 4, 5, 3, 6, 2)
        return x.reshape(b, 3, t, h * p, w * p)


class PadToken(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(channels))


class TorchVAE(nn.Module):
    """Encoder, decoder and learned pad token; `forward` is one predictive pass in the filled form."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        if config.pad != "learnable" or config.upsample_halves_channels:
            raise ValueError("the comparison network has the learnable pad and whole widths only")
        self.encoder, self.decoder, self.pad = Encoder(config), Decoder(config), PadToken(config.latent_channels)

    def forward(self, video: Tensor, dropped: Tensor, sample: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clip `(b, 3, 1 + T, H, W)`, `dropped (b,)` -> output clip, mean, log variance, observed `(b, g)`."""
        mean, logvar = self.encoder(video).chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if sample else mean
        groups = mean.shape[2]
        observed = torch.arange(groups, device=mean.device)[None] < (groups - dropped)[:, None]
        latents = torch.where(observed[:, None, :, None, None], latents, self.pad.token.view(1, -1, 1, 1, 1))
        return self.decoder(latents), mean, logvar, observed


def load_flax(model: nn.Module, params: dict) -> None:
    """Copy the parameters of the Flax module; raise ValueError unless they fill `model` exactly."""
    left = dict(model.named_parameters())

    def visit(prefix: str, tree: dict) -> None:
        for key, value in tree.items():
            name = f"{prefix}.{key}" if prefix else key
            if isinstance(value, dict):
                visit(name, value)
                continue
            array = torch.tensor(value.__array__())
            if key == "kernel":  # (*window, ci, co) -> (co, ci, *window)
                array, name = array.movedim((-1, -2), (0, 1)), name.removesuffix("kernel") + "weight"
            if name not in left or left[name].shape != array.shape:
                raise ValueError(f"no place for {name} of shape {tuple(array.shape)}")
            with torch.no_grad():
                left.pop(name).copy_(array)

    visit("", params)
    if left:
        raise ValueError(f"parameters without a source: {sorted(left)}")


class TorchDiscriminator(nn.Module):
    """`pv_vae_jax.models.discriminator`: clip `(b, 3, t, h, w)` -> a list of logits."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.kinds, self.levels = config.kinds, config.levels
        for kind in config.kinds:
            patch, into = nn.Module(), 3
            for i in range(config.levels):
                out = config.width * min(2**i, 8)
                conv = CausalConv3d(into, out) if kind == "3d" else nn.Conv2d(into, out, 4, stride=2, padding=1)
                patch.add_module(f"conv{i}", conv)
                if i:
                    patch.add_module(f"norm{i}", RMSNorm(out))
                into = out
            patch.logits = CausalConv3d(into, 1) if kind == "3d" else nn.Conv2d(into, 1, 3, padding=1)
            self.add_module(f"patch_{kind}", patch)

    def forward(self, video: Tensor) -> list[Tensor]:
        return [self._patch(getattr(self, f"patch_{kind}"), kind, video) for kind in self.kinds]

    def _patch(self, patch: nn.Module, kind: str, x: Tensor) -> Tensor:
        for i in range(self.levels):
            conv = getattr(patch, f"conv{i}")
            x = halve(conv(x), time=i < 2) if kind == "3d" else per_frame(conv, x)
            x = F.leaky_relu(getattr(patch, f"norm{i}")(x) if i else x, 0.2)
        return patch.logits(x) if kind == "3d" else per_frame(patch.logits, x)


def halve(x: Tensor, time: bool) -> Tensor:
    """Average 2x2 pixels and, if `time`, keep frame 0 and average later pairs."""
    x = F.avg_pool3d(x, (1, 2, 2))
    if not time or x.shape[2] == 1:
        return x
    return torch.cat([x[:, :, :1], F.avg_pool3d(x[:, :, 1:], (2, 1, 1))], dim=2)


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Weights of all convolutions in the memory layout of the clips."""
    if layout == torch.channels_last_3d:
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d):
                part.to(memory_format=layout if isinstance(part, nn.Conv3d) else torch.channels_last)


class TorchStep:
    """One whole training step: predictive pass, equation 1, backward, clipping, AdamW, EMA; with a discriminator both
    sides from one forward pass of the VAE, and the adaptive weight.

    Args:
      params: of the Flax VAE.
      config: of the VAE.
      layout: of clips and weights in memory.
      device: where it runs.
      rate, kl, ema: learning rate, weight of the KL term, decay of the moving average.
      frozen: parts of the VAE that do not move.
      gan: weight of the generator's term; needs `discriminator`, its configuration and Flax parameters.
      bfloat16: compute in it where autocast does.
    """

    def __init__(
        self,
        params: dict,
        config: VAEConfig,
        layout: torch.memory_format,
        device: torch.device,
        rate: float,
        kl: float,
        ema: float,
        frozen: tuple[str, ...] = (),
        gan: float = 0.0,
        discriminator: tuple[DiscriminatorConfig, dict] | None = None,
        bfloat16: bool = False,
    ):
        self.model = TorchVAE(config)
        load_flax(self.model, params)
        self.model.to(device)
        lay_out(self.model, layout)
        self.layout, self.device, self.kl_weight, self.ema_decay, self.gan = layout, device, kl, ema, gan
        for part in frozen:
            getattr(self.model, part).requires_grad_(False)
        # `fused` is the fastest AdamW PyTorch has.
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        adamw = dict(lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.optimizer = torch.optim.AdamW(self.trained, **adamw)
        self.ema = [p.detach().clone() for p in self.trained]
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
        self.discriminator = None
        if discriminator is not None:
            self.discriminator = TorchDiscriminator(discriminator[0])
            load_flax(self.discriminator, discriminator[1])
            self.discriminator.to(device)
            lay_out(self.discriminator, layout)
            self.discriminator_optimizer = torch.optim.AdamW(self.discriminator.parameters(), **adamw)

    def to_float(self, video: Tensor) -> Tensor:
        """uint8 `(b, t, h, w, 3)` -> float `(b, 3, t, h, w)` in [-1, 1], in the layout of the model."""
        return (video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0).contiguous(memory_format=self.layout)

    def __call__(self, video: Tensor, dropped: Tensor) -> float:
        """Update once; returns the loss."""
        x = self.to_float(video)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            y, mean, logvar, observed = self.model(x, dropped, sample=True)
            y, mean, logvar = y.float(), mean.float(), logvar.float()
            pixels = F.mse_loss(y, x)
            if x.shape[2] > 1:
                pixels = pixels + F.mse_loss(y.diff(dim=2), x.diff(dim=2))
            kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean(dim=(1, 3, 4))
            loss = pixels + self.kl_weight * (kl * observed).sum() / observed.sum()
            if self.discriminator is not None:
                self.discriminator.requires_grad_(False)
                fooled = -sum(logits.float().mean() for logits in self.discriminator(y)) / len(self.discriminator.kinds)
                loss = loss + self.gan * self.adaptive_gan_weight(pixels, fooled) * fooled
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1.0 - self.ema_decay)
        if self.discriminator is not None:
            self.train_discriminator(x, y.detach())
        return loss.item()

    def adaptive_gan_weight(self, pixels: Tensor, fooled: Tensor) -> Tensor:
        """Ratio of the gradients' norms at the decoder's last kernel."""
        last = self.model.decoder.head.weight
        norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (pixels, fooled)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, 1e4).detach()

    def train_discriminator(self, real: Tensor, fake: Tensor) -> None:
        """Hinge loss, backward, clipping, AdamW."""
        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            pairs = zip(self.discriminator(real), self.discriminator(fake), strict=True)
            loss = sum(0.5 * (F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean()) for r, f in pairs)
        (loss / len(self.discriminator.kinds)).backward()
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), 1.0)
        self.discriminator_optimizer.step()
