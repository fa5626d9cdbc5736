"""Property files of the plugin's models, data sets and benchmarks, installed as ``recbole_gmc.properties``."""
