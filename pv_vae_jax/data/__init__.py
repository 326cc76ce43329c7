"""Where clips come from: synthetic worlds, video files, cached latents, and the pipeline that batches them.

Nothing here imports jax: data workers start fast and never touch a device.
"""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.data.clips import LazyClip
    from pv_vae_jax.data.frame_size import FrameSize
    from pv_vae_jax.data.latents import LatentSource, write_latents
    from pv_vae_jax.data.pipeline import batched, examples, mixed, stream, train_batches
    from pv_vae_jax.data.sources import open_source
    from pv_vae_jax.data.synthetic import SyntheticVideos
    from pv_vae_jax.data.transforms import DropFutureFrames, RandomFlip, RandomReverse, RandomWindow, ResizeCrop
    from pv_vae_jax.data.video_container import BrokenVideoError, VideoInfo, probe
    from pv_vae_jax.data.video_reading import count_frames, frame_times, iterate_at_rate, iterate_video, read_video
    from pv_vae_jax.data.video_writing import write_video

__all__ = [
    "BrokenVideoError", "DropFutureFrames", "FrameSize", "LatentSource", "LazyClip", "RandomFlip", "RandomReverse",
    "RandomWindow", "ResizeCrop", "SyntheticVideos", "VideoInfo", "batched", "count_frames", "examples", "frame_times",
    "iterate_at_rate", "iterate_video", "mixed", "open_source", "probe", "read_video", "stream", "train_batches",
    "write_latents", "write_video",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
