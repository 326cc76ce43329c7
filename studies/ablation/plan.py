"""What a study compares: rows that differ in a few settings of one experiment, each with several seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pv_vae_jax.data.sources import fingerprint
from pv_vae_jax.data.synthetic import state_width
from pv_vae_jax.train.config_files import override, run_config, to_dict
from pv_vae_jax.train.configs import VAE_STAGES, Experiment
from pv_vae_jax.typing import ConfigError

STILL = {"video.objective.motion": 0.0}
RECIPE = {"video.drop_ratio": 1.0, "video.objective.motion": 1.0}
CHECKPOINTS = ("checkpoint_every", "checkpoints_kept")  # fields of an experiment that decide no number

# Fields that are younger than stored cells, whose names do not hold them: left out as long as they are off.
NEWER = (
    *(("data", name) for name in ("features", "max_damaged_files", "max_damaged_records")),
    ("diffusion", "time_shift"),
)
NEWER_TERMS = ("scale_equivariance", "time_equivariance", "alignment", "latent_noise")


def slug_of(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      name: as the table prints it.
      settings: what differs from the study's experiment, `{"video.drop_ratio": 0.0}`.
      decoder_of: name of another row, whose encoder, latents and transformer this row takes; it fine-tunes the decoder
        alone. Empty: the row trains its own VAE on clips and its own transformer.
      compared_with: name of the row before it that the page takes it from, where no table of the paper has it.
        Empty: the study's first row. It decides no number of the cell.
    """

    name: str
    settings: dict = dataclasses.field(default_factory=dict)
    decoder_of: str = ""
    compared_with: str = ""

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return slug_of(self.name)


@dataclasses.dataclass(frozen=True)
class Study:
    """Rows, seeds, and how each cell is scored.

    Attributes:
      name: name of the study, and of its folder of scores.
      world: what the clips show, for the page.
      experiment: all stages of a cell; `image` is trained once a seed, and every row starts from it.
      rows: the rows; the first is the baseline.
      seeds: seeds of data order, initial weights and noise; each row is trained with each.
      scores: how many times during the transformer's training its samples are scored.
      clips: generated clips of a score, and as many real clips.
      reference: split of the real clips that generated ones are compared with.
      sampling_steps: Euler steps of a sample.
    """

    name: str
    world: str
    experiment: Experiment
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    scores: int = 6
    clips: int = 512
    reference: str = "test"
    sampling_steps: int = 20

    def validate(self) -> Study:
        """Return self.

        Raises:
          ConfigError: two rows have one name, a row refers to a row that is not before it, or its settings are invalid.
        """
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names) or len({row.slug for row in self.rows}) < len(names):
            raise ConfigError(f"rows of study {self.name} need distinct names, got {', '.join(names)}")
        for i, row in enumerate(self.rows):
            trained = [other.name for other in self.rows[:i] if not other.decoder_of]
            if row.decoder_of and row.decoder_of not in trained:
                raise ConfigError(
                    f"row {row.name!r} tunes the decoder of {row.decoder_of!r}, which must be a row before it"
                )
            if row.compared_with and row.compared_with not in names[:i]:
                raise ConfigError(
                    f"row {row.name!r} is compared with {row.compared_with!r}, which must be a row before it"
                )
            for seed in self.seeds:
                self.cell(row, seed).experiment.validate()
        if self.experiment.diffusion.steps % self.scores:
            raise ConfigError(
                f"diffusion.steps must be a multiple of scores={self.scores}, got {self.experiment.diffusion.steps}"
            )
        return self

    def cell(self, row: Row, seed: int) -> Cell:
        """The cell of `row` and `seed`."""
        experiment = dataclasses.replace(self.experiment, seed=seed)
        settings = {key: value if isinstance(value, str) else repr(value) for key, value in row.settings.items()}
        experiment = override(experiment, settings)
        # The states that are scored are the checkpoints of the diffusion stage.
        every = experiment.diffusion.steps // self.scores
        experiment = dataclasses.replace(experiment, checkpoint_every=every, checkpoints_kept=self.scores)
        return Cell(self, row, seed, experiment)

    def cells(self) -> Iterator[Cell]:
        """All cells: every row with the first seed, then with the next, so that a part of a study is a table."""
        for seed in self.seeds:
            for row in self.rows:
                yield self.cell(row, seed)

    def part(self, rows: Sequence[str] = (), seeds: Sequence[str] = ()) -> list[Cell]:
        """The cells of these rows, by name or slug, and seeds; none named are all.

        Raises:
          ConfigError: a row or seed is unknown; the message lists the known ones.
        """
        slugs = [slug_of(name) for name in rows]
        for what, wanted, known in (
            ("row", slugs, [row.slug for row in self.rows]),
            ("seed", seeds, [str(seed) for seed in self.seeds]),
        ):
            if unknown := [name for name in wanted if name not in known]:
                raise ConfigError(f"study {self.name} has no {what} {unknown[0]!r}: there are {', '.join(known)}")
        cells = [cell for cell in self.cells() if not slugs or cell.row.slug in slugs]
        return [cell for cell in cells if not seeds or str(cell.seed) in seeds]

    def plan(self) -> dict:
        """What is to be run, as JSON: the scores of a part of it say how large a part they are."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        cells = [cell.name for cell in self.cells()]  # of these settings: scores made with others do not mix with them
        return {"name": self.name, "world": self.world, "rows": rows, "seeds": list(self.seeds), "cells": cells}

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row with one seed, and the experiment that it is."""

    study: Study
    row: Row
    seed: int
    experiment: Experiment

    @property
    def name(self) -> str:
        """Row and seed, and what decides the numbers: a cell of other settings has another name."""
        return f"{self.row.slug}-seed{self.seed}-{self.key}"

    @property
    def key(self) -> str:
        """First 8 digits of the SHA-256 over all settings that the cell's numbers follow from."""
        study, tree = self.study, self._settings(self.base and self.base.key)
        tree["score"] = [study.scores, study.clips, study.reference, study.sampling_steps]
        return settings_hash(tree)

    @property
    def folder(self) -> str:
        """Name of the cell's work directory: row and seed, and what decides its training.

        Cells that are only scored in different ways share it.
        """
        tree = self._settings(self.base and self.base.folder)
        for free in CHECKPOINTS:
            del tree[free]
        return f"{self.row.slug}-seed{self.seed}-{settings_hash(tree)}"

    def _settings(self, base: str | None) -> dict:
        """The experiment's deciding settings; `base` stands for those of the cell whose decoder is tuned."""
        tree = deciding(self.experiment)
        if base:
            tree["decoder_of"] = base
        else:  # no decoder is tuned
            del tree["decoder"]
        return tree

    @property
    def base(self) -> Cell | None:
        """The cell whose VAE and transformer a cell that tunes a decoder takes over."""
        study = self.study
        return study.cell(study.row(self.row.decoder_of), self.seed) if self.row.decoder_of else None


def deciding(experiment: Experiment) -> dict:
    """The settings that numbers follow from, with the content of a folder of clips in place of its path."""
    tree = to_dict(experiment)
    for free in ("name", "log_every", "mesh", "evaluation", "writers"):
        del tree[free]
    if tree["vae"]["kind"] == "cnn":  # cells are older than the field
        del tree["vae"]["kind"]
    data = experiment.data
    for field, older in (("fit", "crop"), ("class_names", ()), ("workers", data.workers)):  # nor had they these
        if getattr(data, field) == older:
            del tree["data"][field]
    for part, field in NEWER:
        if tree[part][field] == to_dict(Experiment())[part][field]:
            del tree[part][field]
    for name in VAE_STAGES:
        objective = tree[name]["objective"]
        tree[name]["objective"] = {k: v for k, v in objective.items() if v or k not in NEWER_TERMS}
    if Path(data.source).is_dir():
        tree["data"]["source"] = fingerprint(data.source, data.fold)
    return tree


def settings_hash(tree: dict) -> str:
    """First 8 digits of the SHA-256 of nested settings."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]


def paper_rows() -> tuple[Row, ...]:
    """The rows of table 4, each of which adds one setting to the row before; in `report/paper.json` by name."""
    return (
        Row("Baseline", {"video.drop_ratio": 0.0} | STILL),
        Row("+ Predictive Reconstruction", {"video.drop_ratio": 1.0} | STILL),
        Row("+ Motion-aware Objective", RECIPE),
        Row("+ Decoder Fine-tuning", RECIPE, decoder_of="+ Motion-aware Objective"),
    )


def control_row() -> Row:
    """The baseline's decoder tuned as long: what of the last row of table 4 is longer training alone."""
    baseline, *_, tuned = paper_rows()
    return Row("Baseline, decoder tuned", baseline.settings, decoder_of=baseline.name, compared_with=tuned.name)


def ablation_rows() -> tuple[Row, ...]:
    """What else can be chosen: tables 5 and 6 after the rows that they vary, then what the paper does not compare.

    Rows of the paper change one setting of `+ Motion-aware Objective`, which stands for r = 1 and the learnable token:
    unlike the paper's, no decoder is tuned. Ours change one of `+ Predictive Reconstruction`: other patterns of what is
    withheld, a ratio that rises from 0 in the first half of the stage, SSVAE's regulariser of the latents beside
    prediction (its weight is a guess, not tuned), and one `k` for a whole batch.
    """
    baseline, predictive, motion, _ = paper_rows()

    def row(name: str, setting: dict, of: Row = predictive) -> Row:
        return Row(name, of.settings | setting, compared_with=of.name)

    return (
        *(baseline, predictive, motion),
        row("r = 0.50", {"video.drop_ratio": 0.5}, motion),
        row("r = 0.75", {"video.drop_ratio": 0.75}, motion),
        row("Gaussian padding", {"vae.pad": "gaussian"}, motion),
        row("Infilling", {"video.drop_pattern": "infill"}),
        row("Blocks in space and time", {"video.drop_pattern": "block"}),
        row("Tubes through time", {"video.drop_pattern": "tube"}),
        row("Rising ratio", {"video.drop_schedule": "cosine"}),
        row("+ Local correlation", {"video.objective.local_correlation": 0.1}),
        row("One k a batch", {"video.drop_per_example": False}),
    )


def latent_rows() -> tuple[Row, ...]:
    """What else shapes latents, one setting of the baseline each; the weights are guesses, not tuned.

    The last row's latents tell the state of the synthetic world: the control that a study must see.
    """
    baseline = paper_rows()[0]
    width = state_width("synthetic")
    settings = {
        "+ Scale equivariance": {"video.objective.scale_equivariance": 0.25},
        "+ Time equivariance": {"video.objective.time_equivariance": 0.25},
        "+ Latent noise": {"video.objective.latent_noise": 0.3},
        "+ Shifted times": {"diffusion.time_shift": 2.0},
        "+ Alignment": {"video.objective.alignment": 0.1, "data.features": width, "video.flip": 0.0},
    }
    rows = (Row(name, baseline.settings | setting, compared_with=baseline.name) for name, setting in settings.items())
    return tuple(rows)


def load_study(path: str | Path, overrides: dict[str, str] | None = None) -> Study:
    """Run `get_study()` of the file `path`, and apply `overrides` to the experiment below all rows.

    Raises:
      ConfigError: the file or function is missing or fails (the message names the line), a setting is unknown, or the
        study is invalid.
    """
    study = run_config(path, Study, "get_study")
    experiment = override(study.experiment, overrides or {})
    if Path(experiment.data.source).is_dir():  # the same folder from wherever the study is continued
        source = str(Path(experiment.data.source).absolute())
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))
    return dataclasses.replace(study, experiment=experiment).validate()
