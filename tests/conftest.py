"""RecBole is imported after the plugin, as in every example."""

import recbole_gmc  # noqa: F401
