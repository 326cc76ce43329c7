"""One description of an experiment, whichever back end runs it: configuration, flags, sweep, restarts, environment.

Every back end takes the flags of `make_parser`. A flag that the launcher does not know goes to `pv-vae train` as it is,
so `--config.image.steps=200` and `--stage video` work everywhere. `@FILE` reads flags from a file.

Processes of one run find each other through three variables, `COORDINATOR`, `COUNT` and `INDEX`; on several hosts with
TPUs the flag `AUTO` lets JAX ask the machine. Only the standard library is needed, nothing of the package is imported.
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

# The first is JAX's own; it has none for the others, so they carry the names of jax.distributed.initialize's arguments.
COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # host:port of process 0
COUNT = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
AUTO = "--coordinator=auto"  # of pv-vae train
WRONG_CALL = 2  # exit status of pv-vae for a call or a setting that another try cannot mend


@dataclasses.dataclass(frozen=True)
class Run:
    """One point of the sweep.

    Attributes:
      index: place in the sweep.
      name: its settings, such as `video.drop_ratio=0.5,seed=1`; "" without a sweep.
      arguments: of the Python interpreter, `-m pv_vae_jax train ...`.
    """

    index: int
    name: str
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is to be run.

    Attributes:
      name: a DNS label, for job names.
      config: experiment file with `get_config()`.
      workdir: folder of the run, or of all runs of a sweep.
      flags: further flags of `pv-vae train`.
      sweep: `{key: value}` of every point; one empty point without a sweep.
      restarts: how often a run that failed is started again. It goes on from its newest checkpoint.
      environment: variables of the processes.
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
        """DNS label of a run: the experiment's name, and the run's place in a sweep."""
        return f"{self.name}-{run.index}" if len(self.sweep) > 1 else self.name

    def _run(self, index: int, point: dict[str, str]) -> Run:
        name = name_of(point)
        folder = str(PurePosixPath(self.workdir) / name) if name else self.workdir
        swept = [f"--{key}={value}" for key, value in point.items()]
        train = ["-m", "pv_vae_jax", "train", "--config", self.config, "--workdir", folder]
        return Run(index, name, (*train, *swept, *self.flags))


def grid(sweep: list[str]) -> tuple[dict[str, str], ...]:
    """All combinations of `config.KEY=A,B,C` entries; see `values_of`.

    Raises:
      ValueError: an entry of another form, a key or a value twice, or two runs that would share a folder.
    """
    axes: list[list[tuple[str, str]]] = []
    for entry in sweep:
        key, _, values = entry.partition("=")
        if not values or not re.fullmatch(r"config(\.[A-Za-z_]\w*)+", key):
            raise ValueError(f"--sweep takes config.KEY=VALUE,VALUE, got {entry!r}")
        chosen = list(values_of(values))
        if "" in chosen:
            raise ValueError(f"--sweep {entry}: an empty value between its commas")
        if key in (axis[0][0] for axis in axes):
            raise ValueError(f"--sweep names {key} twice: give all its values in one")
        axes.append([(key, value) for value in chosen])
    points = tuple(dict(point) for point in itertools.product(*axes))
    names = [name_of(point) for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--sweep: two runs would share the folder {twice[0]}")
    return points


def values_of(text: str) -> Iterator[str]:
    """The values between commas. A comma within brackets or quotes belongs to a value; quotes around one go.

    Raises:
      ValueError: a bracket or a quote stays open.
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
        raise ValueError(f"--sweep: a quote or a bracket of {text} stays open")
    yield value


def name_of(point: dict[str, str]) -> str:
    """Folder of a point, such as `video.drop_ratio=0.5,seed=1`."""
    return ",".join(f"{key.removeprefix('config.')}={value}".replace("/", "_") for key, value in point.items())


def dns_label(text: str, longest: int = 40) -> str:
    """`text` as a name that Kubernetes takes: lower case, digits and dashes, a letter first.

    Pods append up to 20 characters, and 63 is the limit.
    """
    label = re.sub(r"[^a-z0-9]+", "-", text.lower())[:longest].strip("-")
    return label if label[:1].isalpha() else f"run-{label}".strip("-")


def merged(*environments: dict[str, str]) -> dict[str, str]:
    """Variables of several sources: the last wins, but compiler flags add up."""
    total: dict[str, str] = {}
    for environment in environments:
        for name, value in environment.items():
            total[name] = f"{total[name]} {value}" if name in VARIABLES and name in total else value
    return total


def make_parser(description: str, *, restarts: int = 0) -> argparse.ArgumentParser:
    """A parser with the flags that every back end shares; `restarts` is the back end's default."""
    formatter = argparse.RawDescriptionHelpFormatter
    # Unabbreviated, or a flag meant for pv-vae could be taken for the beginning of one of these.
    parser = argparse.ArgumentParser(
        description=description, formatter_class=formatter, allow_abbrev=False, fromfile_prefix_chars="@"
    )

    def words(line: str) -> list[str]:
        try:
            return shlex.split(line, comments=True)
        except ValueError as error:
            parser.error(f"{error} in the line {line!r}")

    parser.convert_arg_line_to_args = words
    parser.add_argument("--config", required=True, help="experiment file")
    parser.add_argument("--workdir", required=True, help="folder of the run, or of all runs of a sweep")
    parser.add_argument("--name", help="of the job (default: the last part of --workdir)")
    parser.add_argument("--sweep", action="append", default=[], metavar="config.KEY=A,B", help="repeat for a grid")
    parser.add_argument(
        "--restarts", type=int, default=restarts, help=f"starts after a failure, for each run (default {restarts})"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable of the processes")
    parser.add_argument(
        "--xla-set", action="append", default=[], choices=sorted(SETS), help="compiler flags, see launch/xla_flags.py"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[Experiment, argparse.Namespace]:
    """The experiment and the back end's own flags; a wrong call ends with status 2 and says why."""
    args, flags = parser.parse_known_args(argv)
    if empty := [f"--{name.replace('_', '-')}" for name, value in vars(args).items() if value == ""]:
        parser.error(f"{empty[0]} is empty")
    if args.restarts < 0:
        parser.error(f"--restarts is at least 0, got {args.restarts}")
    if "://" in args.workdir:
        parser.error(
            f"--workdir is a path that all processes share, got {args.workdir}: mount the bucket (gcsfuse, a "
            "persistent volume) and name the mounted folder"
        )
    if stray := [flag for flag in flags[:1] if not flag.startswith("-")]:
        parser.error(f"unknown argument {stray[0]!r}: flags of pv-vae train are written --NAME=VALUE")
    environment = merged(*({SETS[name].variable: " ".join(SETS[name].flags)} for name in args.xla_set))
    for entry in args.env:
        name, equals, value = entry.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            parser.error(f"--env takes NAME=VALUE, got {entry!r}")
        environment = merged(environment, {name: value})
    try:
        sweep = grid(args.sweep)
    except ValueError as error:
        parser.error(str(error))
    given = {flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("-")}
    if both := sorted(given & set(sweep[0])):
        parser.error(f"--{both[0]} is swept and given as well: the flag would win in every run")
    name = dns_label(args.name or PurePosixPath(args.workdir).name or "pv-vae")
    experiment = Experiment(name, args.config, args.workdir, tuple(flags), sweep, args.restarts, environment)
    return experiment, args


def require_config(parser: argparse.ArgumentParser, experiment: Experiment) -> None:
    """End the call with status 2 unless the experiment file is here; for runs that would read it from here."""
    if not Path(experiment.config).is_file():
        parser.error(f"no experiment file {experiment.config}")


def shell_line(environment: dict[str, str], command: list[str] | tuple[str, ...]) -> str:
    """`A=1 B=2 command ...`, quoted for a shell."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.items()), shlex.join(command)])


def submit(command: list[str], text: str | None = None) -> int:
    """Run `command`, with `text` as standard input; its exit status, or 127 with a hint if there is no such command."""
    try:
        return subprocess.run(command, input=text, text=True).returncode
    except FileNotFoundError:
        print(f"launch: no command {command[0]!r} here; --dry-run prints what would be handed to it", file=sys.stderr)
        return 127
