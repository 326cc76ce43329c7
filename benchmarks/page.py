"""The tables of docs/performance.md, made of the result files."""

from __future__ import annotations

from pathlib import Path

from benchmarks import harness
from benchmarks.registry import benches, find_bench
from pv_vae_jax.storage import write_text

DOCUMENT = harness.HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- results: python -m benchmarks --page -->", "<!-- end of results -->"


def write_page() -> Path:
    """Put the tables into the document, and leave the rest of it as it is."""
    write_text(DOCUMENT, filled(DOCUMENT.read_text()))
    return DOCUMENT


def filled(text: str) -> str:
    """`text` with what stands between the two marks made anew."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has lost its marks, {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


def tables(folder: Path = harness.RESULTS) -> str:
    """All results of benches that there are, by bench and device."""
    lines, known = benches(), list(benches())
    records = [r for r in harness.read_results(folder) if r.get("bench") in known and r.get("results")]
    records.sort(key=lambda r: (known.index(r["bench"]), r["device"]["kind"]))
    parts = ["### Aims", aims_table(records)]
    for record in records:
        name = record["bench"]
        parts += [
            f"### `python -m benchmarks {name}`, {record['device']['kind']}",
            lines[name],
            facts(record),
            find_bench(name).table(record["results"]),
        ]
    return "\n\n".join(parts)


def facts(record: dict) -> str:
    """One line on where and when a record was made."""
    device = record["device"]
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    place = device["kind"] + (f" x {device['count']}" if device["platform"] != "cpu" else "")
    threads = f", {record['threads']} threads" if record["threads"] else ""
    load = "" if record["load_before"] is None else f", load {record['load_before']} before"
    return f"{place}{threads}{load}; {versions}; {record['date'][:10]}."


def aims_table(records: list[dict]) -> str:
    """Every aim: what was measured, and whether it is met."""
    rows = []
    for record in records:
        for aim in record["aims"]:
            bound = f"at most {aim['most']:g}" if aim["most"] is not None else f"at least {aim['least']:g}"
            met = "met" if aim["met"] else "**missed**"
            rows.append((aim["what"], record["device"]["kind"], bound, f"{aim['value']:.3g}", met))
    return harness.markdown(("aim", "device", "bound", "measured", ""), rows)
