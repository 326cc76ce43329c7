"""Model FLOP utilisation, and a breakdown of the time of training steps."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from pv_vae_jax.sharding.hlo import step_flops
from pv_vae_jax.sharding.topology import CHIPS


@dataclasses.dataclass(frozen=True)
class Peak:
    """Published figures of one device: dense bfloat16 operations (float16 where it has no bfloat16) and bytes of its
    memory, both a second."""

    flops: float
    bandwidth: float


# Teraflops and gigabytes a second, by `device_kind`: TPUs by their full name, GPUs by the longest prefix. Sources:
# NVIDIA's data sheets "A100 Tensor Core GPU", "H100 Tensor Core GPU", "H200 Tensor Core GPU", "L4 Tensor Core GPU",
# "L40", "L40S" and "T4" (without sparsity, for which they print twice as much); Google Cloud's system architecture page
# of TPU v4, and `sharding.topology` for the later ones. A device that is missing here, such as a CPU, has no comparable
# published figure.
_GPUS = (
    *(("A100", 312, 1_555), ("A100-SXM4-80GB", 312, 2_039), ("A100-PCIE-80GB", 312, 1_935)),
    *(("A100 80GB PCIe", 312, 1_935), ("H100", 989, 3_350), ("H100 PCIe", 756, 2_000), ("H100 NVL", 835, 3_900)),
    *(("H200", 989, 4_800), ("L4", 121, 300), ("L40", 181, 864), ("L40S", 362, 864)),
)
_TPUS = {"v5 lite": "v5e", "v5e": "v5e", "v5": "v5p", "v5p": "v5p", "v6 lite": "v6e", "v6e": "v6e"}
PEAKS: dict[str, Peak] = {
    **{f"NVIDIA {name}": Peak(flops * 1e12, bytes_ * 1e9) for name, flops, bytes_ in _GPUS},
    **{"Tesla T4": Peak(65e12, 320e9), "TPU v4": Peak(275e12, 1_228e9)},
    **{f"TPU {name}": Peak(CHIPS[chip].flops, CHIPS[chip].bandwidth) for name, chip in _TPUS.items()},
}


def peak(kind: str) -> Peak | None:
    """Published figures of a device by its `device_kind`, or None for an unknown one."""
    names = [name for name in PEAKS if kind == name or (kind.startswith(name) and not kind.startswith("TPU"))]
    return PEAKS[max(names, key=len)] if names else None


def utilisation(flops: float, seconds: float, devices: int, peak: Peak) -> float:
    """Model FLOP utilisation (MFU): `flops` on all `devices` in `seconds`, as a share of the bfloat16 peak.

    Float32 counts against the same peak, so that lowering the precision shows.
    """
    return flops / (seconds * devices * peak.flops)


def model_flops(step: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of `step(*arguments)` in matrix products and convolutions, on all devices together.

    The step is traced, not compiled. Give it a network without recomputation (`without_remat`): MFU does not count
    recomputation.
    """
    return step_flops(jax.make_jaxpr(step)(*arguments).jaxpr)


def without_remat(config: Any) -> Any:
    """The configuration of a network with recomputation off, which does not change its result."""
    off = {"remat": False if isinstance(getattr(config, "remat", False), bool) else "none"}
    off |= {"remat_levels": (), "remat_blocks": ()}
    return dataclasses.replace(config, **{field: value for field, value in off.items() if hasattr(config, field)})


class StepTimer:
    """Divides a window of time among named parts; the time that no part claims is `compute`.

    timer = StepTimer()
    with timer("data"):
        batch = next(stream)
    elapsed, shares = timer.read()  # and a new window begins
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._since, self._spent = now, now(), {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Claim the time within the block for `part`."""
        begin = self._now()
        try:
            yield
        finally:
            self._spent[part] = self._spent.get(part, 0.0) + self._now() - begin

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds of the window, and the shares of its parts and of `compute`, which sum to 1; a new window begins."""
        now = self._now()
        elapsed = max(now - self._since, 1e-9)
        shares = {part: seconds / elapsed for part, seconds in self._spent.items()}
        self._since, self._spent = now, {}
        return elapsed, {"compute": max(0.0, 1.0 - sum(shares.values()))} | shares
