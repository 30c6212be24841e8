"""What every record of the invocation API has in common on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

#: The largest page that the platform answers.
MAX_PAGE_SIZE = 1000


#: Problems that a message lists, and characters of each.
MAX_PROBLEMS = 5
_MAX_PROBLEM = 500


def problems_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """Format pydantic's errors in one line: location and message of the first few, and how many more.

    `errors` is what its `errors()` answers.
    """
    shown = [_problem(error) for error in errors[:MAX_PROBLEMS]]
    more = len(errors) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def _problem(error: Mapping[str, Any]) -> str:
    text = f"{'.'.join(map(str, error['loc'])) or 'it'}: {error['msg']}"
    return text if len(text) <= _MAX_PROBLEM else f"{text[:_MAX_PROBLEM]}..."


class WireModel(pydantic.BaseModel):
    """A JSON object of the invocation API.

    Fields that this version does not know are ignored, as the published client does, so that a newer
    platform does not break an older provider.
    """

    # Built when it is first used: a DAG file imports all of them, and uses few.
    model_config = pydantic.ConfigDict(extra="ignore", populate_by_name=True, defer_build=True)

    def wire(self) -> dict[str, Any]:
        """Return the JSON object to send, without the fields that were not set."""
        return self.model_dump(mode="json", exclude_unset=True)
