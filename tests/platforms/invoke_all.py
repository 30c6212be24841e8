"""A process that invokes all it is told to, when it is told to: SETTINGS [[action, request], ...]."""

from __future__ import annotations

import asyncio
import json
import sys

from airflow_invocations.models import InvocationRequest
from airflow_invocations.platforms.pynenc.platform import PynencPlatform
from airflow_invocations.platforms.pynenc.settings import PynencSettings


async def main(settings: str, asked: str) -> None:
    async with PynencPlatform(PynencSettings(**json.loads(settings))) as platform:
        requests = [(action, InvocationRequest.model_validate(wire)) for action, wire in json.loads(asked)]
        print("ready", flush=True)
        sys.stdin.readline()
        records = [await platform.invoke(action, request) for action, request in requests]
    print(json.dumps([record.invocation_id for record in records]))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
