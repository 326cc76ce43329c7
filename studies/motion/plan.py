"""What the motion study compares: rows with seeds of their own, in the order in which they are worth their hours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from pv_vae_jax.data.synthetic import families_of
from pv_vae_jax.train.config_files import override, run_config
from pv_vae_jax.train.configs import Experiment
from pv_vae_jax.typing import ConfigError
from studies.ablation.plan import deciding, settings_hash, slug_of

PILOT_SEEDS = (100, 101)  # of cells that do not count
TINY = {
    "data.clips": 32, "data.test_clips": 16, "data.size": 16, "vae.encoder_widths": (8, 8, 8),
    "vae.decoder_widths": (8, 8, 8), "vae.mid_attention": False, "video.steps": 2, "video.batch_size": 4,
    "decoder.steps": 2, "decoder.batch_size": 4, "latents.clips": 16, "latents.batch_size": 8, "latte.depth": 2,
    "latte.width": 8, "latte.heads": 2, "diffusion.steps": 4, "diffusion.batch_size": 4, "log_every": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: as the table prints it.
      settings: what differs from the study's experiment.
      seeds: number of seeds, from 0 on.
      curve: name of the row at whose place on the curve over KL weights it is another point; empty for none.
      against: name of the row that it is compared with, at the PSNR of that row; empty for the study's baseline, its
        own name for none.
      rotated: the transformer sees latents under a fixed random rotation, see `rotation`.
      group: rows of a smaller number are run first, each with all of its seeds.
    """

    name: str
    settings: dict = dataclasses.field(default_factory=dict)
    seeds: int = 4
    curve: str = ""
    against: str = ""
    rotated: bool = False
    group: int = 0


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which rows the rule speaks of, by name."""

    baseline: str = "Baseline"
    method: str = "Whole method"
    positive: str = "Aligned to the state"
    negative: str = "Baseline, rotated"
    placebo_baseline: str = "Baseline, walk"
    placebo_method: str = "Whole method, walk"


@dataclasses.dataclass(frozen=True)
class Study:
    """Rows, and how each cell is scored.

    Attributes:
      experiment: all stages of a cell.
      rows: the rows.
      roles: which of them the rule compares.
      scores: how many times during the transformer's training its samples are scored.
      clips: generated clips of the last score, and real clips beside them.
      curve_clips: generated clips of the scores before it.
      sampling_steps: Euler steps of a sample.
      pilot: run the baseline, the method and both controls alone, with seeds that do not count.
    """

    experiment: Experiment
    rows: tuple[Row, ...]
    roles: Roles = Roles()
    scores: int = 4
    clips: int = 768
    curve_clips: int = 128
    sampling_steps: int = 32
    pilot: bool = False

    def validate(self) -> Study:
        """Return self.

        Raises:
          ConfigError: names of rows are not distinct, a row that the rule or another row names is missing, or settings
            are invalid.
        """
        names = [row.name for row in self.rows]
        if len({slug_of(name) for name in names}) < len(names):
            raise ConfigError(f"rows of the study need distinct names, got {', '.join(names)}")
        named = [name for row in self.rows for name in (row.curve, row.against) if name]
        if missing := [name for name in (*dataclasses.asdict(self.roles).values(), *named) if name not in names]:
            raise ConfigError(f"the rule or a row names the row {missing[0]!r}, and there are {', '.join(names)}")
        if self.experiment.diffusion.steps % self.scores:
            raise ConfigError(
                f"diffusion.steps must be a multiple of scores={self.scores}, got {self.experiment.diffusion.steps}"
            )
        for row in self.rows:
            self.cell(row, 0).experiment.validate()
        return self

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def cell(self, row: Row, seed: int) -> Cell:
        """The cell of `row` and `seed`."""
        settings = {key: value if isinstance(value, str) else repr(value) for key, value in row.settings.items()}
        experiment = override(dataclasses.replace(self.experiment, seed=seed), settings)
        every = experiment.diffusion.steps // self.scores
        return Cell(
            self, row, seed, dataclasses.replace(experiment, checkpoint_every=every, checkpoints_kept=self.scores)
        )

    def cells(self) -> Iterator[Cell]:
        """All cells, group by group, and within a group seed by seed."""
        if self.pilot:
            roles = self.roles
            rows = [self.row(name) for name in (roles.baseline, roles.positive, roles.negative, roles.method)]
            yield from (self.cell(row, seed) for seed in PILOT_SEEDS for row in rows)
            return
        for group in sorted({row.group for row in self.rows}):
            rows = [row for row in self.rows if row.group == group]
            for seed in range(max(row.seeds for row in rows)):
                yield from (self.cell(row, seed) for row in rows if seed < row.seeds)

    def part(self, rows: Sequence[str] = (), seeds: Sequence[str] = ()) -> list[Cell]:
        """The cells of these rows, by name or slug, and seeds; none named are all.

        Raises:
          ConfigError: there is no such cell.
        """
        slugs = {slug_of(name) for name in rows}
        cells = [cell for cell in self.cells() if not slugs or slug_of(cell.row.name) in slugs]
        cells = [cell for cell in cells if not seeds or str(cell.seed) in seeds]
        if unknown := slugs - {slug_of(cell.row.name) for cell in cells}:
            known = ", ".join(dict.fromkeys(slug_of(cell.row.name) for cell in self.cells()))
            raise ConfigError(f"no cell of row {min(unknown)!r} with these seeds: the rows are {known}")
        return cells


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row with one seed, and the experiment that it is."""

    study: Study
    row: Row
    seed: int
    experiment: Experiment

    @property
    def families(self) -> tuple[str, ...]:
        """Laws of motion of the clips."""
        return families_of(self.experiment.data.source) or ()

    @property
    def name(self) -> str:
        """Row, seed, and a hash of all settings that the numbers follow from."""
        study, tree = self.study, deciding(self.experiment)
        tree["score"] = [study.scores, study.clips, study.curve_clips, study.sampling_steps, self.row.rotated]
        return f"{slug_of(self.row.name)}-seed{self.seed}-{settings_hash(tree)}"

    @property
    def vae(self) -> str:
        """Name of the work directory of the VAE and its latents, which rows that agree in them share."""
        return f"vae-seed{self.seed}-{settings_hash(deciding(vae_part(self.experiment)))}"


def vae_part(experiment: Experiment) -> Experiment:
    """The experiment without its transformer; one step stands for it, since latents are encoded for a transformer."""
    plain = Experiment()
    diffusion = dataclasses.replace(plain.diffusion, steps=1)
    latte = dataclasses.replace(plain.latte, latent_channels=experiment.vae.latent_channels)
    return dataclasses.replace(
        experiment, latte=latte, diffusion=diffusion, checkpoint_every=plain.checkpoint_every, checkpoints_kept=1
    )


def load_study(path: str | Path, overrides: dict[str, str] | None = None, tiny: bool = False) -> Study:
    """Run `get_study()` of the file `path`, and apply `overrides` to the experiment below all rows.

    Args:
      path: the study's file.
      overrides: dotted settings of the experiment.
      tiny: shrink everything, whatever a row sets, and take one seed a row, to try the whole pipeline.

    Raises:
      ConfigError: the file or function is missing or fails, a setting is unknown, or the study is invalid.
    """
    study = run_config(path, Study, "get_study")
    small = {key: repr(value) for key, value in TINY.items()} if tiny else {}
    if tiny:
        plain = lambda row: {key: value for key, value in row.settings.items() if key not in TINY}  # noqa: E731
        rows = tuple(dataclasses.replace(row, settings=plain(row), seeds=1) for row in study.rows)
        study = dataclasses.replace(study, rows=rows, scores=2, clips=8, curve_clips=4, sampling_steps=2)
    return dataclasses.replace(study, experiment=override(study.experiment, small | (overrides or {}))).validate()
