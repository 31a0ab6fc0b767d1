"""Profiles and plans that were made on the way, kept for the next time in the user's cache folder.

Nothing depends on it: what is missing or damaged is made again, and what cannot be written is made again next time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..errors import MachineError, UserError
from ..machine import cache_folder
from ..plan import Plan
from ..weights.neuron_profile import Profile
from ..weights.whole_files import write_whole

log = logging.getLogger("prosparse")


class PlanCache:
    """Of one model.

    Args:
        model: fingerprint of the architecture.
        content: `content_key` of the weights.
    """

    def __init__(self, model: str, content: str) -> None:
        self.folder = cache_folder() / "plans" / f"{model}-{content}"

    def profile(self) -> Profile | None:
        """The profile that was made of the packaged text."""
        path = self.folder / "profile.safetensors"
        try:
            return Profile.load(path) if path.exists() else None
        except (UserError, OSError) as fault:  # of a folder that may not be looked into
            log.warning("%s; it is made again", fault)
            return None

    def keep_profile(self, profile: Profile) -> None:
        self._keep(lambda: profile.save(self.folder / "profile.safetensors"))

    def plan(self, key: str) -> Plan | None:
        """The plan that was kept under this key."""
        path = self.folder / f"{key}.json"
        try:
            return Plan.load(path) if path.exists() else None
        except (UserError, OSError) as fault:
            log.warning("%s", fault)
            return None

    def keep_plan(self, key: str, plan: Plan) -> None:
        self._keep(lambda: write_whole({self.folder / f"{key}.json": plan.to_json().encode()}))

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except MachineError as fault:
            log.warning("cache: %s; PROSPARSE_CACHE names another folder, without it this is made again", fault)
