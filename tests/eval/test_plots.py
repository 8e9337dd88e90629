"""What the figures show stands where their labels say."""

from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb

from eval.plots import ROLE_COLOURS, THEMES, distributions_figure, means_figure
from eval.tables import HEADS


def test_a_system_stands_at_its_name_in_all_panels() -> None:
    """Also where languages and kinds of point have not the same systems, and within the axis."""
    low, middle, high = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]
    scores = {
        "wording": {"java": {"base": low, "expert": middle, "mixture": high}, "cpp": {"base": low, "expert": middle}},
        "family": {"java": {"base": low, "mixture": high}, "cpp": {"base": low, "expert": [], "mixture": high}},
    }
    figure = distributions_figure(scores, THEMES["light"])
    drawn = {HEADS[role]: to_rgb(colour) for role, colour in ROLE_COLOURS.items()}
    panels = iter(figure.axes)
    for langs in scores.values():
        row = [next(panels) for _ in langs]  # whose first panel alone shows the labels
        names = {text.get_text(): place for place, text in zip(row[0].get_yticks(), row[0].get_yticklabels(), strict=True)}
        for axis, roles in zip(row, langs.values(), strict=True):
            bottom, top = axis.get_ylim()
            clouds = [cloud for cloud in axis.collections if isinstance(cloud, PathCollection)]
            found = {tuple(cloud.get_facecolor()[0][:3]): cloud.get_offsets() for cloud in clouds}
            assert set(found) == {drawn[HEADS[role]] for role, values in roles.items() if values}
            for role, values in roles.items():
                for x, y in found[drawn[HEADS[role]]] if values else ():
                    assert bottom < y < top
                    assert min(names, key=lambda name: abs(names[name] - y)) == HEADS[role]
                    assert any(abs(x - 100 * value) < 1e-9 for value in values)


def test_intervals_of_few_problems_are_marked() -> None:
    few = {"value": 0.25, "low": 0.2, "high": 0.3, "few": True}
    many = {"value": 0.5, "low": 0.4, "high": 0.6}
    figure = means_figure([{"wording": {"cpp": {"base": few, "expert": many}}}], THEMES["light"])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["25†", "50"]
