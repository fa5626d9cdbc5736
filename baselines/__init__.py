"""Models that RecBole lacks, installed as ``recbole_gmc.baselines``."""
