"""One description of an experiment, whichever back end runs it: configuration, flags, sweep, restarts, environment.

Every back end takes the flags of `make_parser`. Flags that the launcher does not know are passed on to `pv-vae train`,
so `--config.image.steps=200` and `--stage video` work everywhere. `@FILE` reads flags from a file.

Processes of one run find each other through three variables, `COORDINATOR`, `COUNT` and `INDEX`; on several hosts with
TPUs the flag `AUTO` lets JAX ask the machine. Launchers need the standard library only, and import nothing of the
package.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from xla_flags import SETS, VARIABLES

# JAX reads the first. It has no variable for the others, named after arguments of jax.distributed.initialize.
COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # host:port of process 0
COUNT = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
AUTO = "--coordinator=auto"  # flag of pv-vae train
WRONG_CALL = 2  # exit status of pv-vae for a wrong call or setting, which another try would not fix

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@dataclasses.dataclass(frozen=True)
class Run:
    """One point of the sweep.

    Attributes:
      index: index in the sweep.
      name: settings of the point, such as `video.drop_ratio=0.5,seed=1`; "" without a sweep.
      arguments: arguments of the Python interpreter, `-m pv_vae_jax train ...`.
    """

    index: int
    name: str
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment and how to run it.

    Attributes:
      name: a DNS label, used in job names.
      config: experiment file with `get_config()`, or the bare name of a shipped one.
      workdir: folder of the run, or of all runs of a sweep.
      flags: further flags of `pv-vae train`.
      sweep: `{key: value}` of every point; one empty point without a sweep.
      restarts: how often a run that failed is started again, from its newest checkpoint.
      environment: environment variables of the processes.
    """

    name: str
    config: str
    workdir: str
    flags: tuple[str, ...] = ()
    sweep: tuple[dict[str, str], ...] = ({},)
    restarts: int = 0
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def runs(self) -> list[Run]:
        """The points of the sweep, each in its own folder."""
        return [self._run(index, point) for index, point in enumerate(self.sweep)]

    def label(self, run: Run) -> str:
        """DNS label of a run: the experiment's name, and the run's index in a sweep."""
        return f"{self.name}-{run.index}" if len(self.sweep) > 1 else self.name

    def _run(self, index: int, point: dict[str, str]) -> Run:
        name = name_of(point)
        folder = f"{self.workdir.rstrip('/')}/{name}" if name else self.workdir
        swept = [f"--{key}={value}" for key, value in point.items()]
        train = ["-m", "pv_vae_jax", "train", "--config", self.config, "--workdir", folder]
        return Run(index, name, (*train, *swept, *self.flags))


def grid(sweep: list[str]) -> tuple[dict[str, str], ...]:
    """All combinations of `config.KEY=A,B,C` entries; see `values_of`.

    Raises:
      ValueError: an entry has another form, a key or a value occurs twice, or two runs would share a folder.
    """
    axes: list[list[tuple[str, str]]] = []
    for entry in sweep:
        key, _, values = entry.partition("=")
        if not values or not re.fullmatch(r"config(\.[A-Za-z_]\w*)+", key):
            raise ValueError(f"--sweep must be config.KEY=VALUE,VALUE, got {entry!r}")
        chosen = list(values_of(values))
        if "" in chosen:
            raise ValueError(f"--sweep {entry} has an empty value between its commas: remove it")
        if key in (axis[0][0] for axis in axes):
            raise ValueError(f"--sweep names {key} twice: give all its values in one")
        axes.append([(key, value) for value in chosen])
    points = tuple(dict(point) for point in itertools.product(*axes))
    names = [name_of(point) for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--sweep: two runs would share the folder {twice[0]}")
    return points


def values_of(text: str) -> Iterator[str]:
    """Split at commas outside brackets and quotes; quotes around a value are removed.

    Raises:
      ValueError: a bracket or a quote is not closed.
    """
    value, depth, quote = "", 0, ""
    for letter in text:
        if letter == quote:
            quote = ""
        elif quote:
            value += letter
        elif letter in "\"'" and not depth:
            quote = letter
        elif letter == "," and not depth:
            yield value
            value = ""
        else:
            depth += (letter in "([{") - (letter in ")]}")
            value += letter
    if quote or depth:
        raise ValueError(f"--sweep: a quote or a bracket of {text} is not closed")
    yield value


def name_of(point: dict[str, str]) -> str:
    """Folder of a point, such as `video.drop_ratio=0.5,seed=1`."""
    return ",".join(f"{key.removeprefix('config.')}={value}".replace("/", "_") for key, value in point.items())


def dns_label(text: str, longest: int = 40) -> str:
    """`text` as a name that Kubernetes accepts: lower case, digits and dashes, a letter first.

    Pods append up to 20 characters, and the limit is 63.
    """
    label = re.sub(r"[^a-z0-9]+", "-", text.lower())[:longest].strip("-")
    return label if label[:1].isalpha() else f"run-{label}".strip("-")


def merged(*environments: dict[str, str]) -> dict[str, str]:
    """Variables of several sources: the last value wins, but compiler flags are joined."""
    total: dict[str, str] = {}
    for environment in environments:
        for name, value in environment.items():
            total[name] = f"{total[name]} {value}" if name in VARIABLES and name in total else value
    return total


def make_parser(description: str, *, restarts: int = 0) -> argparse.ArgumentParser:
    """A parser with the flags that every back end shares; `restarts` is the back end's default."""
    formatter = argparse.RawDescriptionHelpFormatter
    # Without abbreviations, or a flag of pv-vae could be taken for the beginning of one of these.
    parser = argparse.ArgumentParser(
        description=description, formatter_class=formatter, allow_abbrev=False, fromfile_prefix_chars="@"
    )

    def words(line: str) -> list[str]:
        try:
            return shlex.split(line, comments=True)
        except ValueError as error:
            parser.error(f"{error} in the line {line!r}")

    parser.convert_arg_line_to_args = words
    parser.add_argument("--config", required=True, help="experiment file, or the name of a shipped one, such as demo")
    parser.add_argument("--workdir", required=True, help="folder of the run, or of all runs of a sweep")
    parser.add_argument("--name", help="name of the job (default: the last part of --workdir)")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="config.KEY=A,B", help="values; repeat for a grid"
    )
    parser.add_argument(
        "--restarts", type=int, default=restarts, help=f"restarts of each run after a failure (default {restarts})"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable")
    parser.add_argument(
        "--xla-set", action="append", default=[], choices=sorted(SETS), help="compiler flags, see launch/xla_flags.py"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and exit")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str], **least: float) -> tuple[Experiment, argparse.Namespace]:
    """The experiment and the back end's own flags; exits with status 2 and a message if the call is wrong.

    `least` holds the smallest values that the back end's own numbers may have. The number of slices, of a back end that
    has any, goes to the mesh.
    """
    args, flags = parser.parse_known_args(argv)
    if empty := [f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value == ""]:
        parser.error(f"{empty[0]} must not be empty")
    for flag, low in {"restarts": 0, **least}.items():
        if (value := getattr(args, flag)) is not None and value < low:
            parser.error(f"--{flag.replace('_', '-')} must be at least {low}, got {value}")
    if "://" in args.workdir and not re.match("gs://[^/]", args.workdir):
        parser.error(
            f"--workdir must be a path that all processes share, or gs://BUCKET/FOLDER, got {args.workdir}: mount the "
            "bucket (docs/buckets.md has the commands) and name the mounted folder"
        )
    if stray := [flag for flag in flags[:1] if not flag.startswith("-")]:
        parser.error(f"unknown argument {stray[0]!r}: write flags of pv-vae train as --NAME=VALUE")
    environment = merged(*({SETS[name].variable: " ".join(SETS[name].flags)} for name in args.xla_set))
    for entry in args.env:
        name, equals, value = entry.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            parser.error(f"--env must be NAME=VALUE, got {entry!r}")
        environment = merged(environment, {name: value})
    if getattr(args, "slices", 1) > 1:
        flags.append(f"--config.mesh.dcn_data={args.slices}")
    try:
        sweep = grid(args.sweep)
    except ValueError as error:
        parser.error(str(error))
    folders = "".join([args.workdir, *map(name_of, sweep)])
    if folders.startswith("gs://") and (found := re.search(r"[*?#\[\]]", folders)):
        means = "which has a meaning of its own in buckets"
        parser.error(f"--workdir and --sweep must not hold {found[0]}, {means}: write a list as (A,B)")
    given = {flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("-")}
    if both := sorted(given & set(sweep[0])):
        parser.error(f"--{both[0]} is both swept and set, which would win in every run: remove one")
    name = dns_label(args.name or PurePosixPath(args.workdir).name or "pv-vae")
    experiment = Experiment(name, args.config, args.workdir, tuple(flags), sweep, args.restarts, environment)
    return experiment, args


def require_config(parser: argparse.ArgumentParser, experiment: Experiment) -> None:
    """Exit with status 2 unless the experiment is a file here, or shipped; for runs that read it from this clone."""
    if not Path(experiment.config).is_file() and not (EXPERIMENTS / f"{experiment.config}.py").is_file():
        parser.error(f"no experiment file {experiment.config}")


def shell_line(environment: dict[str, str], command: list[str] | tuple[str, ...]) -> str:
    """`A=1 B=2 command ...`, quoted for a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(command)])


def submit(command: list[str], text: str | None = None) -> int:
    """Run `command` with `text` as standard input; return its exit status, or 127 if it is not installed."""
    try:
        return subprocess.run(command, input=text, text=True).returncode
    except FileNotFoundError:
        print(f"launch: no command {command[0]!r} here; --dry-run prints what it would be given", file=sys.stderr)
        return 127
