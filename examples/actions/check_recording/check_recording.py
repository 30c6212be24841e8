import sys

from airflow_invocations.runtime import ExitCode, InvocationContext

context = InvocationContext.from_env()
recording = context.get_parameter("recording")
threshold = float(context.get_optional_parameter("threshold", "0.5"))
if not recording.endswith(".mcap"):
    print(f"{recording} is not a recording", file=sys.stderr)
    sys.exit(ExitCode.DataError)
print(f"{recording} passed with a threshold of {threshold:g}")
