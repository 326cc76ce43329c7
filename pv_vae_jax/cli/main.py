"""`pv-vae COMMAND ...`: picks the sub-command, turns expected errors into one clear line."""

import ctypes
import importlib
import inspect
import os
import platform
import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from pv_vae_jax.messages import did_you_mean
from pv_vae_jax.storage import bucket_error, check_address, of_bucket, remedy
from pv_vae_jax.versions import installed_version

COMMANDS = {
    "train": "train a stage, or all of them",
    "prepare": "cut videos into shards of clips that training reads at random",
    "encode": "cache the latents of the training clips",
    "sample": "generate clips",
    "reconstruct": "encode and decode video files",
    "predict": "see the first frames of a video, draw the rest",
    "evaluate": "measure a run and write its report, compare several runs, or compare two sets of clips",
    "analyze": "compare the latents of one or several VAEs on the same clips",
    "convert": "turn published Wan weights into a model folder, or back",
    "publish": "put a model on the Hugging Face Hub, with a card",
    "inspect": "show configuration, parameters, FLOPs and memory, then exit",
}
# From glibc's malloc.h.
MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_MAX = -1, -4
# Commands that moved; what only answers this repository's own questions is run from a clone.
MOVED = {
    "compare": "'pv-vae evaluate A B'",
    "study": "'python -m studies.ablation', run in a clone of the repository",
    "probe": "'python -m studies.probes', run in a clone of the repository",
    "features": "'python -m studies.features', run in a clone of the repository",
    "report": "'pv-vae evaluate --workdir RUN'",
    "bench": "'python -m benchmarks', run in a clone of the repository",
}


def main(argv: Sequence[str]) -> int:
    """Run `argv[1]`; exit status 0, 1 for an error the user can mend, 2 for a wrong call, 130 or 143 if stopped."""
    name = argv[1] if len(argv) > 1 else "--help"
    if name in ("--version", "version"):
        from pv_vae_jax.versions import versions

        print(", ".join(f"{name} {found}" for name, found in versions(("pv_vae_jax", "jax")).items()))
        return 0
    if name in ("-h", "--help", "help"):
        print("usage: pv-vae COMMAND [flags]; pv-vae COMMAND --help lists the flags\n")
        print("\n".join(f"  {command:12} {text}" for command, text in COMMANDS.items()))
        return 0
    if name in MOVED:
        print(f"pv-vae: {name!r} is now {MOVED[name]}", file=sys.stderr)
        return 2
    if name not in COMMANDS:
        print(f"pv-vae: unknown command {name!r}; {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"pv_vae_jax.cli.{name}")
    return run_command(module, f"pv-vae {name}", argv[2:], long=name == "train")


def run_command(module: types.ModuleType, program: str, argv: Sequence[str], long: bool = False) -> int:
    """Parse the flags of a command and run it.

    Args:
      module: has `define_flags(values)` and `run(values)`; its docstring is the help. If `run` has a parameter
        `positional` (arguments that are no flags) or `overrides` (`--config.key=value`), it gets them; otherwise they
        are refused.
      program: how the command is called, for messages.
      argv: its arguments.
      long: whether it repeats what it computes, see `configure_cpu`.
    """
    from absl import flags

    from pv_vae_jax.data.sources import NoVideosError
    from pv_vae_jax.train.config_files import parse_overrides
    from pv_vae_jax.train.preemption import Preempted
    from pv_vae_jax.typing import ConfigError, InUseError, ShapeError

    takes, values = inspect.signature(module.run).parameters, flags.FlagValues()
    values.set_gnu_getopt()  # flags may follow file names
    flags.DEFINE_bool("help", False, "show this help", flag_values=values)
    module.define_flags(values)
    if {"-h", "-help", "--help"} & set(argv):  # before parsing, which asks for required flags
        print(f"{program}: {module.__doc__}\n{values.get_help()}")
        return 0
    try:
        rest, overrides = parse_overrides(argv)
        positional = values([program, *rest])[1:]
        if positional and "positional" not in takes:
            raise ConfigError(f"takes flags only, got {' '.join(positional)}")
        if overrides and "overrides" not in takes:
            raise ConfigError("takes no --config settings: each model and run keeps its own configuration")
        for folder in {"out", "workdir"} & set(values):
            if values[folder].present:
                check_address(f"--{folder}", values[folder].value)
    except (flags.Error, ConfigError) as error:
        missing = re.match(r"flag --(\w+)=None: ", str(error))
        if isinstance(error, flags.UnrecognizedFlagError) and "." in error.flagname:
            error = f"{error}: write settings of an experiment as --config.NAME=VALUE"
        dashed = "".join(f"; write the file as ./{name}" for name in argv if name[:1] == "-" and os.path.exists(name))
        told = f"needs --{missing[1]}: {values[missing[1]].help}" if missing else f"{error}{dashed}"
        print(f"{program}: {told}", file=sys.stderr)
        return 2
    try:
        configure_cpu(long)
        enable_compilation_cache()
        given = {"positional": positional, "overrides": overrides}
        module.run(values, **{name: value for name, value in given.items() if name in takes})
    except Preempted as stop:
        print(f"{program}: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # no error: see end_with
        raise
    except Exception as error:
        advice = advice_on(error)
        if advice is None:
            raise
        print(f"{program}: {advice}", file=sys.stderr)
        # Launchers start again what ends with 1: a disk may come back, a wrong call stays wrong.
        wrong = (ConfigError, ShapeError, NoVideosError, FileNotFoundError, ImportError)
        return 2 if isinstance(error, wrong) and not isinstance(error, InUseError) else 1
    return 0


def advice_on(error: Exception) -> str | None:
    """The message of an error that a user can mend, with what to do; None for any other, which needs its traceback."""
    text = str(error).strip()
    if of_bucket(error):
        return str(bucket_error("a bucket does not do what it was asked", error))
    # The error classes of this library are made for users, and their messages say what to do.
    if isinstance(error, (OSError, ImportError)) or type(error).__module__.startswith("pv_vae_jax."):
        bare = type(error).__module__ == "builtins" and str(error).startswith("[Errno")  # Python's own, without advice
        return f"{error}: {mend}" if bare and (mend := remedy(error)) else text or type(error).__name__
    if not isinstance(error, (RuntimeError, AssertionError)):  # JAX raises these
        return None
    wanted = os.environ.get("JAX_PLATFORMS", "")
    # Asked for a platform of which no plugin is installed, JAX fails in this function without a word.
    silent = not text and traceback.extract_tb(error.__traceback__)[-1].name == "backends"
    if silent or text.startswith("Unable to initialize backend"):
        return (
            f"{text or f'no backend for JAX_PLATFORMS={wanted} is installed'}. Install the device's build (pip install "
            "'jax[tpu]', 'jax[cuda13]' or 'jax[cuda12]'), see that its driver runs and that no other process holds the "
            "device, or unset JAX_PLATFORMS to take what there is"
        )
    if "Gloo" in text or "coordination service" in text.lower():
        return (
            f"{text.splitlines()[0]} Another process of this run ended or cannot be reached: its own last lines say "
            "why. Start all of them again; they go on from the newest checkpoint"
        )
    if "Failed to materialize symbols" in text:
        return (
            f"{text.splitlines()[0]} The system gave XLA no memory for another program. If some is left, the process "
            "has as many pieces of it as Linux allows (sysctl vm.max_map_count), and programs take some each: start "
            "the same command again"
        )
    if "RESOURCE_EXHAUSTED" in text:
        return (
            f"{text.splitlines()[0]} The device has too little memory: lower the stage's batch_size, data.size or "
            "data.frames, or split over several devices with --config.mesh.data=1 --config.mesh.fsdp=-1; pv-vae "
            "inspect shows what a step needs"
        )
    return None


def configure_cpu(long: bool = True) -> None:
    """Set XLA and the C library for CPUs as this library is tested with them. To be called before JAX starts a backend.

    What the environment sets already (`XLA_FLAGS`, `MALLOC_*`, `GLIBC_TUNABLES`) stays as it is. No flag is set for
    versions where it was not seen to work: XLA ends a process that sets a flag which it does not know.

    Args:
      long: whether the program repeats what it computes, as training does. Then convolutions run by oneDNN, where
        jaxlib has a sound one (0.12 on x86); such programs cannot be kept in the compilation cache (their
        serialisation fails in jaxlib 0.12.0). And memory that a step frees stays with the process for the next step,
        where the C library is glibc.
    """
    if not long:
        return
    if installed_version("jaxlib").startswith("0.12.") and platform.machine() in ("x86_64", "AMD64"):
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .*std::bad_alloc")
        flag, flags = "--xla_cpu_experimental_onednn_custom_call", os.environ.get("XLA_FLAGS", "")
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}=true".strip()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: it hands large buffers back to the system, which clears each page anew when the
    next step asks for it, and that took two fifths of a transformer's step."""
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith(("MALLOC_", "GLIBC_TUN")) for name in os.environ):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MALLOPT_TRIM_THRESHOLD, -1)  # never shrink the heap
        mallopt(MALLOPT_MMAP_MAX, 0)  # and put everything there


def enable_compilation_cache() -> None:
    """Keep compiled programs between processes (`PV_VAE_CACHE`, default `~/.cache/pv_vae_jax`); empty turns it off.

    So does a home that is none, as in some containers.
    """
    import jax

    home = os.path.expanduser("~").strip("/")
    folder = os.environ.get("PV_VAE_CACHE", home and os.path.expanduser("~/.cache/pv_vae_jax"))
    if folder and jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def run() -> None:
    """Entry point of the installed command."""
    end_with("pv-vae", lambda: main(sys.argv))


def run_module(program: str) -> None:
    """Entry point of the module that Python runs by `-m`, which is a command as `run_command` takes it and runs long.

    Args:
      program: `python -m` and its name.
    """
    end_with(program, lambda: run_command(sys.modules["__main__"], program, sys.argv[1:], long=True))


def end_with(program: str, work: Callable[[], int]) -> NoReturn:
    """End the process with the status that `work` returns."""
    try:
        status = work()
        sys.stdout.flush()
    except KeyboardInterrupt:  # while modules are imported
        print(f"{program}: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        status = 0
    sys.exit(status)


if __name__ == "__main__":
    run()
