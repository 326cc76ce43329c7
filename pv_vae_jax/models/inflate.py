"""From images to video: set what image training never touches, so that the video model starts as a per-frame one."""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from pv_vae_jax.layers.initializers import identity_tap_init
from pv_vae_jax.typing import Params


def inflate_image_params(params: Params) -> Params:
    """Parameters of a `VAE` trained on images -> those of the video model that treats every frame as such an image.

    An image uses the last temporal tap of each convolution and skips the convolutions that halve and double time
    (`time_conv`). The other taps get no gradient and keep their initial values. Here the earlier taps become zero and
    the time convolutions pass the current frame on. A still clip then decodes like its image, up to the shortcuts,
    which have no parameters: `VAEConfig.shortcut_time` says when they too treat all frames alike.

    This erases what a video model has learned about time: use it on models trained on images only.
    """
    return unflatten_dict({path: _inflate(path, value) for path, value in flatten_dict(params).items()})


def _inflate(path: tuple[str, ...], value):
    *_, layer, name = path
    if layer == "time_conv":
        if name == "bias":
            return jnp.zeros_like(value)
        c, out = value.shape[-2:]
        return identity_tap_init(out // c)(None, value.shape, value.dtype)  # pyright: ignore[reportArgumentType]  needs no key
    if name == "kernel" and value.ndim == 5:  # (kt, kh, kw, ci, co)
        return jnp.zeros_like(value).at[-1].set(value[-1])
    return value
