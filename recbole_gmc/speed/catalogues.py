"""What the tokenizer is measured on: synthetic clusters in a file of their own, and the embeddings of real domains."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from recbole_gmc.embed.mapped import LazyVectors, MappedFile, stacked
from recbole_gmc.embed.ready import read_all, read_ids
from recbole_gmc.items import ItemIndex

DOMAINS = 4
TOPICS, CLUSTERS = 40, 1000
# Standard deviations: of clusters in a topic, of items in a cluster, and of domains, those of topics being 1; and how
# fast they fall from one direction to the next. With these PCA + residual k-means loses about as much, and lets about
# as many items collide, as on embeddings of texts.
OF_CLUSTERS, OF_ITEMS, OF_DOMAINS = 0.7, 0.35, 0.3
DECAY = 0.5
UNEVEN = 0.3  # of a Dirichlet distribution: few clusters hold most items of a domain, and other ones in each domain
BLOCK = 4096


@dataclass(frozen=True)
class Catalogue:
    """The items of several domains, and their embeddings, which stay on disk: ``vectors`` [items, D]."""

    name: str
    items: ItemIndex
    vectors: LazyVectors


def write_clusters(file: Path, count: int, width: int, seed: int) -> None:
    """Writes float16 [count, width] to a ``.npy`` file, block by block: topics, clusters in them, items in these.

    The rows of ``DOMAINS`` domains of about equal size follow each other.
    """
    rng = np.random.default_rng(seed)
    deviation = np.arange(1, width + 1, dtype=np.float32) ** -DECAY
    deviation /= np.linalg.norm(deviation)

    def draw(rows: int) -> np.ndarray:
        return rng.standard_normal((rows, width), dtype=np.float32) * deviation

    clusters = draw(TOPICS)[rng.integers(TOPICS, size=CLUSTERS)] + OF_CLUSTERS * draw(CLUSTERS)
    domains = OF_DOMAINS * draw(DOMAINS)
    shares = rng.dirichlet(np.full(CLUSTERS, UNEVEN), size=DOMAINS)
    table = open_memmap(file, mode="w+", dtype=np.float16, shape=(count, width))
    for domain, rows in enumerate(np.array_split(np.arange(count), DOMAINS)):
        for start in range(rows[0], rows[-1] + 1, BLOCK):
            size = min(BLOCK, rows[-1] + 1 - start)
            cluster = rng.choice(CLUSTERS, size=size, p=shares[domain])
            table[start : start + size] = clusters[cluster] + domains[domain] + OF_ITEMS * draw(size)
    table.flush()


def read_clusters(file: Path) -> Catalogue:
    """What ``write_clusters`` wrote."""
    vectors = stacked([(MappedFile(file), None)])
    parts = np.array_split(np.arange(len(vectors)), DOMAINS)
    items = ItemIndex.of({f"domain{number}": [f"{row:09d}" for row in part] for number, part in enumerate(parts)})
    return Catalogue(f"{len(vectors):,} synthetic, {vectors.shape[1]} dims", items, vectors)


def real_domains(folder: Path) -> Catalogue | None:
    """All domains ``<D>`` of ``folder`` with ready embeddings ``<D>/<D><ending>.npy`` and ``.ids``, united.

    Where there are several, the ending that most domains have; ``None`` where there is none.
    """
    files = {
        (file.parent.name, file.name.removeprefix(file.parent.name)): file
        for file in sorted(folder.glob("*/*.npy"))
        if file.name.startswith(file.parent.name) and file.with_suffix(".ids").is_file()
    }
    if not files:
        return None
    ending = Counter(ending for _, ending in files).most_common(1)[0][0]
    paths = {domain: str(file) for (domain, of), file in files.items() if of == ending}
    items = ItemIndex.of({domain: read_ids(Path(path).with_suffix(".ids")) for domain, path in paths.items()})
    vectors = read_all(items, paths)
    return Catalogue(f"{', '.join(paths)}: {len(items):,}, {vectors.shape[1]} dims", items, vectors)
