"""docs/verdict.py: the sentences, tables and chart of docs/results.md follow the stored scores."""

import json
import re
import runpy
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.test_study import ROWS, made, store

ROOT = Path(__file__).resolve().parents[1]
VERDICT = runpy.run_path(str(ROOT / "docs" / "verdict.py"))


def row(name: str, mean: float, psnr: float = 30.0, far: bool = False, difference=None, seeds=8) -> dict:
    return {
        "against": "" if name.startswith("Baseline") and "rotated" not in name else "Baseline",
        "name": name, "seeds": list(range(seeds)), "mean": mean, "interval": [mean - 0.02, mean + 0.02], "psnr": psnr,
        "far": far, "difference": difference, "as_sampled": {"mean": mean, "difference": difference},
        "share_of_steps": [0.5] * (seeds - 1) + [0.7],
        "secondary": {"predicted": 0.6, "predicted_two": 0.2},
    }  # fmt: skip


def effect(mean: float, found: int = 1) -> dict:
    return {
        "difference": {"mean": mean, "count": 8, "low": mean - 0.01, "high": mean + 0.01},
        "distance": 0.4, "same_sign": 1.0, "found": found,
    }  # fmt: skip


def judged() -> dict:
    """As `studies.motion.rule.judge` writes it."""
    gain, won, lost, walk = effect(0.08), effect(0.2), effect(-0.1, -1), effect(0.004, 0)
    rows = [row("Baseline", 0.5), row("Whole method", 0.58, difference=gain), row("Aligned to the state", 0.7)]
    rows += [row("Baseline, rotated", 0.4), row("Baseline, walk", 0.9), row("Far row", 0.1, psnr=27.0, far=True)]
    return {
        "primary": {"equal_psnr": True, "psnr": 30.04, "real": 0.98, "shuffled": 0.01},
        "rows": rows,
        "controls": {
            "positive": {"row": "Aligned to the state", "won": True, "effect": won},
            "negative": {"row": "Baseline, rotated", "lost": False, "effect": lost},
        },
        "placebo": {"holds": True, "effect": walk},
        "effect": gain,
        "both_ends": {"psnr": 28.94, "effect": effect(0.07)},
        "verdict": "prediction makes latents easier to diffuse",
    }


def test_three_sentences_say_what_the_study_says():
    text = VERDICT["sentences"](judged(), [])
    assert text.startswith("**Prediction makes latents easier to diffuse.** ")
    assert len(re.findall(r"\.\W", f"{text} ")) == 3
    for said in (
        *("PSNR of 30.0 dB", "50.0% of the clips", "58.0% from", "(+8.0 points [7.0, 9.0], 8 seeds; at", "reach 98.0%"),
        "its own PSNR of 28.9 dB +7.0 points [6.0, 8.0], 8 seeds; as sampled, at one KL weight, +8.0 points",
        *("state of the world, wins (+20.0", "rotated latents, does not lose (-10.0", "difference is +0.4 points"),
    ):
        assert said in text, said
    partial = judged() | {"effect": None, "placebo": {"holds": None, "effect": None}}
    partial["rows"] = partial["rows"][:1]
    text = VERDICT["sentences"](partial, [])
    assert "predictive VAE" not in text and "nothing has been measured yet" in text


def test_the_sentences_take_what_the_rule_writes(tmp_path):
    """The keys are those of the real verdict, not of the tree above."""
    from studies.motion.plan import load_study
    from studies.motion.rule import Cells, judge

    study = load_study("study_motion", tiny=True)
    cell = {
        "psnr": 20.0, "generated": {"kept": 0.25, "frames": 3.0, "one_object": 1.0, "class": 0.5},
        "real": {"kept": 1.0}, "shuffled": {"kept": 0.0}, "velocity_loss": [1.0],
        "curve": {"step": [2, 4], "kept": [0.1, 0.25], "loss": [2, 1]},
    }  # fmt: skip
    tree = judge(Cells(study, {(name, seed): cell for name in ("Baseline", "Whole method") for seed in (0, 1)}))
    text, table = VERDICT["sentences"](tree, []), VERDICT["motion_table"](tree)
    assert "25.0% of the clips" in text and text.startswith("**Unfinished: ")
    assert "aligned to the state of the world, is not measured yet" in text and "As sampled, 25.0% of" in text
    assert "| Whole method | 2 | 25.0% [25.0%, 25.0%] | +0.0 points [0.0, 0.0], 2 seeds |" in table
    VERDICT["chart"](tmp_path / "chart.svg", tree, [])
    assert ElementTree.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")


def test_the_page_follows_the_study_the_pilot_and_the_ablations(tmp_path):
    results, page = tmp_path / "results", tmp_path / "results.md"
    store(results, made())
    begin = "<!-- {0}: python docs/verdict.py --page -->\nold\n<!-- end of {0} -->\n"
    page.write_text("Head.\n" + begin.format("verdict") + "Middle.\n" + begin.format("ablations") + "End.\n")
    VERDICT["write_page"](page, results)
    text = page.read_text()
    assert "is open. The study" in text and "12 cells of earlier ablations" in text and "old" not in text
    assert text.startswith("Head.\n<!--") and "\nMiddle.\n" in text and text.endswith("\nEnd.\n")
    assert (
        f"| [`made`](results/made/README.md) | 12 | {ROWS[3].removeprefix('+ ')} | 3 | -2.50 [-2.50, -2.50] | - |"
        in text
    )
    (results / "motion" / "pilot").mkdir(parents=True)
    (results / "motion" / "study.json").write_text(json.dumps(judged()))
    (results / "motion" / "pilot" / "study.json").write_text(json.dumps(judged() | {"verdict": "this size can tell"}))
    VERDICT["write_page"](page, results)
    text, drawing = page.read_text(), (tmp_path / "images" / "verdict.svg").read_text()
    assert "is open" not in text and "what-the-pilot-chose): this size can tell." in text
    assert "| Far row (far) | 8 | 10.0% [8.0%, 12.0%] | - | 10.0% | - | 27.00 | 50% | 60%, 20% |" in text
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", drawing)
    assert {"Whole method", "as sampled", "at equal PSNR"} <= set(shown)
    assert not {"Far row", "Baseline, walk", "Baseline"} & set(shown), "they are not compared with anything"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="has lost its marks"):
        VERDICT["write_page"](page, results)


def test_the_results_in_the_repository_are_those_of_the_stored_scores(tmp_path):
    docs = ROOT / "docs"
    page = shutil.copy(docs / "results.md", tmp_path)
    VERDICT["write_page"](Path(page), docs / "results")
    kept = (docs / "results.md").read_text()
    assert Path(page).read_text() == kept, "run make results"
    assert len(kept.splitlines()) <= 120
    # Places of its lines depend on matplotlib's version, its words do not.
    drawn = [(folder / "images" / "verdict.svg").read_text() for folder in (tmp_path, docs)]
    again, stored = (re.findall(r"<text[^>]*>([^<]*)</text>", drawing) for drawing in drawn)
    assert again == stored, "run make results"
