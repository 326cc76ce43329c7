"""The `pv-vae` command: one file a sub-command."""
