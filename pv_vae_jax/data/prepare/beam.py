"""Tasks as an Apache Beam pipeline, for corpora that are too large for one machine (extra `beam`)."""

from collections.abc import Sequence
from pathlib import Path

from pv_vae_jax.data.listing import SplitIndex
from pv_vae_jax.data.prepare.encoding import ClipSettings
from pv_vae_jax.data.prepare.tasks import finish, lock_split, plan, run_task, unfinished
from pv_vae_jax.data.shards import remove_partial_shards


def prepare_with_beam(
    listing: SplitIndex, folder: Path, settings: ClipSettings, *, files: int = 64, options: Sequence[str] = ()
) -> dict:
    """Make the shards of a split on the workers of a Beam runner, byte by byte those of `local.prepare_split`.

    Args:
      listing, settings, files: as for `local.prepare_split`.
      folder: folder of the shards, on a file system that all workers see under the same name, like the source.
      options: options of Beam, such as `--runner=DataflowRunner`; without any, the pipeline runs in this process.

    Raises:
      ImportError: Beam is missing; the message names the extra.
      BlockingIOError, NoVideosError: as `prepare_split`.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("--beam needs Apache Beam: pip install apache-beam (the extra [beam] holds it)") from error
    with lock_split(folder):  # the workers hold no lock: each writes under names of its own
        tasks = plan(listing, folder, settings, files=files)
        pending = unfinished(tasks)
        if pending:
            try:
                with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                    # Without Reshuffle a runner may fuse all tasks for one worker.
                    _ = pipeline | beam.Create(pending) | beam.Reshuffle() | beam.Map(run_task)
            finally:
                remove_partial_shards(folder)  # of workers that were lost, whose tasks others took over
        return finish(listing, tasks)
