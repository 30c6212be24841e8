"""An action that records everything in its context; run once per implementation, see test_context.py.

    python observe.py MODULE < scenarios.json > observations.json

Each scenario is a set of environment variables; each runs in a separate fork, because the published
client reads its environment once per process.
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import tempfile

NAMES = json.loads(os.environ["OBSERVED_PARAMETERS"])


def outcome(ask):
    """Return the result of a call, or the class of its error."""
    try:
        return plain(ask())
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        known = ("ActionRuntimeException", "ValueError", "OSError", "TypeError", "AttributeError")
        return {"raises": next((kind for kind in known if kind in kinds), kinds[0])}


def plain(value):
    return value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)


def observe(context_class):
    seen = {}
    made = {}
    seen["made"] = outcome(lambda: made.setdefault("context", context_class.from_env()) and "yes")
    if not made:
        return seen
    context = made["context"]
    for name in (
        "dataset_id", "input_dir", "invocation_id", "is_dry_run", "log_level", "org_id", "output_dir",
    ):  # fmt: skip
        seen[name] = outcome(lambda name=name: getattr(context, name))
        seen[f"{name} is set"] = outcome(lambda name=name: setattr(context, name, "other"))
    for name in NAMES:
        seen[f"parameter {name}"] = outcome(lambda name=name: context.get_parameter(name))
        seen[f"optional {name}"] = outcome(lambda name=name: context.get_optional_parameter(name))
        seen[f"default {name}"] = outcome(lambda name=name: context.get_optional_parameter(name, "d"))
        seen[f"secret {name}"] = outcome(lambda name=name: context.get_secret_parameter(name))
    seen["input"] = outcome(lambda: described(context.get_input()))
    seen["changesets"] = outcome(lambda: noted(context))
    seen["one manager"] = outcome(lambda: context.file_changeset_manager is context.file_changeset_manager)
    if context.dataset_id.startswith("__"):
        seen["dataset"] = outcome(lambda: context.dataset)
    return seen


def described(given):
    return {
        "files": [
            [file.file_id, file.dataset_id, file.tags, file.metadata, plain(path), file.to_dict()]
            for file, path in given.files
        ],
        "topics": [[t.topic_id, t.name, t.file_id, t.record.model_dump(mode="json")] for t in given.topics],
        "sessions": [[s.session_id, s.name, s.record.model_dump(mode="json")] for s in given.sessions],
        "by name": [topic.topic_id for topic in given.get_topics_by_name("/imu")],
        "by no name": given.get_topics_by_name("nothing"),
    }


def noted(context):
    manager = context.file_changeset_manager
    report = context.output_dir / "report.json"
    report.write_text(json.dumps({"of": context.invocation_id}))
    return [
        manager.put_tags(report.name, ["a", "é"]),
        manager.remove_tags(report.name, ["a"]),
        manager.put_fields(report.name, {"deep.er": [1, None, {"x": 2.5}]}),
        manager.remove_fields(report.name, ["deep"]),
        manager.set_description(report.name, "what it says"),
        manager.set_description("other/file", None),
    ]


class Lines(logging.Handler):
    """Counts the warnings."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record):
        self.count += 1


def in_a_fork(context_class, environment):
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                lines = Lines()
                logging.getLogger().addHandler(lines)
                os.environ.update(environment)
                json.dump({**observe(context_class), "warnings": lines.count}, answer)
                answer.flush()
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return json.load(answer)


if __name__ == "__main__":
    scenarios = json.load(sys.stdin)
    runtime = importlib.import_module(sys.argv[1])
    _ = runtime.ActionInput, runtime.FilesChangesetFileManager  # what is imported late, once for all forks
    json.dump(
        [in_a_fork(getattr(runtime, scenario["class"]), scenario["environment"]) for scenario in scenarios],
        sys.stdout,
    )
