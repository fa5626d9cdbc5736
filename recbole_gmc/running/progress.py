"""How far a run has come that takes its domains one at a time, so that a stopped one can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recbole_gmc.data.atomic import hash_domains, refuse_changed
from recbole_gmc.errors import CheckpointError
from recbole_gmc.files import read_json, write_json
from recbole_gmc.places import DOMAINS_NOTE
from recbole_gmc.running.planning import Plan
from recbole_gmc.train.config_json import plain


@dataclass
class DomainsProgress:
    """A run in ``folder``: the hashes of its data when it began, and the CPU seconds that each domain has taken."""

    plan: Plan
    folder: Path
    data: Mapping[str, str]
    spent: dict[str, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, plan: Plan, folder: Path) -> DomainsProgress:
        return cls(plan, folder, hash_domains(plan.data_path, plan.domains))

    @classmethod
    def read(cls, folder: Path) -> DomainsProgress:
        """Of a run that was stopped.

        Raises:
            CheckpointError: a damaged note, or data that have changed since.
        """
        note = folder / DOMAINS_NOTE
        try:
            facts = dict(read_json(note))
            plan = Plan(facts["model"], facts["dataset"], (), dict(facts["settings"]), whole=False)
            data, spent = dict(facts["data"]), dict(facts["spent"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("the note on the run is damaged", str(note), "Start a new run") from error
        refuse_changed(plan.data_path, plan.domains, data)
        return cls(plan, folder, data, spent)

    def write(self) -> None:
        """Leaves the note."""
        settings = {name: plain(value) for name, value in self.plan.settings.items()}
        facts = {
            "model": self.plan.model,
            "dataset": self.plan.dataset,
            "settings": {name: value for name, value in settings.items() if value is not ...},
            "data": dict(self.data),
            "spent": self.spent,
        }
        write_json(self.folder / DOMAINS_NOTE, facts)


def begun(folder: Path) -> bool:
    """Whether a run that takes its domains one at a time stands there, finished or not."""
    return (folder / DOMAINS_NOTE).is_file()
