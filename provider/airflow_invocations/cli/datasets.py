"""The command `invocations dataset`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import Commands, add_group, add_json, add_org, add_verb, format_rows, needs_extra, print_lines


def add_dataset(commands: Commands) -> None:
    """Add `invocations dataset` and its verbs."""
    verbs = add_group(
        commands,
        "dataset",
        purpose="list the server's datasets, and create one from a folder",
        description="Manage the datasets of a local server's data folder, also while the server runs. A "
        "dataset is a folder of files with metadata and tags. A change in the folder changes the dataset.",
        example="invocations dataset add drives /data/drives\n"
        "then, in a DAG: InvokeActionOperator(data_source_id='ds_...', input_data=['**/*.mcap'], ...)",
    )
    listing = add_verb(
        verbs, "list", purpose="list ids, names and folders", example="invocations dataset list --json"
    )
    add_org(listing)
    add_json(listing)
    listing.set_defaults(run=_list)
    adding = add_verb(
        verbs,
        "add",
        purpose="create a dataset from an existing folder, and print its id",
        description="Create a dataset from an existing folder. Nothing is copied: actions read copies of its "
        "files, never the files themselves. Outputs that are uploaded to the dataset are written to the "
        "folder. Entries that are left out, such as symbolic links, are counted on stderr.",
        example="invocations dataset add drives /data/drives",
    )
    adding.add_argument("name", type=_dataset_name, help="the dataset's name; it must be unique")
    adding.add_argument("folder", type=Path, help="the folder that contains the files")
    add_org(adding)
    adding.set_defaults(run=_add)


@needs_extra("server")
def _list(options: argparse.Namespace) -> int:
    from ..server.admin import describe_datasets

    return print_lines(
        options, lambda: format_rows(options, describe_datasets(options.data_dir, options.org))
    )


@needs_extra("server")
def _add(options: argparse.Namespace) -> int:
    from ..server.admin import add_dataset

    def notice(text: str) -> None:
        print(f"invocations dataset: {text}", file=sys.stderr)  # noqa: T201

    def add() -> list[str]:
        return [add_dataset(options.data_dir, options.name, options.folder, options.org, notice)]

    return print_lines(options, add)


def _dataset_name(text: str) -> str:
    if not 0 < len(text) <= 120:
        raise argparse.ArgumentTypeError("a dataset's name has 1 to 120 characters")
    return text
