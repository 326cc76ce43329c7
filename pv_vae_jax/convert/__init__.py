"""Published weights in and out: files of tensors, and the tables of names between their layouts and ours."""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.convert.files import read_tensors, write_tensors
    from pv_vae_jax.convert.lpips import read_lpips
    from pv_vae_jax.convert.wan import detect_layout, from_wan, published_shapes, to_wan

__all__ = [
    "detect_layout", "from_wan", "published_shapes", "read_lpips", "read_tensors", "to_wan", "write_tensors",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
