"""docs/arena.md: the table and the chart of all stored entries, and the check that a new one must pass."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from pv_vae_jax.storage import write_text
from pv_vae_jax.typing import ConfigError
from studies.ablation.tables import markdown
from studies.arena.protocol import ENDS, MANIFEST, PUBLIC, TRACKS, VERSION, check_name
from studies.arena.scoring import interval

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "arena.md"
RESULTS = ROOT / "docs" / "results" / "arena"
CONTROLS, CONTROL = ("aligned", "rotated"), " (control)"  # they are no entries that could win
BEGIN, END = "<!-- entries: python -m studies.arena page -->", "<!-- end of entries -->"


def check_entry(tree: dict) -> None:
    """Refuse an entry that cannot stand beside the others.

    Raises:
      ConfigError: it is of another protocol, its settings, seeds or clips are not those of its track, or its scores do
        not follow from those of its seeds.
    """
    track = tree["track"]
    if tree["protocol"] != VERSION:
        raise ConfigError(f"expected protocol {VERSION}, got {tree['protocol']}: enter again with this version")
    if track not in PUBLIC:
        raise ConfigError(f"expected track {' or '.join(PUBLIC)}, got {track}: other tracks try the steps")
    settings = json.loads(json.dumps(dataclasses.asdict(TRACKS[track])))
    if tree["settings"] != settings or [seed["seed"] for seed in tree["seeds"]] != settings["seeds"]:
        raise ConfigError(f"settings or seeds are not those of track {track}: score it again")
    if tree["clips"] != MANIFEST:
        raise ConfigError(
            f"encoded clips {tree['clips']}, expected {MANIFEST}: those of `python -m studies.arena clips OUT`"
        )
    kept = interval([seed["kept"] for seed in tree["seeds"]], settings["samples"])
    skill = interval([seed["skill"]["energy"] for seed in tree["seeds"]])
    for name, found, wanted in (("kept", tree["kept"], kept), ("skill", tree["skill"], skill)):
        if not all(np.isclose(found[end], wanted[end]) for end in wanted):
            raise ConfigError(f"{name} is {found}, but its seeds make {wanted}: score it again")
    if {end: tree["ends"][end] for end in ENDS} != ENDS:
        raise ConfigError(f"ends are {tree['ends']}, expected {ENDS} of these clips: score it again")


def read_entries(folder: Path = RESULTS) -> list[dict]:
    """The stored entries, those that keep most laws first.

    Raises:
      ConfigError: a file holds no entry, has another name than its entry, or as `check_entry`.
    """
    trees = []
    for path in sorted(folder.glob("*.json")):
        try:
            tree = json.loads(path.read_text())
            check_entry(tree)
            if check_name(tree["name"]) != path.stem:
                raise ConfigError(f"the entry is called {tree['name']}: name the file {tree['name']}.json")
            table([tree])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ConfigError(f"{path} is no entry ({why}): copy the entry.json of `score` again") from error
        trees.append(tree)
    return sorted(trees, key=lambda tree: (PUBLIC.index(tree["track"]), -tree["kept"]["mean"]))


def table(trees: list[dict]) -> str:
    """One line an entry."""
    if not trees:
        return "No entry is stored yet."
    head = ["entry", "track", "latents of a clip", "PSNR, dB", "laws kept: reconstructed", "generated"]
    head += ["95 % of generated", "skill", "rate, nats"]
    rows = []
    for tree in trees:
        kept, rate = tree["kept"], tree["measures"]["rate_nats"].get("value")
        rows.append(
            (
                f"{tree['name']}{CONTROL * (tree['name'] in CONTROLS)}",
                tree["track"],
                " x ".join(map(str, tree["latents"]["shape"])),
                f"{tree['reconstruction']['psnr']['mean']:.2f}",
                f"{tree['ends']['reconstructed']:.3f}",
                f"{kept['mean']:.3f}",
                f"{kept['low']:.3f} to {kept['high']:.3f}",
                f"{tree['skill']['mean']:.2f}",
                "-" if rate is None else f"{rate:.0f}",
            )
        )
    ends = trees[0]["ends"]
    return f"{markdown(head, rows)}\n\nReal clips keep {ends['real']:.3f}, with shuffled frames {ends['shuffled']:.3f}."


def write_page() -> Path:
    """Put the entries into docs/arena.md, leave the rest of it as it is, and draw the chart."""
    trees, text = read_entries(), DOCUMENT.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has lost its marks, {BEGIN} and {END}")
    chart = "![Laws kept over PSNR](images/arena.svg)\n\n" if trees else ""
    lines = table(trees)
    if trees:
        draw_chart(trees, DOCUMENT.parent / "images" / "arena.svg")
    write_text(DOCUMENT, f"{head}{BEGIN}\n{chart}{lines}\n{END}{tail}")
    return DOCUMENT


def draw_chart(trees: list[dict], path: Path) -> None:
    """Generation over reconstruction, a point with its interval for each entry."""
    from pv_vae_jax.report.figures import chart_file

    points = [
        (tree["reconstruction"]["psnr"]["mean"], *(tree["kept"][k] for k in ("low", "mean", "high"))) for tree in trees
    ]
    near = 0.3 * np.ptp([x for x, *_ in points]), 0.02  # the size of a name
    with chart_file(path, "Share of generated clips that keep their law over PSNR", 504, 324) as axes:
        for tree, (x, low, y, high) in zip(trees, points, strict=True):
            axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", capsize=3)
            crowd = any(0 < u - x < near[0] and bottom - near[1] < y < top + near[1] for u, bottom, _, top in points)
            side = {"xytext": (-6, 4), "ha": "right"} if crowd else {"xytext": (6, 4)}
            axes.annotate(tree["name"], (x, y), textcoords="offset points", **side)
        axes.set_xlabel("PSNR of held-out clips, dB")
        axes.set_ylabel("share of generated clips that keep their law")
        axes.margins(x=0.12)
        axes.grid(axis="y")
