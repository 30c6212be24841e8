"""The Flyte tasks of `temperature_forecast`: train a model for each file, and predict the next readings.

To deploy them with an installed and configured Flyte SDK: flyte deploy forecast_tasks.py env
"""

from dataclasses import dataclass

import flyte

env = flyte.TaskEnvironment(name="forecast")


@dataclass
class Model:
    """The mean of each hour of a season, and how much all of them rise per season."""

    means: list[float]
    rise: float = 0.0


@env.task
async def train(readings: list[float], season: int = 24) -> Model:
    """Fit a model to a series with `season` readings per season; it needs at least two seasons."""
    seasons = [readings[start : start + season] for start in range(0, len(readings) - season + 1, season)]
    if len(seasons) < 2:
        raise ValueError(f"{len(readings)} readings are fewer than two seasons of {season}")
    averages = [sum(one) / season for one in seasons]
    rise = (averages[-1] - averages[0]) / (len(averages) - 1)
    print(f"{len(seasons)} seasons, rising by {rise:.3f} a season")  # noqa: T201  a run's log
    return Model(means=[sum(hour) / len(seasons) for hour in zip(*seasons, strict=True)], rise=rise)


@env.task
async def predict(model: Model, steps: int) -> list[float]:
    """Predict the next `steps` readings."""
    season = len(model.means)
    return [model.means[step % season] + model.rise * (1 + step // season) for step in range(steps)]
