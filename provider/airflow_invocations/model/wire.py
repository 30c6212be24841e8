"""What every record of the invocation API has in common on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pydantic

#: The largest page that the platform answers.
MAX_PAGE_SIZE = 1000


def problems_of(errors: Iterable[Mapping[str, Any]]) -> str:
    """What pydantic found wrong, in one line: where, and what. `errors` is what its `errors()` answers."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in errors)


class WireModel(pydantic.BaseModel):
    """A JSON object of the invocation API.

    Fields that this version does not know are ignored, as the published client does, so that a newer
    platform does not break an older provider.
    """

    # Built when it is first used: a DAG file imports all of them, and uses few.
    model_config = pydantic.ConfigDict(extra="ignore", populate_by_name=True, defer_build=True)

    def wire(self) -> dict[str, Any]:
        """The JSON object to send: fields nobody set are left out (facts: Transport)."""
        return self.model_dump(mode="json", exclude_unset=True)
