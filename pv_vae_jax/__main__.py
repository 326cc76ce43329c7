"""`python -m pv_vae_jax COMMAND ...` is `pv-vae COMMAND ...`."""

from pv_vae_jax.cli.main import run

if __name__ == "__main__":
    run()
