"""What people read under a picture: one or a few short sentences, in place of the encoded line that goes into the PNG."""

from __future__ import annotations

from collections.abc import Sequence

from lafr_core.faces.trust import verdict

from .infotext import Report

LISTED = 4
"""Up to this many faces are told one by one."""


def sentence(report: Report) -> str:
    """The report in words. Change is the cosine of photo and result (1 = the same), likeness that of result and reference."""
    parts = [_opening(report)]
    if report.status == "ok":
        for label, values in (
            ("Change (1 = none)", report.change),
            ("Likeness to the reference", report.likeness),
        ):
            if text := _numbers(values):
                parts.append(f"{label} {text}")
        if text := _verdicts(report.trust):
            parts.append(f"Trust - {text}")
    if report.note and report.status != "failed":
        parts.append(report.note[0].upper() + report.note[1:])
    return ". ".join(part.rstrip(".") for part in parts) + "."


def _opening(report: Report) -> str:
    if report.status == "failed":
        return f"Not restored - {report.note or 'see the console'}"
    if report.status == "stopped":
        return "Stopped; the picture is as it was"
    if report.status == "no face":
        return "No face found; the picture is as it was"
    if report.status == "none selected":
        return "Nothing restored; the picture is as it was"
    if report.request.restore.strength == 0:
        return "Strength 0; the picture is as it was"
    return "1 face restored" if report.restored == 1 else f"{report.restored} faces restored"


def _numbers(values: Sequence[float | None]) -> str:
    """'0.71', '0.71 and 0.64' or '0.52 to 0.88'; '' where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    if len(known) > LISTED:
        return f"{min(known):.2f} to {max(known):.2f}"
    texts = [f"{value:.2f}" for value in known]
    return texts[0] if len(texts) == 1 else f"{' and '.join([' '.join(texts[:-1]), texts[-1]])}"


def _verdicts(trusts: Sequence[float | None]) -> str:
    """'supported', 'supported and a guess' or '4 supported and 2 a guess'; '' where there is no estimate."""
    words = [verdict(value) for value in trusts if value is not None]
    if len(words) <= LISTED:
        return " and ".join(words)
    counts = {word: words.count(word) for word in words}
    return " and ".join(f"{count} {word}" for word, count in counts.items())
