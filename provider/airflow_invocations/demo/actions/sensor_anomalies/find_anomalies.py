"""Find anomalies of temperature sensors: readings unusual for their hour and season, and missing readings.

Progress is printed month by month. The report and a plot are written to the output folder, in a folder with
the file's name. The report is tagged, and its metadata has a summary.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from airflow_invocations.runtime import ExitCode, InvocationContext

#: Days before and after a day of the year that count as its season.
SEASON_DAYS = 15

#: Factor from the median absolute deviation to the standard deviation of normally distributed values.
MAD_TO_DEVIATION = 1.4826

#: Date formats of known sensor files.
DATE_FORMATS = ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d")


class ActionError(Exception):
    """The action failed; `exit_code` says whose mistake it is."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Parameters:
    """Parameters of the action, described in action.json."""

    file: Path
    threshold: float
    pace_seconds: float

    @classmethod
    def of(cls, context: InvocationContext) -> Parameters:
        """Read the parameters. Raises ActionError for an invalid value."""
        file = context.get_optional_parameter("file")
        if not file:
            raise ActionError(ExitCode.UsageError, "parameter `file` is missing: the path of a sensor file")
        return cls(
            file=Path(file),
            threshold=_positive(context, "threshold", default=3.0),
            pace_seconds=_positive(context, "pace_seconds", default=0.0),
        )


def _positive(context: InvocationContext, name: str, default: float) -> float:
    text = context.get_optional_parameter(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ActionError(ExitCode.UsageError, f"parameter `{name}` is {text!r}; allowed: a number ≥ 0")
    return value


@dataclass(frozen=True)
class Reading:
    """A value of a sensor at a time of its own clock."""

    moment: datetime.datetime
    value: float


@dataclass(frozen=True)
class Typical:
    """Typical value and deviation of readings for an hour and season."""

    value: float
    deviation: float

    def strangeness(self, value: float) -> float:
        """Return the distance of `value` in robust standard deviations."""
        return abs(value - self.value) / self.deviation


@dataclass(frozen=True)
class Anomaly:
    """A reading that is unusual for its hour and season."""

    sensor: str
    moment: datetime.datetime
    value: float
    typical: float
    strangeness: float


@dataclass(frozen=True)
class Gap:
    """`missing` readings that are absent between two others."""

    after: datetime.datetime
    before: datetime.datetime
    missing: int


def read_sensors(file: Path) -> dict[str, list[Reading]]:
    """Return the readings of each `temp*` column, sorted by time; empty cells are skipped.

    Raises ActionError, which names the line, if the file doesn't exist or contains anything but readings.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines)
            columns = rows.fieldnames or []
            names = [name for name in columns if name.startswith("temp")]
            if "date" not in columns or not names:
                raise ActionError(
                    ExitCode.DataError,
                    f"{file}: the columns are {list(columns)}; required: date, and temp or temp_*",
                )
            sensors = _readings_by_sensor(file, rows, names)
    except OSError as error:
        raise ActionError(ExitCode.UsageError, f"can't read {file}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ActionError(ExitCode.DataError, f"{file} is not a CSV file in UTF-8: {error}") from error
    for name, readings in sensors.items():
        if len(readings) < 2:
            raise ActionError(
                ExitCode.DataError, f"{file}: column {name} has {len(readings)} readings; required: 2 or more"
            )
        readings.sort(key=lambda reading: reading.moment)
    return sensors


def _readings_by_sensor(
    file: Path, rows: csv.DictReader[str], names: Sequence[str]
) -> dict[str, list[Reading]]:
    sensors: dict[str, list[Reading]] = {name: [] for name in names}
    for row in rows:
        try:
            moment = parse_moment(row["date"] or "")
            for name in names:
                if row[name]:
                    sensors[name].append(Reading(moment, parse_value(row[name])))
        except ValueError as error:
            raise ActionError(ExitCode.DataError, f"{file}, line {rows.line_num}: {error}") from error
    return sensors


def parse_moment(text: str) -> datetime.datetime:
    """Parse a time of the sensor's clock. Raises ValueError for an unknown format."""
    for date_format in DATE_FORMATS:
        try:
            return datetime.datetime.strptime(text, date_format)
        except ValueError:
            continue
    raise ValueError(f"date {text!r} has an unknown format; known: {', '.join(DATE_FORMATS)}")


def parse_value(text: str) -> float:
    """Parse a temperature. Raises ValueError unless it is a finite number."""
    value = float(text)
    if not math.isfinite(value):  # `nan` would change medians without an error
        raise ValueError(f"a reading is {text!r}; allowed: a number, or an empty cell for a missing reading")
    return value


def resolution(readings: Sequence[Reading]) -> float:
    """Return the smallest difference between two values: the precision of the sensor."""
    values = sorted({reading.value for reading in readings})
    return min((b - a for a, b in itertools.pairwise(values)), default=1.0)


class Climate:
    """Typical values for each hour of the day and day of the year, computed from the readings.

    Uses medians, because the readings include the anomalies, which would shift a mean.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._values: dict[tuple[int, int], list[float]] = defaultdict(list)
        for reading in readings:
            self._values[_slot(reading.moment)].append(reading.value)
        # If most readings are equal, their deviation is 0; but no sensor is more precise than its last digit.
        self._least_deviation = resolution(readings)
        self._known: dict[tuple[int, int], Typical] = {}

    def typical(self, moment: datetime.datetime) -> Typical:
        """Return what is typical at this hour, within SEASON_DAYS of this day of the year."""
        slot = _slot(moment)
        if slot not in self._known:
            values = self._season(*slot)
            middle = statistics.median(values)
            spread = statistics.median(abs(value - middle) for value in values)
            deviation = max(spread * MAD_TO_DEVIATION, self._least_deviation)
            self._known[slot] = Typical(middle, deviation)
        return self._known[slot]

    def _season(self, day: int, hour: int) -> list[float]:
        days = ((day - 1 + shift) % 366 + 1 for shift in range(-SEASON_DAYS, SEASON_DAYS + 1))
        return [value for other in days for value in self._values.get((other, hour), ())]


def _slot(moment: datetime.datetime) -> tuple[int, int]:
    return moment.timetuple().tm_yday, moment.hour


def find_anomalies(
    sensor: str, readings: Sequence[Reading], climate: Climate, threshold: float
) -> list[Anomaly]:
    """Return readings more than `threshold` robust standard deviations away from the typical value."""
    found = []
    for reading in readings:
        typical = climate.typical(reading.moment)
        strangeness = typical.strangeness(reading.value)
        if strangeness > threshold:
            found.append(Anomaly(sensor, reading.moment, reading.value, typical.value, round(strangeness, 2)))
    return found


def cadence(readings: Sequence[Reading]) -> datetime.timedelta:
    """Return the median time between two readings."""
    steps = [(b.moment - a.moment).total_seconds() for a, b in itertools.pairwise(readings)]
    return datetime.timedelta(seconds=statistics.median(steps))


def find_gaps(readings: Sequence[Reading], step: datetime.timedelta) -> list[Gap]:
    """Return the gaps in the readings of a sensor that measures every `step`."""
    return [
        Gap(a.moment, b.moment, missing)
        for a, b in itertools.pairwise(readings)
        if step and (missing := round((b.moment - a.moment) / step) - 1) > 0
    ]


def by_month(readings: Sequence[Reading]) -> Iterator[tuple[str, list[Reading]]]:
    """Yield the readings by calendar month, with its name, such as `2010-03`."""
    for month, chunk in itertools.groupby(readings, key=lambda reading: f"{reading.moment:%Y-%m}"):
        yield month, list(chunk)


class Pace:
    """Spreads `steps` evenly over at least `seconds`."""

    def __init__(self, seconds: float, steps: int) -> None:
        self._each = seconds / max(steps, 1)
        self._due = time.monotonic()

    def wait(self) -> None:
        """Wait until the next step is due; return immediately if the work was slower."""
        self._due += self._each
        time.sleep(max(0.0, self._due - time.monotonic()))


@dataclass(frozen=True)
class Report:
    """The anomalies and gaps in a file."""

    file: str
    sensors: dict[str, list[Reading]]
    threshold: float
    anomalies: list[Anomaly]
    gaps: list[Gap]

    def full(self) -> dict[str, object]:
        """Return the complete report, without the readings."""
        return {
            **self._about(),
            "anomalies": [_plain(asdict(anomaly)) for anomaly in self.anomalies],
            "gaps": [_plain(asdict(gap)) for gap in self.gaps],
        }

    def summary(self) -> dict[str, object]:
        """Return the numbers of anomalies and missing readings, and the worst anomaly."""
        worst = max(self.anomalies, key=lambda anomaly: anomaly.strangeness, default=None)
        return {
            **self._about(),
            "anomalies": len(self.anomalies),
            "missing": sum(gap.missing for gap in self.gaps),
            "worst": None if worst is None else _plain(asdict(worst)),
        }

    def _about(self) -> dict[str, object]:
        readings = list(self.sensors.values())
        return {
            "file": self.file,
            "sensors": list(self.sensors),
            "readings": sum(map(len, readings)),
            "from": min(each[0].moment for each in readings).isoformat(),
            "to": max(each[-1].moment for each in readings).isoformat(),
            "cadence_minutes": cadence(readings[0]).total_seconds() / 60,
            "threshold": self.threshold,
        }


def inspect(parameters: Parameters, sensors: dict[str, list[Reading]]) -> Report:
    """Find anomalies of every sensor month by month, and print them."""
    months = {name: list(by_month(readings)) for name, readings in sensors.items()}
    pace = Pace(parameters.pace_seconds, sum(map(len, months.values())))
    anomalies: list[Anomaly] = []
    gaps: list[Gap] = []
    for name, readings in sensors.items():
        climate = Climate(readings)
        for month, chunk in months[name]:
            found = find_anomalies(name, chunk, climate, parameters.threshold)
            print(_progress_line(name, month, chunk, found))
            anomalies += found
            pace.wait()
        # All columns of a file share its rows, so a missing row is one gap for all of them.
        gaps += [gap for gap in find_gaps(readings, cadence(readings)) if gap not in gaps]
    for gap in gaps:
        print(f"missing: {gap.missing} between {gap.after:%Y-%m-%d %H:%M} and {gap.before:%Y-%m-%d %H:%M}")
    return Report(parameters.file.name, sensors, parameters.threshold, anomalies, gaps)


def _progress_line(sensor: str, month: str, chunk: Sequence[Reading], found: Sequence[Anomaly]) -> str:
    values = [reading.value for reading in chunk]
    line = f"{month} {sensor}: {len(chunk)} readings, {min(values):g} to {max(values):g}"
    if not found:
        return line
    worst = max(found, key=lambda anomaly: anomaly.strangeness)
    return (
        f"{line}; {len(found)} anomalous, worst {worst.value:g} on {worst.moment:%d at %H:%M}"
        f" (typical {worst.typical:.1f}, {worst.strangeness:.1f} deviations)"
    )


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    return {
        name: value.isoformat() if isinstance(value, datetime.datetime) else value
        for name, value in fields.items()
    }


def plot(report: Report, file: Path) -> None:
    """Plot readings, typical ranges, anomalies and gaps of every sensor into a PNG file."""
    figure = Figure(figsize=(12, 3.5 * len(report.sensors)), layout="constrained")
    figure.suptitle(report.file)
    rows = figure.subplots(len(report.sensors), squeeze=False)[:, 0]
    for axes, (name, readings) in zip(rows, report.sensors.items(), strict=True):
        _plot_sensor(axes, report, name, readings)
    figure.savefig(file, dpi=100)


def _plot_sensor(axes: Axes, report: Report, name: str, readings: Sequence[Reading]) -> None:
    climate = Climate(readings)
    moments = [reading.moment for reading in readings]
    typical = [climate.typical(moment) for moment in moments]
    axes.fill_between(
        moments,
        [usual.value - report.threshold * usual.deviation for usual in typical],
        [usual.value + report.threshold * usual.deviation for usual in typical],
        color="tab:blue",
        alpha=0.2,
        linewidth=0,
        label=f"typical, up to {report.threshold:g} deviations",
    )
    axes.plot(moments, [reading.value for reading in readings], color="0.3", linewidth=0.5, label="reading")
    own = [anomaly for anomaly in report.anomalies if anomaly.sensor == name]
    axes.plot(
        [anomaly.moment for anomaly in own],
        [anomaly.value for anomaly in own],
        "o",
        color="tab:red",
        markersize=4,
        label=f"anomalous ({len(own)})",
    )
    for gap in report.gaps:
        axes.axvline(gap.after, color="tab:orange", linewidth=1)  # type: ignore[arg-type]
    axes.set_ylabel(name)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def write_outputs(report: Report, context: InvocationContext) -> None:
    """Write the report and its plot as outputs, with tags and the summary as metadata."""
    folder = Path(report.file).stem
    (context.output_dir / folder).mkdir()
    (context.output_dir / folder / "report.json").write_text(
        json.dumps(report.full(), indent=2), encoding="utf-8"
    )
    plot(report, context.output_dir / folder / "anomalies.png")
    changes = context.file_changeset_manager
    changes.put_tags(f"{folder}/report.json", ["anomalies", "report"])
    changes.put_fields(f"{folder}/report.json", {"invocation_id": context.invocation_id, **report.summary()})
    changes.put_tags(f"{folder}/anomalies.png", ["anomalies", "plot"])


def main() -> int:
    """Run this process's invocation; return the exit code."""
    context = InvocationContext.from_env()
    try:
        parameters = Parameters.of(context)
        sensors = read_sensors(parameters.file)
    except ActionError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{parameters.file.name}: {sum(map(len, sensors.values()))} readings of {', '.join(sensors)}")
    report = inspect(parameters, sensors)
    write_outputs(report, context)
    return ExitCode.Success


if __name__ == "__main__":
    # Line buffering also for a pipe, because the log is read while the action runs.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
