"""Experiments: files, overrides and JSON; every mistake names what would have been right."""

import dataclasses
import json
import math
import re
import typing
from pathlib import Path

import pytest

from pv_vae_jax.dropping import DropPattern, max_dropped
from pv_vae_jax.train.config_files import (
    differences,
    from_dict,
    load_experiment,
    override,
    parse_overrides,
    save_config,
    to_dict,
)
from pv_vae_jax.train.configs import Experiment, OptimizerConfig, SamplingConfig, VAEStageConfig
from pv_vae_jax.train.ranges import ranges_of
from pv_vae_jax.typing import ConfigError, ShapeError

FOLDER = Path(__file__).parents[1] / "experiments"
# A study and the feature network are no experiments: tests/test_study.py and tests/test_features.py read them.
OTHERS = {"feature_net.py", *(path.name for path in FOLDER.glob("study_*.py"))}
EXPERIMENTS = sorted(p for p in FOLDER.glob("*.py") if p.name not in OTHERS)
BASE = Experiment()
GET = "from pv_vae_jax.train import Experiment, VAEStageConfig\n\n\ndef get_config():\n    return "


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_loads_and_survives_json(path):
    experiment = load_experiment(path)
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(experiment)))) == experiment
    assert any(getattr(experiment, stage).steps for stage in ("image", "video", "decoder"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("video.steps", "100", 100),
        ("video.steps", "1_000", 1_000),
        ("video.optimizer.learning_rate", "3e-4", 3e-4),
        ("video.optimizer.learning_rate", "1", 1.0),
        ("image.images", "false", False),
        ("latents.online", "True", True),
        ("name", "12", "12"),
        ("data.source", "/clips/my folder", "/clips/my folder"),
        ("video.drop_form", "filled", "filled"),
        ("video.drop_schedule", "cosine", "cosine"),
        ("vae.pad", "gaussian", "gaussian"),
        ("vae.encoder_widths", "(64,128,256,256,256)", (64, 128, 256, 256, 256)),
        ("vae.time_factors", "[2, 2, 2, 1]", (2, 2, 2, 1)),
        ("decoder.frozen", "encoder", ("encoder",)),
        ("decoder.frozen", "()", ()),
        ("video.frozen", "", ()),
        ("video.frozen", "('encoder','pad')", ("encoder", "pad")),
        ("discriminator.kinds", "2d", ("2d",)),
        ("video.objective.gan_adaptive", "FALSE", False),
        ("mesh.data", "-1", -1),
        ("video.sizes", "((1,32),[17,16,2])", ((1, 32), (17, 16, 2))),
    ],
)
def test_an_override_sets_what_it_names_and_nothing_else(key, text, value):
    changed = override(BASE, {key: text})
    node = changed
    for part in key.split("."):
        node = getattr(node, part)
    assert node == value and type(node) is type(value)
    old, new = to_dict(BASE), to_dict(changed)
    assert [line.split(":")[0] for line in differences(old, new)] in ([key], [])
    assert override(changed, {}) == changed


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("video.steps", "1.5", "config.video.steps must be an integer, got 1.5"),
        ("video.steps", "many", "config.video.steps must be an integer, got 'many'"),
        ("video.steps", "None", "config.video.steps must be an integer"),
        ("video.steps", "True", "config.video.steps must be an integer, got 'True'"),
        ("video.optimizer.learning_rate", "fast", "config.video.optimizer.learning_rate must be a number"),
        ("video.optimizer.learning_rate", "None", "must be a number"),
        ("video.optimizer.learning_rate", "false", "must be a number, got 'false'"),
        ("video.optimizer.learning_rate", "True", "must be a number, got 'True'"),
        ("image.images", "1", "config.image.images must be true or false, got 1"),
        ("vae.encoder_widths", "(8,'wide')", "config.vae.encoder_widths must be a tuple of integers, got (8, 'wide')"),
        ("vae.encoder_widths", "8.5", "config.vae.encoder_widths must be a tuple of integers, got (8.5,)"),
        ("video", "100", "config.video is a group of settings; set one of config.video.batch_multiple, config"),
        ("video.objective.gan", "-1", "config.video.objective"),
        ("video.objective.local_correlation", "-1", "local_correlation "),
        ("video.objective.local_correlation_target", "2", "(0, 1], got 2"),
        (
            "video.drop_pattern",
            "past",
            "config.video.drop_pattern must be 'future' or 'infill' or 'block' or 'tube' or 'random'",
        ),
        (
            "vae.kind",
            "transformer",
            "flags do not change the kind of VAE. Start from an experiment with the other kind",
        ),
        (
            "vae.shortcut_time",
            "deal",
            "shortcut_time=deal is called interleave now: set config.vae.shortcut_time=inter",
        ),
        ("vae.lowering", "im2col", "set config.vae.lowering=taps_in"),
        ("vae.halve_up", "true", "it is called 'upsample_halves_channels' now"),
        ("video.micro_batches", "2", "it is called 'grad_accum_steps' now"),
        ("latte.depth", "3", "config.latte.depth "),
        ("video.drop_form", "cut", "config.video.drop_form must be 'truncated' or 'filled', got 'cut'"),
        ("diffusion.time_distribution", "normal", "config.diffusion.time_distribution must be 'uniform' or "),
        (
            "video.stepz",
            "1",
            "config key config.video.stepz: config.video has no 'stepz'; did you mean 'steps'?",
        ),
        ("vidio.steps", "1", "config has no 'vidio'; did you mean 'video'?"),
        ("video.xyz", "1", "expected one of batch_multiple, batch_size, discriminator_optimizer, drop_form"),
        ("video.steps.more", "1", "config.video.steps has no 'more'; it is a value, not a group"),
        ("", "1", "unknown config key"),
    ],
)
def test_a_wrong_override_says_what_would_be_right(key, text, says):
    with pytest.raises(ConfigError) as error:
        override(BASE, {key: text})
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"data.frames": "16"}, ShapeError, r"16 frames do not fit 1 \+ 4 n: use 13 or 17"),
        ({"data.frames": "0"}, ShapeError, "use 1 or 5"),
        ({"data.size": "30"}, ShapeError, "height 30 is not a multiple of 16: use 16 or 32"),
        ({"latte.classes": "4"}, ConfigError, "config.latte.classes comes from the data"),
        (
            {"latte.latent_channels": "8"},
            ConfigError,
            "config.latte.latent_channels must equal config.vae.latent_channels, got 8 and 64",
        ),
        (
            {"data.frames": "1", "video.steps": "1"},
            ConfigError,
            "config.video.drop_ratio=1 drops nothing, .*: set config.data.frames to 5 or more, or",
        ),
        (
            {"image.frozen": "encoder,decoder,pad", "image.steps": "1"},
            ConfigError,
            "config.image.frozen must leave a part to train, got all of encoder, decoder, pad",
        ),
        (
            {"image.frozen": "encoder,decoder", "image.steps": "1", "vae.pad": "gaussian"},
            ConfigError,
            "config.image.frozen must leave a part to train, got all of encoder, decoder:",
        ),
        ({"decoder.steps": "1"}, ConfigError, "config.decoder.frozen holds the encoder at random values, .*init_from"),
        (
            {"decoder.steps": "1", "decoder.init_from": "a", "decoder.init_parts": "decoder"},
            ConfigError,
            "config.decoder.frozen holds the encoder at random values",
        ),
        ({"video.drop_per_example": "true"}, ConfigError, "config.video.drop_per_example needs drop_form=filled"),
        ({"video.drop_pattern": "infill"}, ConfigError, "config.video.drop_pattern=infill needs drop_form=filled"),
        (
            {"video.drop_from": "latents"},
            ConfigError,
            "config.video.drop_from=latents needs another drop_pattern than future",
        ),
        (
            {"video.drop_pattern": "infill", "video.drop_form": "filled", "data.frames": "5"},
            ConfigError,
            "none in between: set config.data.frames to 9 or more",
        ),
        (
            {"video.drop_pattern": "tube", "video.drop_form": "filled", "data.size": "16"},
            ConfigError,
            "one latent position: set config.data.size to 32 or more",
        ),
        (
            {"video.drop_ratio_start": "0.5"},
            ConfigError,
            "config.video.drop_ratio_start .*set drop_schedule to linear or cosine",
        ),
        ({"video.drop_ramp": "0.1"}, ConfigError, "config.video.drop_ramp needs a schedule"),
        ({"video.drop_ramp": "1.1", "video.drop_schedule": "linear"}, ConfigError, r"drop_ramp must be in \[0, 1\]"),
        (
            {"image.drop_schedule": "cosine", "image.drop_ratio_start": "0.5"},
            ConfigError,
            "config.image.drop_ratio must be 0 with images=True",
        ),
        (
            {"video.objective.local_correlation": "0.1", "data.size": "16"},
            ConfigError,
            "compares the channels of neighbouring latents: set config.data.size to 32",
        ),
        ({"video.drop_ratio": "1.5"}, ConfigError, r"config.video.drop_ratio must be in \[0, 1\], got 1.5"),
        ({"video.flip": "-0.5"}, ConfigError, r"config.video.flip must be in \[0, 1\], got -0.5"),
        ({"image.drop_ratio": "1"}, ConfigError, "config.image.drop_ratio must be 0"),
        (
            {"decoder.frozen": "encodr"},
            ConfigError,
            r"decoder.frozen must name parts of the VAE \(encoder, decoder, pad\), got encodr",
        ),
        (
            {"decoder.objective.gan": "1.0", "decoder.frozen": "decoder"},
            ConfigError,
            "config.decoder.objective.gan trains the decoder, which frozen excludes: change one",
        ),
        ({"latte.patch": "3"}, ConfigError, "config.latte.patch must divide the 2 x 2 latents, got 3"),
        ({"seed": "-1"}, ConfigError, "config.seed must be between 0 and 2147483647, got -1"),
        ({"video.batch_size": "0"}, ConfigError, "config.video.batch_size must be between 1 and"),
        ({"video.optimizer.b1": "1.0"}, ConfigError, r"config.video.optimizer.b1 must be in \[0, 1\), got 1.0"),
        (
            {"diffusion.optimizer.clip_norm": "-1"},
            ConfigError,
            "config.diffusion.optimizer.clip_norm must be at least 0, got -1",
        ),
        (
            {"video.optimizer.learning_rate": "1e999"},
            ConfigError,
            "config.video.optimizer.learning_rate must be finite, got inf",
        ),
        ({"vae.patch": "0"}, ConfigError, "config.vae.patch .* at least 1, got 0"),
        ({"vae.encoder_widths": "(0, 1, 1, 1, 1)"}, ConfigError, "config.vae.encoder_widths .* at least 1"),
        ({"vae.dtype": "float7"}, ConfigError, "config.vae.dtype .*'float32' or 'bfloat16'"),
        ({"latte.heads": "0"}, ConfigError, "config.latte.heads .* at least 1, got 0"),
        ({"video.sizes": "(17, 32)"}, ConfigError, r"config.video.sizes must hold \(frames, size\) or .*; got 17"),
        ({"video.sizes": "((17, 32, 0),)"}, ConfigError, r"config.video.sizes must hold .*; got \(17, 32, 0\)"),
        ({"video.sizes": "((16, 32),)"}, ShapeError, r"video.sizes, \(16, 32\): 16 frames .*: use 13 or 17"),
        ({"video.sizes": "((17, 30),)"}, ShapeError, "height 30 is not a multiple of 16: use 16 or 32"),
        ({"video.sizes": "((17, 32), (17, 32, 2))"}, ConfigError, r"holds \(17, 32\) twice"),
        (
            {"video.sizes": "((1, 32), (1, 16))"},
            ConfigError,
            "config.video.drop_ratio must be 0 where sizes holds images only",
        ),
        (
            {"image.sizes": "((17, 32),)"},
            ConfigError,
            r"config.image.sizes must hold single frames .*: write \(1, 32\)",
        ),
        ({"data.fold": "4"}, ConfigError, "config.data.fold must be between 1 and 3, got 4"),
        ({"data.fold": "2"}, ConfigError, "config.data.fold applies to UCF101 only"),
        (
            {"video.objective.gan": "1.0", "discriminator.levels": "6"},
            ConfigError,
            "config.discriminator.levels=6 needs sizes that are multiples of 64, but video has 32 pixels",
        ),
        (
            {"video.objective.gan": "1.0", "video.steps": "5000"},
            ConfigError,
            "config.video.objective.gan_start must be below steps=5000, got 5000",
        ),
        (
            {"video.objective.scale_equivariance": "1", "data.size": "48"},
            ConfigError,
            "config.video.objective.scale_equivariance needs sizes that are multiples of 32: set config.data.size",
        ),
        (
            {"video.objective.time_equivariance": "1", "data.frames": "5"},
            ConfigError,
            "and there are 2: train on clips of 9 frames or more",
        ),
        (
            {"image.objective.time_equivariance": "1"},
            ConfigError,
            "config.image.objective.time_equivariance skips every second latent frame, and there are 1:",
        ),
        (
            {"decoder.objective.alignment": "1"},
            ConfigError,
            "config.decoder.objective.alignment trains the encoder, which frozen excludes",
        ),
        ({"data.features": "3"}, ConfigError, "config.data.features must be 0 or 12 with source=synthetic"),
        (
            {"data.features": "10", "data.source": "synthetic:fall,walk"},
            ConfigError,
            "config.data.features is for objective.alignment: give it a weight",
        ),
        (
            {"data.features": "3", "data.source": "clips"},
            ConfigError,
            "config.data.features are those of source=synthetic or source=program:NAME",
        ),
        (
            {"data.features": "12", "data.crop": "random"},
            ConfigError,
            "config.data.features do not follow a crop: set crop=centre",
        ),
        (
            {"data.features": "12", "video.objective.alignment": "1"},
            ConfigError,
            "config.data.features are not mirrored with their frames: set config.video.flip=0",
        ),
        (
            {"data.features": "12", "video.objective.alignment": "1", "video.flip": "0", "video.reverse": "0.5"},
            ConfigError,
            "hold velocities, which do not turn: set config.video.reverse=0",
        ),
        ({"diffusion.time_shift": "0"}, ConfigError, "config.diffusion.time_shift must be above 0, got 0"),
        ({"video.batch_multiple": "4"}, ConfigError, "config.video.batch_multiple needs sizes"),
        (
            {"video.sizes": "((17, 32),)", "video.batch_multiple": "3"},
            ConfigError,
            "config.video.batch_size must be a multiple of batch_multiple=3, got 8: use 6 or 9",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_run_is_refused_before_it_starts(overrides, error, says):
    base = override(BASE, {"latte.latent_channels": "64", "vae.latent_channels": "64", "data.size": "32"})
    base.validate()
    with pytest.raises(error, match=says):
        override(base, overrides).validate()


@pytest.mark.parametrize("pattern", typing.get_args(DropPattern))
@pytest.mark.parametrize("frames", [5, 9, 13, 17, 29, 61])
def test_a_ratio_too_small_to_drop_a_group_is_refused_and_the_one_named_drops_one(pattern, frames):
    changes = {"data.frames": str(frames), "data.size": "32", "video.drop_form": "filled", "video.drop_ratio": "1e-3"}
    changes |= {"video.drop_pattern": pattern, "latte.latent_channels": str(BASE.vae.latent_channels)}
    config = override(BASE, changes)
    groups = config.vae.latent_frames(frames)
    if pattern == "infill" and groups < 3:
        pytest.skip("has nothing to drop, which is refused at any ratio")
    with pytest.raises(ConfigError, match="config.video.drop_ratio=0.001 drops no group: ") as error:
        config.validate()
    named = re.search(r"Set it to (\S+) or more", str(error.value))[1]
    assert max_dropped(groups, float(named), pattern) == 1
    override(config, {"video.drop_ratio": named}).validate()
    override(config, {"video.drop_ratio": "0"}).validate()
    if float(named) < 1:
        with pytest.raises(ConfigError, match="drops no group"):
            override(config, {"video.drop_ratio": str(float(named) - 1e-3)}).validate()
    rising = {"video.drop_schedule": "linear", "video.drop_ratio": named}
    override(config, rising).validate()  # reaches it
    override(config, rising | {"video.drop_ratio": "0", "video.drop_ratio_start": named}).validate()  # comes from it


def test_the_longest_size_decides_what_a_ratio_drops():
    sizes = {"data.frames": "5", "data.size": "32", "video.drop_ratio": "0.25"}
    with pytest.raises(ConfigError, match="5 frames have 1 that .*can drop. Set it to 1 or more"):
        override(BASE, sizes).validate()
    override(BASE, sizes | {"video.sizes": "((5, 32), (17, 32))"}).validate()


def test_every_range_is_held_wherever_its_setting_is():
    """Both sides of each declared range are refused, in every group of its kind and in a config built in Python."""

    def numbers(config, prefix=""):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                yield from numbers(value, f"{prefix}{field.name}.")
            for allowed in ranges_of(type(config))[field.name]:
                yield type(config), prefix + field.name, allowed

    found = list(numbers(BASE))
    assert {f"{cls.__name__}.{key.split('.')[-1]}" for cls, key, _ in found} == BOUNDED
    for cls, key, allowed in found:
        name = key.split(".")[-1]
        for outside in (allowed.low - 1, allowed.high + 1):
            if math.isfinite(outside):
                with pytest.raises(ConfigError, match=f"^config.{key} must be {re.escape(allowed.name)}, got "):
                    override(BASE, {key: repr(outside)})
                with pytest.raises(ConfigError, match=f"^{name} must be {re.escape(allowed.name)}, got "):
                    dataclasses.replace(cls(), **{name: outside})


# Every number of the configs of `train` but a clip's shape and the mesh, which are checked with what they must fit.
BOUNDED = {
    f"{cls}.{name}"
    for cls, names in {
        "Experiment": "seed log_every checkpoint_every checkpoints_kept",
        "DataConfig": "clips test_clips stride threads workers cache_bytes fold features "
        "max_damaged_files max_damaged_records",
        "OptimizerConfig": "learning_rate warmup_steps final_fraction weight_decay b1 b2 clip_norm",
        "VAEStageConfig": "steps batch_size drop_ratio reverse flip ema_decay grad_accum_steps batch_multiple "
        "drop_ratio_start drop_ramp",
        "LatentsConfig": "clips batch_size flip",
        "DiffusionConfig": "steps batch_size label_dropout time_shift ema_decay grad_accum_steps",
        "SamplingConfig": "steps guidance clips batch_size",
        "EvaluationConfig": "every sample_every clips",
    }.items()
    for name in names.split()
}


def test_settings_are_replaced_together():
    """Flags need to fit together only, whatever the order in which they are written."""
    changes = {"video.drop_pattern": "block", "video.drop_from": "latents", "video.drop_form": "filled"}
    changes |= {"data.source": "clips", "data.stride": "2", "image.images": "false", "image.drop_ratio": "0.5"}
    forward, backward = override(BASE, changes), override(BASE, dict(reversed(changes.items())))
    assert forward == backward and forward.video.drop_form == "filled" and forward.data.stride == 2


def test_configs_built_in_python_check_themselves():
    for build, says in (
        (lambda: VAEStageConfig(drop_ratio=2.0), r"^drop_ratio must be in \[0, 1\], got 2"),
        (lambda: VAEStageConfig(drop_per_example=True), "^drop_per_example needs drop_form=filled$"),
        (lambda: OptimizerConfig(learning_rate=math.nan), "^learning_rate must be finite, got nan"),
        (lambda: SamplingConfig(guidance=math.inf), "^guidance must be finite, got inf"),
        (lambda: dataclasses.replace(BASE, seed=-1), "^seed must be between 0 and 2147483647, got -1"),
    ):
        with pytest.raises(ConfigError, match=says):
            build()


def test_a_mistake_in_the_file_is_an_error_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for text, says in (
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("import sys\n\nsys.exit(0)\n", "line 3: SystemExit: 0"),
        ("get_config = 3\n", r"does not define get_config\(\)"),
        (GET + "Experiment(seeds=3)\n", "line 5: TypeError: .*seeds"),
        (GET + "Experiment(\n        video=VAEStageConfig(flip=2),\n    )\n", "wrong.py, line 6: flip must be in"),
        (
            "from pv_vae_jax.train import Experiment, VAEConfig\n"
            "def get_config():\n    return Experiment(vae=VAEConfig(pad='x'))\n",
            "line 3: ValueError: pad ",
        ),
    ):
        (tmp_path / "wrong.py").write_text(text)
        for path in (tmp_path / "wrong.py", "wrong.py", "./wrong.py"):
            with pytest.raises(ConfigError, match=says):
                load_experiment(path)
    (tmp_path / "broken_helper.py").write_text("\n\n\nx = (\n")
    (tmp_path / "wrong.py").write_text("\nimport broken_helper\n")
    with pytest.raises(ConfigError, match=r"wrong.py, line 2: SyntaxError: .*broken_helper.py, line 4"):
        load_experiment(tmp_path / "wrong.py")


def test_a_missing_file_lists_its_neighbours(tmp_path):
    for name in ("demo.py", "paper.py", "_private.py", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"no experiment file .*dmo.py; there are demo.py, paper.py$"):
        load_experiment(tmp_path / "dmo.py")
    with pytest.raises(ConfigError, match=r"no experiment file .*x.py$"):
        load_experiment(tmp_path / "nowhere" / "x.py")
    with pytest.raises(ConfigError, match="no experiment file"):
        load_experiment(tmp_path)


def test_a_bare_name_means_a_shipped_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_experiment("demo") == load_experiment(FOLDER / "demo.py")
    assert load_experiment("paper_latte", {"seed": "7"}).seed == 7
    (tmp_path / "synthetic").mkdir()  # a folder of clips is named by its path
    assert load_experiment("demo").data.source == "synthetic"
    known = ", ".join(path.stem for path in EXPERIMENTS)
    with pytest.raises(ConfigError, match=f"unknown experiment 'dmo': shipped are {known}; did you mean 'demo'"):
        load_experiment("dmo")
    with pytest.raises(ConfigError, match=f"unknown experiment 'xyz': shipped are {known}; name one of these, or"):
        load_experiment("xyz")
    with pytest.raises(ConfigError, match="--config is empty: name a Python file, or a shipped one such as demo"):
        load_experiment("")
    with pytest.raises(ConfigError, match="no experiment file demo.py"):
        load_experiment("demo.py")
    with pytest.raises(ConfigError, match="must be a Python file"):
        (tmp_path / "demo").touch()
        load_experiment("demo")


def test_a_file_that_defines_no_experiment_is_refused(tmp_path, monkeypatch):
    (tmp_path / "empty.py").touch()
    (tmp_path / "notes.txt").write_text(GET + "Experiment()\n")
    (tmp_path / "dict.py").write_text(GET + "{'steps': 3}\n")
    for name, says in (
        ("empty.py", r"does not define get_config\(\)"),
        ("notes.txt", "must be a Python file"),
        ("dict.py", "must return Experiment, got dict"),
    ):
        with pytest.raises(ConfigError, match=says):
            load_experiment(tmp_path / name)
    (tmp_path / "good.py").write_text(GET + "Experiment(seed=3)\n")
    with pytest.raises(ConfigError, match="config.data.stride must be 1 with source=synthetic"):
        load_experiment(tmp_path / "good.py", {"data.stride": "2"})
    with pytest.raises(ConfigError, match="config.data.source must be a folder or .*, got s3:.*: mount"):
        override(Experiment(), {"data.source": "s3://b/clips"}).validate()
    with pytest.raises(ConfigError, match="config.data.source is empty"):
        load_experiment(tmp_path / "good.py", {"data.source": ""})
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("clips", "./clips/", str(tmp_path / "clips")):
        experiment = load_experiment(tmp_path / "good.py", {"data.source": source})
        assert experiment.data.source == str(tmp_path / "clips"), "the same folder from wherever a run is continued"
    assert load_experiment(tmp_path / "good.py", {"image.steps": "7"}).image.steps == 7


def test_sizes_survive_json(tmp_path):
    sized = override(BASE, {"video.sizes": "((17, 32), (1, 32, 2))"})
    save_config(sized, tmp_path / "config.json")
    tree = json.loads((tmp_path / "config.json").read_text())
    assert from_dict(Experiment, tree) == sized and (tree.pop("format"), tree.pop("draws")) == (2, 2)
    assert differences(tree, to_dict(sized)) == []
    assert differences(tree, to_dict(BASE)) == ["video.sizes: [[17, 32], [1, 32, 2]] -> ()"]


def test_json_gives_the_same_experiment_and_refuses_what_it_does_not_know(tmp_path):
    experiment = override(BASE, {"decoder.frozen": "encoder", "video.optimizer.learning_rate": "1", "seed": "5"})
    save_config(experiment, tmp_path / "config.json")
    tree = json.loads((tmp_path / "config.json").read_text())
    assert from_dict(Experiment, tree) == experiment
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    del tree["video"]  # written before there was this stage: its defaults
    assert from_dict(Experiment, tree).video == BASE.video
    with pytest.raises(ConfigError, match="config.image.optimizer.momentum; did you mean 'momentum_dtype'"):
        tree["image"]["optimizer"]["momentum"] = 0.9
        from_dict(Experiment, tree)
    with pytest.raises(ConfigError, match="config must be a group of settings, got 3"):
        from_dict(Experiment, 3)
    for part, says in (
        ({"seed": "1"}, "config.seed must be an integer, got '1'"),
        ({"video": {"steps": 1e4}}, "config.video.steps must be an integer, got 10000.0"),
        ({"video": {"images": 0}}, "config.video.images must be true or false, got 0"),
        ({"video": {"frozen": "encoder"}}, "config.video.frozen must be a tuple of names, got 'encoder'"),
        ({"vae": 3}, "config.vae must be a group of settings, got 3"),
    ):
        with pytest.raises(ConfigError, match=says):
            from_dict(Experiment, part)


def test_differences_are_named_leaf_by_leaf():
    new = override(BASE, {"seed": "4", "video.objective.gan": "0.5", "decoder.frozen": "encoder"})
    through_json = json.loads(json.dumps(to_dict(BASE)))
    assert differences(through_json, to_dict(BASE)) == []
    assert differences(through_json, to_dict(new)) == [
        "decoder.frozen: ['encoder', 'pad'] -> ('encoder',)",
        "seed: 0 -> 4",
        "video.objective.gan: 0.0 -> 0.5",
    ]


def test_flags_and_overrides_are_parted():
    argv = ["--workdir", "w", "--config.a.b=1", "--config=x.py", "-config.c", "2", "--config.d=e=f", "clip.mp4"]
    rest, overrides = parse_overrides(argv)
    assert rest == ["--workdir", "w", "--config=x.py", "clip.mp4"]
    assert overrides == {"a.b": "1", "c": "2", "d": "e=f"}
    with pytest.raises(ConfigError, match="--config.seed needs a value: --config.seed=VALUE"):
        parse_overrides(["--config.seed"])
