"""`python -m studies.arena`: the same clips everywhere, files that are checked, and scores that tell good from bad."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pv_vae_jax.cli.main import run_command
from pv_vae_jax.typing import ConfigError
from studies.arena import __main__ as command
from studies.arena import entries, page
from studies.arena.protocol import CLIPS, TRACKS, array_hash, load_latents, read_clips, write_clips
from studies.arena.scoring import interval, score
from studies.arena.training import train
from studies.motion.plan import load_study

ROOT = Path(__file__).resolve().parents[1]
HASH = "d7e20728165c4a86"  # of 24 + 16 clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("arena") / "clips"
    assert run_command(command, "arena", ["clips", str(path), "--train=24", "--test=16"]) == 0
    return path


@pytest.fixture(scope="module")
def clips(folder):
    return read_clips(folder)


@pytest.fixture(scope="module")
def entry(folder, clips):
    """The entry `pooled` of track `tiny`."""
    out = folder.parent / "pooled"
    assert run_command(command, "arena", ["enter", "pooled", f"--clips={folder}", f"--out={out}", "--track=tiny"]) == 0
    return out


def of_the_protocol(tree: dict) -> dict:
    """`tree` as if its few clips had been all of them."""
    return tree | {"clips": tree["clips"] | {"hash": CLIPS}}


def test_clips_are_the_same_everywhere(clips, tmp_path):
    assert clips.manifest["hash"] == HASH == array_hash(clips.video, clips.label)
    assert write_clips(tmp_path / "few", train=8, test=4).video.shape == (12, 17, 24, 24, 3)
    np.testing.assert_array_equal(read_clips(tmp_path / "few").video[:8], clips.video[:8])
    assert clips.laws == ("bounce", "orbit", "fall", "swing")


def test_an_entry_is_made_of_its_files(entry, clips):
    tree = json.loads((entry / "entry.json").read_text())
    page.check_entry(of_the_protocol(tree))
    with pytest.raises(ConfigError, match=f"encoded clips {HASH}, expected"):
        page.check_entry(tree)
    assert tree["latents"]["shape"] == [5, 3, 3, 12] and not tree["latents"]["rotated"]
    assert tree["ends"]["real"] > 0.9 > tree["ends"]["shuffled"]
    assert len(tree["seeds"][0]["loss"]) == 10 and tree["measures"]["straightness"]["value"] is not None
    assert tree["measures"]["rate_nats"] == {"left_out": "needs logvar"}, "a code has no posterior, and so no rate"
    assert tree["measures"]["label_chance"]["value"] > 0
    before = (entry / "sampled-0.npz").stat().st_mtime_ns
    train(entry / "latents.npz", clips, "tiny")
    assert (entry / "sampled-0.npz").stat().st_mtime_ns == before, "drawn twice"
    table = page.table([tree])
    assert "| pooled | tiny | 5 x 3 x 3 x 12 |" in table


def test_scores_see_the_decoded_clips(entry, clips, tmp_path):
    """Real clips in the place of generated ones keep their laws; shuffled, they do not."""
    for name in ("latents", "sampled-0"):
        (tmp_path / f"{name}.npz").write_bytes((entry / f"{name}.npz").read_bytes())
    held_out = clips.video[clips.test]
    np.savez(tmp_path / "reconstructed.npz", video=held_out)
    label = np.load(entry / "sampled-0.npz")["label"]
    rows = [np.flatnonzero(clips.label == kind)[i // 4] for i, kind in enumerate(label)]
    kept = {}
    for name, video in (("real", clips.video[rows]), ("shuffled", clips.video[rows][:, ::-1][:, [*range(1, 17), 0]])):
        np.savez(tmp_path / "generated-0.npz", video=video)
        tree = score(tmp_path, clips, "tiny")
        kept[name] = tree["kept"]
        assert tree["ends"]["reconstructed"] == 1
    assert kept["real"]["mean"] == 1 and kept["shuffled"]["high"] < 1
    np.savez(tmp_path / "reconstructed.npz", video=held_out[:, ::-1])  # a ball that falls upwards keeps no law
    assert score(tmp_path, clips, "tiny")["ends"]["reconstructed"] < 1


def test_codes_without_training_decode_what_they_encode(clips):
    """Both keep a plain clip, and project: coding twice changes nothing."""
    plain = np.full((2, 17, 24, 24, 3), 77, np.uint8)
    grey = np.square(clips.video.astype(float) - 128).mean()
    for name in entries.CODES:
        encode, decode = entries._code(name, clips)
        np.testing.assert_array_equal(decode(encode(plain)["mean"]), plain)
        z = encode(clips.video)["mean"]
        assert z.shape == (40, 5, 3, 3, 12)
        assert np.square(decode(z).astype(float) - clips.video).mean() < 0.5 * grey
        np.testing.assert_allclose(encode(decode(z))["mean"], z, atol=0.35)  # rounded and clipped


def test_intervals():
    assert interval([0.2, 0.4, 0.3])["low"] == pytest.approx(0.3 - 1.96 * 0.1 / 3**0.5)
    none = interval([0.0, 0.0], clips=100)
    assert none["low"] == 0 < none["high"] < 0.05


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (dict(other=np.zeros(3)), "expected an array mean"),
        (dict(mean=np.ones((39, 5, 3, 3, 2), np.float32)), "latents of all 40 clips in their order"),
        (dict(mean=np.full((40, 5, 3, 3, 2), np.nan, np.float32)), "NaN or beyond"),
        (dict(mean=np.ones((40, 5, 3, 3, 2), np.float32)), "all latents of .* are equal"),
        (dict(mean=np.ones((40, 5, 24, 24, 1), np.float32)), "at most 1280 latent positions a clip, got 2880"),
    ],
)
def test_latents_that_do_not_fit_are_refused(clips, tmp_path, latents, message):
    np.savez(tmp_path / "latents.npz", **latents)
    with pytest.raises(ConfigError, match=message):
        load_latents(tmp_path / "latents.npz", clips)
    with pytest.raises(ConfigError, match="none.npz does not exist: encode the clips"):
        load_latents(tmp_path / "none.npz", clips)


def test_files_of_another_step_are_refused(entry, clips, folder, tmp_path, capsys):
    for path in entry.glob("*.npz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    mean = np.load(entry / "latents.npz")["mean"]
    np.savez(tmp_path / "latents.npz", mean=mean + 1)
    with pytest.raises(ConfigError, match=r"sampled-0.npz was drawn for other latents"):
        score(tmp_path, clips, "tiny")
    np.savez(tmp_path / "latents.npz", mean=mean)
    np.savez(tmp_path / "generated-0.npz", video=np.zeros((7, 17, 24, 24, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"expected video \(8, 17, 24, 24, 3\) uint8 .*, got \(7, 17"):
        score(tmp_path, clips, "tiny")
    (tmp_path / "generated-0.npz").unlink()
    assert run_command(command, "arena", ["score", str(tmp_path), f"--clips={folder}", "--track=tiny"]) == 2
    assert "generated-0.npz does not exist" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text())
    np.savez(tmp_path / "clips.npz", video=clips.video[::-1], label=clips.label)
    with pytest.raises(ConfigError, match=f"has hash .*, expected {HASH}"):
        read_clips(tmp_path)


def test_stored_entries_can_stand_beside_each_other(entry):
    """What a pull request with an entry is held to."""
    page.read_entries()
    tree = json.loads((entry / "entry.json").read_text())
    for change in ({"protocol": 0}, {"track": "mine"}, {"seeds": []}, {"settings": {}}):
        with pytest.raises(ConfigError, match="pooled: "):
            page.check_entry(of_the_protocol(tree) | change)
    text = page.DOCUMENT.read_text()
    assert page.table([t for t in page.read_entries()]).splitlines()[0] in text, "python -m studies.arena page"


def test_an_entry_takes_the_vae_that_the_motion_study_trained(monkeypatch, tmp_path):
    study, opened = load_study("study_motion", tiny=True), []

    def record(experiment, folder):
        opened.append(folder)
        raise InterruptedError

    monkeypatch.setattr(entries, "open_run", record)
    for name, vaes in (("baseline", tmp_path), ("rotated", tmp_path), ("wan", tmp_path), ("baseline", None)):
        with pytest.raises(InterruptedError):
            entries.enter(name, tmp_path / "out", None, "tiny", study, vaes)
    trained = tmp_path / study.cell(study.row("Baseline"), 0).vae
    assert opened[:2] == [trained, trained] and opened[3] == tmp_path / "out" / "vae"
    assert opened[2].parent == tmp_path and opened[2] != trained, "another network is another VAE"


@pytest.mark.slow
def test_the_clips_of_the_protocol_have_its_hash(tmp_path):
    assert write_clips(tmp_path).manifest["hash"] == CLIPS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(entries.VAES)))
def test_every_entry_of_ours_is_one_command(name, folder, tmp_path):
    arguments = [
        "enter",
        name,
        f"--clips={folder}",
        f"--out={tmp_path / name}",
        "--track=tiny",
        "--config.data.size=24",
    ]
    assert run_command(command, "arena", arguments) == 0
    tree = json.loads((tmp_path / name / "entry.json").read_text())
    page.check_entry(of_the_protocol(tree))
    assert tree["latents"]["rotated"] == (name == "rotated") and tree["measures"]["rate_nats"]["value"] > 0


@pytest.mark.slow
def test_an_entrant_needs_no_line_of_ours(folder, clips, tmp_path):
    """The example of docs/arena.md, with a Wan-shaped VAE of diffusers."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    script = ROOT / "docs" / "arena_entry.py"
    assert len(script.read_text().splitlines()) <= 40
    out = tmp_path / "wan"
    subprocess.run([sys.executable, script, "encode", folder, out], check=True, timeout=600)
    train(out / "latents.npz", clips, "tiny")
    subprocess.run([sys.executable, script, "decode", folder, out], check=True, timeout=600)
    assert len(score(out, clips, "tiny")["seeds"]) == len(TRACKS["tiny"].seeds)
