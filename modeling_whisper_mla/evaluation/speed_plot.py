"""Milliseconds per token by model and setting, as a picture."""

from pathlib import Path

from .pictures import save_whole


def write_speed_plot(report: dict, path: Path) -> None:
    """Draw a line per model over the settings, and write a PNG whole or not at all.

    Args:
        report: of `whisper-mla benchmark speed`: `settings`, each with `label` and, by model, `milliseconds_per_token`.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # takes time that other commands need not spend

    rows = report["settings"]
    figure = Figure(figsize=(max(6.0, 0.9 * len(rows) + 3), 4.5), layout="constrained")
    axes = figure.subplots()
    for name in rows[0]["models"]:
        values = [row["models"][name]["milliseconds_per_token"] for row in rows]
        axes.plot(range(len(rows)), [float("nan") if value is None else value for value in values], "o-", label=name)
    axes.set_xticks(range(len(rows)), [row["label"].replace(", ", "\n") for row in rows], fontsize=7)
    axes.set(ylabel="ms per token", yscale="log", title=f"{report['model']}, {report['environment']['device']}")
    axes.title.set_fontsize(8)
    axes.legend(fontsize=8)
    save_whole(figure, path, dpi=110)
