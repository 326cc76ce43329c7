"""`python -m studies.arena`: the same clips everywhere, files that are checked, and scores that tell good from bad."""

import dataclasses
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
from studies.arena.protocol import (
    ENDS,
    MANIFEST,
    TRACKS,
    Drawn,
    array_hash,
    load_latents,
    read_clips,
    write_clips,
)
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
    """An entry of track `tiny` as if it were one of `cpu`, of all clips."""
    settings = json.loads(json.dumps(dataclasses.asdict(TRACKS["cpu"])))
    seeds = [tree["seeds"][0] | {"seed": seed, "kept": 0.1 * seed} for seed in settings["seeds"]]
    kept = interval([seed["kept"] for seed in seeds], settings["samples"])
    skill = interval([seed["skill"]["energy"] for seed in seeds])
    ends = tree["ends"] | ENDS
    told = {"track": "cpu", "settings": settings, "seeds": seeds, "kept": kept, "skill": skill, "ends": ends}
    return tree | told | {"clips": MANIFEST}


def test_clips_are_the_same_everywhere(clips, tmp_path):
    assert clips.manifest["hash"] == HASH == array_hash(clips.video, clips.label)
    assert write_clips(tmp_path / "few", train=8, test=4).video.shape == (12, 17, 24, 24, 3)
    np.testing.assert_array_equal(read_clips(tmp_path / "few").video[:8], clips.video[:8])
    assert clips.laws == ("bounce", "orbit", "fall", "swing")


def test_an_entry_is_made_of_its_files(entry, clips):
    tree = json.loads((entry / "entry.json").read_text())
    page.check_entry(of_the_protocol(tree))
    with pytest.raises(ConfigError, match=f"encoded clips .*{HASH}.*, expected"):
        page.check_entry(of_the_protocol(tree) | {"clips": tree["clips"]})
    with pytest.raises(ConfigError, match="expected track cpu or gpu, got tiny"):
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
    assert interval([0.2, 0.4, 0.3])["low"] == pytest.approx(0.3 - 4.303 * 0.1 / 3**0.5, abs=1e-4)
    assert interval([0.3, 0.3, 0.3], clips=100)["high"] == pytest.approx(
        0.3 + 1.96 * (0.3 * 0.7 / 300) ** 0.5, abs=1e-3
    )
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
    for step in (score, lambda folder, *rest: train(folder / "latents.npz", *rest)):
        with pytest.raises(ConfigError, match=r"sampled-0.npz was drawn for latents \w+, expected \w+: name another"):
            step(tmp_path, clips, "tiny")
        with pytest.raises(
            ConfigError, match=r"sampled-0.npz was drawn for track tiny, expected cpu: give the same --tr"
        ):
            step(tmp_path, clips, "cpu")
    np.savez(tmp_path / "latents.npz", mean=mean)
    np.savez(tmp_path / "generated-0.npz", video=np.zeros((7, 17, 24, 24, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"expected video \(8, 17, 24, 24, 3\) uint8 .*, got \(7, 17"):
        score(tmp_path, clips, "tiny")
    (tmp_path / "generated-0.npz").unlink()
    assert run_command(command, "arena", ["score", str(tmp_path), f"--clips={folder}", "--track=tiny"]) == 2
    assert "generated-0.npz does not exist: decode `latents` of the `sampled` file" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text((folder / "manifest.json").read_text())
    np.savez(tmp_path / "clips.npz", video=clips.video[::-1], label=clips.label)
    with pytest.raises(ConfigError, match=f"has hash .*, expected {HASH}"):
        read_clips(tmp_path)


def test_what_is_drawn_is_of_its_seed_and_complete(entry, clips, tmp_path):
    for name in ("latents", "reconstructed", "sampled-0", "generated-0"):
        (tmp_path / f"{name}.npz").write_bytes((entry / f"{name}.npz").read_bytes())
    with pytest.raises(ConfigError, match="sampled-0.npz was drawn for seed 0, expected 1"):
        Drawn(json.loads((entry / "entry.json").read_text())["latents"]["hash"], "tiny", 1, False).check(
            tmp_path / "sampled-0.npz"
        )
    drawn = dict(np.load(entry / "sampled-0.npz"))
    for latents, message in ((drawn["latents"][:4], "expected latents .8, 5"), (drawn["latents"] * np.nan, "has NaN")):
        np.savez(tmp_path / "sampled-0.npz", **drawn | {"latents": latents})
        with pytest.raises(ConfigError, match=message):
            score(tmp_path, clips, "tiny")
    (tmp_path / "sampled-0.npz").unlink()
    train(tmp_path / "latents.npz", clips, "tiny")
    assert not (tmp_path / "generated-0.npz").exists(), "it was decoded from other latents"


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_damaged_files_are_told(entry, clips, folder, tmp_path, damage):
    for name in ("latents", "reconstructed", "sampled-0", "generated-0"):
        (tmp_path / f"{name}.npz").write_bytes((entry / f"{name}.npz").read_bytes())
    for name in ("reconstructed", "generated-0", "sampled-0"):
        path = tmp_path / f"{name}.npz"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
        with pytest.raises(ConfigError, match=f"{name}.npz: .*; write it again"):
            score(tmp_path, clips, "tiny")
        path.write_bytes(whole)
    (tmp_path / "clips.npz").write_bytes((folder / "clips.npz").read_bytes()[:99] if damage is None else damage)
    for manifest, message in (((folder / "manifest.json").read_text(), "clips.npz: "), ("[1]", "json is damaged")):
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(ConfigError, match=message):
            read_clips(tmp_path)


def test_nothing_is_written_over(entry, clips, folder, tmp_path, capsys):
    small = ["--train=4", "--test=2"]
    assert run_command(command, "arena", ["clips", str(folder), *small]) == 2
    assert "holds other clips (24 + 16): name another folder" in capsys.readouterr().err
    assert run_command(command, "arena", ["clips", str(folder), "--train=24", "--test=16"]) == 0, "the same ones"
    with pytest.raises(ConfigError, match="has latents of .*pooled.*expected .*dct.*: name another folder"):
        entries.enter("dct", entry, clips, "tiny", load_study("study_motion", tiny=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "x", "--rotate"], "`score` takes no --rotate"),
        (["enter", "pooled", "--name=x"], "`enter` takes no --name"),
        (["clips", "x", "--out=y"], "`clips` takes no --out"),
        (["page", "--track=cpu"], "`page` takes no --track: its flags are none"),
        (["train", "x", "--clips=~/c"], "no shell has replaced its ~"),
        (["clips", "OUT", "--data=plain:jump"], "--data: plain:jump: the families of motion"),
        (
            ["score", "ENTRY", "--clips=CLIPS", "--track=tiny", "--name=a|b"],
            "letters, digits, dots and dashes, got 'a|b'",
        ),
        (["enter", "dct", "--clips=CLIPS", "--out=OUT", "--vaes=OUT"], "dct has no VAE: leave out --vaes"),
    ],
)
def test_what_a_step_cannot_use_is_refused(entry, folder, tmp_path, capsys, arguments, message):
    for name, path in (("OUT", tmp_path / "out"), ("ENTRY", entry), ("CLIPS", folder)):
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert run_command(command, "arena", arguments) == 2
    assert message in capsys.readouterr().err


def test_stored_entries_can_stand_beside_each_other(entry, tmp_path):
    """What a pull request with an entry is held to."""
    assert page.table(page.read_entries()) in page.DOCUMENT.read_text(), "python -m studies.arena page"
    good = of_the_protocol(json.loads((entry / "entry.json").read_text()))
    path = tmp_path / "pooled.json"
    path.write_text(json.dumps(good))
    assert len(page.read_entries(tmp_path)) == 1
    forged = good["kept"] | {"mean": 0.9}
    for change, message in (
        ({"protocol": 0}, "expected protocol 1, got 0"),
        ({"track": "mine"}, "expected track cpu or gpu, got mine"),
        ({"seeds": []}, "settings or seeds"),
        ({"settings": {}}, "settings or seeds"),
        ({"kept": forged}, "its seeds make"),
        ({"skill": {"mean": float("nan"), "low": 0, "high": 0}}, "its seeds make"),
        ({"clips": MANIFEST | {"train": 4_600, "test": 8}}, "encoded clips"),
        ({"ends": good["ends"] | {"real": 0.5}}, "ends are"),
        ({"name": "mine"}, "name the file mine.json"),
        ({"name": "a\n# b"}, "letters, digits"),
        ({"reconstruction": []}, "is no entry"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ConfigError, match=f"pooled.json.*{message}"):
            page.read_entries(tmp_path)
    for text in ("", "[1]", "{", json.dumps({key: part for key, part in good.items() if key != "measures"})):
        path.write_text(text)
        with pytest.raises(ConfigError, match="pooled.json is no entry .*: copy the entry.json"):
            page.read_entries(tmp_path)


def test_an_entry_takes_the_vae_that_the_motion_study_trained(clips, monkeypatch, tmp_path):
    study, opened = load_study("study_motion", tiny=True), []

    def record(experiment, folder):
        opened.append(folder)
        raise InterruptedError

    monkeypatch.setattr(entries, "open_run", record)
    for name, vaes in (("baseline", tmp_path), ("rotated", tmp_path), ("wan", tmp_path), ("baseline", None)):
        with pytest.raises(InterruptedError):
            entries.enter(name, tmp_path / "out", clips, "tiny", study, vaes)
    trained = tmp_path / study.cell(study.row("Baseline"), 0).vae
    assert opened[:2] == [trained, trained] and opened[3] == tmp_path / "out" / "vae"
    assert opened[2].parent == tmp_path and opened[2] != trained, "another network is another VAE"


@pytest.mark.slow
def test_the_clips_of_the_protocol_have_its_hash(tmp_path):
    assert write_clips(tmp_path).manifest == MANIFEST


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
