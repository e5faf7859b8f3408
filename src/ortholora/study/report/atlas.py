"""The conflict atlas on a study's page: where tasks conflict, how surely, since when, and whose gradients are large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ortholora.study.report.figures import cosine_panels, size_panels
from ortholora.study.report.page import Folded, HeatMap, Panels, Paragraph, Part, Section, Sentences, Table
from ortholora.study.statistics.atlas import Map, conflict_map, cosine_lines, over_time, size_lines, size_map
from ortholora.trainers.history import ConflictHistory

#: Pairs that are drawn; more rows than this are shown on request, where nothing is sure of them.
_MOST_PANELS, _MOST_ROWS = 6, 15
#: Smaller values are not drawn in the strongest colour, however small all are.
_LEAST_FULL = 0.05
_HOW = (
    "Numbers are mean cosines of the two tasks' gradients in single steps, in hundredths: −100 is straight against "
    "each other, +100 the same direction. Orange: surely against; blue: surely along; grey: not sure. Single steps are "
    "noisy, which makes every number smaller than the cosine without noise. Of the coloured cells at most about one in "
    "twenty is expected to be wrong."
)


def atlas_section(
    summary: dict[str, Any], histories: Mapping[str, Sequence[ConflictHistory]], use: str | None = None
) -> Section:
    """Where and when tasks conflict, as the runs of one method saw it: of `use`, or of the first rule of the study."""
    title = "Where tasks conflict"
    wanted = (name for name in (use, summary.get("recovered_method"), *histories) if name in histories)
    method = next(wanted, None)
    if method is None:
        return Section(title, _without_histories(summary))
    found = histories[method]
    conflicts = conflict_map(found)
    parts: list[Part] = [
        Sentences(atlas_sentences(conflicts, size_map(found))),
        *_heat(
            f"Conflict of every pair, of everything and by layer (A and B apart), in the runs of {method}.", conflicts
        ),
        *_time(found, conflicts),
        *_sizes(found),
    ]
    return Section(title, parts, _HOW)


def atlas_sentences(conflicts: Map, sizes: Map) -> list[str]:
    """What the maps say: where a pair is surely in conflict or agreement, whose gradients are small and large."""
    lines = []
    for name, row in conflicts.rows.items():
        places = [(cell[0] < 0) for cell in row[1:] if cell is not None and cell[1]]
        against, along = sum(places), len(places) - sum(places)
        found = [f"against each other in {against}"] * bool(against) + [f"along in {along}"] * bool(along)
        if found:
            lines.append(f"{name}: surely {' and '.join(found)} of {len(row) - 1} places (layers, A and B apart).")
    kept = lines[:_MOST_PANELS]
    if len(lines) > len(kept):
        kept.append(f"{len(lines) - len(kept)} more pairs have sure places.")
    if not lines:
        kept.append("Of no pair it is sure, in any layer, that it conflicts or agrees.")
    whole = {name: 2 ** row[0][0] for name, row in sizes.rows.items() if row[0] is not None}
    if len(whole) > 1:
        small, large = min(whole, key=lambda name: whole[name]), max(whole, key=lambda name: whole[name])
        kept.append(
            f"The smallest gradients are those of {small} ({whole[small]:.2g}× the mean task's), the largest those of "
            f"{large} ({whole[large]:.2g}×)."
        )
    return kept


def _without_histories(summary: dict[str, Any]) -> list[Part]:
    """What a summary alone says of conflicts."""
    why = "There is no map by layer: the runs that kept one are not here, or were made without a rule."
    rows = [
        [method, *pair.split("~"), f"{100 * figures['cosine']:+.1f}{_error(figures)}", figures["verdict"]]
        for method, conflict in (summary.get("conflict") or {}).items()
        if conflict
        for pair, figures in conflict["pairs"].items()
    ]
    header = ["method", "task", "and task", "cosine × 100", "surely"]
    caption = "Mean cosine of the two tasks' whole gradients in single steps, with its standard error."
    return [Paragraph(why, muted=True), *([Table(header, rows, caption, left=3)] if rows else [])]


def _error(figures: dict[str, Any]) -> str:
    return "" if figures["standard_error"] is None else f" ± {100 * figures['standard_error']:.1f}"


def _heat(caption: str, found: Map) -> list[Part]:
    """The map; of many pairs those of which nothing is sure on request."""
    groups = _named(found)
    full = max([_LEAST_FULL, *(abs(c[0]) for row in found.rows.values() for c in row if c is not None and c[1])])
    if len(found.rows) <= _MOST_ROWS:
        return [HeatMap(caption, groups, found.rows, full)]
    sure = {name: row for name, row in found.rows.items() if any(cell is not None and cell[1] for cell in row)}
    rest = {name: row for name, row in found.rows.items() if name not in sure}
    parts: list[Part] = [HeatMap(caption, groups, sure, full)] if sure else []
    if rest:
        parts.append(Folded(f"{len(rest)} pairs of which nothing is sure", [HeatMap(caption, groups, rest, full)]))
    return parts


def _named(found: Map) -> dict[str, Sequence[str]]:
    return {f"{name} of layer" if name in ("A", "B") else name: columns for name, columns in found.groups.items()}


def _time(histories: Sequence[ConflictHistory], conflicts: Map) -> list[Part]:
    lines = cosine_lines(histories)
    whole = {name: row[0] for name, row in conflicts.rows.items() if name in lines and row[0] is not None}
    surest = sorted(whole, key=lambda name: (whole[name][1], abs(whole[name][0])), reverse=True)[:_MOST_PANELS]
    kept = {name: lines[name] for name in lines if name in surest}
    parts: list[Part] = []
    if kept and len(next(iter(kept.values())).steps) > 1:
        more = " The strongest pairs, the sure ones first." if len(whole) > len(kept) else ""
        caption = f"How conflicts changed over the training. {_drawn(histories)}{more}"
        parts.append(Panels(cosine_panels(kept), caption=caption))
    parts.append(
        Folded("The same in numbers", _heat("Conflict of every pair, by part of the training.", over_time(histories)))
    )
    return parts


def _sizes(histories: Sequence[ConflictHistory]) -> list[Part]:
    found = size_map(histories)
    caption = (
        "Size of each task's gradient, noise included, over the geometric mean of all tasks: of everything and by "
        "layer. A task with 0.2× has little say in the sum; a rule that balances, or a weight, gives it more."
    )
    full = max([1.0, *(abs(cell[0]) for row in found.rows.values() for cell in row if cell is not None)])
    heat = HeatMap(caption, _named(found), found.rows, full, form="times")
    return [heat, size_panels(size_lines(histories), _drawn(histories))]


def _drawn(histories: Sequence[ConflictHistory]) -> str:
    return "Lines: means over the seeds; bands: from the lowest to the highest seed." if len(histories) > 1 else ""
