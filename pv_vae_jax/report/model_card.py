"""The page of a published model: what it was trained on, what it scored under which protocol, and how to load it."""

import json
from pathlib import Path
from typing import Any

import jax

from pv_vae_jax.model import Model
from pv_vae_jax.params_io import weights_hash
from pv_vae_jax.storage import is_remote
from pv_vae_jax.typing import VAE_STAGES

FRONT = """\
---
{license}library_name: pv_vae_jax
tags:
- jax
- flax
- video
- video-vae
---
"""
JAX = """\
## In JAX

```python
from pv_vae_jax import load  # installed with its extra `hub`: pip install '.[hub]' in a clone

model = load("hf://{repository}")
latents = model.encode(video)  # (b, 1 + {p_t} n, H, W, 3) uint8, sides multiples of {p_s} -> (b, 1 + n, h, w, {z})
shown = model.decode(latents)
```
"""
DIFFUSERS = """\
## In diffusers

```python
from diffusers import AutoencoderKLWan

vae = AutoencoderKLWan.from_pretrained("{repository}", subfolder="diffusers")
```
"""


def model_card(
    model: Model, repository: str, *, run: Path | None, trained_on: str = "", license: str = "", diffusers: bool = False
) -> str:
    """Markdown for the model's page.

    Scores are those in the report of the run that were measured with these very weights, and those that `pv-vae
    evaluate --out` wrote beside it, each with its protocol.

    Args:
      model: the model.
      repository: `OWNER/NAME`.
      run: work directory that it comes from, if there is one.
      trained_on: what it was trained on, in the words of who publishes it.
      license: identifier of the licence of the weights, such as `apache-2.0`.
      diffusers: whether the folder `diffusers` beside it holds the same weights for `AutoencoderKLWan`.
    """
    config, networks = model.vae.config, {"VAE": model.vae_params}
    if model.diffusion is not None:
        networks["transformer"] = model.diffusion.params
    hashes = {name: weights_hash(params) for name, params in networks.items()}
    facts = {name: f"{_count(params):,} parameters, hash {hashes[name]}" for name, params in networks.items()}
    facts["latents"] = f"1 + n frames of 1 + {config.time_factor} n, 1/{config.space_factor} of each side, "
    facts["latents"] += f"{config.latent_channels} channels"
    facts |= {"trained on": trained_on} if trained_on else {}
    facts |= _training(json.loads((run / "config.json").read_text()), model) if run else {}
    facts |= {name: str(value) for name, value in model.meta.items() if name not in ("weights", "latent_statistics")}
    scores, cards = _scores(run / "report", set(hashes.values())) if run else ([], [])
    where = {"repository": repository, "p_t": config.time_factor, "p_s": config.space_factor}
    parts = [
        FRONT.format(license=f"license: {license}\n" if license else ""),
        f"# {repository.partition('/')[2]}\n\nA video VAE ({config.name}) of pv_vae_jax"
        + (", with a latent diffusion transformer.\n" if model.diffusion is not None else ".\n"),
        JAX.format(**where, z=config.latent_channels),
        DIFFUSERS.format(**where) if diffusers else "",
        "## Facts\n\n" + _table(("", ""), list(facts.items())),
        "## Scores\n\n" + (_table(("score", "value", "of"), scores) if scores else "None was measured.\n"),
        *cards,
    ]
    return "\n".join(part for part in parts if part)


def _training(config: dict[str, Any], model: Model) -> dict[str, str]:
    """What the configuration of a run says about the training of `model`, which need not be that of its last stage."""
    data = config["data"]
    facts = {"data": f"{_bare(data['source'])}: {data['frames']} frames, size {data['size']}, stride {data['stride']}"}
    last = VAE_STAGES.index(model.meta.get("stage", VAE_STAGES[-1]))
    stages = [stage for stage in VAE_STAGES[: last + 1] if config[stage]["steps"]]
    # What came before a stage that started from elsewhere is not in these weights.
    begin = max((i for i, stage in enumerate(stages) if config[stage].get("init_from")), default=0)
    for stage in stages[begin:] + (["diffusion"] if model.diffusion is not None else []):
        start = config[stage].get("init_from")
        facts[f"stage {stage}"] = f"{config[stage]['steps']:,} steps, batches of {config[stage]['batch_size']}"
        facts[f"stage {stage}"] += f", from {_bare(start)}" if start else ""
    return facts | {"seed": str(config["seed"])}


def _scores(report: Path, hashes: set[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows of the table of scores, and the protocol of each as a block that unfolds."""
    rows, cards = [], []
    for path in sorted(report.glob("*.json")):
        found = json.loads(path.read_text())
        if isinstance(found, list):  # of `evaluate --real --fake --out`
            for score in found:
                rows.append((score["name"], f"{score['value']:.5g}", f"{_sets(score['card'])}, {path.name}"))
            cards += [_unfolding(f"{score['name']}, {path.name}", score["card"]) for score in found]
        elif path.name == "metrics.json":
            own = _own_scores(found, hashes)
            rows += own
            kept = ("protocol", "versions", "devices", "date")
            cards += [_unfolding(path.name, {name: found[name] for name in kept})] if own else []
    return rows, cards


def _sets(card: dict[str, Any]) -> str:
    """The sets that a score compares, so that nobody takes it for one of other clips."""
    return " against ".join(_bare(card[side]["set"]) for side in ("fake", "real") if side in card)


def _own_scores(metrics: dict[str, Any], hashes: set[str]) -> list[tuple[str, str, str]]:
    """Rows of a run's report that belong to weights with one of these hashes."""
    rows = []
    for name, stage in metrics["stages"].items():
        if stage["weights"] in hashes:
            numbers = {"PSNR, dB": stage["psnr_db"], "SSIM": stage["ssim"]}
            if stage["prediction"]:
                numbers["squared error on withheld frames"] = stage["prediction"]["average"]
            rows += [(score, f"{value:.5g}", f"{name}, {stage['scored']}") for score, value in numbers.items() if value]
    samples = metrics["samples"] or {}
    if samples.get("weights") in hashes:
        for clips, distances in (samples.get("distances") or {}).items():
            rows += [(score, f"{value:.5g}", clips) for score, value in distances.items() if value is not None]
    return rows


def _unfolding(title: str, card: Any) -> str:
    text = json.dumps(_bare(card), indent=1)
    return f"<details><summary>Protocol: {title}</summary>\n\n```json\n{text}\n```\n\n</details>\n"


def _bare(tree: Any) -> Any:
    """`tree` with the names alone of files and folders, whose places belong to the machine that measured."""
    if isinstance(tree, dict):
        return {name: _bare(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_bare(value) for value in tree]
    return Path(tree).name if isinstance(tree, str) and (Path(tree).is_absolute() or is_remote(tree)) else tree


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
