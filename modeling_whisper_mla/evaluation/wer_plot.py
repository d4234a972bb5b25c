"""Word error rate against the size of the decode cache, as a picture."""

from pathlib import Path

from .pictures import save_whole


def write_wer_plot(report: dict, path: Path) -> None:
    """Draw one point per model and dataset, with its confidence interval, and write a PNG whole or not at all.

    Args:
        report: of `whisper_mla.evaluation.evaluation_report`.
        path: of the PNG.
    """
    # Imported here, because it takes time that other commands need not spend. No pyplot: no global state, no display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes = [model["cache_bytes"]["total"] / 1e6 for model in report["models"]]
    for dataset in report["models"][0]["scores"]["datasets"]:
        scores = [model["scores"]["datasets"].get(dataset) for model in report["models"]]
        points = [(size, score) for size, score in zip(sizes, scores, strict=True) if score and score["wer_interval"]]
        rates = [score["wer"] * 100 for _, score in points]
        lengths = [  # of the bars below and above; a bootstrap interval can lie beside its estimate
            [max(0.0, 100 * (score["wer"] - score["wer_interval"][0])) for _, score in points],
            [max(0.0, 100 * (score["wer_interval"][1] - score["wer"])) for _, score in points],
        ]
        axes.errorbar([size for size, _ in points], rates, yerr=lengths, fmt="o", capsize=4, alpha=0.8, label=dataset)
    above = axes.get_xaxis_transform()
    for number, (size, model) in enumerate(zip(sizes, report["models"], strict=True)):
        place = 0.97 - 0.05 * (number % 4)  # neighbours at different heights
        axes.text(size, place, Path(model["model"]).name, transform=above, ha="center", va="top", fontsize=8)
    if max(sizes) > 10 * min(sizes):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.15)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + (top - bottom) * 0.3)
    axes.set_xlabel("decode cache of one audio, all text positions (MB, computed)")
    axes.set_ylabel(f"word error rate (%), {report['settings']['confidence']:.0%} interval")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    save_whole(figure, path, dpi=150)
