"""Versions of packages, for the records of what was measured."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("pv_vae_jax", "jax", "flax", "numpy")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Of each package; `not installed` for one that has none, as a clone on PYTHONPATH does."""
    return {package: installed_version(package) for package in packages}


def installed_version(package: str) -> str:
    """Its version, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
