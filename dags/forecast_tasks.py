"""The Flyte tasks of `temperature_forecast`: a model for each file, and what it expects next.

To deploy them, where the SDK is installed and knows your Flyte: flyte deploy forecast_tasks.py env
"""

from dataclasses import dataclass

import flyte

env = flyte.TaskEnvironment(name="forecast")


@dataclass
class Model:
    """The mean of each hour of a season, and how fast all of them rise from season to season."""

    means: list[float]
    rise: float = 0.0


@env.task
async def train(readings: list[float], season: int = 24) -> Model:
    """Fit a model to a series whose season has so many readings; it needs two seasons at least."""
    seasons = [readings[start : start + season] for start in range(0, len(readings) - season + 1, season)]
    if len(seasons) < 2:
        raise ValueError(f"{len(readings)} readings are less than two seasons of {season}")
    averages = [sum(one) / season for one in seasons]
    rise = (averages[-1] - averages[0]) / (len(averages) - 1)
    print(f"{len(seasons)} seasons, rising by {rise:.3f} a season")  # noqa: T201  a run's log
    return Model(means=[sum(hour) / len(seasons) for hour in zip(*seasons, strict=True)], rise=rise)


@env.task
async def predict(model: Model, steps: int) -> list[float]:
    """The next so many readings."""
    season = len(model.means)
    return [model.means[step % season] + model.rise * (1 + step // season) for step in range(steps)]
