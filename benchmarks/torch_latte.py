"""The transformer of `pv_vae_jax.models.latte` in PyTorch, of its users' usual modules.

`nn.LayerNorm`, `nn.Linear`, `F.scaled_dot_product_attention`, `nn.GELU`; one `LatteConfig` drives both networks, and
`load_flax` copies the Flax parameters over. Latents are `(b, g, h, w, z)`, tokens `(b, g, n, d)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pv_vae_jax.layers.embeddings import sincos_1d, sincos_2d
from pv_vae_jax.models.latte import LatteConfig


class Block(nn.Module):
    """adaLN-zero block; attends over the tokens of a frame, or over the frames of a position."""

    def __init__(self, config: LatteConfig, spatial: bool):
        super().__init__()
        width = config.width
        self.heads, self.spatial = config.heads, spatial
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp1, self.gelu, self.mlp2 = nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.modulation(F.silu(condition))[:, None, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = self.norm1(x) * (1 + scale1) + shift1
        y = y if self.spatial else y.transpose(1, 2)
        b, s, n, d = y.shape
        q, k, v = self.qkv(y).view(b * s, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, n, d)
        y = self.proj(y)
        x = x + gate1 * (y if self.spatial else y.transpose(1, 2))
        return x + gate2 * self.mlp2(self.gelu(self.mlp1(self.norm2(x) * (1 + scale2) + shift2)))


class TimestepEmbedding(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(256, width), nn.Linear(width, width)
        self.register_buffer("frequency", 10_000.0 ** -(torch.arange(128) / 128), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequency
        return self.dense2(F.silu(self.dense1(torch.cat([angle.cos(), angle.sin()], dim=-1))))


class TorchLatte(nn.Module):
    """Noisy latents `(b, g, h, w, z)`, time `(b,)` in [0, 1], labels `(b,)` -> velocity; one token a position."""

    def __init__(self, config: LatteConfig, shape: tuple[int, int, int, int]):
        super().__init__()
        g, h, w, z = shape
        width = config.width
        if config.patch != 1 or not config.classes:
            raise ValueError("the comparison network has one token a position, and classes")
        self.embed, self.time = nn.Linear(z, width), TimestepEmbedding(width)
        self.label = nn.Embedding(config.classes + 1, width)
        self.blocks = nn.ModuleList([Block(config, spatial=i % 2 == 0) for i in range(config.depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation, self.output = nn.Linear(width, 2 * width), nn.Linear(width, z)
        self.register_buffer("space_table", torch.from_numpy(sincos_2d(width, h, w)), persistent=False)
        self.register_buffer("time_table", torch.from_numpy(sincos_1d(width, range(g)))[:, None], persistent=False)

    def forward(self, latents: Tensor, t: Tensor, label: Tensor) -> Tensor:
        b, g, h, w, z = latents.shape
        x = self.embed(latents.reshape(b, g, h * w, z)) + self.space_table
        condition = self.time(1000.0 * t) + self.label(label)
        for i, block in enumerate(self.blocks):
            x = block(x + self.time_table if i == 1 else x, condition)
        shift, scale = self.final_modulation(F.silu(condition))[:, None, None].chunk(2, dim=-1)
        return self.output(self.norm(x) * (1 + scale) + shift).view(b, g, h, w, z)


def load_flax(model: TorchLatte, params: dict) -> None:
    """Copy the parameters of the Flax transformer; raise ValueError unless they fill `model` exactly."""
    left = dict(model.named_parameters())

    def put(name: str, array: Tensor) -> None:
        if name not in left or left[name].shape != array.shape:
            raise ValueError(f"no place for {name} of shape {tuple(array.shape)}")
        with torch.no_grad():
            left.pop(name).copy_(array)

    def visit(path: tuple[str, ...], tree: dict) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                visit((*path, key), value)
                continue
            array = torch.tensor(value.__array__())
            leaf = {"kernel": "weight", "table": "weight"}.get(key, key)
            if key == "kernel":
                array = array.mT  # (..., in, out) -> (..., out, in)
            if path[0] != "pairs":
                put(".".join((*path, leaf)), array)
                continue
            for i, layer in enumerate(array):  # stacked by nn.scan: pairs of a spatial and a temporal block
                number = 2 * i + (path[1] == "temporal")
                put(".".join(("blocks", str(number), *path[2:], leaf)), layer)

    visit((), params)
    if left:
        raise ValueError(f"parameters without a source: {sorted(left)}")


class TorchLatteStep:
    """One training step on posteriors: sample, flow matching, label dropout, backward, clipping, AdamW, EMA."""

    def __init__(self, model: TorchLatte, device: torch.device, bfloat16: bool, rate: float, ema: float):
        self.model, self.device, self.ema_decay = model.to(device), device, ema
        self.trained = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.ema = [p.detach().clone() for p in self.trained]
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
        self.null = model.label.num_embeddings - 1

    def __call__(self, mean: Tensor, logvar: Tensor, label: Tensor) -> float:
        """Update once; returns the loss."""
        data = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        noise, t = torch.randn_like(data), torch.rand(len(data), device=self.device)
        at = t.view(-1, 1, 1, 1, 1)
        label = torch.where(torch.rand(len(data), device=self.device) < 0.1, self.null, label)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            velocity = self.model((1 - at) * data + at * noise, t, label)
        loss = F.mse_loss(velocity.float(), noise - data)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.trained], 1.0 - self.ema_decay)
        return loss.item()


@torch.inference_mode()
def sample(model: TorchLatte, noise: Tensor, label: Tensor, steps: int, guidance: float, autocast) -> Tensor:
    """Euler from noise to latents with classifier-free guidance, both halves in one batch."""
    x, null = noise, torch.full_like(label, model.label.num_embeddings - 1)
    times = torch.linspace(1.0, 0.0, steps + 1).tolist()
    for now, then in zip(times[:-1], times[1:], strict=True):
        t = torch.full((2 * len(x),), now, device=x.device)
        with autocast:
            conditional, free = model(torch.cat([x, x]), t, torch.cat([label, null])).float().chunk(2)
        x = x + (then - now) * (free + guidance * (conditional - free))
    return x
