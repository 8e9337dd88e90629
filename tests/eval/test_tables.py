"""The cells that the terminal, Markdown and HTML share."""

from eval.tables import FEW_NOTE, cell, grid, kind_title, lang_title, markdown_table, metrics_grid, text_table

ROWS = {
    "cpp": {
        "n": 50,
        "groups": 9,
        "base": {"value": 0.25, "low": 0.204, "high": 0.3},
        "expert": {"value": 0.6, "low": None, "high": None},
        "difference": {"value": -0.0002, "low": -0.05, "high": 0.35},
        "ratio": {"value": 2.4, "low": 2.25, "high": 2.499},
    }
}


def test_cells_are_scaled_signed_and_rounded() -> None:
    head, rows = grid(ROWS)
    assert head == ["Language", "n", "Base", "Expert", "Difference", "Times base"]
    assert rows == [
        [("C++", ""), ("50", ""), ("25.0", "[20.4, 30.0]"), ("60.0", ""), ("-0.0", "[-5.0, +35.0]"), ("2.40×", "[2.25, 2.50]")],
    ]
    assert [cell("difference", {"value": value, "low": None})[0] for value in (0.0002, -0.0, -1e-17)] == ["+0.0"] * 3
    assert cell("kept", {"value": 0.956, "low": 0.9, "high": 1.01}) == ("95.6 %", "[90.0, 101.0]")
    assert cell("ratio", {"value": None, "low": None, "high": None}) == cell("ratio", None) == ("–", "")


def test_text_and_markdown_print_the_same_cells() -> None:
    for text in (text_table("Title", {"wording": ROWS}), markdown_table(*grid(ROWS))):
        assert all(shown in text for shown in ("C++", "25.0 [20.4, 30.0]", "2.40× [2.25, 2.50]"))
    widths = {len(line) for line in text_table("Title", {"wording": ROWS}).splitlines()[2:]}
    assert len(widths) == 1


def test_an_interval_of_few_problems_has_a_mark_and_the_table_a_note() -> None:
    few = {"cpp": {**ROWS["cpp"], "ratio": {"value": 135.59, "low": 124.32, "high": 144.64, "few": True}}}
    for shown in (text_table, lambda _, table: markdown_table(*grid(table["wording"]))):
        text = shown("Title", {"wording": few})
        assert "135.59× [124.32, 144.64]†" in text and text.splitlines()[-1].strip() == FEW_NOTE and text.count("†") == 2
        assert "†" not in shown("Title", {"wording": ROWS})


def test_every_metric_that_a_run_has_is_a_column() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.625, "n": 9}
    details = {"cpp": {"base": {"test": {"metrics": {"codebleu": estimate, "compiles": estimate}}}, "expert": {"test": {"n": 1}}}}
    head, rows = metrics_grid(details)
    assert head == ["Language", "System", "Points", "CodeBLEU", "Compiles"]
    assert rows[0] == [("C++", ""), ("Base", ""), ("test", ""), *[("50.0", "[40.0, 62.5]")] * 2]
    assert rows[1][3:] == [("–", "")] * 2
    assert metrics_grid({"cpp": {"expert": {"test": {"n": 1}}}}) == ([], [])


def test_titles() -> None:
    assert [lang_title(name) for name in ("cpp", "all", "maths")] == ["C++", "All languages", "maths"]
    assert kind_title("family") == "Unseen problem families"
    assert kind_title("odd") == "Odd"
