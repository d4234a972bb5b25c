"""The report of a conversion as tables and lines for people."""

from rich.table import Table


def latents_table(report: dict) -> Table:
    """One row per low-rank latent of a report of `conversion_report`."""
    table = Table(title=f"Low-rank latents ({describe_method(report)})", title_justify="left", caption_justify="left")
    table.add_column("latent", no_wrap=True)
    for column in ("rank", "energy kept", "error in scores", "error in outputs", "vectors"):
        table.add_column(column, justify="right")
    for latent in report["latents"]:
        table.add_row(
            latent["name"],
            str(latent["rank"]),
            f"{latent['retained_energy']:.4%}",
            _percent(latent["score_error"]),
            _percent(latent["output_error"]),
            "–" if latent["vectors"] is None else f"{latent['vectors']:,}",
        )
    table.caption = (
        "energy in the method's own norm, before any refit; errors relative RMS, predicted from calibration statistics"
    )
    return table


def record_lines(record: dict) -> list[str]:
    """Where a converted checkpoint comes from: a record of `read_conversion_record`."""
    source, versions = record.get("source", {}), record.get("versions", {})
    revision = f" at {source['revision']}" if source.get("revision") else ""
    lines = [
        f"Converted from {source.get('name', 'unknown')}{revision}, {record.get('date', 'date unknown')}: "
        f"{describe_method(record)} (whisper-mla {versions.get('whisper-mla')}, transformers "
        f"{versions.get('transformers')}, torch {versions.get('torch')})."
    ]
    lines += [f"Source {name}: SHA-256 {checksum}" for name, checksum in source.get("sha256", {}).items()]
    calibration = record.get("calibration")
    if calibration and calibration.get("used"):
        lines.append(f"Calibrated on {calibration['clips']} clips, {calibration['seconds']} s of audio.")
    healing = record.get("healing")
    if healing:
        lines.append(
            f"Trained after the conversion: {healing.get('steps')} steps, {healing.get('loss')}. What follows was "
            "measured before."
        )
    return lines


def quality_lines(report: dict) -> list[str]:
    """What was measured, and how the ranks were chosen; nothing that was not."""
    lines = []
    if report.get("rank_choice"):
        lines.append(f"Chosen: {report['rank_choice']['reason']}.")
    refit = report.get("refit")
    if refit and refit["kl_before"] is not None:
        kept = "kept" if refit["kept"] else "not kept"
        lines.append(
            f"Refit of all up projections together: KL on held-out audio {refit['kl_before']:.2g} before, "
            f"{refit['kl_after']:.2g} after; {kept}."
        )
    quality = report.get("quality")
    if quality:
        lines.append(
            f"Measured on {quality['measured_on']} ({quality['tokens']} tokens): KL to stock "
            f"{quality['kl_per_token']:.2g} nats per token, same next token {quality['token_agreement']:.2%}."
        )
        words = quality.get("words")
        if words and words["rate"] is not None:
            lines.append(
                f"Transcripts: word error rate {words['rate']:.2%} against stock's own {words['words']} words, "
                f"{words['same_clips']} of {words['clips']} equal."
            )
    elif report.get("latents"):
        missing = "no clips to hold out" if report.get("calibration") else "no audio of use: give --calibration"
        lines.append(f"Quality: not measured ({missing}).")
    return lines


def describe_method(report: dict) -> str:
    """The method with its options, as in "fisher, floor=0.1"."""
    options = [f"{name}={value}" for name, value in report.get("method_options", {}).items()]
    sequential = ["sequential"] if report.get("sequential") else []
    refit = ["refit"] if (report.get("refit") or {}).get("kept") else []
    return ", ".join([report["method"], *options, *sequential, *refit])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
