"""Where clips come from: synthetic worlds, video files, cached latents, and the pipeline that batches them.

Nothing here imports jax: data workers start fast and never touch a device.
"""
