"""The tables of docs/performance.md, made of the result files."""

from pathlib import Path

from benchmarks import harness
from benchmarks.registry import benches, find_bench
from pv_vae_jax.storage import write_text

DOCUMENT = harness.HERE.parent / "docs" / "performance.md"
CHART = DOCUMENT.parent / "images" / "performance.svg"
BEGIN, END = "<!-- results: python -m benchmarks --page -->", "<!-- end of results -->"


def write_page() -> Path:
    """Put the tables into the document, leave the rest of it as it is, and draw its chart."""
    write_text(DOCUMENT, filled(DOCUMENT.read_text()))
    draw_chart(compared(harness.read_results(harness.RESULTS)))
    return DOCUMENT


def compared(records: list[dict]) -> dict[str, float]:
    """What took how much of the time of PyTorch or diffusers on a CPU, from the aims of all benches."""
    return {
        aim["what"].partition(": ours")[0]: aim["value"]
        for record in records
        if record.get("results") and record.get("device", {}).get("platform") == "cpu"
        for aim in record["aims"]
        if ": ours / " in aim["what"]
    }


def draw_chart(times: dict[str, float]) -> None:
    """One bar for each comparison, beside a line at 1, where both take as long."""
    from pv_vae_jax.report.figures import SOFT, chart_file

    with chart_file(CHART, "Time of ours over that of PyTorch or diffusers", 576, 30 + 20 * len(times)) as axes:
        colours = ["#2a7f62" if value <= 1 else "#b5533c" for value in times.values()]
        axes.bar_label(axes.barh(list(times), list(times.values()), color=colours), fmt="%.2f", padding=3)
        axes.axvline(1, color=SOFT[0], linewidth=1)
        axes.set_xlabel("ours over PyTorch or diffusers; below 1 ours takes less")
        axes.margins(x=0.08)
        axes.invert_yaxis()


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
