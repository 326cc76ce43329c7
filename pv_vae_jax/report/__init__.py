"""Pages, charts and pictures of what was measured, on disk and in notebooks."""

from typing import TYPE_CHECKING

from pv_vae_jax._lazy import lazy_imports

if TYPE_CHECKING:  # imported on first use
    from pv_vae_jax.report.notebook import show_clips, show_curves, show_pictures
    from pv_vae_jax.report.page import unavailable
    from pv_vae_jax.report.paper import paper_table
    from pv_vae_jax.report.run_page import write_report

__all__ = [
    "paper_table", "show_clips", "show_curves", "show_pictures", "unavailable", "write_report",
]  # fmt: skip

__getattr__, __dir__ = lazy_imports(__name__)
